"""Activations that overwrite their argument, and the slope of tanh, against arithmetic of 40 digits."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf

from subdeq_plugin.activations import Activation, activation_names, register_activation
from subdeq_plugin.activations.base import InPlace, lookup
from tests.helpers import SCALARS

UNIT = 2.0**-52
BUILTIN = sorted(name for name in activation_names() if lookup(name).accurate)

register_activation("in_place_swish", lambda t: t * t.sigmoid())


@pytest.mark.parametrize("name", BUILTIN)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(t=st.floats(allow_nan=False, allow_infinity=False))
def test_any_double_within_the_error(name, t):
    form = lookup(name).overwriting
    value = form.scale * float(form.apply(torch.tensor([form.stretch * t], dtype=torch.float64))) + form.offset
    with mp.workdps(40):
        exact = SCALARS[name][0](mpf(t))
        assert abs(mpf(value) - exact) <= UNIT * (form.error + 8 * abs(exact)) + mpf(2) ** -1070


def test_functions_without_a_form_of_their_own_are_copied_over():
    assert lookup("in_place_swish").in_place is None
    form = lookup("in_place_swish").overwriting
    assert isinstance(form, InPlace) and (form.stretch, form.scale, form.offset, form.error) == (1.0, 1.0, 0.0, 0.0)
    t = torch.linspace(-4, 4, 9, dtype=torch.float64)
    expected = t * t.sigmoid()
    assert form.apply(t) is t
    assert torch.equal(t, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_of_tanh_is_accurate_even_and_between_zero_and_one(dtype):
    slope = Activation("tanh").derivative
    points = torch.cat([torch.linspace(0, 12, 97), torch.logspace(-30, 2.5, 80), torch.tensor([354.0, 1e5, 3e38])])
    points = points.to(dtype)
    got = slope(points)
    assert torch.equal(slope(-points), got)
    assert bool((got >= 0).all()) and bool((got <= 1).all())
    unit, least = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    with mp.workdps(40):
        for t, value in zip(points.tolist(), got.tolist(), strict=True):
            exact = mp.sech(mpf(t)) ** 2 if t < 1e4 else mpf(0)
            # The argument of the exponential carries its rounding over, as the condition 2 t of it says.
            assert abs(mpf(value) - exact) <= 6 * unit * exact + 4 * least, t


def test_the_slope_of_tanh_at_the_ends():
    slope = Activation("tanh").derivative(torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan], dtype=torch.float64))
    assert slope[:4].tolist() == [1.0, 1.0, 0.0, 0.0] and bool(slope[4].isnan())
