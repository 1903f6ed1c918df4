"""Maps and states at the edges of what a bound or a verdict may claim."""

from __future__ import annotations

import pickle

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.errors import CertificateError, OptionError, ShapeError
from subdeq_plugin.layers.operators import DenseOperator
from tests.helpers import certify_structure

D = torch.float64


def scalar_map(activation: str, weight: float, shift: float, power: float, outer: float = 0.0) -> sd.BoundMap:
    arrays = {"weight": torch.tensor([[weight]], dtype=D), "outer": torch.tensor([[outer]], dtype=D)}
    options = {"kind": "dense", "activation": activation, "shift": shift, "power": power}
    return sd.BoundMap.from_spec(sd.MapSpec(arrays, options))


@pytest.fixture(scope="module")
def negative_tanh() -> str:
    sd.register_activation("negative_tanh", lambda t: -t.tanh())
    return "negative_tanh"


@pytest.mark.parametrize("gap", [1e-6, 1e-10, 1e-13])
def test_cancellation_of_a_negative_function_with_its_shift_is_in_the_bound(negative_tanh, gap):
    """`1 + gap - tanh(25 z)` loses most of its digits in double precision; the bound must know."""
    mpmath = pytest.importorskip("mpmath")
    bound = scalar_map(negative_tanh, 25.0, 1 + gap, 0.03)
    certificate = certify_structure(bound)
    assert certificate.unique
    with mpmath.workdps(60):
        shift, z = mpmath.mpf(bound.activation.shift), mpmath.mpf(1)
        for _ in range(600):
            z = (shift - mpmath.tanh(25 * z)) ** mpmath.mpf(0.03)
        for state in (float(z), float(z) * (1 + 1e-9), 1.0):
            true = abs(mpmath.log(mpmath.mpf(state)) - mpmath.log(z))
            assert true <= mpmath.mpf(float(certificate.error_bound(torch.tensor([[state]], dtype=D))[0]))


def test_subnormal_entries_of_a_normalised_state_get_no_bound():
    arrays = {
        "weight": torch.diag(torch.tensor([1e60, 1.0], dtype=D)) + 1e-300,
        "outer": torch.tensor([[0, 3e186]], dtype=D),
    }
    options = {"kind": "dense", "activation": "relu", "power": 0.5, "normalize": "inf"}
    certificate = certify_structure(sd.BoundMap.from_spec(sd.MapSpec(arrays, options)))
    assert certificate.unique
    assert bool(certificate.error_bound(torch.tensor([[5e-315, 1.0]], dtype=D)).isinf())


def test_no_bound_beyond_the_domain_of_the_proof():
    sd.register_activation("halfway", lambda t: t * t.sigmoid())
    bound = scalar_map("halfway", 1.0, 0.5, 0.5, outer=0.1)
    certificate = certify_structure(bound)
    assert certificate.unique
    assert bool(certificate.error_bound(torch.tensor([[1.5e308]], dtype=D)).isinf())
    assert bool(certificate.error_bound(torch.tensor([[1.5]], dtype=D)).isfinite())


@pytest.mark.parametrize("size", [1e-6, 1.0, 50.0])
def test_the_relative_count_without_an_input_holds_for_every_input(size):
    layer = sd.SubhomLinear(1, 1, "relu", shift=0.0, power=0.9, dtype=D)
    layer.weight = torch.tensor([[size]], dtype=D)
    with torch.no_grad():
        layer.injection.weight.zero_()
        layer.injection.bias.fill_(0.0)
    count = certify_structure(layer).iterations_for(1e-2)
    f = layer.bind(torch.zeros(1, 1, dtype=D)).detach()
    exact = size ** (0.9 / 0.1)  # z = (w z)**0.9
    z = torch.ones(1, 1, dtype=D)
    begin = abs(float(z.log()) - 9 * torch.log(torch.tensor(size)).item())
    for _ in range(count):
        z = f(z)
    assert abs(float(z.log()) - torch.log(torch.tensor(exact, dtype=D)).item()) <= 1e-2 * begin + 1e-9


@pytest.mark.parametrize(
    ("arrays", "options"),
    [
        ({"weight": torch.ones(3, 4)}, {"kind": "dense"}),
        ({"weight": torch.ones(3, 3), "outer": torch.ones(2, 5)}, {"kind": "dense"}),
        ({"weight": torch.ones(2, 2, 2, 2)}, {"kind": "conv2d", "dilation": [1, 1]}),
        ({"weight": torch.ones(2, 2, 3, 3), "outer": torch.ones(1, 3, 4, 4)}, {"kind": "conv2d", "dilation": [1, 1]}),
        ({"weight": torch.ones(2, 2), "outer": torch.ones(4, 2), "inner": torch.ones(1, 2)}, {"kind": "dense"}),
    ],
)
def test_specs_that_are_no_self_maps_are_refused(arrays, options):
    with pytest.raises(ShapeError):
        sd.BoundMap.from_spec(sd.MapSpec(arrays, {"activation": "tanh", "shift": 0.5, **options}))


def test_a_hand_made_map_with_wrong_shapes_is_not_proven():
    bound = sd.BoundMap(DenseOperator(torch.ones(3, 4)), sd.Activation("tanh", 0.5))
    certificate = certify_structure(bound)
    assert not certificate.unique and "square" in certificate.reasons[0]


def test_specs_need_an_activation_and_know_their_options():
    arrays = {"weight": torch.ones(2, 2)}
    with pytest.raises(OptionError, match="lacks 'activation'"):
        sd.BoundMap.from_spec(sd.MapSpec(arrays, {"kind": "dense"}))
    with pytest.raises(OptionError, match="did you mean 'shift'"):
        sd.BoundMap.from_spec(sd.MapSpec(arrays, {"kind": "dense", "activation": "tanh", "shfit": 0.5}))


def test_a_map_without_injection_needs_its_first_step():
    options = {"kind": "conv2d", "dilation": [1, 1], "activation": "tanh", "shift": 0.5}
    certificate = certify_structure(sd.BoundMap.from_spec(sd.MapSpec({"weight": torch.rand(2, 2, 3, 3)}, options)))
    assert certificate.unique
    with pytest.raises(CertificateError, match="pass first_step"):
        certificate.iterations_for(1e-3)
    assert certificate.iterations_for(1e-3, first_step=1.0) > 0


def test_a_huge_shift_of_a_registered_activation_is_refused_not_a_crash():
    sd.register_activation("huge", lambda t: t * t.sigmoid())
    assert not certify_structure(sd.SubhomLinear(2, 2, "huge", shift=1e200, power=2.0)).unique


def test_nan_weights_are_reported_once():
    layer = sd.SubhomLinear(2, 2)
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 0] = torch.nan
    reasons = certify_structure(layer).reasons
    assert len(reasons) == 1 and "NaN" in reasons[0]


def test_activations_are_pickled_by_name():
    activation = sd.Activation("tanh", shift=0.3, power=2.0)
    assert pickle.loads(pickle.dumps(activation)) == activation
