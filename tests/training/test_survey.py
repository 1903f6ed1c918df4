"""Image by image: counts, bounds and rates agree with certificates made one at a time."""

import math

import pytest
import torch

from subdeq_plugin.certificates import Check, certify
from subdeq_plugin.data import load
from subdeq_plugin.errors import OptionError, ShapeError
from subdeq_plugin.training import certify_images
from subdeq_plugin.training.survey import _worse, quantiles

from .stored import make


@pytest.fixture(scope="module")
def images():
    return load("digits").test_x


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A model of which only some images are proven."""
    return make(tmp_path_factory.mktemp("signed") / "a.safetensors", 2.8, 10.0, weight="signed", shift=1.2).eval()


def test_it_agrees_with_one_certificate_at_a_time(signed, images):
    found = certify_images(signed, images[:60])
    assert 0 < found.proven < found.total == 60
    with torch.no_grad():
        inputs = signed.layer_input(images[:60])
        state = signed.deq(inputs)
    for place in range(60):
        alone = certify(signed.deq.layer, inputs[place : place + 1])
        assert alone.unique == (found.conditions[place] != "not proven"), place
        if alone.unique:
            # The error of the same state, by the same proof: in the main metric of the batch it may be larger.
            bound = float(alone.error_bound(state[place : place + 1]))
            assert bound <= 1e-6 or found.metrics[place] != alone.metric or found.errors[place] <= 1.01 * bound + 1e-6
            assert math.isfinite(float(found.errors[place]))
        else:
            assert found.errors[place] == torch.inf and found.metrics[place] == "" and found.rates[place].isnan()
    assert found.advice


def test_the_bounds_hold(signed, images):
    found = certify_images(signed, images[:40])
    with torch.no_grad():
        inputs = signed.layer_input(images[:40])
        state = signed.deq(inputs).double()
        bound = signed.deq.layer.bind(inputs).to("cpu", torch.float64)
        exact = state
        for _ in range(3000):
            exact = 0.5 * exact + 0.5 * bound(exact)
        settled = (bound(exact) - exact).abs().amax(dim=1) < 1e-13
    assert bool(settled.any())
    for place in settled.nonzero().flatten().tolist():
        gap = (state[place] - exact[place]).abs()
        if found.metrics[place] == "linf":
            assert float(gap.max()) <= float(found.errors[place]) + 1e-12
        elif found.metrics[place] == "l2":
            assert float(gap.norm()) <= float(found.errors[place]) + 1e-12


def test_batches_make_no_difference(signed, images, monkeypatch):
    whole = certify_images(signed, images[:50])
    monkeypatch.setattr("subdeq_plugin.training.survey._BATCH", 7)
    parts = certify_images(signed, images[:50])
    assert parts.proven == whole.proven
    assert [name == "not proven" for name in parts.conditions] == [name == "not proven" for name in whole.conditions]
    count = next(check for check in parts.checks if check.name == "samples proven" and check.condition == "enclosure")
    assert str(count.value).endswith("of 50") and not count.passed


def test_a_proven_layer(tmp_path, images):
    model = make(tmp_path / "a.safetensors").eval()
    found = certify_images(model, images[:30])
    assert found.counts == {"A": 30} and found.measures == ("thompson",) and found.advice == ()
    assert bool((found.rates == certify(model.deq.layer).rate).all())
    content = found.to_dict()
    assert content["samples_proven"] == 30 and content["without_bound"] == 0
    assert content["errors"]["thompson"]["1"] == float(found.errors.max())


def test_conditions_are_passed_on(signed, images):
    found = certify_images(signed, images[:5], conditions=("norm", "monotone"))
    assert {check.condition for check in found.checks} == {"norm", "monotone"}
    with pytest.raises(OptionError, match="did you mean 'norm'"):
        certify_images(signed, images[:5], conditions="nrm")


def test_weights_that_are_no_numbers(tmp_path, images):
    model = make(tmp_path / "a.safetensors").eval()
    with torch.no_grad():
        next(iter(model.deq.layer.parameters()))[0, 0] = float("nan")
    found = certify_images(model, images[:5])
    assert found.proven == 0 and bool(found.errors.isinf().all()) and found.measures == ()
    assert found.to_dict()["rates"] == {}


def test_an_image_that_is_no_number_costs_itself_only(tmp_path, images):
    model = make(tmp_path / "a.safetensors").eval()
    broken = images[:6].clone()
    broken[2, 0, 3, 3] = float("nan")
    found = certify_images(model, broken)
    assert [name != "not proven" for name in found.conditions] == [place != 2 for place in range(6)]
    assert found.errors.isinf().tolist() == [place == 2 for place in range(6)]


def test_images_of_another_size(signed):
    with pytest.raises(ShapeError):
        certify_images(signed, torch.zeros(2, 1, 5, 5))


def test_quantiles_are_values_that_occur():
    values = torch.tensor([3.0, 1.0, 2.0])
    assert quantiles(values) == {"0": 1.0, "0.05": 2.0, "0.25": 2.0, "0.5": 2.0, "0.75": 3.0, "0.95": 3.0, "1": 3.0}
    assert quantiles(torch.zeros(0)) == {}
    assert set(quantiles(torch.tensor([7.0])).values()) == {7.0}


def test_the_worse_of_two_checks():
    def check(value, threshold="< 1", passed=True, reason=""):
        return Check("a", value, threshold, passed, reason, "b")

    assert _worse(check(0.2), check(0.3)).value == _worse(check(0.3), check(0.2)).value == 0.3
    assert _worse(check(0.2, ">= 0"), check(0.3, ">= 0")).value == 0.2
    failed = check("none", passed=False, reason="why")
    assert _worse(failed, check(0.1)) == _worse(check(0.1), failed) == failed
    share = _worse(check("3 of 4", "all", False, "why"), check("5 of 5", "all"))
    assert share.value == "8 of 9" and not share.passed and share.reason == "why"
    assert _worse(check("5 of 5", "all"), check("3 of 4", "all", False, "why")) == share
