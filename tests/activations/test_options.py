"""Options of an activation, and shifts that leave it without positivity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from subdeq_plugin.activations import Activation
from subdeq_plugin.degrees import POSITIVE, REALS
from subdeq_plugin.errors import DegreeError, DomainError, OptionError


@pytest.mark.parametrize(
    ("name", "near"), [("tahn", "tanh"), ("soft_plus", "softplus"), ("relu7", "relu"), ("Tanh", "tanh")]
)
def test_unknown_names_get_a_hint(name, near):
    with pytest.raises(OptionError, match=f"unknown activation {name!r}; did you mean '{near}"):
        Activation(name)


def test_names_near_nothing_get_the_list():
    with pytest.raises(OptionError, match=r"Valid: .*tanh"):
        Activation("qqqqqqqq")


@pytest.mark.parametrize("option", ["shift", "power"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, 1j, 10**400])
def test_options_must_be_finite_numbers(option, value):
    with pytest.raises(OptionError, match=f"{option} must be a finite number"):
        Activation("tanh", **{option: value})


def test_power_zero_is_refused():
    with pytest.raises(OptionError, match="power must not be 0"):
        Activation("tanh", 0.1, 0)


def test_numbers_are_kept_as_floats():
    activation = Activation("tanh", 1, np.float64(2.0))
    assert type(activation.shift) is float and type(activation.power) is float
    assert activation == Activation("tanh", 1.0, 2.0) and hash(activation) == hash(Activation("tanh", 1.0, 2.0))


@pytest.mark.parametrize(
    "name", ["tanh", "softsign", "arctan", "erf", "relu", "leaky_relu", "relu6", "hardtanh", "elu"]
)
@pytest.mark.parametrize("shift", [-0.1, -1e-12, -5e-324])
def test_negative_shifts_are_refused_clearly(name, shift):
    with pytest.raises(DomainError, match=rf"shift={shift!r} leaves activation '{name}' without a proof"):
        Activation(name, shift).require_positive(POSITIVE)


@pytest.mark.parametrize(("name", "shift"), [("tanh", 1.0), ("tanh", 0.5), ("sigmoid", -1e-9), ("relu", 0.0)])
def test_positivity_for_signed_weights_is_refused(name, shift):
    with pytest.raises(DomainError, match="all real t"):
        Activation(name, shift).require_positive(REALS)


def test_a_degree_out_of_range_is_a_degree_error():
    with pytest.raises(DegreeError, match="finite"):
        Activation("tanh", 1.01, 1.7e308).degree(REALS)


def test_softplus_is_continuous_and_accurate_where_torch_switches_to_the_identity():
    t = torch.tensor([19.999, 20.0, 20.0001, 25.0, 35.0], dtype=torch.float64)
    expected = t + torch.log1p(torch.exp(-t))
    torch.testing.assert_close(Activation("softplus")(t), expected, rtol=3e-16, atol=0)


def test_reference_refuses_to_answer_under_underflow():
    from subdeq_plugin.activations import register_activation

    register_activation("option_small", lambda t: t.tanh() * 1e-300)
    tiny = Activation("option_small", 0.0, 0.5).reference(torch.tensor([1e-20, 1e-5], dtype=torch.float64))
    assert bool(tiny.isnan().all())
    assert bool(Activation("option_small", 1.0, 0.5).reference(torch.tensor([1e-20, 1.0])).isfinite().all())


def test_the_two_constants_by_name():
    tanh = Activation("tanh", shift=1.2)
    assert tanh.mu_plus == tanh.degree().bound == pytest.approx(0.246994, abs=1e-6)
    assert tanh.mu_R == tanh.degree(REALS).bound == pytest.approx(0.999123, abs=1e-6)
    assert Activation("tanh", shift=0.1).mu_R == math.inf
    assert Activation("tanh", shift=1.2, power=0.5).mu_R == pytest.approx(0.999123 / 2, abs=1e-6)
