"""What every activation must satisfy. A concrete suite supplies the fixtures `activation` and `scalar`."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from mpmath import mpf

from subdeq_plugin.activations import Activation
from subdeq_plugin.degrees import POSITIVE, REALS
from subdeq_plugin.errors import DegreeError
from tests.helpers import POSITIVE_GRID, REAL_GRID, Scalar, supremum

POINTS = (1e-12, 1e-3, 0.3, 0.99, 1.7, 5.9, 6.1, 19.99, 20.01, 24.0, 41.0, 300.0)


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
