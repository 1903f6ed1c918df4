"""Each sufficient condition by itself: rate, uniqueness, error bounds, thresholds, and verdicts sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from subdeq_plugin.certificates import Certificate, certify
from subdeq_plugin.certificates.engine import CONDITIONS
from subdeq_plugin.certificates.proof import Proof
from subdeq_plugin.layers import BoundMap, SubhomConv2d, SubhomLinear
from subdeq_plugin.layers.operators import ConvOperator, GraphOperator, Propagation, csr
from tests.certificates.test_intervals import D, ExactMap, groups, make_map, operators, uniform
from tests.helpers import random_states

Build = Callable[[], BoundMap]


def signed(size: int, seed: int, scale: float) -> Tensor:
    return scale * uniform(size, size, seed=seed)


def skew(size: int, seed: int, scale: float, diagonal: float = 0.0) -> Tensor:
    half = uniform(size, size, seed=seed).tril(-1)
    return scale * (half - half.t()) + diagonal * torch.eye(size, dtype=D)


def conv(seed: int, scale: float, *, nonnegative: bool = False) -> ConvOperator:
    weight = scale * uniform(2, 2, 3, 3, seed=seed, low=0.0 if nonnegative else -1.0)
    return ConvOperator(weight)


def skew_conv(scale: float, diagonal: float) -> ConvOperator:
    """Taps with `w[c, d, u] = -w[d, c, -u]`, and a centre."""
    weight = uniform(2, 2, 3, 3, seed=5)
    weight = weight - weight.flip(2, 3).transpose(0, 1)
    weight[[0, 1], [0, 1], 1, 1] = 0.0
    weight = scale * weight
    weight[[0, 1], [0, 1], 1, 1] = diagonal
    return ConvOperator(weight)


def graph(seed: int, scale: float, *, nonnegative: bool = False, mixing: bool = False) -> GraphOperator:
    operator = operators(seed, nonnegative=nonnegative)["mixing" if mixing else "graph"][0]
    assert isinstance(operator, GraphOperator)
    matrix = operator.propagation.matrix
    rows = torch.repeat_interleave(torch.arange(4), matrix.crow_indices().diff())
    spread = Propagation.of(csr(rows, matrix.col_indices(), scale * matrix.values(), 4))
    return GraphOperator(spread, operator.weight)


def skew_graph(scale: float, diagonal: float) -> GraphOperator:
    dense = skew(4, 3, scale, diagonal)
    rows, columns = dense.nonzero().t()
    return GraphOperator(Propagation.of(csr(rows, columns, dense[rows, columns], 4)))


DENSE, IMAGE, NODES = (3, 5), (2, 2, 2, 3), (2, 4, 3)


def _u(shape: tuple[int, ...], seed: int = 11, low: float = -1.0) -> Tensor:
    return uniform(*shape, seed=seed, low=low)


# name -> maps that this condition proves
CASES: dict[str, list[Build]] = {
    "subhomogeneous": [
        lambda: make_map(uniform(5, 5, seed=1, low=0.0), None, _u(DENSE, low=0.0), "tanh", 0.1),
        lambda: make_map(uniform(5, 5, seed=1, low=0.0), _u(DENSE, low=0.0), None, "relu", 0.3, 0.8),
        lambda: make_map(uniform(5, 5, seed=1, low=0.0), None, _u(DENSE, low=0.0), "tanh", 0.3, normalize=2),
        lambda: make_map(uniform(5, 5, seed=1, low=0.0), None, _u(DENSE, low=0.0), "softplus", 0.0, -0.4, normalize=3),
        lambda: make_map(conv(2, 1.0, nonnegative=True), None, _u(IMAGE, low=0.0), "tanh", 1.2, normalize="inf",
                         normalize_over="channel"),
        lambda: make_map(graph(2, 1.0, nonnegative=True), _u(NODES, low=0.0), None, "sigmoid", 0.0),
    ],
    "box": [
        lambda: make_map(signed(5, 1, 0.1), None, _u(DENSE, low=0.0), "tanh", 1.4),
        lambda: make_map(signed(5, 1, 0.2), _u(DENSE), None, "sigmoid", 0.4),
        lambda: make_map(conv(2, 0.04), None, _u(IMAGE, low=0.0), "tanh", 1.4, normalize=2, normalize_over="pixel"),
        lambda: make_map(graph(2, 0.1, mixing=True), None, _u(NODES, low=0.0), "erf", 1.6),
        lambda: make_map(signed(5, 1, 0.1), None, _u(DENSE, low=0.0), "tanh", 1.603, normalize="inf"),
    ],
    "norm": [
        lambda: make_map(signed(5, 1, 0.3), _u(DENSE), None, "relu"),
        lambda: make_map(0.9 * torch.eye(5, dtype=D).roll(1, 0), None, -_u(DENSE, low=0.0), "tanh"),
        lambda: make_map(conv(3, 0.08), _u(IMAGE), None, "leaky_relu"),
        lambda: make_map(graph(4, 0.5, mixing=True), _u(NODES), None, "elu"),
        lambda: make_map(0.4 * torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 1, 0]]), _u((2, 3)), None, "interval_swish"),
    ],
    "spectral radius": [
        lambda: make_map(signed(5, 1, 40.0).tril(-1) + 0.5 * torch.eye(5, dtype=D), _u(DENSE), None, "relu"),
        lambda: make_map(signed(5, 1, 3.0).triu(1), None, _u(DENSE), "interval_bump"),
        lambda: make_map(graph(5, 0.55), _u(NODES), None, "softplus"),
        lambda: make_map(conv(6, 0.14), _u(IMAGE), None, "relu"),
    ],
    "matrix measure": [
        lambda: make_map(signed(5, 1, 1.0) - 9 * torch.eye(5, dtype=D), _u(DENSE), None, "relu"),
        lambda: make_map(signed(5, 2, 30.0) - 100 * torch.eye(5, dtype=D), None, _u(DENSE), "erf"),
        lambda: make_map(skew_conv(0.3, -8.0), _u(IMAGE), None, "relu"),
        lambda: make_map(skew_graph(1.0, -4.0), _u(NODES), None, "elu"),
    ],
    "concave": [
        lambda: make_map(uniform(5, 5, seed=1, low=0.0), None, _u(DENSE, low=0.1), "tanh"),
        lambda: make_map(0.35 * uniform(5, 5, seed=1, low=0.0), _u(DENSE, low=0.1), None, "relu"),
        lambda: make_map(conv(2, 1.0, nonnegative=True), _u(IMAGE, low=0.1), None, "softsign"),
        lambda: make_map(graph(2, 0.3, nonnegative=True), None, _u(NODES, low=0.2), "arctan"),
    ],
    "enclosure": [
        lambda: make_map(signed(5, 1, 0.9), None, _u(DENSE, low=0.5), "tanh", 1.2),
        lambda: make_map(signed(5, 3, 0.7), _u(DENSE, low=0.2) * 3, None, "tanh"),
        lambda: make_map(conv(2, 0.2), None, _u(IMAGE, low=0.1), "sigmoid", 0.2, normalize=2),
        lambda: make_map(graph(2, 0.8, mixing=True), _u(NODES) * 2, None, "arctan"),
        lambda: make_map([[0.95]], [[2.0], [0.5]], None, "relu"),
        lambda: make_map(uniform(5, 5, seed=1, low=0.0), None, _u(DENSE, low=0.3), "tanh", normalize=2),
        lambda: make_map(signed(5, 4, 0.4), _u(DENSE), None, "interval_bump"),
    ],
    "monotone": [
        lambda: make_map(skew(5, 1, 50.0), _u(DENSE), None, "relu"),
        lambda: make_map(skew(5, 1, 7.0, 0.9), _u(DENSE), None, "tanh"),
        lambda: make_map(skew_conv(3.0, 0.5), _u(IMAGE), None, "relu"),
        lambda: make_map(skew_graph(9.0, 0.3), _u(NODES), None, "softplus"),
    ],
    "interval newton": [
        lambda: make_map([[-0.5, 1.2], [-1.2, -0.5]], [[0.3, 0.1], [1.0, -0.5]], None, "tanh"),
        lambda: make_map(skew(5, 2, 1.2, -0.5), _u(DENSE) * 0.3, None, "sigmoid"),
        lambda: make_map(skew_conv(0.15, 0.2), _u(IMAGE), None, "tanh"),
        lambda: make_map(skew_graph(0.7, 0.0), _u(NODES), None, "arctan"),
    ],
}  # fmt: skip
ALL = [(name, build) for name, builds in CASES.items() for build in builds]
IDS = [f"{name}-{number}" for name, builds in CASES.items() for number in range(len(builds))]


def flat(bound: BoundMap, value: Tensor) -> Tensor:
    return value.reshape(-1, math.prod(value.shape[value.dim() - bound.sample_dims :]))


def distance(proof: Proof, bound: BoundMap, a: Tensor, b: Tensor) -> Tensor:
    """The claimed metric, from its definition."""
    a, b = flat(bound, a), flat(bound, b)
    if proof.metric in ("thompson", "hilbert"):
        gap = a.log() - b.log()
        return gap.abs().amax(1) if proof.metric == "thompson" else gap.amax(1) - gap.amin(1)
    gap = (a - b).abs()
    if proof.metric == "linf":
        return (gap if proof.weights is None else gap / proof.weights).amax(1)
    return gap.sum(1) if proof.metric == "l1" else gap.square().sum(1).sqrt()


def exact_distance(proof: Proof, sample: int, z: list[float], solution: list[mpf]) -> mpf:
    if proof.metric in ("thompson", "hilbert"):
        gap = [mp.log(mpf(a)) - mp.log(b) for a, b in zip(z, solution, strict=True)]
        return max(map(abs, gap)) if proof.metric == "thompson" else max(gap) - min(gap)
    gap = [abs(mpf(a) - b) for a, b in zip(z, solution, strict=True)]
    if proof.metric == "linf":
        if proof.weights is not None:
            row = proof.weights[sample if len(proof.weights) > 1 else 0].tolist()
            gap = [g / mpf(w) for g, w in zip(gap, row, strict=True)]
        return max(gap)
    return mp.fsum(gap) if proof.metric == "l1" else mp.sqrt(mp.fsum(g * g for g in gap))


def domain(proof: Proof, bound: BoundMap, seed: int) -> Tensor:
    """A random state of the proof's domain."""
    shape = tuple(bound.state_shape)  # type: ignore[arg-type]
    if proof.box is not None:
        share = uniform(*shape, seed=seed, low=0.0)
        z = proof.box.clamp(proof.box.lo + (share.round() if seed % 2 else share) * (proof.box.hi - proof.box.lo))
    elif proof.metric in ("thompson", "hilbert"):
        z = random_states(shape, seed, (0.01, 2.0, 20.0)[seed % 3])
    else:
        z = uniform(*shape, seed=seed) * (1e-4, 1.0, 1e3)[seed % 3]
    if proof.metric == "hilbert":
        assert bound.normalizer is not None
        z = z / torch.linalg.vector_norm(z, ord=bound.normalizer.p, dim=bound.normalizer.dims, keepdim=True)
        if proof.box is not None:
            z = proof.box.clamp(z)
    return z


def newton(bound: BoundMap, z: Tensor, matrix: Tensor, steps: int = 40) -> Tensor:
    """Semismooth Newton steps, halved until the residual falls; under a norm damped plain steps; float64."""
    eye = torch.eye(matrix.shape[0], dtype=D)
    if bound.normalizer is not None:
        for _ in range(200):
            z = (z + bound(z)) / 2
        return z
    for _ in range(steps):
        gap = flat(bound, bound(z) - z)
        if bool((gap.abs() <= 1e-13 * (1 + flat(bound, z).abs())).all()):
            break
        slope = flat(bound, bound.activation.derivative(bound._argument(z)))
        step = torch.linalg.solve_ex(eye - slope[:, :, None] * matrix, gap)[0]
        step = torch.where(step.isfinite(), step, gap)
        size, factor = gap.norm(dim=1), torch.ones(len(gap), 1, dtype=D)
        for _ in range(8):
            trial = z + (factor * step).reshape(z.shape)
            worse = ~(flat(bound, bound(trial) - trial).norm(dim=1) <= size)
            if not bool(worse.any()):
                break
            factor = torch.where(worse[:, None], factor / 2, factor)
        z = z + (factor * step).reshape(z.shape)
    return z


def fixed_points(bound: BoundMap, starts: list[Tensor]) -> list[Tensor]:
    """For each sample, the states `(K, N)` that solve the equation to rounding; all starts at once."""
    exact = ExactMap(bound)
    matrix = torch.tensor([[float(v) for v in row] for row in exact.fractions], dtype=D)
    samples, fixed = len(flat(bound, starts[0])), len(bound.operator.tensors)
    parts = [torch.cat([part] * len(starts)) for part in bound.tensors[fixed:]]
    many = bound.with_tensors([*bound.operator.tensors, *parts])
    z = newton(many, torch.cat(starts), matrix)
    gap = flat(many, (many(z) - z).abs() / (1 + z.abs())).amax(1)
    z, good = flat(many, z).reshape(len(starts), samples, -1), (gap < 1e-11).reshape(len(starts), samples)
    return [z[good[:, sample], sample] for sample in range(samples)]


def starts_for(bound: BoundMap, count: int, seed: int = 0) -> list[Tensor]:
    shape = tuple(bound.state_shape)  # type: ignore[arg-type]
    if bound.positive:
        return [random_states(shape, seed + k, (0.5, 3.0, 8.0)[k % 3]) for k in range(count)]
    return [uniform(*shape, seed=seed + k) * (0.5, 3.0, 30.0)[k % 3] for k in range(count)]


def prove(name: str, bound: BoundMap) -> Certificate:
    certificate = certify(bound, conditions=name)
    assert certificate.unique and bool(certificate.proven.all())
    return certificate


@pytest.fixture(params=ALL, ids=IDS)
def case(request) -> tuple[str, BoundMap]:
    name, build = request.param
    return name, build()


def test_every_condition_is_tried():
    assert set(CASES) == set(CONDITIONS)


def test_the_rate_is_never_exceeded(case):
    name, bound = case
    proof = prove(name, bound).proofs[0]
    if proof.rate is None:
        return
    for seed in range(24):
        a, b = domain(proof, bound, seed), domain(proof, bound, seed + 100)
        if seed % 4 == 3:
            b = a + 1e-4 * (b - a) if proof.metric != "hilbert" else b
        before, after = distance(proof, bound, a, b), distance(proof, bound, bound(a), bound(b))
        size = 1.0 if proof.metric in ("thompson", "hilbert") else float(bound(a).abs().max()) + float(a.abs().max())
        weight = 1.0 if proof.weights is None else float(1 / proof.weights.min())
        assert bool((after <= proof.rate * before * (1 + 1e-9) + 1e-12 * size * weight).all())


def test_every_start_leads_to_one_fixed_point(case):
    name, bound = case
    prove(name, bound)
    for found in fixed_points(bound, starts_for(bound, 12)):
        assert len(found) > 0
        size = float(found.abs().max())
        assert float((found - found[0]).abs().max()) <= 1e-8 * (1 + size)


def test_error_bounds_and_intervals_hold_the_exact_fixed_point(case):
    name, bound = case
    certificate = prove(name, bound)
    proof = certificate.proofs[0]
    found = fixed_points(bound, starts_for(bound, 6))
    shape = tuple(bound.state_shape)
    near = torch.stack([part[0] for part in found]).reshape(shape)
    solutions = [ExactMap(bound, sample).solve(flat(bound, near)[sample].tolist()) for sample in range(len(found))]
    states = [near, near.float()]
    for seed, spread in enumerate((1e-13, 1e-8, 1e-3, 0.5, 5.0)):
        states.append(near * random_states(shape, seed, spread))
        if not bound.positive:
            states.append(near + spread * uniform(*shape, seed=seed))
    states += [torch.full(shape, 3.0, dtype=D), torch.full(shape, 1e5, dtype=D), torch.full(shape, 1e-7).float()]
    for z in states:
        error, (low, high) = certificate.error_bound(z), certificate.error_interval(z)
        assert error.shape == (len(found),) and error.dtype == D
        for sample, solution in enumerate(solutions):
            state = flat(bound, z.double())[sample].tolist()
            with mp.workdps(50):
                if all(v > 0 for v in state) or proof.metric not in ("thompson", "hilbert"):
                    true = exact_distance(proof, sample, state, solution)
                    assert mp.isinf(float(error[sample])) or true <= mpf(float(error[sample]))
                below, above = flat(bound, low)[sample].tolist(), flat(bound, high)[sample].tolist()
                assert all(mpf(a) <= v <= mpf(b) for a, v, b in zip(below, solution, above, strict=True))
                if proof.box is not None:
                    ends = zip(flat(bound, proof.box.lo)[sample].tolist(), solution,
                               flat(bound, proof.box.hi)[sample].tolist(), strict=True)  # fmt: skip
                    assert all(mpf(a) <= v <= mpf(b) for a, v, b in ends)
    if proof.weights is None or float(proof.weights.min()) > 1e-6:
        assert bool((certificate.error_bound(near) < 1e-8).all())


def test_batches_of_one_and_leading_dimensions(case):
    name, bound = case
    whole = prove(name, bound)
    shape = tuple(bound.state_shape)

    def reshaped(lead: tuple[int, ...], rows: slice) -> BoundMap:
        parts = [part[rows].reshape(*lead, *shape[1:]) for part in bound.tensors[len(bound.operator.tensors) :]]
        return bound.with_tensors([*bound.operator.tensors, *parts])

    single = prove(name, reshaped((1,), slice(0, 1)))
    z = random_states(shape, 4, 0.3)
    alone, together = single.error_bound(z[:1]), whole.error_bound(z)
    if whole.proofs[0].metric == single.proofs[0].metric and whole.proofs[0].weights is None:
        torch.testing.assert_close(alone, together[:1], rtol=1e-3, atol=1e-12)
    if bound.sample_dims < 3:
        stacked = prove(name, reshaped((1, shape[0]), slice(None)))
        torch.testing.assert_close(stacked.error_bound(z[None]), together, rtol=1e-6, atol=1e-12)
        assert stacked.error_interval(z[None])[0].shape == (1, *shape)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_injection_poisons_its_sample_only(case, value):
    name, bound = case
    if name in ("subhomogeneous", "concave") or len(bound.tensors[-1]) == 1:
        return  # these ask for a finite injection of all samples at once
    tensors = list(bound.tensors)
    tensors[-1] = tensors[-1].clone()
    tensors[-1][0].view(-1)[0] = value
    broken = bound.with_tensors(tensors)
    certificate = certify(broken, conditions=name)
    assert not certificate.unique and certificate.proven.tolist() == [False] + [True] * (len(bound.tensors[-1]) - 1)
    error = certificate.error_bound(random_states(tuple(bound.state_shape), 1, 0.1))
    assert error.isinf().tolist() == [True] + [False] * (len(error) - 1)


# Thresholds that are known on paper. With slopes in [0, 1] and a fixed weight, the conditions have exact values.
PERMUTATION = torch.eye(4, dtype=D).roll(1, 0)
RANK_ONE = torch.outer(torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=D), torch.tensor([0.5, -1.0, 1.0, 2.0], dtype=D))
# name, matrix A of which the value is 1, condition
EXACT_VALUES = [
    ("norm", torch.diag(torch.tensor([1.0, -1.0, 0.5], dtype=D))),
    ("norm", PERMUTATION),
    ("norm", RANK_ONE / 6.25),  # the product of the Euclidean norms: 2.5 * 2.5
    ("spectral radius", torch.diag(torch.tensor([1.0, -1.0, 0.5], dtype=D))),
    ("spectral radius", PERMUTATION),
    ("spectral radius", RANK_ONE / 4.5),  # <|u|, |v|>
    ("matrix measure", torch.tensor([[-3.0, 4.0], [4.0, -3.0]], dtype=D)),
    ("matrix measure", PERMUTATION),
    ("matrix measure", torch.diag(torch.tensor([1.0, -50.0, 0.5], dtype=D))),
    ("monotone", torch.diag(torch.tensor([1.0, -50.0, 0.5], dtype=D))),
    ("monotone", torch.tensor([[1.0, 60.0], [-60.0, 1.0]], dtype=D)),
    ("monotone", torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=D)),
    ("monotone", RANK_ONE / ((0.5 - 2 - 1 + 1 + 6.25) / 2)),  # (<u, v> + |u| |v|) / 2
]


@pytest.mark.parametrize(("name", "matrix"), EXACT_VALUES)
@pytest.mark.parametrize(("activation", "slope"), [("relu", 1.0), ("tanh", 1.0), ("sigmoid", 0.25)])
def test_thresholds_are_sharp_on_both_sides(name, matrix, activation, slope):
    injected = torch.full((1, len(matrix)), 0.1, dtype=D)
    for gap, expected in ((1e-6, True), (1e-9, True), (-1e-9, False), (-1e-6, False)):
        if name == "matrix measure" and float(matrix[0, 0]) == -3 and slope != 1:
            scaled = matrix.clone()
            scaled = torch.diag(matrix.diagonal()) + (matrix - torch.diag(matrix.diagonal())) * (1 / slope + 3) / 4
            scaled = scaled * 1.0 + torch.where(scaled > 0, -gap, 0.0)
        else:
            scaled = matrix * ((1 - gap) / slope)
        assert certify(make_map(scaled, injected, None, activation), conditions=name).unique is expected


@pytest.mark.parametrize(("name", "matrix"), EXACT_VALUES)
def test_a_value_of_one_is_never_enough(name, matrix):
    """`A` with an eigenvalue 1 or -1, or a value of 1: the claim must not hang on rounding."""
    assert not certify(make_map(matrix, torch.zeros(1, len(matrix), dtype=D), None, "relu"), conditions=name).unique


def test_nilpotent_matrices_of_any_size_are_proven():
    for scale in (1.0, 5.0, 30.0):
        bound = make_map(scale * uniform(4, 4, seed=3).triu(1), _u((2, 4)), None, "relu")
        for name in ("spectral radius", "matrix measure"):
            prove(name, bound)
        assert not certify(bound, conditions=("norm",)).unique


@pytest.mark.parametrize("above", [1e-9, 1e-6, 0.01, 1.0])
def test_relu_with_a_symmetric_matrix_above_one_has_two_fixed_points(above):
    """`relu(W z - b)` with `W v = lambda v`, `v > 0`, `b = (lambda - 1) v`: 0 and `v`."""
    vector = torch.tensor([0.6, 0.8], dtype=D)
    bound = make_map((1 + above) * torch.outer(vector, vector), (-above * vector)[None], None, "relu")
    for z in (torch.zeros(1, 2, dtype=D), vector[None]):
        torch.testing.assert_close(bound(z), z, rtol=0, atol=1e-14)
    certificate = certify(bound, conditions="all")
    assert not certificate.unique and not bool(certificate.proven.any())
    assert bool(certificate.error_bound(torch.ones(1, 2, dtype=D)).isinf().all())


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softplus"])
def test_huge_norms_are_no_obstacle_to_monotone_and_matrix_measure(activation):
    for scale in (10.0, 1e3, 1e6):
        assert certify(make_map(skew(6, 1, scale), _u((2, 6)), None, activation), conditions="monotone").unique
        negative = scale * (uniform(6, 6, seed=1) - 7 * torch.eye(6, dtype=D))
        assert certify(make_map(negative, _u((2, 6)), None, activation), conditions="matrix measure").unique


def test_the_diagonal_enters_the_error_bound_of_the_matrix_measure():
    """`relu(a z + b)` with `a` near one: the error is the residual over `1 - a`."""
    for a in (0.9, 0.999, 1 - 1e-6, -5.0):
        bound = make_map([[a]], [[1.0]], None, "relu")
        certificate = prove("matrix measure", bound)
        with mp.workdps(40):
            solution = 1 / (1 - mpf(a))
            for state in (0.0, float(solution) * (1 + 1e-9), float(solution) * 0.9, 3 * float(solution)):
                weights = certificate.proofs[0].weights
                assert weights is not None
                bounded = mpf(float(certificate.error_bound(torch.tensor([[state]], dtype=D)) * weights))
                assert abs(mpf(state) - solution) <= bounded
                if a > 0:
                    assert bounded <= abs(mpf(state) - solution) * (1 + mpf(10) ** -6) + mpf(10) ** -6 / (1 - mpf(a))


@pytest.mark.parametrize("name", ["norm", "spectral radius", "matrix measure", "monotone"])
def test_a_convolution_without_an_image_covers_every_size(name):
    """The claim without `x` must hold for each image: recomputed with the matrix of the image."""
    layer = SubhomConv2d(1, 2, 3, activation="relu", shift=0.0, weight="signed", injection_map="identity", dtype=D)
    operator = {"norm": conv(3, 0.08), "spectral radius": conv(3, 0.08), "matrix measure": skew_conv(0.3, -8.0),
                "monotone": skew_conv(3.0, 0.5)}[name]  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(operator.weight)
    every = certify(layer, conditions=name)
    assert every.unique
    for size in ((1, 1), (2, 5), (6, 6)):
        x = uniform(1, 1, *size, seed=3)
        certificate = certify(layer, x, conditions=name)
        assert certificate.unique
        bound = layer.bind(x).detach()
        found = fixed_points(bound, starts_for(bound, 6))[0]
        assert len(found) and float((found - found[0]).abs().max()) < 1e-8
        z = found[:1].reshape(tuple(bound.state_shape)) + 1e-3
        assert float(every.error_bound(z, x)) >= 0.999 * float(distance(certificate.proofs[0], bound, z, z - 1e-3))


@pytest.mark.parametrize("name", sorted(CONDITIONS))
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5)])
def test_a_convolution_just_above_one_without_an_image_is_refused(name, size):
    """Taps that sum to more than one: on large images `relu` has two fixed points; on 1 x 1 only the centre counts."""
    layer = SubhomConv2d(1, 1, 3, activation="relu", shift=0.0, weight="signed", injection_map="identity", dtype=D)
    with torch.no_grad():
        layer.weight.fill_(0.2)
    assert not certify(layer, conditions=name).unique
    if name in ("norm", "spectral radius", "monotone", "matrix measure"):
        assert certify(layer, torch.ones(1, 1, 1, 1, dtype=D), conditions=name).unique
        assert not certify(layer, torch.ones(1, 1, 6, 6, dtype=D), conditions=name).unique


def test_verdicts_sample_by_sample():
    """`tanh(3 z + b)` beside an entry of its own: three fixed points for small `b`, one for large `b`."""
    biases = torch.tensor([[0.0, 0.1], [5.0, 0.1], [0.3, 0.1], [-6.0, 0.1], [4.0, 0.1]], dtype=D)
    weight = [[3.0, 0.0], [0.0, -0.1]]
    expected = [False, True, False, True, True]
    bound = make_map(weight, biases, None, "tanh")
    for lead in ((5, 2), (5, 1, 2), (1, 5, 2)):
        shaped = make_map(weight, biases.reshape(lead), None, "tanh")
        certificate = certify(shaped, conditions="all")
        assert certificate.proven.tolist() == expected and not certificate.unique
        assert certificate.rate is None and certificate.theorem is None and certificate.contraction is None
        error = certificate.error_bound(torch.zeros(lead, dtype=D))
        assert error.isfinite().tolist() == expected
    found = fixed_points(bound, starts_for(bound, 30))
    assert [float((part - part[0]).abs().max()) < 1e-6 for part in found] == expected
    low, high = certify(bound).error_interval(torch.ones(5, 2, dtype=D))
    for sample, part in enumerate(found):
        if expected[sample]:
            assert bool((low[sample] <= part[0] + 1e-9).all()) and bool((high[sample] >= part[0] - 1e-9).all())
            assert float((high[sample] - low[sample]).max()) < 0.1
    for sample in range(5):
        assert certify(make_map(weight, biases[sample : sample + 1], None, "tanh")).unique is expected[sample]


def test_normalised_verdicts_sample_by_sample():
    weights = torch.tensor([[4.0, -4.0], [-4.0, 4.0]], dtype=D)
    outer = torch.tensor([[0.0, 0.0], [60.0, 40.0], [0.0, 0.0]], dtype=D)
    certificate = certify(make_map(weights, None, outer, "tanh", 1.603, normalize="inf"), conditions="all")
    assert certificate.proven.tolist() == [False, True, False] and not certificate.unique


def test_a_layer_whose_injection_may_be_negative_is_not_proven_for_every_input():
    """`F / max F` with `F = tanh(W z) + 1.603 + y`: for `y = -1.35` there are three fixed points."""
    layer = SubhomLinear(
        1, 2, "tanh", 1.603, 1.0, "inf", weight="signed", injection="outside", injection_map="identity", dtype=D
    )
    with torch.no_grad():
        layer.weight.copy_(0.25 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        layer.injection.weight.zero_()
        layer.injection.bias.fill_(-1.35)
    x = torch.zeros(1, 1, dtype=D)
    bound = layer.bind(x).detach()
    ends = []
    for start in ([1.0, 1.0], [1.0, 0.01]):
        z = torch.tensor([start], dtype=D)
        for _ in range(2000):
            z = bound(z)
        torch.testing.assert_close(bound(z), z, rtol=1e-13, atol=0)
        ends.append(z)
    assert float((ends[0] - ends[1]).abs().max()) > 0.9
    assert not certify(layer, x, conditions="all").unique
    assert not certify(layer, conditions="all").unique


@pytest.mark.parametrize("kind", ["spec", "layer"])
def test_a_negative_fixed_point_of_nonnegative_weights_is_in_the_interval(kind):
    """`tanh(z / 10) - 5`: nonnegative weights alone do not make the state positive."""
    if kind == "spec":
        bound = make_map([[0.1]], None, [[-5.0]], "tanh", 0.1)
        certificate = certify(bound)
    else:
        layer = SubhomLinear(1, 1, "tanh", 0.1, injection="outside", injection_map="identity", dtype=D)
        layer.weight = torch.tensor([[0.1]], dtype=D)
        with torch.no_grad():
            layer.injection.weight.zero_()
            layer.injection.bias.fill_(-5.0)
        x = torch.zeros(1, 1, dtype=D)
        bound, certificate = layer.bind(x).detach(), certify(layer, x)
    z = torch.full((1, 1), -5.0, dtype=D)
    for _ in range(100):
        z = bound(z)
    assert float(z) < -5
    if certificate.unique:
        low, high = certificate.error_interval(z)
        assert float(low) <= float(z) + 1e-12 and float(high) >= float(z) - 1e-12


@pytest.mark.parametrize("weight", [2.0, 3.0, 20.0])
def test_a_layer_of_real_states_is_not_unique_for_its_positive_states_alone(weight):
    """`tanh(w z + 0.1)` with `weight="signed"`: states may be negative, and two more fixed points are."""
    layer = SubhomLinear(1, 1, "tanh", 0.0, weight="signed", injection="inside", dtype=D)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.injection.weight.zero_()
        layer.injection.bias.fill_(0.1)
    x = torch.zeros(1, 1, dtype=D)
    bound, z = layer.bind(x).detach(), torch.full((1, 1), -1.0, dtype=D)
    for _ in range(500):
        z = bound(z)
    assert float(z) < -0.5 and not bound.positive
    certificate = certify(layer, x, conditions="all")
    assert not certificate.unique or "nonnegative state" in certificate.scope or "z > 0" in certificate.scope


def test_groups_are_those_of_the_definition():
    assert groups((2, 2), (-1,)) == [[0, 1], [2, 3]] and groups((2, 2), (-2,)) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("size", [1.0, 10.0, 1e4])
def test_a_skew_matrix_may_turn_a_small_residual_into_a_large_error(size):
    """`relu` with one unit switched off: `(I - D A)^-1` has norm `size`, although `A + A^T = 0`."""
    bound = make_map([[0.0, -size], [size, 0.0]], [[-1000.0, 1.0]], None, "relu")
    solution = torch.tensor([[0.0, 1.0]], dtype=D)
    torch.testing.assert_close(bound(solution), solution)
    certificate = prove("monotone", bound)
    for shift in (1e-9, 1e-6, 1e-3):
        z = torch.tensor([[shift, 1.0 + size * shift]], dtype=D)
        assert float((z - solution).norm()) <= float(certificate.error_bound(z)) * (1 + 1e-9)


@pytest.mark.parametrize(("normalize", "factor"), [(None, 1), ("inf", 2), (2, 2)])
def test_the_rate_of_the_box_is_that_of_its_formula(normalize, factor):
    """`factor max_i g (|W| hi)_i s / (s + c_i)`, with `g = sup |a'| / a` and `s = sup a` from a fine grid."""
    t = torch.linspace(-6, 6, 2_000_001, dtype=D)
    growth = float(((1 - t.tanh() ** 2) / (t.tanh() + 1.4)).max())
    outer = torch.tensor([[1.0, 1.5, 3.0, 0.8]], dtype=D)
    for level, proven in ((0.5, True), (0.999, True), (1.001, False), (1.9, False)):
        weight = uniform(4, 4, seed=2)
        above, below = outer + 2.4, outer + 0.4
        if normalize == "inf":
            highest = torch.stack([above[0, k] / max(float(above[0, k]), float(below.max())) for k in range(4)])
        elif normalize == 2:
            others = (below**2).sum() - below[0] ** 2
            highest = above[0] / (above[0] ** 2 + others).sqrt()
        else:
            highest = above[0]
        value = float((growth * factor * (weight.abs() @ highest) * 2.4 / (2.4 + outer[0])).max())
        bound = make_map(weight * (level / value), None, outer, "tanh", 1.4, normalize=normalize)
        certificate = certify(bound, conditions="box")
        assert certificate.unique is proven
        if proven:
            assert level * (1 - 1e-9) <= certificate.rate <= level * (1 + 1e-3)
