"""`contraction_of`: it proves what `certify` proves, and never more."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from subdeq_plugin.activations import Activation, activation_names, register_activation
from subdeq_plugin.activations.base import lookup
from subdeq_plugin.certificates import contraction_of
from subdeq_plugin.errors import DomainError, SubdeqError
from subdeq_plugin.layers import BoundMap, MapSpec, SubhomGraph, SubhomLinear
from subdeq_plugin.layers.bound import make_normalizer
from subdeq_plugin.layers.operators import ConvOperator, DenseOperator, GraphOperator, Operator, Propagation, csr
from subdeq_plugin.metrics import Contraction
from tests.helpers import (
    GROUPS,
    LayerCase,
    certify_structure,
    layer_cases,
    log_distance,
    random_states,
    silence_injection,
)

register_activation("contraction_swish", lambda t: t * t.sigmoid())
BUILTIN = sorted(name for name in activation_names() if lookup(name).accurate)
CASES = [case for case in layer_cases() if case.nonneg == "abs"]


def proven(bound: BoundMap) -> Contraction | None:
    """What the certificate proves of a map; None too where it refuses the map altogether, or cannot handle it."""
    try:
        return certify_structure(bound).contraction
    except (SubdeqError, RuntimeError):
        return None


def agree(bound: BoundMap) -> Contraction | None:
    """What is found of a map, after a comparison with the certificate."""
    found = contraction_of(bound)
    truth = proven(bound)
    if found is not None:
        assert truth is not None, f"claims {found}, which no certificate proves"
        assert (found.rate, found.metric, found.distance) == (truth.rate, truth.metric, truth.distance)
        assert 0 <= found.rate < 1
    return found


# Agreement on layers


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_of_every_kind(case):
    for shift in (1.2, 0.01):
        layer = replace(case, shift=shift).layer()
        bound = layer.bind(case.input())
        found = agree(bound)
        truth = proven(bound)
        dense = bool((torch.cat([part.flatten() for part in bound.operator.coefficients()]) > 0).all())
        assert dense and (found is None) == (truth is None)


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("normalize", [None, 2, "inf"])
def test_every_activation_shift_and_power(name, normalize):
    found = 0
    for shift in (0.0, 0.01, 0.3):
        for power in (1.0, 0.9, 0.3, -0.4, -0.9, 1.5, 4.0):
            bound = LayerCase("dense", normalize, activation="tanh").layer().bind(LayerCase("dense").input())
            bound = replace(bound.detach(), activation=Activation(name, shift, power))
            here = agree(bound)
            assert (here is None) == (proven(bound) is None), (shift, power)
            found += here is not None
    assert found >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype):
    bound = SubhomLinear(3, 4, shift=0.3, dtype=dtype).bind(torch.ones(2, 3, dtype=dtype))
    assert agree(bound) is not None
    assert agree(LayerCase("conv").layer().bind(LayerCase("conv").input()).detach().to("cpu", dtype)) is not None


def test_injections_that_autocast_has_lowered():
    layer = SubhomLinear(3, 4, shift=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = layer.bind(torch.ones(2, 3))
        assert bound.outer is not None and bound.outer.dtype == torch.bfloat16
        assert agree(bound) is not None


def test_parameters_that_need_gradients_are_read_without_a_graph():
    layer = SubhomLinear(3, 4, shift=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contraction_of(layer.bind(torch.ones(2, 3, requires_grad=True))) is not None


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_the_claim_is_true_of_random_states(case):
    layer = replace(case, shift=1.603 if case.over != "state" else 0.05, seed=3).layer()
    bound = layer.bind(case.input()).detach()
    found = contraction_of(bound)
    assert found is not None
    for seed in range(6):
        x, y = (random_states(tuple(bound.state_shape), 2 * seed + i, 0.1 + seed) for i in (0, 1))
        if found.metric == "hilbert":
            x, y = bound.project(x), bound.project(y)
        before = log_distance(found.metric, x, y, bound.sample_dims)
        after = log_distance(found.metric, bound(x), bound(y), bound.sample_dims)
        assert bool((after <= found.rate * before + 1e-13).all())


# Counterexamples

SIGNS = np.array([[1.0, -1.0], [-1.0, 1.0]])


def dense(weight: Any, inner: Any = None, outer: Any = None, **options: Any) -> BoundMap:
    def tensor(value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64)

    arrays = {"weight": tensor(weight)}
    arrays |= {} if inner is None else {"inner": tensor(inner)}
    arrays |= {} if outer is None else {"outer": tensor(outer)}
    return BoundMap.from_spec(MapSpec(arrays, {"kind": "dense", "activation": "tanh", **options}))


@pytest.mark.parametrize(("scale", "shift", "norm"), [(1.0, 1.2, None), (2.0, 1.603, "inf"), (10.0, 1.603, 2),
                                                      (1e3, 1.2, None), (8.0, 3.0, 1)])  # fmt: skip
def test_signed_weights_with_three_fixed_points(scale, shift, norm):
    for zeros in ({}, {"inner": np.zeros((1, 2))}, {"outer": np.zeros((1, 2))}):
        bound = dense(scale * SIGNS, shift=shift, normalize=norm, **zeros)
        assert contraction_of(bound) is None and proven(bound) is None
    layer = SubhomLinear(1, 2, "tanh", shift, 1.0, norm, weight="signed", dtype=torch.float64)
    silence_injection(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(scale * SIGNS))
    assert contraction_of(layer.bind(torch.zeros(1, 1, dtype=torch.float64))) is None


@pytest.mark.parametrize(("weight", "bias", "shift"), [(6.0, -5.0, 1.05), (12.0, -10.0, 1.05), (60.0, -30.0, 1.01)])
def test_a_negative_bias_with_three_fixed_points(weight, bias, shift):
    bound = dense([[weight]], inner=[[bias]], shift=shift)
    assert contraction_of(bound) is None and proven(bound) is None


def test_a_negative_term_outside_with_a_fixed_point_on_the_border():
    assert contraction_of(dense([[4.0]], outer=[[-0.9]], shift=0.9)) is None


@pytest.mark.parametrize(
    ("name", "shift", "power", "weight"),
    [("relu", 0.0, 1.0, 1.0), ("relu", 0.0, 1.0, 2.0), ("relu", 0.5, 1.0, 2.0), ("softplus", 0.0, 1.0, 1.5),
     ("relu", 0.0, -1.0, 1.0), ("tanh", 0.001, 3.0, 30.0), ("relu", 0.1, 2.0, 0.5)],
)  # fmt: skip
def test_degree_one_or_more(name, shift, power, weight):
    for norm in (None, 1, "inf"):
        bound = dense([[weight]], outer=[[0.0]], activation=name, shift=shift, power=power, normalize=norm)
        assert contraction_of(bound) is None and proven(bound) is None


def test_hilbert_is_not_used_for_order_reversing_maps():
    assert contraction_of(dense([[1.0]], activation="relu", power=-0.6, normalize=2)) is None
    found = agree(dense([[1.0]], activation="relu", power=-0.4, normalize=2))
    assert found is not None and (found.rate, found.metric) == (pytest.approx(0.8), "thompson")


# Broken numbers


BAD = (math.nan, -math.nan, math.inf, -math.inf, -1.0, -1e-300, -5e-324)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("bad", [*BAD, 0.0, -0.0])
@pytest.mark.parametrize("place", [0, -1])
def test_one_bad_weight(kind, bad, place):
    bound = LayerCase(kind).layer().bind(LayerCase(kind).input()).detach()
    assert agree(bound) is not None
    if isinstance(bound.operator, GraphOperator):
        matrix = bound.operator.propagation.matrix.clone()
        matrix.values()[place] = bad
        assert agree(replace(bound, operator=replace(bound.operator, propagation=Propagation.of(matrix)))) is None
    if bound.operator.tensors:
        weight = bound.operator.tensors[0].clone()
        weight.view(-1)[place] = bad
        assert agree(bound.with_tensors([weight, *bound.tensors[1:]])) is None


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("side", ["inside", "outside"])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_injection(kind, side, bad):
    case = LayerCase(kind, injection=side)
    bound = case.layer().bind(case.input()).detach()
    part = bound.tensors[-1].clone()
    part.view(-1)[-1] = bad
    assert agree(bound.with_tensors([*bound.tensors[:-1], part])) is None
    part.view(-1)[-1] = 0.0  # no harm: the layer's own rectifier leaves zeros everywhere
    assert agree(bound.with_tensors([*bound.tensors[:-1], part])) is not None


def test_the_smallest_positive_weight_is_no_zero():
    assert agree(dense([[5e-324, 1.0], [1.0, 1e308]], shift=0.3)) is not None


def test_registered_activations_are_left_to_the_certificate():
    # Proven in the range of a double only, so that the weights have a say.
    bound = dense([[0.1]], outer=[[0.2]], activation="contraction_swish", shift=0.3, power=0.3)
    assert contraction_of(bound) is None and proven(bound) is not None


# Shapes


def hand_made(operator: Operator, inner: Tensor | None = None, outer: Tensor | None = None) -> BoundMap:
    """A map that nobody has checked."""
    return BoundMap(operator, Activation("tanh", 0.3), inner, outer)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def graph(rows: list[int], columns: list[int], nodes: int, weight: Tensor | None = None) -> GraphOperator:
    values = ones(len(rows))
    index = (torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64))
    return GraphOperator(Propagation.of(csr(*index, values, nodes)), weight)


@pytest.mark.parametrize(
    "bound",
    [
        hand_made(DenseOperator(ones(3, 4))),
        hand_made(DenseOperator(ones(4))),
        hand_made(DenseOperator(ones(0, 0))),
        hand_made(DenseOperator(ones(3, 3)), inner=ones(2, 4)),
        hand_made(DenseOperator(ones(3, 3)), outer=ones(2, 1)),
        hand_made(DenseOperator(ones(3, 3)), outer=ones()),
        hand_made(DenseOperator(ones(3, 3)), ones(2, 3), ones(1, 3)),
        hand_made(DenseOperator(ones(3, 3)), ones(2, 3), ones(3)),
        hand_made(DenseOperator(ones(3, 3)), outer=ones(0, 3)),
        hand_made(ConvOperator(ones(2, 3, 3, 3)), outer=ones(1, 2, 4, 4)),
        hand_made(ConvOperator(ones(2, 2, 2, 2)), outer=ones(1, 2, 4, 4)),
        hand_made(ConvOperator(ones(2, 2, 3, 3)), outer=ones(2, 4, 4)),
        hand_made(ConvOperator(ones(2, 2, 3, 3)), outer=ones(1, 3, 4, 4)),
        hand_made(ConvOperator(ones(2, 2, 3, 3)), outer=ones(1, 2, 0, 4)),
        hand_made(graph([0, 1], [1, 0], 2), outer=ones(3, 3)),
        hand_made(graph([0, 1], [1, 0], 2), outer=ones(2)),
        hand_made(graph([0, 1], [1, 0], 2, ones(3, 3)), outer=ones(2, 2)),
        hand_made(graph([0, 1], [1, 0], 2, ones(2, 3)), outer=ones(2, 2)),
    ],
    ids=lambda bound: f"{bound.operator.kind}-{tuple(bound.operator.coefficients()[0].shape)}",
)
def test_shapes_that_do_not_fit(bound):
    assert contraction_of(bound) is None


@pytest.mark.parametrize(
    "bound",
    [
        hand_made(DenseOperator(ones(3, 3)), ones(2, 3), ones(1, 3)),
        hand_made(DenseOperator(ones(3, 3)), ones(2, 3), ones(4, 3)),
        hand_made(DenseOperator(ones(3, 3)), ones(2, 3), ones(0, 3)),
        hand_made(ConvOperator(ones(2, 2, 3, 3)), outer=ones(1, 2, 0, 4)),
    ],
    ids=["one", "four", "none", "no pixels"],
)
def test_the_certificate_refuses_them_in_words(bound):
    proof = certify_structure(bound)
    assert proof.contraction is None and proof.reasons


@pytest.mark.parametrize(
    ("rows", "columns"), [([0, 1], [1, 0]), ([0], [2]), ([], []), ([1, 2], [0, 0]), ([0, 0, 2], [0, 1, 2])]
)
@pytest.mark.parametrize("mixing", [False, True])
def test_a_node_without_neighbours(rows, columns, mixing):
    """A row without entries has no zero among its coefficients."""
    operator = graph(rows, columns, 3, ones(2, 2) if mixing else None)
    for side in ("inner", "outer"):
        for bound in (hand_made(operator, **{side: ones(3, 2)}), hand_made(operator, **{side: 0 * ones(2, 3, 2)})):
            assert contraction_of(bound) is None and proven(bound) is None
    # What is at stake: a power of a function that vanishes at 0 does not keep that node positive.
    root = replace(hand_made(operator, inner=0 * ones(3, 2)), activation=Activation("tanh", 0.0, 0.5))
    assert float(root(ones(3, 2)).min()) == 0
    assert contraction_of(root) is None


def test_a_layer_whose_graph_has_a_node_without_neighbours():
    layer = SubhomGraph(3, 2, 0.2, self_loops=False, dtype=torch.float64)
    bound = layer.bind((ones(4, 3), torch.tensor([[0, 1, 2], [1, 2, 0]])))
    assert contraction_of(bound) is None and proven(bound) is None
    bound = layer.bind((ones(3, 3), torch.tensor([[0, 1, 2], [1, 2, 0]])))
    assert agree(bound) is not None


# Attacks


ENTRIES = st.one_of(
    st.floats(1e-3, 3.0),
    st.floats(1e-3, 3.0),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-310, 1e308, math.nan, math.inf, -math.inf, -1e-9, -1.0]),
)


@st.composite
def tensors(draw, *shape: int, kind: str | None = None) -> Tensor:
    """Mostly sound entries, now and then anything."""
    kind = kind or draw(st.sampled_from(["sound", "sound", "zeros", "any"]))
    size = math.prod(shape)
    if kind == "zeros":
        return torch.zeros(shape, dtype=torch.float64)
    entries = st.floats(1e-3, 3.0) if kind == "sound" else ENTRIES
    values = draw(st.lists(entries, min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


@st.composite
def shapes(draw, right: tuple[int, ...]) -> tuple[int, ...]:
    """Mostly the right shape."""
    if draw(st.integers(0, 5)):
        return right
    return draw(st.sampled_from([right[1:], (1, *right), right[:-1], (*right[:-1], right[-1] + 1), (0, *right[1:])]))


@st.composite
def maps(draw) -> BoundMap:
    kind = draw(st.sampled_from(["dense", "conv", "graph", "mixing graph"]))
    n = draw(st.integers(1, 3))
    operator: Operator
    if kind == "dense":
        operator, state = DenseOperator(draw(tensors(*draw(shapes((n, n)))))), (2, n)
    elif kind == "conv":
        taps = draw(st.sampled_from([(1, 1), (3, 1), (3, 3), (2, 1)]))
        operator, state = ConvOperator(draw(tensors(n, n, *taps)), (1, draw(st.integers(1, 2)))), (2, n, 2, 3)
    else:
        edges = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=7, unique=True))
        pair = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)
        matrix = csr(pair[:, 0], pair[:, 1], draw(tensors(len(edges))), 3)
        weight = draw(tensors(n, n)) if kind == "mixing graph" else None
        operator, state = GraphOperator(Propagation.of(matrix), weight), (2, 3, n)
    inner, outer = (draw(tensors(*draw(shapes(state)))) if draw(st.booleans()) else None for _ in range(2))
    name = draw(st.sampled_from([*BUILTIN, "contraction_swish"]))
    shift = draw(st.sampled_from([0.0, 1e-300, 0.3, -0.4]))
    power = draw(st.sampled_from([1.0, 1.0, 0.5, 0.99, -0.3, -0.9, 2.0]))
    over = draw(st.sampled_from(sorted(operator.groups)))
    norm = make_normalizer(operator.groups, draw(st.sampled_from([None, None, 1, 2, "inf"])), over)
    bound = BoundMap(operator, Activation(name, shift, power), inner, outer, norm)
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]))
    return bound if dtype == torch.float64 else bound.to("cpu", dtype)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(bound=maps())
def test_whatever_is_claimed_is_proven(bound):
    agree(bound)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(bound=maps())
def test_nothing_is_missed_where_all_coefficients_are_positive(bound):
    parts = bound.operator.coefficients()
    assume(all(part.numel() and bool((part > 0).all()) for part in parts))
    assume(bound.activation.function.accurate)
    found = agree(bound)
    assert (found is None) == (proven(bound) is None)


def test_negative_shifts_are_refused_or_proven():
    for name in BUILTIN:
        for shift in (-0.4, -1.5):
            try:
                Activation(name, shift).require_positive()
            except DomainError:
                assert contraction_of(replace(dense([[1.0]]), activation=Activation(name, shift))) is None
            else:
                agree(replace(dense([[1.0]]), activation=Activation(name, shift)))
