"""What every activation must satisfy. A concrete suite supplies the fixtures `activation` and `scalar`."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from mpmath import mpf

from subdeq_plugin.activations import Activation
from subdeq_plugin.degrees import POSITIVE, REALS, Interval
from subdeq_plugin.errors import DegreeError
from tests.helpers import POSITIVE_GRID, REAL_GRID, Scalar, supremum

POINTS = (1e-12, 1e-3, 0.3, 0.99, 1.7, 5.9, 6.1, 19.99, 20.01, 24.0, 41.0, 300.0)

# Every order of magnitude, both signs, kinks and their neighbours, and what is no number.
_SIZES = [0.0, 1e-30, 1e-6, 1e-3, 0.05, 0.3, 0.99, 1.0, 1.01, 1.7, 3.0, 5.9, 6.0, 6.1, 9.0, 20.01, 41.0, 300.0, 1e30]
WIDE = (*_SIZES, *(-t for t in _SIZES), math.inf, -math.inf, math.nan)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
ULPS = 4  # how far two ways to compute an elementary function may differ, relatively

# Intervals across, beside and beyond the kinks, thin ones, and points.
INTERVALS = (
    (-40.0, 30.0), (-7.0, 7.0), (-1.0, 1.0), (-0.3, 0.2), (0.0, 0.4), (-0.4, 0.0), (0.9, 1.1), (5.9, 6.2), (6.0, 9.0),
    (-1.2, -0.9), (-3.0, -2.0), (0.25, 0.250001), (300.0, 3e6), (-3e3, -50.0), (-1.4, -1.1), (2.0, 2.0), (0.0, 0.0),
)  # fmt: skip


def samples(lo: float, hi: float, kinks: tuple[float, ...]) -> list[float]:
    """The ends of an interval, the kinks in it with their neighbours, and points between."""
    near = [math.nextafter(kink, side) for kink in kinks for side in (-math.inf, math.inf)]
    inside = [t for t in (*kinks, *near) if lo <= t <= hi]
    return [lo, hi, *inside, *(lo + (hi - lo) * k / 40 for k in range(1, 40) if lo < hi)]


class ActivationContract:
    """Values, derivatives, degrees and bounds of `(s + shift) ** power`, against 30-digit arithmetic."""

    # How far a proven degree may lie above the supremum: over t > 0, and over all t.
    sharp_positive = 1e-7
    sharp_real = 1e-6

    def real_sharpness(self, activation: Activation) -> float:
        """`sharp_real`, unless the lemma used for the left tail of this activation is coarser."""
        return self.sharp_real

    @pytest.fixture
    def activation(self) -> Activation:
        """The activation under test."""
        raise NotImplementedError

    @pytest.fixture
    def scalar(self) -> tuple[Scalar, Scalar, tuple[float, ...]]:
        """`s`, `s'` and the kinks of `s`, for mpmath numbers."""
        raise NotImplementedError

    def _exact(self, activation: Activation, function: Scalar, t: float) -> mpf:
        with mp.workdps(40):
            return (function(mpf(t)) + mpf(activation.shift)) ** mpf(activation.power)

    def test_value_is_accurate_to_a_few_units_in_the_last_place(self, activation, scalar):
        got = activation(torch.tensor(POINTS, dtype=torch.float64))
        for t, value in zip(POINTS, got.tolist(), strict=True):
            exact = self._exact(activation, scalar[0], t)
            assert abs(mpf(value) - exact) <= 64 * 2.0**-53 * abs(exact) * max(1, abs(activation.power)), t

    def test_reference_value_is_accurate(self, activation, scalar):
        got = activation.reference(torch.tensor(POINTS, dtype=torch.float64))
        for t, value in zip(POINTS, got.tolist(), strict=True):
            exact = self._exact(activation, scalar[0], t)
            assert abs(mpf(value) - exact) <= 64 * 2.0**-53 * abs(exact) * max(1, abs(activation.power)), t

    def test_derivative_agrees_with_the_exact_one(self, activation, scalar):
        function, slope, kinks = scalar
        points = [t for t in (1e-3, 0.3, 0.99, 1.7, 5.9, 6.1, 11.0) if t not in kinks]
        got = activation.derivative(torch.tensor(points, dtype=torch.float64))
        for t, value in zip(points, got.tolist(), strict=True):
            base = function(mpf(t)) + mpf(activation.shift)
            exact = activation.power * base ** (activation.power - 1) * slope(mpf(t))
            assert abs(value - float(exact)) <= 1e-11 * (abs(exact) + base**activation.power), t

    def test_derivative_agrees_with_finite_differences(self, activation, scalar):
        t = torch.tensor([0.21, 0.77, 1.9, 5.2, 7.3], dtype=torch.float64)
        step = 1e-5
        quotient = (activation(t + step) - activation(t - step)) / (2 * step)
        torch.testing.assert_close(activation.derivative(t), quotient, rtol=1e-6, atol=1e-8)

    def test_derivative_agrees_with_autograd(self, activation, scalar):
        points = (1e-3, 0.3, 0.99, 1.0, 1.7, 6.0, 6.1, 25.0)
        t = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(activation(t).sum(), t)
        torch.testing.assert_close(activation.derivative(t.detach()), slope, rtol=1e-12, atol=1e-14)

    def test_second_derivative_flows_through_the_derivative(self, activation, scalar):
        points = [0.21, 0.77, 1.9, 5.2, 7.3]
        t = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        slope = activation.derivative(t)
        if not slope.requires_grad:
            slope = slope + 0 * t
        (second,) = torch.autograd.grad(slope.sum(), t)
        step = 1e-5
        with torch.no_grad():
            quotient = (activation.derivative(t + step) - activation.derivative(t - step)) / (2 * step)
        torch.testing.assert_close(second, quotient, rtol=1e-5, atol=1e-7)

    def test_shape_and_dtype_are_kept(self, activation, scalar):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            t = torch.rand(2, 1, 3).to(dtype).transpose(0, 2)
            for result in (activation(t), activation.derivative(t)):
                assert (result.shape, result.dtype) == (t.shape, dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_overwriting_form_is_the_function_within_its_error(self, activation, scalar, dtype):
        function = activation.function
        form, unit = function.overwriting, torch.finfo(dtype).eps
        t = torch.tensor([*WIDE, torch.finfo(dtype).max, -torch.finfo(dtype).max, torch.finfo(dtype).tiny]).to(dtype)
        t = torch.cat([t, torch.linspace(-12, 12, 241).to(dtype)])
        given = form.stretch * t
        result = form.apply(given)
        assert result is given, "it must work in place"
        value = form.scale * result + form.offset
        # Near 0 torch's own functions may lose relative accuracy in short dtypes: that is none of the form's business.
        for expected, slack in ((function.value(t), 0.0), (function.value(t.double()), 1.0)):
            size = expected.double().abs()
            where = size <= torch.finfo(dtype).max
            torch.testing.assert_close(value[~where], expected[~where].to(dtype), rtol=0, atol=0, equal_nan=True)
            gap = (value.double() - expected.double())[where].abs()
            assert bool((gap <= unit * (form.error + slack + ULPS * size[where])).all())

    def test_the_factors_of_the_overwriting_form_are_exact(self, activation, scalar):
        form = activation.function.overwriting
        assert math.frexp(form.stretch)[0] == math.frexp(form.scale)[0] == 0.5, "powers of two"
        assert form.offset == round(form.offset) and abs(form.offset) <= 8
        assert form.error >= 0 and (form.error > 0 or (form.stretch, form.scale, form.offset) == (1.0, 1.0, 0.0))

    def test_the_overwriting_form_keeps_any_layout(self, activation, scalar):
        form = activation.function.overwriting
        t = torch.linspace(-3, 5, 48, dtype=torch.float64).reshape(2, 2, 3, 4)
        expected = form.apply(t.clone())
        for layout in (t.clone(memory_format=torch.channels_last), torch.stack([t, t], dim=-1)[..., 1]):
            assert form.apply(layout) is layout
            torch.testing.assert_close(layout, expected, rtol=1e-14, atol=0)

    def test_positive_degree_is_safe_and_sharp(self, activation, scalar):
        degree = activation.degree(POSITIVE)
        found = abs(activation.power) * supremum(scalar[0], scalar[1], activation.shift, POSITIVE_GRID)
        assert found <= mpf(degree.bound)
        assert degree.bound <= float(found) + self.sharp_positive * max(1.0, abs(activation.power))
        assert degree.domain.lo == 0 and degree.provenance

    def test_real_degree_is_safe_and_sharp_or_refused(self, activation, scalar):
        function, slope, _ = scalar
        refusal = ""
        try:
            degree = activation.degree(REALS)
        except DegreeError as error:
            refusal = str(error)
        if refusal:
            assert activation.name in refusal
            lowest = min(function(mpf(float(t))) + mpf(activation.shift) for t in REAL_GRID)
            steep = any(
                abs(t * slope(mpf(float(t)))) > 100 * abs(function(mpf(float(t))) + mpf(activation.shift))
                for t in REAL_GRID
            )
            assert lowest <= 1e-7 or steep
        else:
            found = abs(activation.power) * supremum(function, slope, activation.shift, REAL_GRID)
            slack = self.real_sharpness(activation) * max(1.0, abs(activation.power))
            assert found <= mpf(degree.bound) <= found + slack

    def test_order_preserving_only_if_nondecreasing(self, activation, scalar):
        values = activation(torch.logspace(-6, 3, 500, dtype=torch.float64))
        rising = bool((values.diff() >= -1e-12 * values[1:].abs()).all())
        assert rising or not activation.degree(POSITIVE).order_preserving

    def test_supremum_bounds_the_values(self, activation, scalar):
        for edge in (1.0, 37.0, 1e6):
            t = torch.linspace(1e-9, edge, 2000, dtype=torch.float64)
            assert float(activation(t).max()) <= activation.supremum(edge) or math.isinf(activation.supremum(edge))

    def test_positivity_is_accepted(self, activation, scalar):
        activation.require_positive(POSITIVE)
        assert bool((activation(torch.logspace(-9, 4, 200, dtype=torch.float64)) > 0).all())

    def _exact_slope(self, activation: Activation, scalar, t: float) -> mpf:
        base = scalar[0](mpf(t)) + mpf(activation.shift)
        slope = scalar[1](mpf(t))
        return slope if activation.power == 1 else activation.power * base ** (mpf(activation.power) - 1) * slope

    def _is_defined(self, activation: Activation, function: Scalar, t: float) -> bool:
        base = function(mpf(t)) + mpf(activation.shift)
        return base > 0 or (activation.power.is_integer() and activation.power > 0)

    def test_enclosures_contain_all_values_and_slopes(self, activation, scalar):
        lo, hi = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*INTERVALS, strict=True))
        values, slopes = activation.enclose(lo, hi), activation.enclose_slope(lo, hi)
        with mp.workdps(40):
            for k, (a, b) in enumerate(INTERVALS):
                for t in samples(a, b, scalar[2]):
                    if not self._is_defined(activation, scalar[0], t):
                        assert (float(values[0][k]), float(values[1][k])) == (-math.inf, math.inf)
                        continue
                    exact, slope = self._exact(activation, scalar[0], t), self._exact_slope(activation, scalar, t)
                    assert mpf(float(values[0][k])) <= exact <= mpf(float(values[1][k])), (a, b, t)
                    if t not in scalar[2]:
                        assert mpf(float(slopes[0][k])) <= slope <= mpf(float(slopes[1][k])), (a, b, t)

    def test_enclosures_of_points_are_sharp(self, activation, scalar):
        points = torch.tensor(POINTS, dtype=torch.float64)
        low, high = activation.enclose(points, points)
        for t, below, above in zip(POINTS, low.tolist(), high.tolist(), strict=True):
            exact = self._exact(activation, scalar[0], t)
            condition = 1 + 2 * abs(activation.shift) / (scalar[0](mpf(t)) + mpf(activation.shift))
            assert mpf(below) <= exact <= mpf(above)
            assert above - below <= 3e-14 * max(1, abs(activation.power)) * abs(exact) * condition, t

    def test_nan_is_not_enclosed(self, activation, scalar):
        nan, one = torch.tensor([math.nan, math.nan, 1.0]), torch.tensor([1.0, math.nan, math.nan])
        for low, high in (activation.enclose(nan, one), activation.enclose_slope(nan, one)):
            assert low.tolist() == [-math.inf] * 3 and high.tolist() == [math.inf] * 3

    @pytest.mark.parametrize("domain", [REALS, POSITIVE, Interval(-0.7, 2.0)])
    def test_bounds_over_domains_hold(self, activation, scalar, domain):
        low, high = activation.range(domain)
        flat, steep = activation.slope(domain)
        relative = activation.log_slope(domain)
        assert low <= high and flat <= steep and relative >= 0
        function, _, kinks = scalar
        for t in (float(t) for t in REAL_GRID[::3] if domain.lo < t < domain.hi and t not in kinks):
            if not self._is_defined(activation, function, t):
                assert (low, high, relative) == (-math.inf, math.inf, math.inf)
                continue
            exact, slope = self._exact(activation, function, t), self._exact_slope(activation, scalar, t)
            assert low <= exact <= high and flat <= slope <= steep
            if exact > 0:
                assert abs(slope) / exact <= relative * (1 + mpf(10) ** -12)

    def test_concavity_is_that_of_the_values(self, activation, scalar):
        if activation.concave:
            t = torch.linspace(0, 12, 400, dtype=torch.float64)
            values = activation(t)
            assert bool((values >= 0).all()) and bool((values.diff() >= -1e-13).all())
            assert bool((values.diff(n=2) <= 1e-13).all())
