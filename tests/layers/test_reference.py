"""Layers against dense formulas written out with loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from subdeq_plugin.layers import SubhomConv2d, SubhomLinear
from tests.helpers import GROUPS, LayerCase, group_dims, p_norm, random_states

MAPS = {
    "relu": lambda y: np.maximum(y, 0),
    "softplus": lambda y: np.log1p(np.exp(y)),
    "abs": np.abs,
    "square": np.square,
    "identity": lambda y: y,
}


def numbers(tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("injection_map", MAPS)
@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("normalize", [None, 1, 2.5, "inf"])
def test_dense_formula(injection_map, place, normalize):
    torch.manual_seed(3)
    layer = SubhomLinear(
        3, 5, "arctan", 2.0, 0.7, normalize, injection=place, injection_map=injection_map, dtype=torch.float64
    )
    x, z = torch.randn(2, 4, 3, dtype=torch.float64), random_states((2, 4, 5), 1)
    injected = MAPS[injection_map](numbers(x) @ numbers(layer.injection.weight).T + numbers(layer.injection.bias))
    t = numbers(z) @ numbers(layer.weight).T + (injected if place == "inside" else 0)
    value = (np.arctan(t) + 2.0) ** 0.7 + (injected if place == "outside" else 0)
    expected = torch.from_numpy(value)
    if normalize is not None:
        expected = expected / p_norm(expected, normalize, (-1,))
    torch.testing.assert_close(layer(z, x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), ((1, 3), (1, 2)), ((5, 3), 1)])
def test_convolution_formula(kernel, dilation):
    torch.manual_seed(4)
    layer = SubhomConv2d(2, 3, kernel, dilation=dilation, dtype=torch.float64)
    x, z = torch.randn(2, 2, 5, 4, dtype=torch.float64), random_states((2, 3, 5, 4), 2)
    weight, state = numbers(layer.weight), numbers(z)
    spread = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    height, width = weight.shape[-2:]
    t = np.zeros_like(state)
    for b, o, i, r, c, p, q in np.ndindex(2, 3, 3, 5, 4, height, width):
        row, column = r + spread[0] * (p - height // 2), c + spread[1] * (q - width // 2)
        if 0 <= row < 5 and 0 <= column < 4:
            t[b, o, r, c] += weight[o, i, p, q] * state[b, i, row, column]
    injected = np.maximum(numbers(layer.injection(x)), 0)
    expected = torch.from_numpy(np.tanh(t) + 0.1 + injected)
    torch.testing.assert_close(layer(z, x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("kind", "over"), [(kind, over) for kind in GROUPS for over in GROUPS[kind]])
@pytest.mark.parametrize("p", [1, 2, 3, 80, "inf"])
def test_each_group_has_norm_one(kind, over, p):
    case = LayerCase(kind, p, over, shift=0.01)
    layer, x = case.layer(), case.input()
    value = layer(random_states(tuple(layer.bind(x).state_shape), 4), x)
    norm = p_norm(value.detach(), p, group_dims(kind, over))
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=1e-12, atol=0)


def test_a_large_exponent_does_not_underflow():
    layer = SubhomLinear(1, 3, "tanh", 0.01, 1.0, 60.0)
    with torch.no_grad():
        layer.weight = torch.full((3, 3), 1e-6)
        layer.injection.weight.zero_()
        layer.injection.bias.fill_(-1)
    value = layer(torch.ones(1, 3), torch.zeros(1, 1))
    torch.testing.assert_close(value, torch.full((1, 3), 3 ** (-1 / 60)))


def test_samples_of_any_leading_shape_are_independent():
    layer = SubhomLinear(3, 4, normalize=2, dtype=torch.float64)
    x, z = torch.randn(2, 3, 3, dtype=torch.float64), random_states((2, 3, 4), 5)
    whole = layer(z, x)
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(layer(z[i, j], x[i, j]), whole[i, j], rtol=1e-13, atol=0)


def test_non_contiguous_inputs():
    layer = SubhomConv2d(2, 2, 3, dtype=torch.float64)
    x = torch.randn(1, 4, 5, 2, dtype=torch.float64).permute(0, 3, 1, 2)
    z = random_states((1, 5, 4, 2), 6).permute(0, 3, 2, 1)
    assert not x.is_contiguous() and not z.is_contiguous()
    torch.testing.assert_close(layer(z, x), layer(z.contiguous(), x.contiguous()), rtol=1e-13, atol=0)
