"""The gradient certificate of a whole model's training step."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F

from subdeq_plugin.training import TrainConfig, build_model, gradient_errors


def model_of(**more):
    torch.manual_seed(0)
    model = build_model(TrainConfig(units=7, **more), (1, 4, 4), 3)
    model.standardize(torch.rand(20, 1, 4, 4))
    return model


def test_the_bound_holds_against_a_precise_copy():
    """Both solves are loose in float32; the copy solves in float64 to its rounding, with the same cotangent."""
    torch.manual_seed(1)
    images, labels = torch.rand(6, 1, 4, 4), torch.randint(3, (6,))
    model = model_of(f_tol=1e-2, b_tol=1e-2)
    weight, injection = gradient_errors(model, images, labels)
    assert (weight.tensor, injection.tensor) == ("weight", "injection")

    inputs = model.layer_input(images).detach()
    bound = model.deq.layer.bind(inputs).detach()
    leaves = [tensor.clone().requires_grad_() for tensor in bound.tensors]
    state = model.deq.deq(bound.with_tensors(leaves))[0][0]
    loss = F.cross_entropy(model.head(model.pool(state).flatten(1)), labels)
    cotangent, *loose = torch.autograd.grad(loss, [state, *leaves])

    exact = bound.to("cpu", torch.float64)
    z = torch.ones_like(cotangent, dtype=torch.float64)
    for _ in range(500):
        z = exact(z)
    adjoint = cotangent.double()
    jet = exact.linearize(z)
    for _ in range(500):
        adjoint = cotangent.double() + jet.vjp(adjoint)
    fine = [tensor.clone().requires_grad_() for tensor in exact.tensors]
    truth = torch.autograd.grad((exact.with_tensors(fine)(z) * adjoint).sum(), fine)
    for item, found, right in zip((weight, injection), loose, truth, strict=True):
        off = float((found.double() - right).abs().max())
        assert 1e-9 < off <= item.error * (1 + 1e-6) and item.error < 100 * off
        assert item.largest == float(found.abs().max())


def test_tighter_solves_have_smaller_bounds():
    images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    loose, tight = (gradient_errors(model_of(f_tol=tol, b_tol=tol), images, labels)[0].error for tol in (1e-1, 1e-6))
    assert 0 < tight < 0.1 * loose < math.inf


def test_where_nothing_is_proven_no_bound_is_claimed():
    model = copy.deepcopy(model_of(weight="signed", shift=1.2))
    model.deq.deq.on_failure = "ignore"
    with torch.no_grad():
        model.deq.layer.weight.copy_(8 * torch.randn(7, 7))
    errors = gradient_errors(model, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    assert all(math.isinf(item.error) for item in errors)
