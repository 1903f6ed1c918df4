"""Boxes hold every fixed point, whether proven unique or not; maps with several are never proven."""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from subdeq_plugin.activations import register_activation
from subdeq_plugin.certificates import Certificate, certify
from subdeq_plugin.certificates.enclosure import invariant_box
from subdeq_plugin.certificates.intervals import Box, IntervalMap
from subdeq_plugin.certificates.local import Local
from subdeq_plugin.layers import BoundMap
from subdeq_plugin.layers.operators import ConvOperator
from tests.certificates.test_conditions import conv, distance, fixed_points, flat, graph, starts_for
from tests.certificates.test_intervals import EXACT, D, ExactMap, make_map, uniform

register_activation("interval_falling", lambda t: -0.95 * t.tanh())
EXACT["interval_falling"] = (lambda t: -mpf(0.95) * mp.tanh(t), lambda t: -mpf(0.95) * mp.sech(t) ** 2)

SIGNS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=D)


def contains(box: Box, bound: BoundMap, sample: int, z: Tensor, slack: float = 1e-8) -> bool:
    """Whether a fixed point that is one to rounding lies in the box of its sample."""
    low, high = flat(bound, box.lo)[sample], flat(bound, box.hi)[sample]
    room = slack * (1 + z.abs())
    return bool((low <= z + room).all()) and bool((z - room <= high).all())


def check_all_found(bound: BoundMap, count: int = 24, seed: int = 0) -> tuple[Certificate, int]:
    """Every fixed point of a multi-start search is in the box; several refute every proof."""
    certificate = certify(bound, conditions="all")
    box, several = certificate.enclosure, 0
    for sample, found in enumerate(fixed_points(bound, starts_for(bound, count, seed))):
        for z in found:
            assert box is None or contains(box, bound, sample, z)
        distinct = len(found) > 0 and float((found - found[0]).abs().max()) > 1e-4 * (1 + float(found.abs().max()))
        if distinct:
            several += 1
            proven = certificate.proven.expand(len(flat(bound, bound.tensors[-1])))
            assert not certificate.unique and not bool(proven[sample])
    return certificate, several


FAMILIES = [
    ("tanh", 0.0, 1.0),
    ("tanh", 1.2, 1.0),
    ("tanh", 1.3, 0.5),
    ("tanh", 1.5, -1.0),
    ("sigmoid", 0.0, 1.0),
    ("sigmoid", 0.1, 2.0),
    ("softsign", 1.1, 1.0),
    ("arctan", -0.4, 1.0),
    ("erf", 0.0, 1.0),
    ("hardtanh", 0.2, 1.0),
    ("relu6", 0.0, 1.0),
    ("relu", 0.0, 1.0),
    ("leaky_relu", 0.3, 1.0),
    ("elu", 0.0, 1.0),
    ("softplus", -0.5, 1.0),
    ("interval_swish", 0.0, 1.0),
    ("interval_bump", 0.0, 1.0),
    ("interval_bump", 1.4, 0.7),
]


@pytest.mark.parametrize(("activation", "shift", "power"), FAMILIES)
def test_the_box_holds_every_fixed_point_found(activation, shift, power):
    boxes = 0
    for seed, scale in enumerate((0.3, 0.8, 1.5, 4.0)):
        size = 2 + seed % 3
        weight = scale * uniform(size, size, seed=seed)
        inner, outer = 0.7 * uniform(3, size, seed=seed + 20), 0.4 * uniform(3, size, seed=seed + 40)
        certificate, _ = check_all_found(make_map(weight, inner, outer, activation, shift, power), seed=100 * seed)
        boxes += certificate.enclosure is not None
    assert boxes > 0


@pytest.mark.parametrize("operator", [conv(1, 0.5), conv(2, 0.15), graph(1, 1.5), graph(2, 2.0, mixing=True)])
def test_boxes_of_convolutions_and_graphs(operator):
    shape = (2, 2, 2, 3) if operator.kind == "conv2d" else (2, 4, 3)
    for activation in ("tanh", "interval_bump", "sigmoid"):
        certificate, _ = check_all_found(make_map(operator, uniform(*shape, seed=1), None, activation), 10)
        assert certificate.enclosure is not None


@pytest.mark.parametrize("normalize", [1, 2, 3, 7.5, "inf"])
def test_boxes_of_normalised_maps(normalize):
    for seed, scale in itertools.product(range(3), (0.5, 3.0, 9.0)):
        weight = scale * uniform(3, 3, seed=seed)
        bound = make_map(weight, None, 0.3 * uniform(2, 3, seed=seed, low=0.0), "tanh", 1.1, normalize=normalize)
        certificate, _ = check_all_found(bound, 12, seed)
        assert certificate.enclosure is not None


@pytest.mark.parametrize("over", ["channel", "pixel"])
def test_boxes_of_maps_with_a_norm_per_group(over):
    for scale in (0.1, 0.6):
        bound = make_map(
            conv(3, scale), None, uniform(2, 2, 2, 3, seed=1, low=0.0), "tanh", 1.1, normalize=2, normalize_over=over
        )
        assert check_all_found(bound, 10)[0].enclosure is not None


def block(parts: list[Tensor], coupling: float, seed: int) -> Tensor:
    """Block triangular: later blocks see earlier ones, so each block's fixed points remain."""
    matrix = torch.block_diag(*parts)
    lower = coupling * uniform(len(matrix), len(matrix), seed=seed).tril(-1)
    start = 0
    for part in parts:
        lower[start : start + len(part), start : start + len(part)] = 0.0
        start += len(part)
    return matrix + lower


@pytest.mark.parametrize("scale", [0.501, 0.51, 0.6, 1.0, 3.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("more", [0, 1, 4])
def test_the_signed_counterexample_at_every_scale_and_inside_larger_matrices(scale, more):
    """`tanh(s [[1, -1], [-1, 1]] z) + 1.2`: the middle and a pair as soon as `s > 1/2`."""
    blocks = [scale * SIGNS] + ([0.3 * uniform(more, more, seed=more)] if more else [])
    bound = make_map(block(blocks, 0.2, 3), None, torch.zeros(1, 2 + more, dtype=D), "tanh", 1.2)
    found = []
    for start in ([1.2, 1.2], [2.2, 0.2], [0.2, 2.2]):
        z = torch.tensor([start + [1.0] * more], dtype=D)
        for _ in range(6000):
            z = bound(z)
            if start[0] == start[1]:
                z[:, :2] = 1.2
        assert float((bound(z) - z).abs().max()) < 1e-12
        found.append(z[0])
    assert float(found[1][0] - found[2][0]) > 0.03
    certificate = certify(bound, conditions="all")
    assert not certificate.unique and not bool(certificate.proven.any()) and certificate.enclosure is not None
    assert all(contains(certificate.enclosure, bound, 0, z, 1e-10) for z in found)


@pytest.mark.parametrize("normalize", [1, 2, 3, "inf"])
@pytest.mark.parametrize("scale", [2.0, 4.0, 50.0, 1e5])
def test_the_normalised_counterexample_at_every_scale(normalize, scale):
    bound = make_map(scale * 2 * SIGNS, None, torch.zeros(1, 2, dtype=D), "tanh", 1.603, normalize=normalize)
    found = []
    for start in ([1.0, 1.0], [1.0, 0.1], [0.1, 1.0]):
        z = torch.tensor([start], dtype=D)
        for _ in range(2000):
            z = bound(z)
        found.append(z[0])
    assert float(found[1][0] - found[1][1]) > 0.2
    certificate = certify(bound, conditions="all")
    assert not certificate.unique and certificate.enclosure is not None
    assert all(contains(certificate.enclosure, bound, 0, z, 1e-10) for z in found)


def two_solutions_below_one(kind: str, mu: float, entries: int = 8, shift: float = 1.5) -> BoundMap:
    """A map under the sum norm with degree `mu` at its middle, where a step stretches by `2 mu (1 - 1/n)`.

    "signed": the first entry rises with itself and the others fall with it. "grouped": two pixels, nonnegative weights;
    the first channel rises with itself, the others with the first channel of the other pixel.
    """
    slope = mu * shift * entries
    if kind == "signed":
        weight = torch.zeros(entries, entries, dtype=D)
        weight[:, 0], weight[0, 0] = -slope, slope
        return make_map(weight, (-weight[:, 0] / entries)[None], None, "tanh", shift, normalize=1)
    taps = torch.zeros(entries, entries, 1, 3, dtype=D)
    taps[1:, 0, 0, 0] = taps[1:, 0, 0, 2] = taps[0, 0, 0, 1] = slope
    inner = torch.full((1, entries, 1, 2), -slope / entries, dtype=D)
    return make_map(ConvOperator(taps), inner, None, "tanh", shift, normalize=1, normalize_over="pixel")


@pytest.mark.parametrize("kind", ["signed", "grouped"])
@pytest.mark.parametrize("mu", [0.6, 0.65, 0.8, 0.95])
def test_without_order_or_with_a_norm_per_group_a_degree_below_one_is_not_enough(kind, mu):
    bound = two_solutions_below_one(kind, mu)
    z = torch.full(tuple(bound.state_shape), 1 / 8, dtype=D)
    torch.testing.assert_close(bound(z), z, rtol=1e-14, atol=0)
    other = z.clone()
    other.view(8, -1)[0, 0] *= 1.2
    if kind == "grouped":
        other.view(8, -1)[0, 1] *= 0.8
    for _ in range(4000):
        other = bound(other)
    torch.testing.assert_close(bound(other), other, rtol=1e-12, atol=0)
    assert float((other - z).abs().max()) > 1e-2
    certificate = certify(bound, conditions="all")
    assert not certificate.unique and certificate.enclosure is not None
    assert contains(certificate.enclosure, bound, 0, z.flatten()) and contains(
        certificate.enclosure, bound, 0, other.flatten()
    )


def stretch(function: IntervalMap, x: Tensor, y: Tensor) -> float:
    """How far a step moves two states apart in the metric of theorems A and B."""

    def gap(a: Tensor, b: Tensor) -> float:
        logs = (a.log() - b.log()).flatten()
        return float(logs.max() - logs.min() if function.ratio_metric == "hilbert" else logs.abs().max())

    return gap(function.bound(x), function.bound(y)) / gap(x, y)


@pytest.mark.parametrize("kind", ["signed", "grouped"])
def test_the_rate_of_a_small_box_counts_the_norm_twice_where_it_must(kind):
    for mu in (0.3, 0.6, 0.9):
        bound = two_solutions_below_one(kind, mu)
        function = IntervalMap.of(bound)
        z = torch.full(tuple(bound.state_shape), 1 / 8, dtype=D)
        x, y = z * (1 + 1e-7 * uniform(*z.shape, seed=1)), z * (1 - 1e-7)
        y.view(8, -1)[0, 0] *= 1 + 2e-7
        y.view(8, -1)[1:, -1] *= 1 if kind == "grouped" else 1 + 1e-7
        local = Local.at(function, Box(z * (1 - 1e-6), z * (1 + 1e-6)))
        rate, far = float(local.rates), z.clone()
        far.view(8, -1)[0, 0] *= 1 + 1e-7
        if kind == "grouped":
            far.view(8, -1)[0, 1] *= 1 - 1e-7
        assert stretch(function, z, far) > 1.5 * mu
        for a, b in ((x, y), (z, far), (z, y), (far, x)):
            assert stretch(function, a, b) <= rate * (1 + 1e-5)


@pytest.mark.parametrize("normalize", [1, 2, 3, "inf"])
@pytest.mark.parametrize("over", ["state", "channel", "pixel"])
def test_the_majorant_bounds_every_jacobian_of_the_box(normalize, over):
    """Against Jacobians by automatic differentiation at points of boxes small and large."""
    outer = uniform(1, 2, 2, 3, seed=1, low=0.0)
    bound = make_map(conv(3, 0.4), None, outer, "tanh", 1.3, normalize=normalize, normalize_over=over)
    for width in (1e-9, 0.3):
        low = uniform(1, 2, 2, 3, seed=2, low=0.2)
        box = Box(low, low + width)
        local = Local.at(IntervalMap.of(bound), box)
        v = uniform(1, 12, seed=3, low=0.1)
        most = local.majorant(v)
        for draw in range(8):
            z = low + width * uniform(1, 2, 2, 3, seed=draw, low=0.0)
            jacobian = torch.autograd.functional.jacobian(bound, z).reshape(12, 12)
            assert bool((jacobian.abs() @ v[0] <= most[0] * (1 + 1e-9)).all())


def test_the_degree_of_a_falling_map_is_that_of_its_lowest_value():
    """`relu(3 - z)` on `[1, 1.4]`: the degree `z / (3 - z)` is largest at the upper end."""
    function = IntervalMap.of(make_map([[-1.0]], [[3.0]], None, "relu"))
    low, high = torch.tensor([[1.0]], dtype=D), torch.tensor([[1.4]], dtype=D)
    degree = float(Local.at(function, Box(low, high)).degree)
    assert 0.875 <= degree <= 0.875 * (1 + 1e-12)
    assert stretch(function, high, high * (1 - 1e-7)) <= degree


@pytest.mark.parametrize("power", [0.2, 0.5])
@pytest.mark.parametrize("size", [1, 3])
def test_the_negative_bias_at_every_slope(power, size):
    """`tanh(w (z - m)) + 1 + e` through three fixed points, alone and beside other entries."""
    for slope in (6.0, 20.0, 200.0):
        weight = block([torch.tensor([[slope]], dtype=D)] + ([0.2 * torch.eye(2, dtype=D)] if size > 1 else []), 0.1, 1)
        inner = torch.full((1, size), -slope * (0.8 + 0.1 * power), dtype=D)
        bound = make_map(weight, inner, None, "tanh", 1.05)
        certificate, several = check_all_found(bound, 60)
        assert several == 1 and not certificate.unique


def test_the_fixed_points_of_the_third_counterexample():
    bound = make_map([[6.0]], [[-5.0]], None, "tanh", 1.05)
    certificate = certify(bound, conditions="all")
    assert not certificate.unique
    for guess in (0.05, 0.7888, 2.05):
        (z,) = ExactMap(bound).solve([guess])
        assert abs(z - guess) < 2e-3
        assert mpf(float(certificate.enclosure.lo)) <= z <= mpf(float(certificate.enclosure.hi))


@pytest.mark.parametrize(("weight", "bias"), [(0.95, 2.0), (0.999, 1.0), (0.5, 1e6), (0.9, 1e-9)])
def test_an_unbounded_activation_is_enclosed_where_the_spectral_radius_is_below_one(weight, bias):
    bound = make_map([[weight]], [[bias]], None, "relu")
    certificate = certify(bound, conditions="enclosure")
    with mp.workdps(40):
        solution = mpf(bias) / (1 - mpf(weight))
        low, high = float(certificate.enclosure.lo), float(certificate.enclosure.hi)
        assert certificate.unique and mpf(low) <= solution <= mpf(high)


@pytest.mark.parametrize("weight", [1.0, 1.0 + 1e-9, 2.0, -1.0, -50.0])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "softplus", "elu"])
def test_without_a_bound_of_the_states_there_is_no_box(weight, activation):
    certificate = certify(make_map([[weight]], [[0.5]], None, activation), conditions=("enclosure", "interval newton"))
    assert certificate.enclosure is None and not certificate.unique
    assert any("no bounded set" in reason for reason in certificate.reasons)


def test_boxes_of_multistable_maps_never_close():
    for seed in range(24):
        size = 2 + seed % 2
        weight = (1.5 + seed % 5) * uniform(size, size, seed=seed)
        certificate, several = check_all_found(make_map(weight, 0.2 * uniform(1, size, seed=seed), None, "tanh"), 40)
        if several:
            box = certificate.enclosure
            assert float((box.hi - box.lo).max()) > 1e-3


@pytest.mark.parametrize("normalize", [None, 2, "inf"])
def test_the_rate_on_the_box_is_one(normalize):
    """Random pairs of the box, in the metric of each proof that is left."""
    tried = 0
    for seed in range(12):
        signed = seed % 2 == 0 or normalize is None
        weight = 0.7 * uniform(4, 4, seed=seed, low=-1.0 if signed else 0.0)
        bound = make_map(weight, None, uniform(3, 4, seed=seed, low=0.2), "tanh", 1.2, normalize=normalize)
        certificate = certify(bound, conditions="enclosure")
        for proof in certificate.proofs:
            assert proof.box is not None
            if proof.rate is None:
                continue
            for draw in range(12):
                ends = []
                for side in range(2):
                    share = uniform(3, 4, seed=50 * draw + side, low=0.0)
                    ends.append(
                        proof.box.lo + (share.round() if draw % 3 == 0 else share) * (proof.box.hi - proof.box.lo)
                    )
                if proof.metric == "hilbert":
                    order = bound.normalizer.p
                    ends = [z / torch.linalg.vector_norm(z, ord=order, dim=1, keepdim=True) for z in ends]
                    inside = [((z >= proof.box.lo) & (z <= proof.box.hi)).all(dim=1) for z in ends]
                    good = inside[0] & inside[1] & proof.proven
                else:
                    good = proof.proven
                before = distance(proof, bound, *ends)
                after = distance(proof, bound, bound(ends[0]), bound(ends[1]))
                assert bool((after <= proof.rate * before * (1 + 1e-9) + 1e-13)[good].all())
                tried += int(good.sum())
    assert tried > 20


def test_the_weighted_norm_uses_the_diagonal_and_its_error_holds():
    """Large negative diagonals: the plain step expands, yet the box proves uniqueness."""
    for seed in range(8):
        weight = 0.6 * uniform(3, 3, seed=seed) - 3 * torch.eye(3, dtype=D)
        bound = make_map(weight, uniform(2, 3, seed=seed), None, "tanh")
        certificate = certify(bound, conditions="enclosure")
        found = fixed_points(bound, starts_for(bound, 8))
        if not certificate.unique:
            continue
        near = torch.stack([part[0] for part in found])
        exact = [ExactMap(bound, k).solve(near[k].tolist()) for k in range(2)]
        for spread in (1e-9, 1e-3, 0.3, 3.0):
            z = near + spread * uniform(2, 3, seed=seed + 1)
            low, high = certificate.error_interval(z)
            for k, solution in enumerate(exact):
                ends = zip(low[k].tolist(), solution, high[k].tolist(), strict=True)
                assert all(mpf(a) <= v <= mpf(b) for a, v, b in ends)
            gap = distance(certificate.proofs[0], bound, z, near)
            assert bool((gap <= certificate.error_bound(z) * (1 + 1e-9) + 1e-12).all())


@pytest.mark.parametrize("a", [0.3, 0.9, 0.999])
def test_a_positive_diagonal_divides_by_one_minus_it(a):
    """`hardtanh(a z + b)` inside its linear piece: the error is the residual over `1 - a`, no less."""
    bound = make_map([[a]], [[0.3 * (1 - a)]], None, "hardtanh")
    certificate = certify(bound, conditions="enclosure")
    assert certificate.unique
    for z in (0.3 + 1e-4, 0.3 - 1e-6, 0.5):
        low, high = certificate.error_interval(torch.tensor([[z]], dtype=D))
        assert float(low) <= 0.3 + 1e-12 and float(high) >= 0.3 - 1e-12
        state, proof = torch.tensor([[z]], dtype=D), certificate.proofs[0]
        gap = float(distance(proof, bound, state, torch.tensor([[0.3]], dtype=D)))
        assert float(certificate.error_bound(state)) >= gap - 1e-12


def test_interval_newton_proves_more_than_the_boxes():
    """Rotations cancel in the inverse of `I - D A` but not in absolute values."""
    proven = 0
    for seed in range(24):
        angle, size = 0.3 * seed, 1.0 + 0.05 * seed
        rotation = size * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=D)
        bound = make_map(
            rotation - 0.1 * torch.eye(2, dtype=D), torch.tensor([[0.4 * math.sin(angle), 0.2]]), None, "tanh"
        )
        first, second = certify(bound, conditions="enclosure"), certify(bound, conditions="interval newton")
        (found,) = fixed_points(bound, starts_for(bound, 12))
        assert float((found - found[0]).abs().max()) < 1e-8
        if second.unique and not first.unique:
            proven += 1
            proof = second.proofs[0]
            solution = ExactMap(bound).solve(found[0].tolist())
            ends = zip(proof.box.lo[0].tolist(), solution, proof.box.hi[0].tolist(), strict=True)
            assert all(mpf(a) <= v <= mpf(b) for a, v, b in ends)
            for z in (found[:1] + 1e-5, found[:1] * 0.9, torch.ones(1, 2, dtype=D) * 5):
                gap = float(distance(proof, bound, z, found[:1]))
                assert gap <= float(second.error_bound(z)) * (1 + 1e-9)
    assert proven >= 3


def test_a_falling_activation_turns_the_sign_of_the_diagonal():
    """`-0.95 tanh(A z)` with `A = -[[1, c], [c, 1]]` feeds back positively: several fixed points for `c > 0.053`."""
    for coupling in (0.1, 0.3, 0.6):
        bound = make_map([[-1.0, -coupling], [-coupling, -1.0]], [[0.0, 0.0]], None, "interval_falling")
        certificate, several = check_all_found(bound, 40)
        assert several == 1 and not certificate.unique and certificate.enclosure is not None
    for coupling in (0.0, 0.03):
        bound = make_map([[-1.0, -coupling], [-coupling, -1.0]], [[0.1, -0.2]], None, "interval_falling")
        assert check_all_found(bound, 20)[1] == 0


@pytest.mark.parametrize("a", [1.001, 1.01, 1.5, 3.0, 1e3])
def test_interval_newton_refuses_a_singular_slope(a):
    """`tanh(a z)`: `1 - d a` vanishes for a slope `d` of the box, and 0 is one of three fixed points."""
    for weight in ([[a]], [[0.0, a], [a, 0.0]], [[0.0, -a], [-a, 0.0]]):
        bound = make_map(weight, torch.zeros(1, len(weight), dtype=D), None, "tanh")
        certificate = certify(bound, conditions="all")
        assert not certificate.unique and certificate.enclosure is not None
        assert contains(certificate.enclosure, bound, 0, torch.zeros(len(weight), dtype=D), 0.0)


def test_interval_newton_measures_slopes_on_the_whole_box():
    """`0.9 sin`-like bumps: slopes are small at the middle of the box and large elsewhere."""
    for scale in (2.0, 5.0, 9.0):
        bound = make_map([[scale]], [[-scale * 0.8]], None, "interval_bump")
        check_all_found(bound, 60)
        check_all_found(make_map([[scale, 0.3], [0.1, -scale]], [[-scale * 0.8, 0.5]], None, "interval_bump"), 60)


@pytest.mark.parametrize("normalize", [None, 2, "inf"])
@pytest.mark.parametrize("place", ["inner", "outer"])
def test_a_wider_injection_never_shrinks_the_box(normalize, place):
    for seed in range(6):
        bound = make_map(
            0.6 * uniform(4, 4, seed=seed),
            uniform(2, 4, seed=seed),
            uniform(2, 4, seed=seed + 9, low=0.0),
            "tanh",
            1.3,
            normalize=normalize,
        )
        before: Box | None = None
        for width in (0.0, 1e-6, 1e-2, 0.3, 2.0):
            inner, outer = Box.point(bound.inner), Box.point(bound.outer)
            wide = Box(getattr(bound, place) - width * 0.1, getattr(bound, place) + width)
            function = IntervalMap(bound, wide if place == "inner" else inner, wide if place == "outer" else outer)
            start = invariant_box(function)
            assert start is not None
            box = start
            for _ in range(25):
                box = function.image(box) & box
            if before is not None:
                assert bool((box.lo <= before.lo + 1e-9).all()) and bool((box.hi >= before.hi - 1e-9).all())
            before = box
            inside = bound.with_tensors(
                [
                    *bound.operator.tensors,
                    bound.inner + (width * 0.9 if place == "inner" else 0.0),
                    bound.outer + (width * 0.9 if place == "outer" else 0.0),
                ]
            )
            for sample, found in enumerate(fixed_points(inside, starts_for(inside, 4))):
                assert all(contains(box, inside, sample, z) for z in found)


def test_powers_that_underflow_under_a_norm_lose_no_fixed_point():
    """Under the 100-norm the `100`-th power of 5.81e-4 is a denormal number."""
    small = 5.81e-4
    bound = make_map(
        [[20.0, 0.0], [0.0, 0.0]], [[-12.0, math.log(small / (1 - small))]], None, "sigmoid", normalize=100
    )
    certificate = certify(bound, conditions="all")
    for start in ([0.01, 1.0], [1.0, 0.01]):
        z = torch.tensor([start], dtype=D)
        for _ in range(1000):
            z = bound(z)
        torch.testing.assert_close(bound(z), z, rtol=1e-13, atol=0)
        assert contains(certificate.enclosure, bound, 0, z[0], 1e-12)


@pytest.mark.parametrize("activation", ["tanh", "hardtanh"])
def test_sums_that_overflow_on_the_way_lose_no_fixed_point(activation):
    """Weights that cancel exactly, `a(w (8 * 1.4 - 8 * 1.4)) = 0`, although every partial sum leaves the doubles."""
    weight = torch.zeros(17, 17, dtype=D)
    weight[0, 1:9], weight[0, 9:] = 1.2e308, -1.2e308
    bound = make_map(weight, None, [[0.0] + [1.4] * 16], activation)
    solution = torch.tensor([0.0] + [1.4] * 16, dtype=D)
    certificate = certify(bound, conditions="all")
    assert certificate.enclosure is None or contains(certificate.enclosure, bound, 0, solution, 1e-12)
    low, high = certificate.error_interval(solution[None])
    assert float(low[0, 0]) <= 0 <= float(high[0, 0])


def test_a_bad_sample_leaves_the_boxes_of_the_others():
    bound = make_map(0.5 * uniform(3, 3, seed=1), uniform(3, 3, seed=2), None, "tanh")
    clean = certify(bound, conditions="enclosure").enclosure
    for value in (math.nan, math.inf):
        broken = bound.with_tensors([bound.tensors[0], bound.tensors[1].clone()])
        broken.inner[1, 2] = value
        certificate = certify(broken, conditions=("enclosure", "interval newton"))
        assert certificate.proven.tolist() == [True, False, True]
        for row in (0, 2):
            torch.testing.assert_close(certificate.enclosure.lo[row], clean.lo[row], rtol=0, atol=0.2)
            assert contains(certificate.enclosure, bound, row, fixed_points(bound, starts_for(bound, 3))[row][0])
