"""Gradients of whole models, against backpropagation through plain iteration in double precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from tests.helpers import EDGES, GROUPS, iterate
from tests.problems import normal

# kind, keywords: every operator, grouping, place and power; rates from quick to slow.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {"shift": 0.1}),
    "dense-slow": ("dense", {"shift": 0.01}),
    "dense-power": ("dense", {"activation": "softplus", "shift": 0.1, "power": 0.6}),
    "dense-antitone": ("dense", {"activation": "softsign", "shift": 0.5, "power": -0.6}),
    "dense-1": ("dense", {"shift": 0.6, "normalize": 1, "power": 0.5}),
    "dense-2": ("dense", {"shift": 1.603, "normalize": 2}),
    "dense-3": ("dense", {"shift": 0.3, "normalize": 3, "injection": "inside"}),
    "dense-inf": ("dense", {"shift": 0.3, "normalize": "inf"}),
    "conv": ("conv", {"shift": 0.2, "activation": "sigmoid", "injection": "inside"}),
    "conv-channel": ("conv", {"shift": 1.2, "normalize": 2, "normalize_over": "channel"}),
    "conv-pixel": ("conv", {"shift": 1.2, "normalize": 1, "normalize_over": "pixel"}),
    "graph": ("graph", {"shift": 0.2}),
    "mixing": ("mixing graph", {"shift": 0.2, "injection": "outside"}),
    "mixing-node": ("mixing graph", {"shift": 1.2, "normalize": 2, "normalize_over": "node"}),
}


def layer_of(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> sd.SubhomLayer:
    kind, keywords = LAYERS[name]
    options = {"injection_map": "softplus", "dtype": dtype, **keywords}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "dense":
            return sd.SubhomLinear(3, 5, **options)
        if kind == "conv":
            return sd.SubhomConv2d(2, 2, 3, **options)
        return sd.SubhomGraph(3, 2, 0.2, mix_features=kind == "mixing graph", **options)


def features_of(name: str, lead: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float64) -> Tensor:
    shape = {"dense": (3,), "conv": (2, 3, 4)}.get(LAYERS[name][0], (5, 3))
    return normal(*lead, *shape, seed=21).to(dtype)


def given(name: str, features: Tensor) -> Any:
    return features if LAYERS[name][0] in ("dense", "conv") else (features, EDGES)


def unrolled(layer: sd.SubhomLayer, x: Any, steps: int = 90) -> Tensor:
    """The fixed point with the graph of its last steps: the earlier ones only lead there."""
    bound = layer.bind(x)
    frozen = bound.detach()
    z = iterate(frozen, frozen.start(), 2000)
    for _ in range(steps):
        z = bound(z)
    return z


def gradients(z: Tensor, layer: sd.SubhomLayer, features: Tensor, **options: Any) -> tuple[Tensor, ...]:
    weights = normal(*z.shape, seed=22).to(z.dtype)
    loss = (z * weights).sum() + (z.log() * weights.flip(0)).sum()
    return torch.autograd.grad(loss, [*layer.parameters(), features], **options)


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_and_the_input(name):
    layer, features = layer_of(name), features_of(name).requires_grad_()
    truth = gradients(unrolled(layer, given(name, features)), layer, features)
    for b_solver in ("subdeq:auto", "subdeq:gmres"):
        model = sd.SubDEQ(layer, b_solver=b_solver, f_tol=1e-13, b_tol=1e-12, on_failure="raise")
        for mode in (model.train(), model.eval()):
            found = gradients(mode(given(name, features)), layer, features)
            for got, expected in zip(found, truth, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    assert max(float(part.abs().max()) for part in truth) > 1e-3


@pytest.mark.parametrize("name", LAYERS)
def test_the_way_without_a_graph_is_the_way_with_one(name):
    """First derivatives come from a formula, unless they are to be differentiated once more."""
    layer, features = layer_of(name, 1), features_of(name).requires_grad_()
    model = sd.SubDEQ(layer, f_tol=1e-12, b_tol=1e-12)
    quick = gradients(model(given(name, features)), layer, features)
    slow = gradients(model(given(name, features)), layer, features, create_graph=True)
    for one, other in zip(quick, slow, strict=True):
        assert not one.requires_grad and other.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_single_precision_follows_double_precision(name):
    wide, features = layer_of(name, 2), features_of(name).requires_grad_()
    truth = gradients(unrolled(wide, given(name, features)), wide, features)
    layer = layer_of(name, 2, torch.float32)
    layer.load_state_dict(wide.state_dict())
    short = features.detach().float().requires_grad_()
    model = sd.SubDEQ(layer, f_tol=1e-6, b_tol=1e-6, on_failure="ignore")
    z = model(given(name, short))
    z.sum().backward()
    assert all(part.grad is not None and part.grad.dtype == torch.float32 for part in layer.parameters())
    found = gradients(model(given(name, short)), layer, short)
    size = max(float(part.abs().max()) for part in truth)
    for got, expected in zip(found, truth, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=2e-4 * size)


@pytest.mark.parametrize("name", [name for name, (kind, _) in LAYERS.items() if kind != "conv"])
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1)])
def test_inputs_with_other_leading_dimensions(name, lead):
    if LAYERS[name][0] != "dense" and len(lead) > 1:
        return  # graphs come alone or in one batch
    layer, features = layer_of(name, 3), features_of(name, lead).requires_grad_()
    model = sd.SubDEQ(layer, f_tol=1e-12, b_tol=1e-11, on_failure="raise")
    z = model(given(name, features))
    found = torch.autograd.grad(z.log().sum(), [*layer.parameters(), features])
    truth = torch.autograd.grad(unrolled(layer, given(name, features)).log().sum(), [*layer.parameters(), features])
    for got, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["dense", "dense-2", "conv", "mixing"])
def test_frozen_parameters_get_no_gradient_and_disturb_no_other(name):
    layer, features = layer_of(name, 4), features_of(name)
    model = sd.SubDEQ(layer, f_tol=1e-12, b_tol=1e-12)
    model(given(name, features)).square().sum().backward()
    full = {key: part.grad.clone() for key, part in layer.named_parameters()}
    for frozen in full:
        twin = copy.deepcopy(model)
        for key, part in twin.layer.named_parameters():
            part.grad = None
            part.requires_grad_(key != frozen)
        twin(given(name, features)).square().sum().backward()
        for key, part in twin.layer.named_parameters():
            if key == frozen:
                assert part.grad is None
            else:
                torch.testing.assert_close(part.grad, full[key], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["dense", "dense-2", "dense-inf", "conv", "conv-channel", "graph", "mixing-node"])
def test_large_batches_in_parts(name, monkeypatch):
    """Both equations are solved in parts, of which only the sum of the gradients knows nothing."""
    layer, features = layer_of(name, 5), features_of(name, (7,)).requires_grad_()
    model = sd.SubDEQ(layer, f_tol=1e-12, b_tol=1e-12, on_failure="raise")
    z = model(given(name, features))
    truth = gradients(z, layer, features)
    for samples in (1, 3):
        monkeypatch.setattr("subdeq_plugin.solvers.walk._CACHED", samples * z[0].numel() * 8)
        parts = model(given(name, features))
        torch.testing.assert_close(parts, z, rtol=1e-10, atol=0)
        for got, expected in zip(gradients(parts, layer, features), truth, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_the_cases_cover_every_kind():
    assert {kind for kind, _ in LAYERS.values()} == set(GROUPS)
