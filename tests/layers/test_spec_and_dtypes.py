"""A bound map as data on disk, and the dtypes it computes in."""

from __future__ import annotations

import json

import pytest
import torch

from subdeq_plugin.layers import BoundMap, MapSpec, SubhomLinear
from tests.helpers import LayerCase, random_states

CASES = [
    LayerCase("dense", 3, injection="inside", power=-0.3),
    LayerCase("conv", "inf", "pixel", shift=0.25),
    LayerCase("graph", 2, "node", "inside"),
    LayerCase("mixing graph", 1.5, "channel"),
    LayerCase("mixing graph"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_specs_survive_safetensors_and_json(case, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    bound = case.layer().bind(case.input())
    arrays = {name: array.contiguous() for name, array in bound.spec.arrays.items()}
    safetensors.save_file(arrays, tmp_path / "map.safetensors")
    (tmp_path / "map.json").write_text(json.dumps(bound.spec.options, allow_nan=False))
    spec = MapSpec(safetensors.load_file(tmp_path / "map.safetensors"), json.loads((tmp_path / "map.json").read_text()))
    restored = BoundMap.from_spec(spec)
    z = random_states(tuple(bound.state_shape), 1)
    torch.testing.assert_close(restored(z), bound(z).detach(), rtol=0, atol=0)
    torch.testing.assert_close(restored.vjp(z, z), bound.vjp(z, z).detach(), rtol=1e-14, atol=1e-300)
    assert all(not array.requires_grad for array in bound.spec.arrays.values())


def test_a_signed_spec_is_not_called_positive():
    bound = SubhomLinear(2, 3, weight="signed", shift=0.5).bind(torch.ones(1, 2))
    assert not BoundMap.from_spec(bound.spec).positive
    assert BoundMap.from_spec(SubhomLinear(2, 3, weight="signed", shift=1.2).bind(torch.ones(1, 2)).spec).positive


@pytest.mark.parametrize("case", CASES, ids=str)
def test_single_precision_follows_double_precision(case):
    double, x = case.layer(), case.input()
    single = case.layer(torch.float32)
    single.load_state_dict(double.state_dict())
    narrow = case.input(torch.float32)
    z = random_states(tuple(double.bind(x).state_shape), 2, 1.0)
    value = single(z.float(), narrow)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), double(z, x), rtol=2e-5, atol=0)
    bound = single.bind(narrow)
    assert bound.jvp(z.float(), z.float()).dtype == bound.vjp(z.float(), z.float()).dtype == torch.float32
    assert single.initial_state(narrow).dtype == torch.float32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_to_bfloat16_keeps_the_states_dtype(case):
    layer, x = case.layer(torch.float32), case.input(torch.float32)
    z = random_states(tuple(layer.bind(x).state_shape), 3, 0.5).float()
    exact = layer(z, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = layer(z, x)
        start = layer.initial_state(x)
        bound = layer.bind(x)
        products = bound.jvp(z, z), bound.vjp(z, z)
    assert value.dtype == start.dtype == torch.float32 and all(p.dtype == torch.float32 for p in products)
    assert bool((value > 0).all())
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_moving_a_bound_map_to_another_dtype(case):
    bound = case.layer(torch.float32).bind(case.input(torch.float32)).detach()
    wide = bound.to("cpu", torch.float64)
    z = random_states(tuple(bound.state_shape), 4, 1.0)
    assert wide(z).dtype == torch.float64 and all(tensor.dtype == torch.float64 for tensor in wide.tensors)
    torch.testing.assert_close(wide(z).float(), bound(z.float()), rtol=2e-5, atol=0)


def test_bfloat16_states_come_back_as_bfloat16():
    layer = SubhomLinear(3, 4, dtype=torch.bfloat16)
    value = layer(torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bfloat16))
    assert value.dtype == torch.bfloat16 and bool((value > 0).all())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck_of_one_application(case):
    bound = case.layer().bind(case.input()).detach()
    z = random_states(tuple(bound.state_shape), 5, 0.5).requires_grad_()
    assert torch.autograd.gradcheck(bound, (z,))
