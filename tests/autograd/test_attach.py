"""First derivatives of fixed points of plain callables, whose tensors are not known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.autograd import Adjoint, attach, fixed_point
from subdeq_plugin.solvers import SOLVERS, Auto, Picard, Stop, solve
from tests.problems import make_input, make_layer, normal, ones_for, with_norm


def tight() -> Adjoint:
    """Adjoint solves that are almost exact."""
    return Adjoint(Auto(), Stop(1e-13, 400, "rel"))


def test_attach_gives_the_gradient_of_the_fixed_point():
    matrix = with_norm(normal(4, 4, seed=9), 0.7).requires_grad_()
    bias = normal(2, 4, seed=10).requires_grad_()

    def answer(matrix: Tensor, bias: Tensor) -> Tensor:
        def function(z: Tensor) -> Tensor:
            return torch.tanh(z @ matrix.T + bias)

        value = solve(function, torch.zeros(2, 4).double(), tol=1e-14, max_iter=500).value
        return attach(function, value.detach(), tight())

    assert torch.autograd.gradcheck(answer, (matrix, bias), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_attach_agrees_with_fixed_point(solver):
    layer, x = make_layer("graph", 4, shift=0.3, mix_features=True), make_input("graph", 4)
    bound, adjoint = layer.bind(x), Adjoint(SOLVERS[solver](), Stop(1e-11, 3000, "rel"))
    value = solve(bound.detach(), ones_for(bound.detach()), tol=1e-14, max_iter=500).value
    targets, weights = list(layer.parameters()), normal(*value.shape, seed=11)
    got = torch.autograd.grad((attach(lambda z: layer(z, x), value, adjoint) * weights).sum(), targets)
    expected = torch.autograd.grad((fixed_point(bound, value, tight()) * weights).sum(), targets)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_attach_refuses_second_derivatives():
    weight = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    z = attach(lambda z: weight * z + 1, torch.full((2, 3), 2.0, dtype=torch.float64), tight())
    with pytest.raises(sd.SubdeqError, match=r"layer\.bind"):
        torch.autograd.grad(z.sum(), weight, create_graph=True)


def test_attach_to_a_map_that_ignores_the_state():
    weight = torch.full((2, 3), 0.5, requires_grad=True)
    z = attach(lambda z: 2 * weight, torch.ones(2, 3), Adjoint(Picard(), Stop(1e-6, 20, "rel")))
    z.sum().backward()
    assert torch.equal(weight.grad, torch.full((2, 3), 2.0))


def test_attach_one_bad_row_leaves_the_others_alone():
    bias = normal(3, 4, seed=12).requires_grad_()
    matrix = with_norm(normal(4, 4, seed=13), 0.5)

    def function(z: Tensor) -> Tensor:
        return torch.tanh(z @ matrix.T + bias)

    value = solve(lambda z: function(z).detach(), torch.zeros(3, 4).double(), tol=1e-13, max_iter=300).value
    z = attach(function, value, tight())
    cotangent = normal(3, 4, seed=14)
    (clean,) = torch.autograd.grad(z, bias, cotangent, retain_graph=True)
    cotangent[0, 0] = torch.nan
    (got,) = torch.autograd.grad(z, bias, cotangent)
    torch.testing.assert_close(got[1:], clean[1:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("inside", [False, True])
def test_attach_under_autocast_keeps_the_dtype_of_the_state(solver, inside):
    linear = torch.nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(with_norm(normal(4, 4, seed=15), 0.5))
        linear.bias.copy_(normal(4, seed=16))
    adjoint = Adjoint(SOLVERS[solver](), Stop(1e-2, 60, "rel"))

    def function(z: Tensor) -> Tensor:
        return torch.tanh(linear(z))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = solve(function, torch.zeros(2, 4), tol=1e-2, max_iter=60).value
        z = attach(function, value, adjoint)
        assert z.dtype == torch.float32
        if inside:
            z.sum().backward()
    if not inside:
        z.sum().backward()
    got = linear.weight.grad
    linear.weight.grad = None
    state = torch.zeros(2, 4)
    for _ in range(60):
        state = function(state)
    state.sum().backward()
    torch.testing.assert_close(got, linear.weight.grad, rtol=0.1, atol=0.05)
