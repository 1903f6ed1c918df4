"""Certified radii of a whole model, in pixel values."""

from __future__ import annotations

import math

import pytest
import torch

from subdeq_plugin.errors import CertificateError, OptionError
from subdeq_plugin.training import TrainConfig, build_model, robust_radii
from subdeq_plugin.training.radii import read_out


def model_of(kind: str, **more):
    torch.manual_seed(0)
    model = build_model(TrainConfig(kind=kind, units=6, **more), (1, 6, 6), 3).eval()
    model.standardize(torch.rand(20, 1, 6, 6))
    return model


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_read_out_is_the_models(kind):
    model = model_of(kind)
    images = torch.rand(5, 1, 6, 6)
    with torch.no_grad():
        state = model.deq(model.layer_input(images))
        weight, bias = read_out(model, state.shape)
        torch.testing.assert_close(state.flatten(1) @ weight.T + bias, model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_random_or_gradient_step_within_the_radius_changes_a_class(kind, norm):
    model, images = model_of(kind), torch.rand(6, 1, 6, 6)
    found = robust_radii(model, images, norm)
    assert bool((found.radius > 0).all()) and found.norm == norm
    with torch.no_grad():
        assert torch.equal(model(images).argmax(dim=1), found.predicted)
    radius = 0.9999 * found.radius.float().reshape(-1, 1, 1, 1)
    for other in range(3):
        moved = images.clone().requires_grad_()
        logits = model(moved)
        gap = logits.gather(1, found.predicted[:, None]).squeeze(1) - logits[:, other]
        (slope,) = torch.autograd.grad(gap.sum(), moved)
        for direction in (-slope, torch.randn_like(slope)):
            if norm == "linf":
                step = radius * direction.sign()
            else:
                length = direction.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, 1, 1, 1)
                step = radius * direction / length
            with torch.no_grad():
                assert torch.equal(model(images + step).argmax(dim=1), found.predicted)


def test_the_unit_is_the_pixel():
    """Doubling the standard deviation the model divides by doubles what a pixel may move."""
    model, images = model_of("dense"), torch.rand(4, 1, 6, 6)
    before = robust_radii(model, images, "linf").radius
    with torch.no_grad():
        model.mean.mul_(2)
        model.std.mul_(2)
    torch.testing.assert_close(robust_radii(model, 2 * images, "linf").radius, 2 * before, rtol=2e-2, atol=0)


def test_refusals():
    model, images = model_of("dense"), torch.rand(2, 1, 6, 6)
    with pytest.raises(OptionError, match="linf"):
        robust_radii(model, images, "l7")
    broken = model_of("dense", weight="signed", shift=1.2)
    broken.deq.deq.on_failure = "ignore"
    with torch.no_grad():
        broken.deq.layer.weight.fill_(math.nan)
    with pytest.raises(CertificateError, match="no radius is proven"):
        robust_radii(broken, images, "l2")
