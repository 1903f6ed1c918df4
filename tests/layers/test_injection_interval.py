"""`SubhomLayer.injection_interval` against exact rational arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.errors import OptionError, ShapeError
from subdeq_plugin.layers import INJECTION_MAPS
from tests.helpers import LayerCase

KINDS = ("dense", "conv", "graph")
MAPS = tuple(INJECTION_MAPS)
ORDERS = (math.inf, 2)


def features_of(x: Any) -> Tensor:
    """The tensor that is injected."""
    return x[0] if isinstance(x, tuple) else x


def with_features(x: Any, features: Tensor) -> Any:
    """The same input with other features."""
    return (features, x[1]) if isinstance(x, tuple) else features


def affine(layer: sd.SubhomLayer, features: Tensor) -> list[Fraction]:
    """`scale (U x + c)` in exact arithmetic, in the order of the flattened state."""
    weight, bias = layer.injection.weight.detach(), layer.injection.bias
    scale = Fraction(layer.injection_scale)
    rational = [Fraction(float(v)) for v in features.flatten()]
    coefficients = [Fraction(float(v)) for v in weight.flatten()]
    constants = [Fraction(0)] * weight.shape[0] if bias is None else [Fraction(float(v)) for v in bias.detach()]
    found = []
    if weight.dim() == 2:
        rows, columns = weight.shape
        for sample in range(features.numel() // columns):
            for row in range(rows):
                products = (
                    coefficients[row * columns + column] * rational[sample * columns + column]
                    for column in range(columns)
                )
                found.append(scale * (sum(products, Fraction(0)) + constants[row]))
        return found
    outs, ins, tall, broad = weight.shape
    batch, _, height, width = features.shape
    for b, out, row, column in itertools.product(range(batch), range(outs), range(height), range(width)):
        total = constants[out]
        for channel, dy, dx in itertools.product(range(ins), range(tall), range(broad)):
            y, x = row + dy - tall // 2, column + dx - broad // 2
            if 0 <= y < height and 0 <= x < width:
                tap = coefficients[((out * ins + channel) * tall + dy) * broad + dx]
                total += tap * rational[((b * ins + channel) * height + y) * width + x]
        found.append(scale * total)
    return found


def mapped(kind: str, value: Fraction) -> Any:
    """The injection map, from its definition; `softplus` to 60 digits."""
    if kind == "softplus":
        with mp.workdps(60):
            t = mp.mpf(value.numerator) / value.denominator
            return mp.log1p(mp.exp(t)) if t < 0 else t + mp.log1p(mp.exp(-t))
    return {"relu": max(value, Fraction(0)), "abs": abs(value), "square": value**2, "identity": value}[kind]


def exactly(number: float, kind: str) -> Any:
    """A float as the number that `mapped` gives."""
    if math.isinf(number):
        return number
    return mp.mpf(number) if kind == "softplus" else Fraction(number)


def contained(kind: str, values: list[Fraction], lo: Tensor, hi: Tensor) -> bool:
    """Whether every exact value, mapped, is between its bounds."""
    assert not bool((lo.isnan() | hi.isnan()).any())
    bounds = zip(lo.flatten().tolist(), hi.flatten().tolist(), values, strict=True)
    with mp.workdps(60):
        return all(exactly(low, kind) <= mapped(kind, value) <= exactly(high, kind) for low, high, value in bounds)


def perturbed(x: Any, radius: Tensor | float, order: float, seed: int, signs: Tensor | None = None) -> Any:
    """An input on the sphere around `x`, each sample by itself and a little inside of it."""
    features = features_of(x)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(features.shape, generator=generator, dtype=torch.float64) if signs is None else signs
    dims = (-1,) if features.dim() != 4 else (-3, -2, -1)
    size = step.abs().amax(dims, keepdim=True) if math.isinf(order) else step.square().sum(dims, keepdim=True).sqrt()
    if signs is None and math.isinf(order):
        step, size = step.sign(), torch.ones_like(size)
    return with_features(x, features + radius * (1 - 1e-12) * step / size)


@pytest.mark.parametrize("injection_map", MAPS)
@pytest.mark.parametrize("kind", KINDS)
class TestExact:
    """Radius zero."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_contains_the_exact_value_and_is_tight(self, kind, injection_map, dtype):
        case = LayerCase(kind, seed=3)
        layer, x = case.layer(dtype, injection_map=injection_map), case.input(dtype)
        lo, hi = layer.injection_interval(x)
        assert lo.dtype == hi.dtype == torch.float64 and lo.shape == layer.initial_state(x).shape
        values = affine(layer, features_of(x))
        assert contained(injection_map, values, lo, hi)
        size = max(1.0, max(abs(float(value)) for value in values))
        assert bool((hi - lo <= 1e-12 * size**2).all())
        bound = layer.bind(x)
        stored = bound.inner if bound.inner is not None else bound.outer
        near = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(stored.detach().double(), (lo + hi) / 2, rtol=near, atol=near)

    def test_a_lowered_input_is_taken_as_it_is(self, kind, injection_map):
        """Autocast rounds the injection of the layer; the bounds are those of the stored numbers."""
        case = LayerCase(kind, seed=5)
        layer, x = case.layer(torch.float32, injection_map=injection_map), case.input(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lowered = with_features(x, features_of(x).to(torch.bfloat16))
            lo, hi = layer.injection_interval(lowered)
            plain = layer.injection_interval(x)
        assert contained(injection_map, affine(layer, features_of(lowered)), lo, hi)
        assert all(torch.equal(a, b) for a, b in zip(plain, layer.injection_interval(x), strict=True))

    def test_without_bias(self, kind, injection_map):
        case = LayerCase(kind, seed=6)
        layer, x = case.layer(injection_map=injection_map, bias=False), case.input()
        assert contained(injection_map, affine(layer, features_of(x)), *layer.injection_interval(x))

    def test_no_gradient_is_recorded(self, kind, injection_map):
        case = LayerCase(kind)
        layer, x = case.layer(injection_map=injection_map), case.input()
        assert not any(part.requires_grad for part in layer.injection_interval(x, 0.1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("injection_map", MAPS)
@pytest.mark.parametrize("kind", KINDS)
class TestBall:
    """Every input of a ball."""

    def test_contains_what_perturbed_inputs_inject(self, kind, injection_map, order):
        case = LayerCase(kind, seed=7)
        layer, x = case.layer(injection_map=injection_map), case.input()
        for seed, radius in enumerate((1e-9, 0.03, 2.0)):
            lo, hi = layer.injection_interval(x, radius, order)
            moved = perturbed(x, radius, order, seed)
            assert contained(injection_map, affine(layer, features_of(moved)), lo, hi)

    def test_is_attained_by_the_extremal_perturbation(self, kind, injection_map, order):
        case = LayerCase(kind, seed=8)
        layer, x = case.layer(injection_map=injection_map), case.input()
        radius = 0.25
        lo, hi = (part.flatten() for part in layer.injection_interval(x, radius, order))
        raw = case.layer(injection_map="identity")
        features = features_of(x)
        middle = torch.tensor([float(value) for value in affine(layer, features)], dtype=torch.float64)
        free = [part.flatten() for part in raw.injection_interval(x, radius, order)]
        for entry in range(0, middle.numel(), 3):
            leaf = torch.zeros_like(features, requires_grad=True)
            direction = torch.autograd.grad((raw.injection_scale * raw.injection(leaf)).flatten()[entry], leaf)[0]
            ends = []
            for sign in (-1.0, 1.0):
                step = sign * (direction.sign() if math.isinf(order) else direction / direction.norm())
                moved = affine(layer, features + radius * (1 - 1e-12) * step)
                assert contained(injection_map, [moved[entry]], lo[entry], hi[entry])
                ends.append(moved[entry])
            reach = float(direction.abs().sum() if math.isinf(order) else direction.norm()) * radius
            assert float(free[0][entry]) == pytest.approx(float(ends[0]), abs=1e-10 * (1 + reach))
            assert float(free[1][entry]) == pytest.approx(float(ends[1]), abs=1e-10 * (1 + reach))
            assert float(ends[1] - ends[0]) == pytest.approx(2 * reach, rel=1e-9)
            values = [float(mapped(injection_map, end)) for end in ends]
            zero_inside = ends[0] < 0 < ends[1] and injection_map in ("abs", "square")
            least = 0.0 if zero_inside else min(values)
            assert float(lo[entry]) == pytest.approx(least, rel=1e-9, abs=1e-9)
            assert float(hi[entry]) == pytest.approx(max(values), rel=1e-9, abs=1e-9)

    def test_every_sample_has_its_own_radius(self, kind, injection_map, order):
        case = LayerCase(kind, seed=9)
        layer, x = case.layer(injection_map=injection_map), case.input()
        dims = layer.initial_state(x).dim() - 1
        radii = torch.tensor([0.0, 0.7], dtype=torch.float64)
        found = layer.injection_interval(x, radii.reshape(-1, *[1] * dims), order)
        for row, radius in enumerate(radii.tolist()):
            alone = layer.injection_interval(x, radius, order)
            for mine, other in zip(found, alone, strict=True):
                torch.testing.assert_close(mine[row], other[row], rtol=1e-14, atol=1e-300)

    def test_grows_with_the_radius(self, kind, injection_map, order):
        case = LayerCase(kind, seed=10)
        layer, x = case.layer(injection_map=injection_map), case.input()
        radii = (0.0, 1e-12, 1e-3, 1.0, 1e6)
        boxes = [layer.injection_interval(x, radius, order) for radius in radii]
        for (lo, hi), (low, high) in itertools.pairwise(boxes):
            assert bool((low <= lo).all() and (hi <= high).all())


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(MAPS),
    st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6),
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3),
    st.floats(0, 10),
    st.sampled_from(ORDERS),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
)
def test_any_weights_any_input_any_perturbation(kind, weights, inputs, radius, order, direction):
    layer = sd.SubhomLinear(3, 2, "tanh", 1.2, injection_map=kind, dtype=torch.float64)
    with torch.no_grad():
        layer.injection.weight.copy_(torch.tensor(weights, dtype=torch.float64).reshape(2, 3))
    x = torch.tensor([inputs], dtype=torch.float64)
    step = torch.tensor([direction], dtype=torch.float64)
    if order == 2:
        step = step / max(1.0, float(step.norm()) * (1 + 1e-12))
    # Rounded inwards: the exact distance of the moved input must not exceed the radius.
    moved = x + step * radius * (1 - 1e-9)
    gap = [Fraction(b) - Fraction(a) for a, b in zip(x[0].tolist(), moved[0].tolist(), strict=True)]
    exact = max(abs(g) for g in gap) if order == math.inf else None
    if exact is None:
        squared = sum(g * g for g in gap)
        if squared > Fraction(radius) ** 2:
            return
    elif exact > Fraction(radius):
        return
    assert contained(kind, affine(layer, moved), *layer.injection_interval(x, radius, order))


class TestEdges:
    """Zeros, underflow, overflow, what is no number, and what is refused."""

    @staticmethod
    def _layer(kind: str, weight: list[float], bias: float | None = None) -> sd.SubhomLinear:
        layer = sd.SubhomLinear(
            len(weight), 1, "tanh", 1.2, injection_map=kind, bias=bias is not None, dtype=torch.float64
        )
        with torch.no_grad():
            layer.injection.weight.copy_(torch.tensor([weight], dtype=torch.float64))
            if bias is not None:
                layer.injection.bias.fill_(bias)
        return layer

    @pytest.mark.parametrize("kind", MAPS)
    def test_a_constant_term_far_above_the_products(self, kind):
        """The sum is rounded in units of the constant; a graph's scale rounds it even where the input is zero."""
        layer = self._layer(kind, [1e-3, 0.7], 12345678.9)
        for inputs in ([0.1, 0.3], [1e-7, -3e-8], [0.0, 0.0]):
            x = torch.tensor([inputs], dtype=torch.float64)
            assert contained(kind, affine(layer, x), *layer.injection_interval(x))
        case = LayerCase("graph", seed=11)
        graph = case.layer(injection_map=kind)
        for value in (0.1, 0.3, 0.7, 1.1, 1e3 / 3):
            with torch.no_grad():
                graph.injection.bias.fill_(value)
            x = with_features(case.input(), torch.zeros(2, 5, 3, dtype=torch.float64))
            assert contained(kind, affine(graph, x[0]), *graph.injection_interval(x))

    @pytest.mark.parametrize("kernel", [(1, 3), (3, 1), 1, (5, 3)])
    def test_kernels_that_are_not_square(self, kernel):
        torch.manual_seed(12)
        layer = sd.SubhomConv2d(2, 2, kernel, shift=1.2, injection_map="identity", dtype=torch.float64)
        x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
        for radius, order in ((0.0, 2), (0.1, 2), (0.1, math.inf)):
            lo, hi = layer.injection_interval(x, radius, order)
            assert contained("identity", affine(layer, x), lo, hi)

    @pytest.mark.parametrize("kind", ["relu", "abs", "identity"])
    def test_zero_stays_exactly_zero(self, kind):
        layer = self._layer(kind, [1.0, -2.0], 0.0)
        lo, hi = layer.injection_interval(torch.zeros(1, 2, dtype=torch.float64))
        assert float(lo) == 0 == float(hi)

    def test_what_relu_cuts_off_is_exactly_zero_below(self):
        lo, hi = self._layer("relu", [1.0], -5.0).injection_interval(torch.ones(1, 1, dtype=torch.float64))
        assert float(lo) == 0 and 0 <= float(hi) <= 5e-324

    @pytest.mark.parametrize("kind", [kind for kind in MAPS if kind != "identity"])
    def test_bounds_of_nonnegative_maps_are_nonnegative(self, kind):
        layer = self._layer(kind, [1.0, 1.0], 0.0)
        for value in (-800.0, -745.2, -40.0, -1e-320, 0.0, 1e-320, 39.9, 40.0, 40.1, 800.0):
            x = torch.tensor([[value, 0.0]], dtype=torch.float64)
            for radius in (0.0, 1e-3, 1e3):
                lo, hi = layer.injection_interval(x, radius)
                assert 0 <= float(lo) <= float(hi)
                assert contained(kind, affine(layer, x), lo, hi)

    @pytest.mark.parametrize("kind", MAPS)
    def test_products_that_underflow(self, kind):
        layer = self._layer(kind, [1e-200, 1e-160])
        for inputs in ([1e-200, 0.0], [1e-200, 1e-160], [-1e-200, 1e-163], [3e-124, -1e-310]):
            x = torch.tensor([inputs], dtype=torch.float64)
            assert contained(kind, affine(layer, x), *layer.injection_interval(x))

    @pytest.mark.parametrize("kind", ["relu", "abs", "identity"])
    def test_weights_whose_squares_underflow(self, kind):
        layer = self._layer(kind, [1e-170])
        x = torch.zeros(1, 1, dtype=torch.float64)
        moved = torch.full((1, 1), 0.9e170, dtype=torch.float64)
        assert contained(kind, affine(layer, moved), *layer.injection_interval(x, 1e170, 2))

    @pytest.mark.parametrize("kind", MAPS)
    @pytest.mark.parametrize("inputs", [[1e308, 1e308], [1.7e308, -1.7e308], [-1.7e308, 1.7e308], [1e308, 0.0]])
    def test_overflow_leaves_bounds_that_hold(self, kind, inputs):
        """Infinite where they must be: never NaN, never a finite bound that is wrong."""
        layer = self._layer(kind, [1.0, -1.0])
        x = torch.tensor([inputs], dtype=torch.float64)
        values = affine(layer, x)
        if kind == "softplus":  # the difference to relu is far below a unit in the last place
            values = [max(value, Fraction(0)) for value in values]
        lo, hi = layer.injection_interval(x)
        assert contained("identity" if kind == "softplus" else kind, values, lo, hi)

    @pytest.mark.parametrize("kind", MAPS)
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_sample_that_is_no_number_gets_no_finite_box(self, kind, bad):
        layer = self._layer(kind, [1.0, -1.0])
        x = torch.tensor([[bad, 0.0], [0.5, 0.25]], dtype=torch.float64)
        lo, hi = layer.injection_interval(x, 0.125)
        assert not bool(lo[0].isfinite().all() and hi[0].isfinite().all())
        assert contained(kind, affine(layer, x[1:]), lo[1], hi[1])

    @pytest.mark.parametrize("norm", [1, 0, 3, "linf", "l2", None, -math.inf, math.nan])
    def test_other_norms_are_refused(self, norm):
        with pytest.raises(OptionError, match="norm"):
            self._layer("relu", [1.0]).injection_interval(torch.ones(1, 1, dtype=torch.float64), 0.1, norm)

    @pytest.mark.parametrize("radius", [-1e-300, math.nan, math.inf, torch.tensor([0.1, -0.1])])
    def test_bad_radii_are_refused(self, radius):
        with pytest.raises(OptionError, match="radius"):
            self._layer("relu", [1.0]).injection_interval(torch.ones(2, 1, dtype=torch.float64), radius)

    @pytest.mark.parametrize(
        "x", [torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 2), torch.empty(0, 2, dtype=torch.float64), "x"]
    )
    def test_bad_inputs_are_refused(self, x):
        with pytest.raises(ShapeError):
            self._layer("relu", [1.0, 2.0]).injection_interval(x)
