"""Functions that users bring: what is accepted, what is refused, and why."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from subdeq_plugin.activations import Activation, activation_names, register_activation
from subdeq_plugin.certificates import certify
from subdeq_plugin.degrees import POSITIVE
from subdeq_plugin.errors import DegreeError, OptionError
from subdeq_plugin.layers import SubhomLinear

INF = math.inf
_numbers = itertools.count()


def fresh() -> str:
    return f"custom_{next(_numbers)}"


def test_a_registered_function_is_usable_everywhere():
    name = fresh()
    function = register_activation(name, lambda t: t * t.sigmoid())
    assert name in activation_names() and function.name == name and not function.accurate
    t = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(Activation(name)(t), torch.nn.functional.silu(t))
    layer = SubhomLinear(2, 3, name, shift=0.5, power=0.5)
    assert certify(layer).unique and layer(torch.ones(1, 3), torch.ones(1, 2)).shape == (1, 3)


def test_the_degree_of_a_power_function_is_its_exponent():
    name = fresh()
    register_activation(name, pieces=[(-INF, 1.0, lambda t: 0 * t + 1), (1.0, INF, lambda t: t.sqrt())])
    degree = Activation(name).degree(POSITIVE)
    assert 0.5 <= degree.bound <= 0.51 and degree.order_preserving


def test_pieces_compute_without_nan_from_the_branch_not_taken():
    name = fresh()
    register_activation(name, pieces=[(-INF, 1.0, lambda t: 0 * t), (1.0, INF, lambda t: (t - 0.75).sqrt() - 0.5)])
    t = torch.tensor([-5.0, 0.0, 0.9, 1.0, 4.0], dtype=torch.float64)
    assert Activation(name)(t).tolist() == pytest.approx([0, 0, 0, 0, math.sqrt(3.25) - 0.5])
    assert Activation(name).derivative(t).tolist()[:3] == [0, 0, 0]
    assert bool(Activation(name).derivative(t).isfinite().all())


def test_three_pieces_agree_with_their_formula():
    name = fresh()
    parts = [(-INF, -1.0, lambda t: 0 * t - 1), (-1.0, 2.0, lambda t: t), (2.0, INF, lambda t: 0 * t + 2)]
    register_activation(name, pieces=parts)
    t = torch.linspace(-4, 4, 81, dtype=torch.float64)
    torch.testing.assert_close(Activation(name)(t), t.clamp(-1, 2))


def test_a_second_derivative_can_be_taken():
    name = fresh()
    register_activation(name, lambda t: t.tanh() * t)
    t = torch.tensor([0.3, 1.1], dtype=torch.float64, requires_grad=True)
    (second,) = torch.autograd.grad(Activation(name).derivative(t).sum(), t)
    slope = torch.tanh(t) + t * (1 - torch.tanh(t) ** 2)
    (expected,) = torch.autograd.grad(slope.sum(), t)
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "either expression or pieces"),
        ({"expression": lambda t: t.tanh(), "pieces": [(-INF, INF, lambda t: t)]}, "either expression or pieces"),
        ({"expression": lambda t: abs(t)}, "interval rule"),
        ({"expression": lambda t: t.relu()}, "interval rule"),
        ({"expression": lambda t: t.softplus()}, "cannot be computed on tensors"),
        ({"expression": lambda t: 2.0}, "tensors|interval"),
        ({"expression": lambda t: torch.tanh(t)}, "interval rule"),
        ({"expression": lambda t: t.tanh() if isinstance(t, torch.Tensor) else t.atan()}, "on tensors but"),
        ({"expression": lambda t: t.tanh() + (0.0 if isinstance(t, torch.Tensor) else 1e-6)}, "on tensors but"),
        ({"expression": lambda t: t.log()}, "on tensors but"),
        ({"pieces": [(-INF, 0.0, lambda t: 0 * t), (0.0, INF, lambda t: t + 1e-6)]}, "jumps by"),
        ({"pieces": [(-INF, 0.0, lambda t: 0 * t), (0.0, 5.0, lambda t: t)]}, "cover the real line"),
        ({"pieces": [(0.0, INF, lambda t: t)]}, "cover the real line"),
        ({"pieces": [(-INF, 0.0, lambda t: 0 * t), (1.0, INF, lambda t: t - 1)]}, "gap or overlap"),
        ({"pieces": [(-INF, 2.0, lambda t: t), (1.0, INF, lambda t: t)]}, "gap or overlap"),
        ({"pieces": [(-INF, 1.0, lambda t: 0 * t + 5), (1.0, INF, lambda t: (t - 1).sin() / (t - 1))]}, "no finite"),
    ],
)
def test_what_is_refused_and_why(keywords, message):
    name = fresh()
    with pytest.raises(DegreeError, match=message):
        register_activation(name, **keywords)
    assert name not in activation_names()


def test_pieces_in_falling_order_are_refused():
    """They would hide a jump far from zero, where two fixed points fit: 0.5 and 6.75 with weight 20, shift 0.5."""
    parts = [
        (-INF, 100.0, lambda t: 0 * t),
        (100.0, 50.0, lambda t: (100 - t) * 0.125),
        (50.0, INF, lambda t: 0 * t + 6.25),
    ]
    with pytest.raises(DegreeError, match="increasing order"):
        register_activation(fresh(), pieces=parts)


@pytest.mark.parametrize("name", ["tanh", "not an identifier", "", "1st", 3])
def test_names_taken_or_malformed_are_refused(name):
    with pytest.raises(OptionError, match=r"already registered|identifier"):
        register_activation(name, lambda t: t.tanh())
    assert Activation("tanh").function.accurate


def test_an_unprovable_function_registers_but_has_no_degree():
    name = fresh()
    register_activation(name, lambda t: t.sin())
    with pytest.raises(DegreeError, match=r"t ="):
        Activation(name, shift=1.0).degree()


def test_a_degree_above_one_is_reported_and_not_certified():
    name = fresh()
    register_activation(name, lambda t: t.square())
    activation = Activation(name, shift=0.1)
    assert activation.degree().bound >= 1.99
    proof = certify(SubhomLinear(2, 2, name, shift=0.1))
    assert not proof.unique and proof.reasons


def test_derivatives_in_inference_mode():
    function = register_activation("inferred", lambda t: t * t.sigmoid())
    t = torch.linspace(-2, 3, 7, dtype=torch.float64)
    expected = t.sigmoid() * (1 + t * (1 - t.sigmoid()))
    with torch.inference_mode():
        torch.testing.assert_close(function.derivative(t.clone()), expected)
    torch.testing.assert_close(function.derivative(t), expected)
