"""Each hypothesis on the actual weights: what breaks it, and what the certificate says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from subdeq_plugin.certificates import Certificate
from subdeq_plugin.errors import CertificateError, OptionError, ShapeError
from subdeq_plugin.layers import SubhomConv2d, SubhomGraph, SubhomLinear, undo_nonneg
from tests.helpers import LayerCase, certify_structure, silence_injection


def reason(proof: Certificate) -> str:
    assert not proof.unique and proof.rate is None and proof.reasons
    return " ".join(proof.reasons)


@pytest.mark.parametrize("kind", ["dense", "conv", "mixing graph"])
@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN or infinite"), (math.inf, "NaN or infinite")])
def test_weights_that_are_not_finite(kind, value, said):
    case = LayerCase(kind)
    layer = case.layer()
    with torch.no_grad():
        layer.parametrizations.weight.original.view(-1)[0] = value
    assert said in reason(certify_structure(layer)) and said in reason(certify_structure(layer, case.input()))


@pytest.mark.parametrize("kind", ["dense", "conv", "mixing graph"])
@pytest.mark.parametrize("value", [-1.0, -1e-300, -5e-324])
def test_one_negative_weight(kind, value):
    case = LayerCase(kind)
    layer = case.layer()
    undo_nonneg(layer)
    assert certify_structure(layer).unique  # the signs are checked, not the parametrization
    with torch.no_grad():
        layer.weight.view(-1)[-1] = value
    assert "smallest weight" in reason(certify_structure(layer)) and "signed" in reason(
        certify_structure(layer, case.input())
    )


def test_negative_zero_is_not_negative():
    layer = SubhomLinear(1, 2)
    undo_nonneg(layer)
    with torch.no_grad():
        layer.weight[0, 0] = -0.0
    assert certify_structure(layer).unique


@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_of_the_injection_that_are_not_finite(kind, value):
    layer = LayerCase(kind).layer()
    with torch.no_grad():
        layer.injection.bias[0] = value
    assert "injection" in reason(certify_structure(layer))


def test_samples_with_nan_are_named():
    x = torch.zeros(4, 3, dtype=torch.float64)
    x[2, 1] = math.nan
    assert "samples [2]" in reason(certify_structure(LayerCase("dense").layer(), x))


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_identity_injection_needs_the_input(place):
    layer = SubhomLinear(1, 2, injection=place, injection_map="identity")
    assert "pass x" in reason(certify_structure(layer))
    silence_injection(layer, 0.5)
    assert certify_structure(layer, torch.ones(1, 1)).unique
    silence_injection(layer, -1e-30)
    assert place in reason(certify_structure(layer, torch.ones(1, 1)))


def test_dense_zero_row():
    layer = SubhomLinear(1, 3)
    layer.weight = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 1]])
    assert "state unit 1" in reason(certify_structure(layer))
    layer.weight = torch.tensor([[1.0, 0, 0], [1e-45, 0, 0], [0, 1, 1]])
    assert certify_structure(layer).unique  # a denormal is not zero


def conv(weight: torch.Tensor) -> SubhomConv2d:
    layer = SubhomConv2d(1, weight.shape[0], tuple(weight.shape[-2:]))
    layer.weight = weight
    return layer


def test_convolution_without_an_output_channel():
    weight = torch.ones(2, 2, 3, 3)
    weight[1] = 0
    assert "output channel 1" in reason(certify_structure(conv(weight)))
    assert "output channel 1" in reason(certify_structure(conv(weight), torch.ones(1, 1, 4, 4)))


@pytest.mark.parametrize(
    ("row", "column", "pixel"), [(0, 0, "(0, 0)"), (2, 2, "(0, 3)"), (0, 1, "(0, 0)"), (1, 2, "(0, 3)")]
)
def test_convolution_that_sees_only_padding_at_the_border(row, column, pixel):
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, row, column] = 1.0
    assert "centre tap" in reason(certify_structure(conv(weight)))
    assert f"pixel {pixel}" in reason(certify_structure(conv(weight), torch.ones(1, 1, 4, 4)))


def test_convolution_without_centre_depends_on_the_image():
    weight = torch.ones(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 0
    layer = conv(weight)
    assert "centre tap" in reason(certify_structure(layer))
    assert certify_structure(layer, torch.ones(1, 1, 2, 2)).unique
    assert "pixel (0, 0)" in reason(certify_structure(layer, torch.ones(1, 1, 1, 1)))


def test_one_by_one_kernels_and_single_pixels():
    assert certify_structure(SubhomConv2d(1, 2, 1)).unique
    assert certify_structure(SubhomConv2d(1, 2, 1), torch.ones(1, 1, 1, 1)).unique


def test_isolated_node():
    edges = torch.tensor([[0, 1], [1, 0]])
    x = (torch.ones(3, 1), edges)
    open_layer = SubhomGraph(1, 2, self_loops=False)
    assert "self_loops=False" in reason(certify_structure(open_layer)) and "node 2" in reason(
        certify_structure(open_layer, x)
    )
    assert certify_structure(SubhomGraph(1, 2), x).unique and certify_structure(SubhomGraph(1, 2)).unique
    assert certify_structure(open_layer, (torch.ones(2, 1), edges)).unique
    explicit = torch.sparse_coo_tensor([[0, 1, 2], [1, 0, 0]], [1.0, 1.0, 0.0], (3, 3), check_invariants=True)
    assert "node 2" in reason(certify_structure(open_layer, (torch.ones(3, 1), explicit)))


def test_mixing_weight_with_a_zero_row():
    layer = SubhomGraph(1, 2, mix_features=True)
    layer.weight = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert "state unit 0" in reason(certify_structure(layer))


def test_degree_too_large_says_so():
    proof = certify_structure(SubhomLinear(1, 2, "tanh", 0.01, power=1.2))
    assert "raise shift, or lower power" in reason(proof) and proof.mu == pytest.approx(1.2 * 0.926969, abs=1e-5)
    huge = certify_structure(SubhomGraph(1, 2, power=1.7e308, normalize=2, normalize_over="node"))
    assert reason(huge) and huge.to_json()


def test_mu_is_withheld_where_it_would_mislead():
    layer = SubhomLinear(1, 2, weight="signed", shift=1.2)
    assert certify_structure(layer).mu is None


def test_targets():
    layer = SubhomLinear(1, 2)
    assert certify_structure(nn.Sequential(nn.Linear(1, 1), layer)).unique
    for target in (nn.Linear(1, 1), nn.Sequential(layer, SubhomLinear(1, 2))):
        with pytest.raises(OptionError, match="exactly one"):
            certify_structure(target)
    with pytest.raises(OptionError, match="must be a layer"):
        certify_structure("layer")
    with pytest.raises(OptionError, match="leave x out"):
        certify_structure(layer.bind(torch.ones(1, 1)), torch.ones(1, 1))
    with pytest.raises(ShapeError):
        certify_structure(layer, torch.ones(1, 2))


def test_a_certificate_with_input_is_a_snapshot():
    layer, x = SubhomLinear(1, 2, shift=0.5), torch.ones(1, 1)
    proof = certify_structure(layer, x)
    before = proof.error_bound(torch.ones(1, 2))
    layer.weight = 3 * torch.ones(2, 2)
    torch.testing.assert_close(proof.error_bound(torch.ones(1, 2)), before, rtol=0, atol=0)
    assert not torch.equal(proof.error_bound(torch.ones(1, 2), x), before)
    undo_nonneg(layer)
    with torch.no_grad():
        layer.weight[0, 0] = -1
    assert bool(proof.error_bound(torch.ones(1, 2), x).isinf().all())


def test_questions_that_a_certificate_cannot_answer():
    layer = SubhomLinear(1, 2)
    with pytest.raises(CertificateError, match="call error_bound"):
        certify_structure(layer).error_bound(torch.ones(1, 2))
    with pytest.raises(CertificateError, match="leave out x"):
        certify_structure(layer.bind(torch.ones(1, 1))).error_bound(torch.ones(1, 2), torch.ones(1, 1))
    with pytest.raises(CertificateError, match="no number of iterations"):
        certify_structure(SubhomLinear(1, 2, weight="signed", shift=1.2)).iterations_for(1e-3)
