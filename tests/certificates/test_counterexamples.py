"""Maps with several fixed points, or none: each is shown to have them, and each must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from subdeq_plugin.activations import Activation
from subdeq_plugin.certificates import Certificate, certify
from subdeq_plugin.degrees import REALS
from subdeq_plugin.layers import BoundMap, MapSpec, SubhomLinear
from tests.helpers import silence_injection

SIGNS = np.array([[1.0, -1.0], [-1.0, 1.0]])


def signed_layer(scale: float, shift: float, normalize=None) -> SubhomLinear:
    layer = SubhomLinear(1, 2, "tanh", shift, 1.0, normalize, weight="signed", dtype=torch.float64)
    silence_injection(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(scale * SIGNS))
    return layer


def polished(mapping, start, steps: int = 5000) -> np.ndarray:
    """The fixed point that plain iteration reaches from `start`, checked by its residual."""
    z = np.asarray(start, dtype=float)
    for _ in range(steps):
        z = mapping(z)
    assert np.abs(mapping(z) - z).max() <= 1e-12 * np.abs(z).max()
    return z


def refused(proof: Certificate) -> None:
    assert proof.unique is False
    assert proof.rate is None and proof.metric is None and proof.theorem is None and proof.contraction is None
    assert proof.reasons and str(proof).startswith("NOT PROVEN")


def all_targets(layer: SubhomLinear) -> list[Certificate]:
    x = torch.zeros(1, 1, dtype=torch.float64)
    return [certify(layer), certify(layer, x), certify(layer.bind(x)), certify(torch.nn.Sequential(layer), x)]


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 1.2), (0.6, 1.2), (3.0, 1.2), (1.0, 5.0), (20.0, 1.603), (1e3, 1.2)]
)
def test_signed_weights(scale, shift):
    """`tanh(W z) + c`: (c, c), and a pair of mirror images as soon as the scale exceeds 1/2."""

    def mapping(z: np.ndarray) -> np.ndarray:
        return np.tanh(scale * SIGNS @ z) + shift

    middle = np.full(2, shift)
    np.testing.assert_allclose(mapping(middle), middle, rtol=1e-12)
    side = polished(mapping, [shift + 0.9, shift - 0.9])
    np.testing.assert_allclose(mapping(side[::-1]), side[::-1], rtol=1e-11)
    assert side[0] - side[1] > 0.1 and side.min() > 0
    if (scale, shift) == (1.0, 1.2):
        np.testing.assert_allclose(side, [2.15750402, 0.24249598], atol=1e-8)
        assert Activation("tanh", shift).degree(REALS).bound < 1
    for proof in all_targets(signed_layer(scale, shift)):
        refused(proof)
        assert any("smallest weight" in reason for reason in proof.reasons)


@pytest.mark.parametrize(("normalize", "order"), [("inf", np.inf), (1, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize(("scale", "shift"), [(2.0, 1.603), (10.0, 1.603), (8.0, 3.0)])
def test_signed_weights_normalised(normalize, order, scale, shift):
    def mapping(z: np.ndarray) -> np.ndarray:
        value = np.tanh(scale * SIGNS @ z) + shift
        return value / np.linalg.norm(value, order)

    middle = polished(mapping, [1.0, 1.0], 1)
    side = polished(mapping, [1.0, 0.1])
    np.testing.assert_allclose(middle[0], middle[1])
    np.testing.assert_allclose(mapping(side[::-1]), side[::-1], rtol=1e-11)
    assert side[0] - side[1] > 0.3
    if (normalize, scale, shift) == ("inf", 2.0, 1.603):
        np.testing.assert_allclose(side, [1.0, 0.28517961], atol=1e-8)
        assert Activation("tanh", shift).degree(REALS).bound < 0.5
    for proof in all_targets(signed_layer(scale, shift, normalize)):
        refused(proof)


@pytest.mark.parametrize(("weight", "bias", "shift"), [(6.0, -5.0, 1.05), (12.0, -10.0, 1.05), (60.0, -30.0, 1.01)])
def test_a_negative_bias_inside(weight, bias, shift):
    """`tanh(w z + b) + c` with `w > 0 > b`: three sign changes of `F(z) - z`."""
    z = np.linspace(1e-4, 3.0, 300001)
    gap = np.tanh(weight * z + bias) + shift - z
    assert (np.diff(np.sign(gap)) != 0).sum() == 3
    if weight == 6.0:
        roots = z[:-1][np.diff(np.sign(gap)) != 0]
        np.testing.assert_allclose(roots, [0.0502, 0.7888, 2.05], atol=1e-4)
    layer = SubhomLinear(
        1, 1, "tanh", shift, injection="inside", injection_map="identity", nonneg="square", dtype=torch.float64
    )
    layer.weight = torch.tensor([[weight]], dtype=torch.float64)
    silence_injection(layer, bias)
    for proof in all_targets(layer):
        refused(proof)
        assert any("inject" in reason for reason in proof.reasons)


def test_a_negative_term_outside():
    """`tanh(4 z) + 0.9 - 0.9`: degree below 1 before the subtraction; 0.9993 is fixed, and so is the border point 0."""
    assert abs(np.tanh(4 * 0.99932) - 0.99932) < 1e-4
    layer = SubhomLinear(1, 1, "tanh", 0.9, injection_map="identity", dtype=torch.float64)
    layer.weight = torch.full((1, 1), 4.0, dtype=torch.float64)
    silence_injection(layer, -0.9)
    for proof in all_targets(layer):
        refused(proof)


def dense_bound(activation: str, shift: float, power: float, weight, **more) -> BoundMap:
    arrays = {
        "weight": torch.tensor(weight, dtype=torch.float64),
        "outer": torch.zeros(1, len(weight), dtype=torch.float64),
    }
    options = {"kind": "dense", "activation": activation, "shift": shift, "power": power, **more}
    return BoundMap.from_spec(MapSpec(arrays, options))


@pytest.mark.parametrize(
    ("activation", "shift", "power", "weight", "why"),
    [
        ("relu", 0.0, 1.0, 1.0, "every positive number is a fixed point"),
        ("relu", 0.0, 1.0, 2.0, "no positive fixed point"),
        ("relu", 0.5, 1.0, 2.0, "z = 2 z + 0.5 has no positive solution"),
        ("softplus", 0.0, 1.0, 1.5, "softplus(1.5 z) > z for all z > 0"),
        ("relu", 0.0, -1.0, 1.0, "z -> 1/z swaps the ends of every orbit"),
        ("tanh", 0.001, 3.0, 30.0, "a power raises the degree to 3"),
        ("relu", 0.1, 2.0, 0.5, "(z/2 + 0.1)^2 = z twice"),
    ],
)
def test_degree_one_or_more(activation, shift, power, weight, why):
    proof = certify(dense_bound(activation, shift, power, [[weight]]))
    refused(proof)
    assert proof.mu is not None and proof.mu > 0.99, why
    assert any("not below 1" in reason for reason in proof.reasons)


def test_two_fixed_points_by_a_power_are_really_there():
    z = np.linspace(1e-6, 5.0, 100001)
    for gap in ((z / 2 + 0.1) ** 2 - z, (np.tanh(30 * z) + 0.001) ** 3 - z):
        assert (np.diff(np.sign(gap)) != 0).sum() >= 2


@pytest.mark.parametrize("power", [-0.6, -0.9])
def test_hilbert_is_not_used_for_order_reversing_maps(power):
    proof = certify(dense_bound("relu", 0.0, power, [[1.0]], normalize=2))
    refused(proof)
    assert any("not order-preserving" in check.name for check in proof.checks)


def test_a_zero_row_has_no_positive_fixed_point():
    bound = dense_bound("relu", 0.0, 0.5, [[1.0, 1.0], [0.0, 0.0]])
    assert float(bound(torch.ones(1, 2, dtype=torch.float64))[0, 1]) == 0.0
    refused(certify(bound))
    assert math.isinf(float(certify(dense_bound("relu", 0.0, 1.0, [[1.0]])).error_bound(torch.ones(1, 1))[0]))
