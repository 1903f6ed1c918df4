"""Inputs and options that a layer refuses, and what it says."""

from __future__ import annotations

import math

import pytest
import torch

from subdeq_plugin.errors import DomainError, OptionError, ShapeError
from subdeq_plugin.layers import BoundMap, SubhomConv2d, SubhomGraph, SubhomLinear
from tests.helpers import LayerCase

OPTIONS = [
    ({"activation": "tnah"}, "unknown activation 'tnah'; did you mean 'tanh'"),
    ({"weight": "nonnegative"}, "unknown weight 'nonnegative'; did you mean 'nonneg'"),
    ({"nonneg": "softpuls"}, "did you mean 'softplus'"),
    ({"nonneg": "softpuls", "weight": "signed", "shift": 1.2}, "did you mean 'softplus'"),
    ({"injection": "outsid"}, "did you mean 'outside'"),
    ({"injection_map": "rulu"}, "did you mean 'relu'"),
    ({"normalize": 2, "normalize_over": "stat"}, "did you mean 'state'"),
    ({"normalize_over": "nothing"}, "unknown normalize_over"),
    ({"normalize": 0.5}, "normalize must be"),
    ({"normalize": 0}, "normalize must be"),
    ({"normalize": "2"}, "normalize must be"),
    ({"normalize": True}, "normalize must be"),
    ({"normalize": math.nan}, "normalize must be"),
    ({"power": 0}, "power must not be 0"),
    ({"shift": math.nan}, "shift must be a finite number"),
]


@pytest.mark.parametrize("kind", ["dense", "conv", "graph", "mixing graph"])
@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_are_checked_for_every_kind(kind, options, message):
    with pytest.raises(OptionError, match=message):
        LayerCase(kind).layer(**options)


@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
def test_groupings_belong_to_their_kind(kind):
    for over in {"channel", "pixel", "node"} - {"conv": {"channel", "pixel"}, "graph": {"channel", "node"}}.get(
        kind, set()
    ):
        with pytest.raises(OptionError, match="unknown normalize_over"):
            LayerCase(kind, 2, over).layer()


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3", None])
def test_sizes_are_positive_integers(size):
    for build in (
        lambda: SubhomLinear(size, 2),
        lambda: SubhomLinear(2, size),
        lambda: SubhomConv2d(size, 2),
        lambda: SubhomConv2d(2, size),
        lambda: SubhomConv2d(2, 2, size),
        lambda: SubhomGraph(2, size),
    ):
        with pytest.raises(OptionError, match="positive integer"):
            build()


@pytest.mark.parametrize("kernel", [2, (3, 4), (3, 3, 3)])
def test_kernels_are_odd_pairs(kernel):
    with pytest.raises(OptionError, match="kernel_size"):
        SubhomConv2d(2, 2, kernel)


@pytest.mark.parametrize("keywords", [{"shift": -0.1}, {"weight": "signed", "shift": 0.9, "power": 0.5}])
def test_shifts_without_positivity_are_refused(keywords):
    for build in (SubhomLinear, SubhomConv2d, SubhomGraph):
        with pytest.raises(DomainError, match="without a proof that it is positive"):
            build(2, 2, **keywords)


def test_a_signed_layer_without_positivity_is_an_ordinary_one():
    layer = SubhomLinear(2, 3, weight="signed", shift=0.0)
    assert not layer.positive and not layer.bind(torch.ones(1, 2)).positive
    assert layer(-torch.ones(1, 3), torch.ones(1, 2)).shape == (1, 3)
    with pytest.raises(DomainError):
        SubhomLinear(2, 3, weight="signed", shift=0.0, normalize=2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 4), "size 3 in dimension -1"),
        (torch.tensor(1.0), "size 3 in dimension -1"),
        (torch.ones(2, 3, dtype=torch.int64), "floating-point dtype, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.float64), "dtype torch.float64 but the layer has torch.float32"),
        (torch.ones(0, 3), "x is empty"),
        ([1.0, 2.0, 3.0], r"must be a torch\.Tensor, got list"),
        (None, r"must be a torch\.Tensor, got NoneType"),
    ],
)
def test_dense_inputs(x, message):
    with pytest.raises(ShapeError, match=message):
        SubhomLinear(3, 2).bind(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 4, 4), "4 dimensions"),
        (torch.ones(1, 3, 4, 4), "size 2 in dimension -3"),
        (torch.ones(0, 2, 4, 4), "x is empty"),
        (torch.ones(1, 2, 0, 4), "empty"),
        (torch.ones(1, 2, 4, 4).int(), "floating-point"),
    ],
)
def test_image_inputs(x, message):
    with pytest.raises((ShapeError, RuntimeError), match=message):
        SubhomConv2d(2, 2).bind(x)


@pytest.mark.parametrize(("shape", "message"), [((5,), "2 or 3 dim"), ((1, 1, 5, 2), "2 or 3 dim"), ((5, 3), "size 2")])
def test_node_features(shape, message):
    with pytest.raises(ShapeError, match=message):
        SubhomGraph(2, 2).bind((torch.ones(shape), torch.tensor([[0], [1]])))


def test_states_must_fit():
    layer = SubhomLinear(3, 2)
    for z in (torch.ones(2), torch.ones(2, 3), torch.ones(3, 2)):
        with pytest.raises(ShapeError, match=r"z must have shape \(2, 2\)"):
            layer(z, torch.ones(2, 3))
    with pytest.raises(ShapeError, match="floating-point"):
        layer(torch.ones(2, 2).int(), torch.ones(2, 3))


def test_nan_is_left_to_the_samples_it_belongs_to():
    layer, x = SubhomLinear(3, 2), torch.ones(2, 3)
    x[0, 0] = math.nan
    z = layer(torch.ones(2, 2), x)
    assert bool(z[0].isnan().all()) and bool(z[1].isfinite().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dens"}, "did you mean 'dense'"),
        ({"kind": None}, "unknown kind of map"),
        ({"activation": "tan"}, "did you mean 'tanh'"),
        ({"normalize": 2, "normalize_over": "pixel"}, "unknown normalize_over"),
        ({"normalize": 0.1}, "normalize must be"),
    ],
)
def test_specs_are_checked(change, message):
    spec = SubhomLinear(3, 2).bind(torch.ones(1, 3)).spec
    spec.options.update(change)
    with pytest.raises(OptionError, match=message):
        BoundMap.from_spec(spec)


def test_a_spec_without_an_array_is_refused():
    spec = SubhomLinear(3, 2).bind(torch.ones(1, 3)).spec
    del spec.arrays["weight"]
    with pytest.raises(OptionError, match="lacks 'weight'"):
        BoundMap.from_spec(spec)
