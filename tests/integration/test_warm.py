"""Warm starts: fewer evaluations, and the same guarantees."""

from __future__ import annotations

import copy

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.errors import OptionError, ShapeError
from tests.integration.test_model import LAYERS
from tests.problems import make_input, make_layer, seeded


def problem(samples: int = 24, dtype: torch.dtype = torch.float64) -> tuple[sd.SubhomLinear, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layer = sd.SubhomLinear(6, 12, shift=0.3, dtype=dtype)
    return layer, 3 + torch.randn(samples, 6, generator=seeded(4), dtype=dtype)


def evaluations(model: sd.SubDEQ) -> int:
    assert model.stats.forward is not None
    return model.stats.forward.evaluations


@pytest.mark.parametrize("kind", ["mean", "sample"])
def test_the_second_time_takes_fewer_evaluations_and_keeps_the_tolerance(kind):
    layer, x = problem()
    cold, warm = sd.SubDEQ(layer, f_tol=1e-6), sd.SubDEQ(layer, f_tol=1e-6, warm_start=kind)
    numbers = torch.arange(len(x)) if kind == "sample" else None
    reference = sd.SubDEQ(layer, f_tol=1e-12)(x).detach()
    cold(x)
    warm(x, samples=numbers)
    assert evaluations(warm) == evaluations(cold), "nothing is known yet"
    again = warm(x, samples=numbers).detach()
    assert evaluations(warm) < evaluations(cold)
    error = (again.log() - reference.log()).abs().max()
    assert float(error) <= 1e-6
    assert bool((warm.certify(x).error_bound(again) <= 1.01e-6).all())


def test_samples_start_from_their_own_equilibrium_in_any_order_and_company():
    layer, x = problem()
    model = sd.SubDEQ(layer, f_tol=1e-8, warm_start="sample")
    model(x[:16], samples=torch.arange(16) + 100)
    order = torch.tensor([3, 0, 15, 7])
    model(x[order], samples=order + 100)
    own = evaluations(model)
    wrong = sd.SubDEQ(layer, f_tol=1e-8, warm_start="sample")
    wrong(x[:16], samples=torch.arange(16) + 100)
    wrong(x[order], samples=torch.tensor([0, 3, 7, 15]) + 100)
    assert own < evaluations(wrong)
    model(x[8:24], samples=torch.arange(8, 24) + 100)  # half of them new: from the mean
    reference = sd.SubDEQ(layer, f_tol=1e-12)(x).detach()
    torch.testing.assert_close(model(x, samples=torch.arange(24) + 100).detach(), reference, rtol=1e-8, atol=0)


def test_evaluation_learns_nothing_and_gradients_are_those_of_a_cold_start():
    layer, x = problem()
    model = sd.SubDEQ(layer, f_tol=1e-10, b_tol=1e-10, warm_start="mean").eval()
    model(x)
    first = evaluations(model)
    model(x)
    assert evaluations(model) == first
    model.train()
    model(x)
    loss = model(x).square().sum()
    warm = torch.autograd.grad(loss, list(layer.parameters()))
    cold = torch.autograd.grad(sd.SubDEQ(layer, f_tol=1e-10, b_tol=1e-10)(x).square().sum(), list(layer.parameters()))
    for one, other in zip(warm, cold, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name):
    kind, keywords = LAYERS[name]
    layer, x = make_layer(kind, 12, **keywords), make_input(kind, 12)
    model = sd.SubDEQ(layer, f_tol=1e-8, warm_start="mean")
    first = model(x).detach()
    torch.testing.assert_close(model(x).detach(), first, rtol=1e-7, atol=1e-9)


def test_failed_samples_are_not_remembered():
    layer, x = problem()
    model = sd.SubDEQ(layer, warm_start="mean", on_failure="ignore")
    bad = x.clone()
    bad[0, 0] = torch.nan
    model(bad)
    assert bool(model(x).isfinite().all())
    lost = sd.SubDEQ(layer, warm_start="mean", on_failure="ignore")
    lost(torch.full_like(x, torch.nan))
    assert bool(lost(x).isfinite().all())


def test_another_shape_or_dtype_starts_anew():
    layer = make_layer("conv", 3)
    model = sd.SubDEQ(layer, warm_start="mean")
    model(make_input("conv", 3))
    wide = torch.randn(2, 2, 6, 7, dtype=torch.float64, generator=seeded(1))
    assert model(wide).shape == (2, 2, 6, 7)
    dense, x = problem()
    model = sd.SubDEQ(dense, warm_start="sample")
    model(x, samples=torch.arange(24))
    assert model.float()(x.float(), samples=torch.arange(24)).dtype == torch.float32


def test_a_copy_has_its_own_memory():
    layer, x = problem()
    model = sd.SubDEQ(layer, warm_start="mean")
    model(x)
    twin = copy.deepcopy(model)
    twin(10 * x)
    assert model._warm is not None and twin._warm is not None
    assert not torch.equal(model._warm.start(layer.bind(x), None), twin._warm.start(layer.bind(x), None))


@pytest.mark.parametrize(
    ("kind", "samples", "error", "match"),
    [
        ("sample", torch.arange(3), ShapeError, "one number for each sample"),
        ("sample", torch.zeros(24), ShapeError, "must be integers"),
        ("sample", torch.arange(24) - 1, OptionError, "nonnegative numbers, got -1"),
        ("mean", torch.arange(24), OptionError, 'warm_start="sample" only'),
        (None, torch.arange(24), OptionError, 'warm_start="sample" only'),
    ],
)
def test_useless_numbers_are_refused(kind, samples, error, match):
    layer, x = problem()
    with pytest.raises(error, match=match):
        sd.SubDEQ(layer, warm_start=kind)(x, samples=samples)


def test_an_unknown_kind_is_refused():
    with pytest.raises(OptionError, match=r"unknown warm_start 'means'.*mean"):
        sd.SubDEQ(problem()[0], warm_start="means")
