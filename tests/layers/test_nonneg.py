"""The nonnegative parametrizations: values, assignment, removal, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subdeq_plugin.errors import DomainError, OptionError
from subdeq_plugin.layers import NONNEG, SubhomConv2d, SubhomLinear, make_nonneg, undo_nonneg

FUNCTIONS = {
    "abs": torch.abs,
    "softplus": lambda w: torch.log1p(torch.exp(w)),
    "square": lambda w: w * w,
    "exp": torch.exp,
}


@pytest.mark.parametrize("how", NONNEG)
def test_weights_stay_nonnegative_whatever_the_free_parameter(how):
    layer = SubhomLinear(2, 4, nonneg=how, dtype=torch.float64)
    free = layer.parametrizations.weight.original
    with torch.no_grad():
        free.copy_(4 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    assert bool((layer.weight >= 0).all()) and bool((free < 0).any())
    torch.testing.assert_close(layer.weight, FUNCTIONS[how](free), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("how", NONNEG)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-11)])
def test_assigned_weights_are_read_back(how, dtype, tolerance):
    layer = SubhomLinear(2, 2, nonneg=how, dtype=dtype)
    target = torch.tensor([[1e-6, 0.5], [3.0, 50.0]], dtype=dtype)
    layer.weight = target
    torch.testing.assert_close(layer.weight.detach(), target, rtol=tolerance, atol=0)


@pytest.mark.parametrize("how", NONNEG)
def test_an_assigned_zero_stays_trainable(how):
    layer = SubhomLinear(2, 2, nonneg=how, dtype=torch.float64)
    layer.weight = torch.zeros(2, 2, dtype=torch.float64)
    weight = layer.weight.detach()
    assert bool((weight >= 0).all()) and bool((weight <= 1.01e-12).all())
    assert bool(layer.parametrizations.weight.original.isfinite().all())


@pytest.mark.parametrize("how", NONNEG)
def test_negative_assignments_are_refused(how):
    layer = SubhomConv2d(2, 2, nonneg=how)
    before = layer.weight.detach().clone()
    with pytest.raises(DomainError, match=r"must be nonnegative, got a smallest entry of -0\.5"):
        layer.weight = torch.full((2, 2, 3, 3), -0.5)
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("how", NONNEG)
def test_an_existing_module_and_back(how):
    module = nn.Linear(3, 3, dtype=torch.float64)
    original = module.weight.detach().clone()
    make_nonneg(module, "weight", how)
    torch.testing.assert_close(module.weight.detach(), original.abs(), rtol=1e-9, atol=1e-12)
    with pytest.raises(OptionError, match="already parametrized"):
        make_nonneg(module, "weight", how)
    kept = module.weight.detach().clone()
    undo_nonneg(module)
    assert isinstance(module.weight, nn.Parameter) and not hasattr(module, "parametrizations")
    torch.testing.assert_close(module.weight.detach(), kept, rtol=0, atol=0)
    with torch.no_grad():
        module.weight.fill_(-1)
    assert bool((module.weight == -1).all())


def test_unknown_parametrization():
    with pytest.raises(OptionError, match="did you mean 'square'"):
        make_nonneg(nn.Linear(2, 2), "weight", "squre")


@pytest.mark.parametrize("how", NONNEG)
def test_training_moves_the_weight_and_keeps_the_sign(how):
    layer = SubhomLinear(2, 3, nonneg=how)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=5.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(1, 3), torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert bool((layer.weight >= 0).all()) and not torch.equal(layer.weight, before)


def test_signed_weights_are_plain_parameters():
    layer = SubhomLinear(2, 3, weight="signed", shift=1.2)
    assert isinstance(layer.weight, nn.Parameter) and bool((layer.weight < 0).any())
