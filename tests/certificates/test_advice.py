"""Advice: every suggestion, carried out by hand on another layer, gives a proof; and none is larger than needed."""

import copy
import math

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized

import subdeq_plugin as sd
from subdeq_plugin.certificates import Advice, Certificate, certify
from subdeq_plugin.errors import CertificateError
from subdeq_plugin.layers.operators import DenseOperator

TYPES = {"dense": sd.SubhomLinear, "conv": sd.SubhomConv2d, "graph": sd.SubhomGraph}


def build(kind: str, scale: float, seed: int = 0, **settings):
    """A layer from its keywords, its state weight drawn from the seed and multiplied."""
    torch.manual_seed(seed)
    layer = TYPES[kind](3, 4, **settings)
    if hasattr(layer, "weight"):
        with torch.no_grad():
            assign(layer, scale * layer.weight)
    return layer


def assign(layer, weight):
    """Set the state weight, parametrized or not."""
    if is_parametrized(layer, "weight"):
        layer.weight = weight
    else:
        layer.weight.copy_(weight)


def carry_out(kind: str, scale: float, settings: dict, change: dict):
    """The changed layer as a user would make it: built anew with the new keywords, the weights assigned."""
    original = build(kind, scale, **settings)
    keywords = {name: value for name, value in change.items() if name != "scale"}
    layer = TYPES[kind](3, 4, **{**settings, **keywords})
    with torch.no_grad():
        layer.injection.load_state_dict(original.injection.state_dict())
        if hasattr(original, "weight"):
            weight = change.get("scale", 1.0) * original.weight.detach()
            assign(layer, weight.abs() if layer.weight_kind == "nonneg" else weight)
    return layer


CASES = [
    ("dense", 5.0, {"shift": 1.2, "weight": "signed", "injection_map": "identity"}, None),
    ("dense", 3.0, {"shift": 1.2, "weight": "signed"}, None),
    ("dense", 3.0, {"shift": 1.2, "weight": "signed", "injection_map": "identity"}, (5, 3)),
    ("dense", 4.0, {"shift": 1.5, "weight": "signed", "injection": "inside"}, (5, 3)),
    ("dense", 3.0, {"activation": "relu", "weight": "signed", "shift": 0.0}, None),
    ("dense", 1.0, {"activation": "softplus", "shift": 0.5, "power": 2.5}, None),
    ("dense", 1.0, {"activation": "softplus", "shift": 0.5, "power": -2.5}, None),
    ("dense", 1.0, {"injection_map": "identity", "shift": 0.01, "injection": "inside"}, None),
    ("conv", 1.0, {"activation": "softplus", "shift": 0.0, "normalize": 2.0, "normalize_over": "channel"}, None),
    ("conv", 4.0, {"shift": 1.2, "weight": "signed"}, None),
    ("graph", 1.0, {"self_loops": False}, None),
    ("graph", 1.0, {"self_loops": False, "injection_map": "identity"}, None),
    ("graph", 3.0, {"mix_features": True, "weight": "signed", "shift": 1.2, "self_loops": False}, None),
]


def inputs(kind, shape):
    return None if shape is None else torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("kind", "scale", "settings", "shape"), CASES)
def test_every_suggestion_suffices(kind, scale, settings, shape):
    layer, x = build(kind, scale, **settings), inputs(kind, shape)
    before = copy.deepcopy(layer.state_dict())
    certificate = certify(layer, x)
    assert not certificate.unique
    advice = sd.advise(certificate)
    assert advice, "nothing found"
    for item in advice:
        assert item.text and item.settings and "exactly one fixed point" in item.purpose
        changed = certify(carry_out(kind, scale, settings, item.settings), x)
        assert changed.unique, item
        assert changed.scope in item.purpose
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert not certify(layer, x).unique


def found(certificate: Certificate, setting: str) -> Advice:
    (item,) = [item for item in sd.advise(certificate) if setting in item.settings]
    return item


@pytest.mark.parametrize(
    ("kind", "scale", "settings", "shape"),
    [
        ("dense", 5.0, {"shift": 1.2, "weight": "signed", "injection_map": "identity"}, (5, 3)),
        ("dense", 4.0, {"shift": 0.1, "power": 2.0}, None),
        ("dense", 3.0, {"shift": 1.1, "weight": "signed"}, (5, 3)),
        ("conv", 2.0, {"shift": 0.02, "normalize": 1, "normalize_over": "channel"}, None),
    ],
)
def test_a_shift_is_no_larger_than_needed(kind, scale, settings, shape):
    x = inputs(kind, shape)
    change = found(certify(build(kind, scale, **settings), x), "shift").settings
    excess = change["shift"] - settings["shift"]
    assert excess > 0 and len(f"{excess:.10g}".replace(".", "").strip("0")) <= 2
    assert certify(carry_out(kind, scale, settings, change), x).unique
    less = {"shift": settings["shift"] + 0.9 * excess}
    assert not certify(carry_out(kind, scale, settings, less), x).unique


@pytest.mark.parametrize("setting", ["power", "scale"])
def test_a_factor_is_no_smaller_than_needed(setting):
    settings = {"shift": 1.2, "weight": "signed", "injection_map": "identity"}
    value = found(certify(build("dense", 5.0, **settings)), setting).settings[setting]
    assert 0 < value < 1 and math.isclose(value * 100, round(value * 100))
    assert certify(carry_out("dense", 5.0, settings, {setting: value})).unique
    assert not certify(carry_out("dense", 5.0, settings, {setting: value + 0.01})).unique


def test_the_shift_of_theorem_b_is_the_one_that_its_degree_asks_for():
    """By the scalar function alone: a norm per channel needs `2 mu < 1`, whatever the weights."""
    layer = sd.SubhomConv2d(1, 3, activation="tanh", shift=0.02, normalize=1, normalize_over="channel")
    shift = found(certify(layer), "shift").settings["shift"]
    assert sd.Activation("tanh", shift).mu_plus < 0.5
    assert sd.Activation("tanh", 0.02 + 0.9 * (shift - 0.02)).mu_plus >= 0.5


def test_two_repairs_together_where_neither_suffices_alone():
    layer = sd.SubhomGraph(2, 3, self_loops=False, injection_map="identity")
    (item,) = sd.advise(certify(layer))
    assert item.settings == {"self_loops": True, "injection_map": "relu"}
    assert 'injection_map="relu"; set self_loops=True' in item.text


def test_repairs_with_a_larger_shift():
    torch.manual_seed(0)
    settings = {"normalize": 1.0, "injection_map": "identity", "activation": "tanh", "shift": 0.05}
    layer = sd.SubhomConv2d(2, 3, normalize_over="pixel", **settings)
    (item,) = sd.advise(certify(layer))
    assert item.settings.keys() == {"shift", "injection_map"}
    changed = sd.SubhomConv2d(2, 3, normalize_over="pixel", **{**settings, **item.settings})
    assert certify(changed).unique


def test_a_bound_map():
    torch.manual_seed(0)
    options = {"kind": "dense", "activation": "tanh", "shift": 1.2}
    weight, inner = 3 * torch.randn(4, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    bound = sd.BoundMap.from_spec(sd.MapSpec({"weight": weight, "inner": inner}, options))
    advice = sd.advise(certify(bound))
    assert {name for item in advice for name in item.settings} >= {"shift", "scale"}
    for item in advice:
        change = dict(item.settings)
        arrays = {"weight": change.pop("scale", 1.0) * weight, "inner": inner}
        if change.pop("weight", None) == "nonneg":
            arrays["weight"] = arrays["weight"].abs()
        if change.pop("injection_map", None) == "relu":
            arrays["inner"] = inner.clamp(min=0)
        assert certify(sd.BoundMap.from_spec(sd.MapSpec(arrays, {**options, **change}))).unique, item


def test_nothing_is_said_of_a_proof_or_where_nothing_helps():
    assert sd.advise(certify(sd.SubhomLinear(2, 3))) == ()
    broken = sd.SubhomLinear(2, 3, weight="signed", shift=1.2)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    assert sd.advise(certify(broken)) == ()
    wrong = sd.BoundMap(DenseOperator(torch.ones(2, 3)), sd.Activation("tanh"))
    assert sd.advise(certify(wrong)) == ()


def test_only_the_conditions_asked_for_count():
    layer = build("dense", 3.0, shift=1.2, weight="signed")
    for item in sd.advise(certify(layer, conditions="norm")):
        assert 'condition "norm"' in item.purpose
        assert certify(carry_out("dense", 3.0, {"shift": 1.2, "weight": "signed"}, item.settings)).unique
    (only,) = sd.advise(certify(layer, conditions="subhomogeneous"))
    assert only.settings == {"weight": "nonneg"} and "theorem A" in only.purpose


def test_a_weight_that_is_normalised_again_is_not_scaled():
    """A spectral norm undoes any scaling of the weight assigned: no smaller one would be of any use."""
    layer = build("dense", 3.0, shift=1.2, weight="signed", power=2.0)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([2.0, 2.0, -2.0, -2.0])))
    spectral_norm(layer, "weight").eval()
    certificate = certify(layer)
    assert not certificate.unique
    assert all("scale" not in item.settings for item in sd.advise(certificate))


def test_a_weight_norm_can_be_scaled():
    layer = weight_norm(build("dense", 3.0, shift=1.2, weight="signed"), "weight")
    factor = found(certify(layer), "scale").settings["scale"]
    with torch.no_grad():
        layer.weight = factor * layer.weight
    assert certify(layer).unique


def test_a_weight_left_by_a_hook_can_be_copied():
    layer = build("dense", 3.0, shift=1.2, weight="signed")
    free = torch.nn.Parameter(layer.weight.detach().clone())
    del layer._parameters["weight"]
    layer.weight = 2 * free
    assert not layer.weight.is_leaf
    advice = sd.advise(certify(layer))
    assert all("scale" not in item.settings and "weight" not in item.settings for item in advice)


def test_advice_as_text():
    item = Advice("raise shift", "proves it", {"shift": 1.0})
    assert str(item) == "raise shift: proves it"


def test_needs_a_certificate_of_certify():
    bare = Certificate(False, None, None, None, None, "", ())
    with pytest.raises(CertificateError, match="not made by certify"):
        sd.advise(bare)
