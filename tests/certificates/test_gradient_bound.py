"""`Certificate.gradient_bound` against dense linear algebra, autograd and differences of fixed points in 50 digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.errors import CertificateError, DomainError, ShapeError
from subdeq_plugin.layers import BoundMap
from tests.helpers import GROUPS, NORMS, SCALARS, LayerCase, iterate

REFERENCE = 2e-12  # what the float64 reference itself may be off by, relative to its largest entry


def jacobian(bound: BoundMap, z: Tensor) -> Tensor:
    """The Jacobian on the flattened batch, by autograd."""
    size = z.numel()
    return torch.autograd.functional.jacobian(bound, z).reshape(size, size)


def reference(bound: BoundMap, z: Tensor, cotangent: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Adjoint and gradients at a fixed point: a dense solve, then autograd of the map."""
    system = torch.eye(z.numel(), dtype=z.dtype) - jacobian(bound, z)
    adjoint = torch.linalg.solve(system.T, cotangent.flatten()).reshape(z.shape)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in bound.tensors]
    return adjoint, torch.autograd.grad((bound.with_tensors(leaves)(z) * adjoint).sum(), leaves)


def solved(bound: BoundMap) -> Tensor:
    """The fixed point of a map in float64, polished by dense Newton steps where plain iteration is not enough."""
    z = iterate(bound, bound.start(), steps=2000)
    for _ in range(30):
        residual = (z - bound(z)).flatten()
        if bool((residual.abs() <= 1e-15 * (1 + z.flatten().abs())).all()):
            break
        system = torch.eye(z.numel(), dtype=z.dtype) - jacobian(bound, z)
        z = z - torch.linalg.solve(system, residual).reshape(z.shape)
    return z


def damped(bound: BoundMap) -> Tensor:
    """A fixed point of a map whose plain iteration may not converge."""
    z = torch.zeros(bound.state_shape, dtype=torch.float64)
    for _ in range(2000):
        z = 0.7 * z + 0.3 * bound(z)
    residual = (z - bound(z)).flatten()
    system = torch.eye(z.numel(), dtype=z.dtype) - jacobian(bound, z)
    return z - torch.linalg.solve(system, residual).reshape(z.shape)


def holds(box: Any, value: Tensor) -> bool:
    """Whether a box contains the reference, up to the error of that."""
    slack = REFERENCE * (1 + value.abs().max())
    return bool(((box.lo <= value + slack) & (value - slack <= box.hi)).all())


def check(found: Any, bound: BoundMap, exact: tuple[Tensor, tuple[Tensor, ...]]) -> None:
    """Every box contains its reference, and has its shape."""
    adjoint, gradients = exact
    assert found.adjoint.lo.shape == adjoint.shape and holds(found.adjoint, adjoint)
    assert len(found.tensors) == len(gradients) == len(bound.tensors)
    for box, value in zip(found.tensors, gradients, strict=True):
        assert box.lo.shape == box.hi.shape == value.shape and box.lo.dtype == torch.float64
        assert holds(box, value)


def width(found: Any) -> float:
    """The widest side of all boxes."""
    return max(float((box.hi - box.lo).max()) for box in (found.adjoint, *found.tensors))


def normal(shape: Any, seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(z: Tensor, size: float, seed: int) -> Tensor:
    """Entries off by at most `size`, relatively."""
    uniform = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z * (1 + size * (2 * uniform - 1))


CASES = [
    LayerCase(kind, norm, over, place, shift=shift, seed=seed)
    for seed, (kind, norm, place, shift) in enumerate(
        itertools.product(GROUPS, NORMS, ("inside", "outside"), (1.2, 3.0))
    )
    for over in (GROUPS[kind] if norm is not None else ("state",))
    if (shift == 3.0) == (over != "state" or norm is None)
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.shift}")
def test_layers_norms_groups_and_places(case):
    layer, x = case.layer(), case.input()
    bound, certificate = layer.bind(x).detach(), sd.certify(layer, x)
    z = solved(bound)
    cotangent = normal(z.shape, case.seed)
    exact = reference(bound, z, cotangent)
    scale = max(float(part.abs().max()) for part in (exact[0], *exact[1])) + 1
    widths = []
    for size in (0.0, 1e-10, 1e-4, 0.3):
        found = certificate.gradient_bound(near(z, size, case.seed), cotangent)
        check(found, bound, exact)
        widths.append(width(found))
    assert found.finite == math.isfinite(float((found.adjoint.hi - found.adjoint.lo).max()))
    assert widths[0] <= 1e-8 * scale and widths[1] <= 1e-6 * scale and widths[2] <= 2 * scale
    assert widths == sorted(widths)
    # An adjoint that is wrong costs width, never correctness; a coarse one costs about its error.
    close = certificate.gradient_bound(z, cotangent, exact[0])
    check(close, bound, exact)
    for wrong, allowed in (
        (near(exact[0], 1e-6, 3), 1e-3),
        (exact[0].float(), 1e-3),
        (torch.zeros_like(z), math.inf),
        (exact[0] + 0.5 * normal(z.shape, 9), math.inf),
        (-7 * exact[0], math.inf),
    ):
        found = certificate.gradient_bound(z, cotangent, wrong)
        check(found, bound, exact)
        assert found.finite and width(close) <= width(found) <= allowed * scale


ACTIVATIONS = [
    ("tanh", 1.2, 0.5), ("tanh", 1.2, 1.5), ("tanh", 1.5, -0.8), ("sigmoid", 0.3, 1.0), ("softplus", 1.0, 0.5),
    ("softsign", 1.5, 1.0), ("arctan", 2.0, 0.7), ("erf", 1.5, 1.0), ("relu", 1.0, 0.5), ("leaky_relu", 1.0, 0.6),
    ("relu6", 0.5, 0.5), ("hardtanh", 1.5, 0.9), ("elu", 1.5, 0.5), ("softplus", 0.1, -0.7),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize(("activation", "shift", "power"), ACTIVATIONS)
def test_activations_and_powers(kind, activation, shift, power):
    case = LayerCase(kind, injection="inside", activation=activation, shift=shift, power=power, seed=31)
    layer, x = case.layer(), case.input()
    bound, certificate = layer.bind(x).detach(), sd.certify(layer, x)
    assert certificate.unique
    z = solved(bound)
    cotangent = normal(z.shape, 5)
    exact = reference(bound, z, cotangent)
    for size in (0.0, 1e-6, 1e-2):
        found = certificate.gradient_bound(near(z, size, 1), cotangent)
        check(found, bound, exact)
    check(certificate.gradient_bound(z, cotangent, cotangent), bound, exact)


def signed(scale: float, seed: int, *, skew: bool = False, activation: str = "tanh") -> sd.SubhomLinear:
    """A dense layer with signed weights of a given two-norm."""
    torch.manual_seed(seed)
    layer = sd.SubhomLinear(
        3, 5, activation, 0.0, weight="signed", injection="inside", injection_map="identity", dtype=torch.float64
    )
    with torch.no_grad():
        weight = torch.randn(5, 5, dtype=torch.float64)
        weight = weight - weight.T if skew else weight
        layer.weight.copy_(weight * (scale / torch.linalg.matrix_norm(weight, 2)))
    return layer


SIGNED = {
    "norm": (lambda: signed(0.5, 1), "norm"),
    "norm in l2": (lambda: signed(0.95, 2), "norm"),
    "spectral radius": (lambda: signed(0.6, 4), "spectral radius"),
    "monotone": (lambda: signed(1.5, 3, skew=True), "monotone"),
    "monotone, softsign": (lambda: signed(1.3, 3, skew=True, activation="softsign"), "monotone"),
    "enclosure": (lambda: signed(0.8, 5), "enclosure"),
    "interval newton": (lambda: signed(1.2, 6, skew=True), "interval newton"),
}


@pytest.mark.parametrize("name", SIGNED)
def test_signed_maps(name):
    build, condition = SIGNED[name]
    layer, x = build(), normal((3, 3), 8)
    bound, certificate = layer.bind(x).detach(), sd.certify(layer, x, conditions=condition)
    assert certificate.unique
    z = damped(bound)
    cotangent = normal(z.shape, 6)
    exact = reference(bound, z, cotangent)
    given = certificate.gradient_bound(z, cotangent, exact[0])
    check(given, bound, exact)
    assert given.finite and width(given) <= 1e-8
    for size in (0.0, 1e-10, 1e-5, 0.3):
        found = certificate.gradient_bound(near(z, size, 2), cotangent)
        check(found, bound, exact)
        if size <= 1e-5:
            assert found.finite and width(found) <= (1e-8 if size == 0 else 1.0)
    for wrong in (torch.zeros_like(z), exact[0] + normal(z.shape, 3), exact[0].float()):
        found = certificate.gradient_bound(z, cotangent, wrong)
        check(found, bound, exact)
        assert found.finite


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.floats(-1, 1), min_size=9, max_size=9),
    st.lists(st.floats(-2, 2), min_size=6, max_size=6),
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.sampled_from([0.0, 1e-9, 1e-3, 0.2]),
)
def test_any_small_signed_map(weight, injection, cotangent, adjoint, size):
    """Whatever is proven of `tanh(W z + b)` with entries of `W` up to 1, the boxes hold for any adjoint at all."""
    layer = signed(0.5, 0)
    spec = layer.bind(torch.zeros(1, 3, dtype=torch.float64)).spec
    arrays = {
        "weight": torch.tensor(weight, dtype=torch.float64).reshape(3, 3),
        "inner": torch.tensor(injection, dtype=torch.float64).reshape(2, 3),
    }
    bound = BoundMap.from_spec(sd.MapSpec(arrays, spec.options))
    certificate = sd.certify(bound)
    if not certificate.unique:
        return
    z = damped(bound)
    if not bool(((bound(z) - z).abs() <= 1e-13).all()):
        return
    g = torch.tensor(cotangent, dtype=torch.float64).reshape(2, 3)
    guess = torch.tensor(adjoint, dtype=torch.float64).reshape(2, 3)
    exact = reference(bound, z, g)
    at = near(z, size, 4)
    check(certificate.gradient_bound(at, g), bound, exact)
    check(certificate.gradient_bound(at, g, guess), bound, exact)


Vector = list[Any]


def precise_fixed_point(apply: Callable[[Vector], Vector], size: int) -> Vector:
    z = [mp.mpf(1)] * size
    for _ in range(400):
        fresh = apply(z)
        if max(abs(a - b) for a, b in zip(fresh, z, strict=True)) < mp.mpf(10) ** -48:
            return fresh
        z = fresh
    raise AssertionError("no fixed point")


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize(
    ("norm", "activation", "shift", "power"),
    [(None, "tanh", 1.2, 1.0), (None, "softplus", 1.0, 0.5), (1, "sigmoid", 0.5, 1.0), (2, "tanh", 1.2, 1.0),
     (3, "arctan", 2.0, 0.5), ("inf", "erf", 1.5, 1.0)],
)  # fmt: skip
def test_differences_of_fixed_points_in_fifty_digits(norm, activation, shift, power, place):
    """Central differences of the loss in 50 digits, and no tolerance at all."""
    torch.manual_seed(17)
    layer = sd.SubhomLinear(2, 3, activation, shift, power, norm, injection=place, dtype=torch.float64)
    x = normal((2, 2), 18)
    bound = layer.bind(x).detach()
    certificate = sd.certify(bound)
    z = solved(bound)
    cotangent = normal(z.shape, 19)
    scalar = SCALARS[activation][0]

    def loss(weight: Vector, injected: list[Vector]) -> Any:
        total = mp.mpf(0)
        for sample in range(2):

            def apply(state: Vector, y: Vector = injected[sample]) -> Vector:
                t = [sum(weight[3 * i + j] * state[j] for j in range(3)) for i in range(3)]
                if place == "inside":
                    t = [a + b for a, b in zip(t, y, strict=True)]
                value = [(scalar(a) + mp.mpf(shift)) ** mp.mpf(power) for a in t]
                if place == "outside":
                    value = [a + b for a, b in zip(value, y, strict=True)]
                if norm is None:
                    return value
                size = max(value) if norm == "inf" else sum(v**norm for v in value) ** (mp.mpf(1) / norm)
                return [v / size for v in value]

            point = precise_fixed_point(apply, 3)
            total += sum(mp.mpf(float(g)) * v for g, v in zip(cotangent[sample], point, strict=True))
        return total

    with mp.workdps(50):
        weight = [mp.mpf(float(v)) for v in bound.tensors[0].flatten()]
        injected = [[mp.mpf(float(v)) for v in row] for row in bound.tensors[1]]
        step = mp.mpf(10) ** -12

        def moved(values: Vector, index: int, by: Any) -> Vector:
            return [value + (by if index == i else 0) for i, value in enumerate(values)]

        boxes = [certificate.gradient_bound(at, cotangent) for at in (z, near(z, 1e-7, 1), near(z, 1e-2, 2))]
        boxes.append(certificate.gradient_bound(z, cotangent, near(cotangent, 0.1, 3)))
        # A zero of the relu is left alone: the injection itself may move to either side of it.
        for index in (0, 1, 5, 8):
            slope = (
                (loss(moved(weight, index, step), injected) - loss(moved(weight, index, -step), injected)) / step / 2
            )
            for found in boxes:
                box = found.tensors[0]
                assert mp.mpf(float(box.lo.flatten()[index])) <= slope <= mp.mpf(float(box.hi.flatten()[index]))
        for sample, index in ((0, 0), (1, 2)):
            rows = [[*injected], [*injected]]
            for side, sign in enumerate((1, -1)):
                rows[side][sample] = moved(injected[sample], index, sign * step)
            slope = (loss(weight, rows[0]) - loss(weight, rows[1])) / step / 2
            for found in boxes:
                box = found.tensors[1]
                assert mp.mpf(float(box.lo[sample, index])) <= slope <= mp.mpf(float(box.hi[sample, index]))


class TestActualGradients:
    """`error` bounds what float32 training really computes."""

    @pytest.mark.parametrize(("f_tol", "b_tol"), [(1e-6, 1e-6), (1e-2, 1e-1), (0.3, 0.5)])
    @pytest.mark.parametrize(
        "case",
        [
            LayerCase("dense", seed=51), LayerCase("dense", 2, seed=52), LayerCase("conv", injection="inside", seed=53),
            LayerCase("conv", 1, "channel", shift=3.0, seed=54), LayerCase("graph", seed=55),
            LayerCase("mixing graph", 3, seed=56), LayerCase("dense", "inf", seed=57),
        ],
        ids=str,
    )  # fmt: skip
    def test_a_module_in_single_precision(self, case, f_tol, b_tol):
        layer, x = case.layer(torch.float32), case.input(torch.float32)
        bound = layer.bind(x).detach()
        leaves = [tensor.clone().requires_grad_() for tensor in bound.tensors]
        core = sd.CertifiedDEQ(f_tol=f_tol, b_tol=b_tol)
        states, _ = core(bound.with_tensors(leaves))
        cotangent = normal(states[0].shape, case.seed).float()
        gradients = torch.autograd.grad(states[0], leaves, cotangent)
        exact = bound.to("cpu", torch.float64)
        z = solved(exact)
        truth = reference(exact, z, cotangent.double())
        found = sd.certify(bound).gradient_bound(states[0].detach(), cotangent)
        check(found, exact, truth)
        errors = found.error(gradients)
        for error, computed, true in zip(errors, gradients, truth[1], strict=True):
            assert error.dtype == torch.float64 and error.shape == true.shape
            assert bool(((computed.double() - true).abs() <= error + REFERENCE * (1 + true.abs().max())).all())
        if f_tol == 1e-6:
            size = max(float(true.abs().max()) for true in truth[1])
            assert max(float(error.max()) for error in errors) <= 1e-2 * (1 + size)

    def test_the_gradient_of_the_parameters(self):
        """`backward` of a module with weights `|p|`: the chain rule multiplies by the sign of `p`."""
        case = LayerCase("dense", seed=58)
        layer, x = case.layer(torch.float32), case.input(torch.float32)
        with torch.no_grad():
            original = layer.parametrizations.weight.original
            original[::2] *= -1
        model = sd.SubDEQ(layer, f_tol=1e-2, b_tol=1e-1)
        out = model(x)
        cotangent = normal(out.shape, 1).float()
        (out * cotangent).sum().backward()
        bound = layer.bind(x).detach()
        exact = bound.to("cpu", torch.float64)
        truth = reference(exact, solved(exact), cotangent.double())
        found = sd.certify(layer, x).gradient_bound(out.detach(), cotangent)
        computed = original.grad * original.detach().sign()
        weights, _ = found.error((computed, torch.zeros_like(bound.tensors[1])))
        assert bool(((computed.double() - truth[1][0]).abs() <= weights).all())
        assert float(weights.max()) <= 0.5 * (1 + float(truth[1][0].abs().max()))

    def test_error_is_the_distance_to_the_farthest_end(self):
        case = LayerCase("dense", seed=59)
        layer, x = case.layer(), case.input()
        bound = layer.bind(x).detach()
        z = solved(bound)
        found = sd.certify(bound).gradient_bound(near(z, 1e-2, 1), torch.ones_like(z))
        for offset in (-5.0, 0.0, 5.0):
            given = tuple((box.lo + box.hi) / 2 + offset for box in found.tensors)
            for error, box in zip(found.error(given), found.tensors, strict=True):
                radius = (box.hi - box.lo) / 2
                torch.testing.assert_close(error, radius + abs(offset), rtol=1e-12, atol=0)
        for end in ("lo", "hi"):
            given = tuple(getattr(box, end) for box in found.tensors)
            for error, box in zip(found.error(given), found.tensors, strict=True):
                assert bool((error >= box.hi - box.lo).all())
        with pytest.raises(ValueError):
            found.error(given[:1])


class TestKinks:
    """Where the Jacobian is a set, the boxes hold the gradient of each element."""

    def test_relu_at_zero(self):
        """`z = relu(z / 2 - 1 / 2) + 1` has `z* = 1` with an argument of exactly 0."""
        layer = sd.SubhomLinear(
            1, 1, "relu", 1.0, weight="signed", injection="inside", injection_map="identity", dtype=torch.float64
        )
        with torch.no_grad():
            layer.weight.fill_(0.5)
            layer.injection.weight.zero_()
            layer.injection.bias.fill_(-0.5)
        x, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        for adjoint in (None, one, 2 * one):
            found = sd.certify(layer, x).gradient_bound(one, one, adjoint)
            # Slope 0: adjoint 1, gradients 0. Slope 1: adjoint 2, gradients 2.
            for box, low, high in ((found.adjoint, 1, 2), (found.tensors[0], 0, 2), (found.tensors[1], 0, 2)):
                assert float(box.lo) <= low and float(box.hi) >= high
            assert found.finite and width(found) < 10

    def test_a_tie_in_the_maximum_norm(self):
        """Two entries are the largest: the norm's derivative may be taken at either."""
        layer = sd.SubhomLinear(1, 3, "tanh", 1.2, 1.0, "inf", injection="outside", dtype=torch.float64)
        layer.weight = torch.tensor([[0.3, 0.3, 0.2], [0.3, 0.3, 0.2], [0.1, 0.1, 0.1]], dtype=torch.float64)
        with torch.no_grad():
            layer.injection.weight.zero_()
            layer.injection.bias.copy_(torch.tensor([1.0, 1.0, 0.25], dtype=torch.float64))
        x = torch.zeros(1, 1, dtype=torch.float64)
        bound = layer.bind(x).detach()
        z = iterate(bound, bound.start())
        assert float(z[0, 0]) == float(z[0, 1]) == 1.0
        cotangent = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
        found = sd.certify(layer, x).gradient_bound(z, cotangent)
        inner = z @ bound.tensors[0].T
        value = torch.tanh(inner) + 1.2 + bound.tensors[1]
        phi = float(value.max())
        slopes = (1 - torch.tanh(inner) ** 2).flatten()
        for share in (0.0, 0.25, 0.5, 1.0):
            w = torch.tensor([share, 1 - share, 0.0], dtype=torch.float64)
            outer = (torch.eye(3, dtype=torch.float64) - torch.outer(z[0], w)) / phi
            jacobian_ = outer @ torch.diag(slopes) @ bound.tensors[0]
            adjoint = torch.linalg.solve((torch.eye(3, dtype=torch.float64) - jacobian_).T, cotangent[0])
            assert holds(found.adjoint, adjoint[None])
            assert holds(found.tensors[1], (outer.T @ adjoint)[None])
            assert holds(found.tensors[0], torch.outer(slopes * (outer.T @ adjoint), z[0]))

    def test_a_runner_up_with_the_wider_box(self):
        """The second largest entry is the more uncertain one: its box reaches above that of the largest."""
        layer = sd.SubhomLinear(1, 3, "tanh", 1.2, 1.0, "inf", injection="outside", dtype=torch.float64)
        layer.weight = torch.tensor([[0.01, 0.01, 0.01], [0.5, 0.5, 0.2], [0.1, 0.1, 0.1]], dtype=torch.float64)
        z = torch.tensor([[1.0, 1 - 1e-7, 0.6]], dtype=torch.float64)
        x = torch.zeros(1, 1, dtype=torch.float64)
        with torch.no_grad():
            layer.injection.weight.zero_()
            layer.injection.bias.copy_((3 * z - torch.tanh(z @ layer.weight.T) - 1.2)[0])
        bound = layer.bind(x).detach()
        z = solved(bound)
        assert float(z[0, 0]) == 1.0 > float(z[0, 1])
        cotangent = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
        for size in (1e-4, 1e-3, 1e-2):
            found = sd.certify(layer, x).gradient_bound(near(z, size, 1), cotangent)
            check(found, bound, reference(bound, z, cotangent))

    def test_the_injections_own_kink_is_none(self):
        """The gradient is taken with respect to the injected term, after its map."""
        case = LayerCase("dense", seed=61)
        layer = case.layer(injection_map="relu")
        with torch.no_grad():
            layer.injection.weight.zero_()
            layer.injection.bias.zero_()
        x = case.input()
        bound = layer.bind(x).detach()
        z = solved(bound)
        check(sd.certify(layer, x).gradient_bound(z, z), bound, reference(bound, z, z))


class TestFailures:
    """Nothing proven, samples that are no numbers, and wrong arguments."""

    @staticmethod
    def _double() -> tuple[BoundMap, sd.Certificate]:
        """`z = tanh(3 z + b)`: not proven at `b = 0`, proven at `b = 9`."""
        layer = signed(0.5, 0)
        spec = layer.bind(torch.zeros(1, 3, dtype=torch.float64)).spec
        arrays = {
            "weight": torch.full((1, 1), 3.0, dtype=torch.float64),
            "inner": torch.tensor([[0.0], [9.0]], dtype=torch.float64),
        }
        bound = BoundMap.from_spec(sd.MapSpec(arrays, spec.options))
        return bound, sd.certify(bound)

    def test_not_proven_means_infinite(self):
        bound, _ = self._double()
        single = bound.with_tensors([bound.tensors[0], bound.tensors[1][:1]])
        found = sd.certify(single).gradient_bound(
            torch.full((1, 1), 0.9, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        )
        assert not found.finite
        for box in (found.adjoint, found.tensors[0], found.tensors[1]):
            assert float(box.lo) == -math.inf and float(box.hi) == math.inf

    def test_a_sample_that_is_not_proven_leaves_the_others_alone(self):
        bound, certificate = self._double()
        assert certificate.proven.tolist() == [False, True]
        z = torch.tensor([[0.9], [1.0]], dtype=torch.float64)
        for _ in range(50):
            z = bound(z)
        found = certificate.gradient_bound(z, torch.ones_like(z))
        assert not found.finite
        assert float(found.adjoint.lo[0]) == -math.inf and float(found.adjoint.hi[0]) == math.inf
        slope = 1 / math.cosh(3 * float(z[1]) + 9) ** 2
        assert float(found.adjoint.lo[1]) <= 1 / (1 - 3 * slope) <= float(found.adjoint.hi[1])
        assert float(found.adjoint.hi[1] - found.adjoint.lo[1]) < 1e-8
        assert float(found.tensors[1].lo[1]) <= slope / (1 - 3 * slope) <= float(found.tensors[1].hi[1])

    def test_an_unproven_layer(self):
        wild = sd.SubhomLinear(3, 4, "softplus", 0.01, weight="signed", injection_map="identity", dtype=torch.float64)
        with torch.no_grad():
            wild.weight.mul_(50)
        x = normal((2, 3), 1)
        certificate = sd.certify(wild, x)
        assert not certificate.unique
        found = certificate.gradient_bound(torch.ones(2, 4, dtype=torch.float64), normal((2, 4), 2))
        assert not found.finite and not bool(found.adjoint.lo.isnan().any() | found.adjoint.hi.isnan().any())
        assert all(not bool(box.lo.isfinite().any()) for box in found.tensors)

    @pytest.mark.parametrize("case", [LayerCase("dense", seed=63), LayerCase("conv", 2, seed=64)], ids=str)
    def test_samples_with_nan(self, case):
        layer, x = case.layer(), case.input()
        bound, certificate = layer.bind(x).detach(), sd.certify(layer, x)
        z = solved(bound)
        cotangent = normal(z.shape, 3)
        adjoint, gradients = reference(bound, z, cotangent)
        for broken in ("z", "cotangent", "adjoint"):
            given = {"z": z.clone(), "cotangent": cotangent.clone(), "adjoint": adjoint.clone()}
            given[broken].reshape(-1)[0] = math.nan
            found = certificate.gradient_bound(**given)
            for box in (found.adjoint, *found.tensors):
                assert not bool((box.lo.isnan() | box.hi.isnan()).any())
            assert holds(type(found.adjoint)(found.adjoint.lo[1], found.adjoint.hi[1]), adjoint[1])
            if broken != "z":
                assert not found.finite and bool(found.adjoint.hi[0].isinf().any())
            assert float((found.adjoint.hi[1] - found.adjoint.lo[1]).max()) < 1e-6
            if not found.finite or broken == "z":
                continue
            assert all(holds(box, value) for box, value in zip(found.tensors, gradients, strict=True))

    def test_wrong_arguments(self):
        case = LayerCase("dense", seed=65)
        layer, x = case.layer(), case.input()
        certificate = sd.certify(layer, x)
        good = torch.ones(2, 4, dtype=torch.float64)
        for bad in (good[:, :3], good[:1], good.long(), "z"):
            with pytest.raises(ShapeError):
                certificate.gradient_bound(bad, good)
            with pytest.raises(ShapeError):
                certificate.gradient_bound(good, bad)
            with pytest.raises(ShapeError):
                certificate.gradient_bound(good, good, bad)
        with pytest.raises(DomainError):
            certificate.gradient_bound(-good, good)
        with pytest.raises(CertificateError, match="input"):
            sd.certify(layer).gradient_bound(good, good)
        found = sd.certify(layer).gradient_bound(good, good, x=x)
        again = certificate.gradient_bound(good, good)
        assert torch.equal(found.adjoint.lo, again.adjoint.lo) and torch.equal(found.adjoint.hi, again.adjoint.hi)
        with pytest.raises(CertificateError, match="bound map"):
            sd.certify(layer.bind(x)).gradient_bound(good, good, x=x)
