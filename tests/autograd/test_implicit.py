"""Gradients of fixed points by the implicit function theorem, checked by finite differences and by unrolling."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.autograd import Adjoint, fixed_point
from subdeq_plugin.autograd.implicit import _weighted
from subdeq_plugin.layers import BoundMap
from subdeq_plugin.solvers import SOLVERS, Auto, Solver, Stop, solve
from tests.problems import bound_map, make_input, make_layer, normal, ones_for

# kind, keywords: every operator, place of the injection, normalisation, grouping and power at least once.
MAPS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {"shift": 0.3}),
    "dense-inside": ("dense", {"shift": 0.3, "injection": "inside", "injection_map": "softplus"}),
    "dense-power": ("dense", {"activation": "softplus", "shift": 0.1, "power": 0.6}),
    "dense-antitone": ("dense", {"activation": "softplus", "shift": 0.5, "power": -0.6}),
    "dense-norm-2": ("dense", {"shift": 1.603, "normalize": 2, "injection_map": "softplus"}),
    "dense-norm-3": ("dense", {"shift": 1.603, "normalize": 3, "injection_map": "softplus"}),
    "dense-norm-inf": ("dense", {"shift": 1.603, "normalize": "inf", "injection_map": "softplus"}),
    "dense-signed": ("dense", {"shift": 1.2, "weight": "signed"}),
    "conv": ("conv", {"shift": 0.3}),
    "conv-channel-norm": ("conv", {"shift": 1.603, "normalize": 1, "normalize_over": "channel",
                                   "injection": "inside", "injection_map": "softplus"}),
    "conv-pixel-norm": ("conv", {"shift": 1.603, "normalize": 2, "normalize_over": "pixel",
                                 "injection_map": "softplus"}),
    "graph": ("graph", {"shift": 0.3, "injection_map": "softplus"}),
    "graph-mixing": ("graph", {"shift": 0.3, "mix_features": True, "injection_map": "softplus"}),
    "graph-mixing-node-norm": ("graph", {"shift": 1.603, "mix_features": True, "normalize": 1,
                                         "normalize_over": "node", "injection": "outside",
                                         "injection_map": "softplus"}),
}  # fmt: skip


def tight(solver: Solver | None = None, rate: float | None = None, max_iter: int = 400) -> Adjoint:
    return Adjoint(solver or Auto(), Stop(1e-13, max_iter, "rel"), rate)


def equilibrium(bound: BoundMap, adjoint: Adjoint | None = None) -> Tensor:
    """The differentiable fixed point, solved almost exactly."""
    frozen = bound.detach()
    solution = solve(frozen, ones_for(frozen), tol=1e-14, max_iter=500)
    assert not bool(solution.failed.any())
    return fixed_point(bound, solution.value, adjoint or tight())


def of_tensors(name: str, adjoint: Adjoint | None = None) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The fixed point as a function of the tensors of its map, and the tensors themselves."""
    kind, keywords = MAPS[name]
    bound = bound_map(kind, 3, **keywords)
    tensors = tuple(tensor[:1].clone() if tensor.shape[0] == 3 else tensor.clone() for tensor in bound.tensors)
    for tensor in tensors:
        tensor.requires_grad_()
    return lambda *given: equilibrium(bound.with_tensors(given), adjoint), tensors


def unrolled(bound: BoundMap, steps: int = 250) -> Tensor:
    """The second route: backpropagation through plain iteration."""
    z = ones_for(bound.detach())
    for _ in range(steps):
        z = bound(z)
    return z


@pytest.mark.parametrize("name", MAPS)
def test_first_derivatives_by_finite_differences(name):
    function, tensors = of_tensors(name)
    assert torch.autograd.gradcheck(function, tensors, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_second_derivatives_by_finite_differences(name):
    function, tensors = of_tensors(name)
    assert torch.autograd.gradgradcheck(function, tensors, atol=1e-6, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("name", ["dense", "dense-inside", "dense-power"])
def test_second_derivatives_entry_by_entry(name):
    function, tensors = of_tensors(name)
    assert torch.autograd.gradgradcheck(function, tensors, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", MAPS)
def test_every_parameter_by_unrolling(name):
    kind, keywords = MAPS[name]
    layer, x = make_layer(kind, 4, **keywords), make_input(kind, 4)
    features = x if kind != "graph" else x[0]
    features.requires_grad_()
    targets = [*layer.parameters(), features]
    bound = layer.bind(x)
    weights = normal(*ones_for(bound).shape, seed=5)
    first = torch.autograd.grad((equilibrium(bound) * weights).sum(), targets, retain_graph=True)
    second = torch.autograd.grad((unrolled(bound) * weights).sum(), targets)
    for got, expected in zip(first, second, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    assert any(bool(gradient.abs().max() > 1e-6) for gradient in first)


def test_second_derivatives_by_unrolling():
    layer, x = make_layer("dense", 4, shift=0.3, injection_map="softplus"), make_input("dense", 4)
    targets = list(layer.parameters())
    results = []
    for z in (equilibrium(layer.bind(x)), unrolled(layer.bind(x), 80)):
        first = torch.autograd.grad(z.square().sum(), targets, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), targets))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_third_derivatives_by_unrolling():
    results = []
    for route in (equilibrium, lambda bound: unrolled(bound, 60)):
        bound = bound_map("dense", 6, shift=0.5, activation="softplus", power=0.5)
        weight = bound.tensors[0].clone().requires_grad_()
        z = route(bound.with_tensors([weight, *bound.tensors[1:]]))
        (first,) = torch.autograd.grad(z.log().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight, create_graph=True)
        results.append(torch.autograd.grad(second.square().sum(), weight)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("with_rate", [False, True])
def test_every_backward_solver_gives_the_same_gradient(solver, with_rate):
    layer, x = make_layer("conv", 5, shift=0.3), make_input("conv", 5)
    bound = layer.bind(x)
    rate = sd.certify(bound).rate if with_rate else None
    targets, weights = list(layer.parameters()), normal(*ones_for(bound).shape, seed=6)
    reference = torch.autograd.grad((unrolled(bound) * weights).sum(), targets, retain_graph=True)
    seen = []
    adjoint = Adjoint(SOLVERS[solver](), Stop(1e-10, 3000, "rel"), rate, seen.append)
    got = torch.autograd.grad((equilibrium(bound, adjoint) * weights).sum(), targets)
    assert len(seen) == 1 and seen[0].converged and seen[0].status.shape == (3,)
    for one, other in zip(got, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["dense", "dense-norm-inf", "conv-channel-norm", "graph-mixing"])
def test_the_adjoint_contracts_the_weighted_one_norm(name):
    kind, keywords = MAPS[name]
    for seed in range(8):
        bound = bound_map(kind, seed, **keywords)
        certificate = sd.certify(bound)
        assert certificate.rate is not None
        # On the slice a contraction in Hilbert's metric is one in Thompson's, by twice the factor.
        rate = certificate.rate * (2 if certificate.metric == "hilbert" else 1)
        z = unrolled(bound, 300)
        jacobian, flat = bound.linearize(z), z.reshape(3, -1)
        contraction = _weighted(rate, flat, normal(*flat.shape, seed=seed))
        worst = 0.0
        for trial in range(20):
            u, v = (normal(*z.shape, seed=100 * seed + 2 * trial + i) for i in (0, 1))
            if trial % 2:  # single entries are the extreme points of the ball
                u = torch.zeros_like(z)
                u.reshape(3, -1)[:, trial % flat.shape[1]] = 1.0
                v = torch.zeros_like(z)
            before = contraction.distance(u.reshape(3, -1), v.reshape(3, -1))
            after = contraction.distance(jacobian.vjp(u).reshape(3, -1), jacobian.vjp(v).reshape(3, -1))
            worst = max(worst, float((after / before).max()))
        assert 0 < worst <= rate * (1 + 1e-9)


def test_the_weighted_one_norm_is_what_it_says():
    weight, g = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -0.5]])
    distance = _weighted(0.5, weight, g).distance(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]]))
    assert float(distance) == pytest.approx((1 + 4) / (3 + 1))
    assert _weighted(0.5, weight, 0 * g).distance(g, 0 * g).isfinite().all()


@pytest.mark.parametrize("name", ["dense", "conv-channel-norm", "graph-mixing"])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_bad_sample_leaves_the_other_gradients_alone(name, solver):
    kind, keywords = MAPS[name]
    layer, x = make_layer(kind, 4, **keywords), make_input(kind, 4)
    features = x if kind != "graph" else x[0]
    features.requires_grad_()
    adjoint = Adjoint(SOLVERS[solver](), Stop(1e-10, 2000, "rel"))
    z = equilibrium(layer.bind(x), adjoint)
    cotangent = normal(*z.shape, seed=7)
    (clean,) = torch.autograd.grad(z, features, cotangent, retain_graph=True)
    spoilt = cotangent.clone()
    spoilt[1].reshape(-1)[0] = torch.nan
    (got,) = torch.autograd.grad(z, features, spoilt)
    torch.testing.assert_close(got[::2], clean[::2], rtol=1e-9, atol=1e-11)


def test_a_bad_input_leaves_the_other_gradients_alone():
    layer, x = make_layer("dense", 4), make_input("dense", 4)
    gradients = []
    for bad in (False, True):
        given = x.clone()
        if bad:
            given[1, 1] = torch.nan
        given.requires_grad_()
        bound = layer.bind(given)
        value = solve(bound.detach(), ones_for(bound.detach()), tol=1e-12, max_iter=300).value
        z = fixed_point(bound, value, tight())
        gradients.append(torch.autograd.grad(z[::2].sum(), given)[0])
    torch.testing.assert_close(gradients[1][::2], gradients[0][::2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", ["transposed", "expanded", "strided"])
def test_cotangents_of_any_layout(shape):
    layer, x = make_layer("conv", 4), make_input("conv", 4)
    z = equilibrium(layer.bind(x))
    dense = normal(*z.shape, seed=8)
    if shape == "transposed":
        cotangent = dense.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    elif shape == "expanded":
        cotangent = torch.tensor(1.5, dtype=torch.float64).expand(z.shape)
    else:
        cotangent = torch.stack([dense, dense], dim=-1)[..., 0]
    assert not cotangent.is_contiguous()
    targets = list(layer.parameters())
    got = torch.autograd.grad(z, targets, cotangent, retain_graph=True)
    expected = torch.autograd.grad(z, targets, cotangent.contiguous())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_zero_cotangent_gives_zero_gradients_at_once(solver):
    layer, x = make_layer("dense", 4), make_input("dense", 4)
    seen = []
    z = equilibrium(layer.bind(x), Adjoint(SOLVERS[solver](), Stop(1e-10, 100, "rel"), None, seen.append))
    for gradient in torch.autograd.grad((0 * z).sum(), list(layer.parameters())):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert seen[0].evaluations == 1 and seen[0].converged


@pytest.mark.parametrize("scale", [1e-8, 1e-14, 1e8])
def test_gradients_scale_with_the_cotangent(scale):
    layer, x = make_layer("dense", 4, torch.float32), make_input("dense", 4, torch.float32)
    adjoint = Adjoint(Auto(), Stop(1e-5, 200, "rel"))
    bound = layer.bind(x)
    value = solve(bound.detach(), ones_for(bound.detach()), tol=1e-6, max_iter=200).value
    z = fixed_point(bound, value, adjoint)
    (one,) = torch.autograd.grad(z, layer.injection.bias, torch.ones_like(z), retain_graph=True)
    (small,) = torch.autograd.grad(z, layer.injection.bias, scale * torch.ones_like(z))
    torch.testing.assert_close(small / scale, one, rtol=1e-4, atol=1e-6)


def test_backward_may_be_called_twice_and_frees_its_graph_otherwise():
    layer, x = make_layer("dense", 4), make_input("dense", 4)
    z = equilibrium(layer.bind(x))
    loss = z.sum()
    loss.backward(retain_graph=True)
    first = layer.injection.bias.grad.clone()
    loss.backward()
    torch.testing.assert_close(layer.injection.bias.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_weight_changed_between_forward_and_backward_is_noticed():
    bound = bound_map("dense", 4)
    weight = bound.tensors[0].clone().requires_grad_()
    z = equilibrium(bound.with_tensors([weight * 1.0, *bound.tensors[1:]]))
    with torch.no_grad():
        weight.add_(1.0)
    torch.autograd.grad(z.sum(), weight)  # the map saw a copy: nothing to notice
    inner = weight * 1.0
    z = fixed_point(bound.with_tensors([inner, *bound.tensors[1:]]), z.detach(), tight())
    with torch.no_grad():
        inner.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(z.sum(), weight)


def test_without_parameters_there_is_no_graph():
    bound = bound_map("dense", 4)
    assert not fixed_point(bound, ones_for(bound), tight()).requires_grad


def test_only_what_is_asked_for_is_differentiated():
    bound = bound_map("dense", 4)
    weight = bound.tensors[0].clone().requires_grad_()
    z = equilibrium(bound.with_tensors([weight, *bound.tensors[1:]]))
    assert z.requires_grad
    (gradient,) = torch.autograd.grad(z.sum(), weight)
    assert gradient.shape == weight.shape


# Autocast


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_gives_gradients_in_the_dtype_of_the_parameters(solver, inside):
    layer, x = make_layer("dense", 4, torch.float32, shift=0.3), make_input("dense", 4, torch.float32)
    adjoint = Adjoint(SOLVERS[solver](), Stop(1e-2, 60, "rel"))
    targets = list(layer.parameters())
    bound = layer.bind(x)
    reference = torch.autograd.grad(unrolled(bound, 60).sum(), targets)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        bound = layer.bind(x)
        value = solve(bound.detach(), torch.ones(3, 5), tol=1e-2, max_iter=60).value
        z = fixed_point(bound, value, adjoint)
        if inside:
            got = torch.autograd.grad(z.sum(), targets)
    if not inside:
        got = torch.autograd.grad(z.sum(), targets)
    for one, other in zip(got, reference, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)
