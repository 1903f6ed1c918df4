"""The graph layer: its propagation matrix, its input formats, and what it refuses."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from subdeq_plugin.certificates import certify
from subdeq_plugin.errors import DomainError, OptionError, ShapeError
from subdeq_plugin.layers import SubhomGraph, propagation_matrix
from tests.helpers import EDGES, random_states

WEIGHTED = [[0, 2.0, 0, 0.5], [1.0, 0, 0, 0], [0, 3.0, 0, 1e-3], [0, 0, 1.0, 4.0]]


def dense_propagation(adjacency: np.ndarray, teleport: float, loops: bool, norm: str) -> np.ndarray:
    a = adjacency + (np.eye(len(adjacency)) if loops else 0)
    degree = np.abs(a).sum(axis=1)
    degree[degree == 0] = 1
    if norm == "sym":
        a = a / np.sqrt(np.outer(degree, degree))
    elif norm == "row":
        a = a / degree[:, None]
    return (1 - teleport) * a


def from_edges(edges: torch.Tensor, nodes: int) -> np.ndarray:
    a = np.zeros((nodes, nodes))
    for source, target in edges.T.tolist():
        a[target, source] += 1
    return a


def coo(matrix) -> torch.Tensor:
    return torch.tensor(matrix, dtype=torch.float64).to_sparse_coo()


def csr(matrix) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.tensor(matrix, dtype=torch.float64).to_sparse_csr()


@pytest.mark.parametrize("norm", ["sym", "row", "none"])
@pytest.mark.parametrize("loops", [True, False])
def test_propagation_matrix(norm, loops):
    options = {"teleport": 0.15, "self_loops": loops, "adjacency_norm": norm}
    for graph, dense in ((EDGES, from_edges(EDGES, 5)), (coo(WEIGHTED), np.array(WEIGHTED))):
        got = propagation_matrix(graph, len(dense), torch.float64, **options).to_dense()
        np.testing.assert_allclose(got.numpy(), dense_propagation(dense, 0.15, loops, norm), rtol=1e-13)


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_layer_is_its_dense_formula(mix, batch):
    torch.manual_seed(0)
    layer = SubhomGraph(3, 2, 0.2, "arctan", 0.3, mix_features=mix, dtype=torch.float64)
    x, z = torch.randn(*batch, 5, 3, dtype=torch.float64), random_states((*batch, 5, 2), 1)
    p = torch.from_numpy(dense_propagation(from_edges(EDGES, 5), 0.2, True, "sym"))
    t = p @ z
    if mix:
        t = t @ layer.weight.detach().T
    injected = (0.2 * (x @ layer.injection.weight.T + layer.injection.bias)).clamp(min=0)
    expected = torch.atan(t + injected) + 0.3
    torch.testing.assert_close(layer(z, (x, EDGES)), expected, rtol=1e-12, atol=0)


def test_agrees_with_gcn_norm():
    conv = pytest.importorskip("torch_geometric.nn.conv.gcn_conv")
    generator = torch.Generator().manual_seed(2)
    edges = torch.randint(0, 9, (2, 30), generator=generator)
    edges = edges[:, edges[0] != edges[1]]  # gcn_norm keeps a self-loop that is there; the layer always adds one
    index, weight = conv.gcn_norm(edges, None, 9, dtype=torch.float64)
    expected = torch.zeros(9, 9, dtype=torch.float64).index_put((index[1], index[0]), weight, accumulate=True)
    got = propagation_matrix(edges, 9, torch.float64, teleport=0.0, self_loops=True, adjacency_norm="sym")
    torch.testing.assert_close(got.to_dense(), expected, rtol=1e-13, atol=0)


def test_all_formats_of_one_graph_give_the_same():
    layer = SubhomGraph(3, 2, dtype=torch.float64)
    x, z = torch.randn(5, 3, dtype=torch.float64), random_states((5, 2), 3)
    dense = from_edges(EDGES, 5)
    reference = layer(z, (x, EDGES))
    i, j = torch.tensor(dense).nonzero().T
    zeros = torch.tensor([[4, 2], [4, 4]])  # explicit zeros, and every entry split into two duplicates
    index = torch.cat([torch.stack([i, j]), torch.stack([i, j]), zeros], dim=1)
    halves = torch.cat([torch.full((2 * len(i),), 0.5), torch.zeros(2)]).double()
    split = torch.sparse_coo_tensor(index, halves, (5, 5), check_invariants=True)
    for graph in (EDGES.int(), EDGES[:, torch.randperm(7)], coo(dense), csr(dense), split, coo(dense).float()):
        torch.testing.assert_close(layer(z, (x, graph)), reference, rtol=1e-13, atol=0)


def test_parallel_edges_add_up():
    twice = torch.cat([EDGES, EDGES[:, :1]], dim=1)
    got = propagation_matrix(twice, 5, torch.float64, teleport=0.0, self_loops=False, adjacency_norm="none")
    np.testing.assert_array_equal(got.to_dense().numpy(), from_edges(twice, 5))


def test_an_empty_graph_needs_self_loops():
    empty = torch.empty(2, 0, dtype=torch.int64)
    x = torch.ones(3, 2)
    assert certify(SubhomGraph(2, 2), (x, empty)).unique
    proof = certify(SubhomGraph(2, 2, self_loops=False), (x, empty), conditions="subhomogeneous")
    assert not proof.unique and any("node 0" in reason for reason in proof.reasons)


def test_gradients_through_the_sparse_product():
    layer = SubhomGraph(2, 2, mix_features=True, dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64)
    z = random_states((5, 2), 4).requires_grad_()
    bound = layer.bind((x, EDGES))
    assert torch.autograd.gradcheck(bound, (z,)) and torch.autograd.gradgradcheck(bound, (z,))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (torch.eye(5), "int32 or int64 edge_index"),
        (torch.zeros(2, 3), "int32 or int64 edge_index"),
        (torch.zeros(2, 3, dtype=torch.bool), "int32 or int64 edge_index"),
        (torch.zeros(2, 3, dtype=torch.uint8), "int32 or int64 edge_index"),
        (torch.zeros(3, 2, dtype=torch.int64), "int32 or int64 edge_index"),
        (torch.zeros(4, dtype=torch.int64), "int32 or int64 edge_index"),
        (torch.tensor([[0], [5]]), "from 0 to 4"),
        (torch.tensor([[-1], [0]]), "from 0 to 4"),
        (torch.eye(4).to_sparse_coo(), r"shape \(5, 5\)"),
    ],
)
def test_bad_graphs_are_refused(graph, message):
    with pytest.raises(ShapeError, match=message):
        SubhomGraph(2, 2).bind((torch.ones(5, 2), graph))


@pytest.mark.parametrize("x", [torch.ones(5, 2), (torch.ones(5, 2),), (torch.ones(5, 2), [[0], [1]]), None])
def test_the_input_is_a_pair(x):
    with pytest.raises(ShapeError, match="pair"):
        SubhomGraph(2, 2).bind(x)


@pytest.mark.parametrize("matrix", [[[0.0, -1e-3], [1.0, 0.0]], [[-1.0, 1.0], [1.0, 0.0]]])
def test_negative_edges_are_refused(matrix):
    """The second one would be cancelled by the self-loop and leave a node without neighbours."""
    with pytest.raises(DomainError, match="negative entries"):
        SubhomGraph(1, 1, dtype=torch.float64).bind((torch.ones(2, 1, dtype=torch.float64), coo(matrix)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_edges_that_are_not_finite_are_refused_or_void_the_proof(bad):
    layer = SubhomGraph(1, 1, dtype=torch.float64)
    x = (torch.ones(2, 1, dtype=torch.float64), coo([[0.0, bad], [1.0, 0.0]]))
    with pytest.raises(DomainError, match="NaN or infinite"):
        certify(layer, x)
    signed = SubhomGraph(1, 1, weight="signed", shift=1.2, dtype=torch.float64)
    proof = certify(signed, x)
    assert not proof.unique and any("NaN or infinite" in reason for reason in proof.reasons)


@pytest.mark.parametrize("teleport", [0.0, 1.0, -0.1, 1, math.nan])
def test_teleport_range(teleport):
    with pytest.raises(OptionError, match="teleport"):
        SubhomGraph(2, 2, teleport)


def test_adjacency_norm_hint():
    with pytest.raises(OptionError, match="did you mean 'sym'"):
        SubhomGraph(2, 2, adjacency_norm="symm")


def test_a_prepared_graph_gives_the_same_and_belongs_to_its_layer():
    torch.manual_seed(0)
    layer = SubhomGraph(3, 2, dtype=torch.float64)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    features = torch.rand(4, 3, dtype=torch.float64)
    prepared = layer.prepare(edges, 4)
    z = torch.rand(4, 2, dtype=torch.float64) + 0.5
    torch.testing.assert_close(layer(z, (features, prepared)), layer(z, (features, edges)), rtol=0, atol=0)
    assert certify(layer, (features, prepared)).unique
    other = SubhomGraph(3, 2, self_loops=False, dtype=torch.float64)
    with pytest.raises(OptionError, match="prepared by a layer with"):
        other.bind((features, prepared))
    with pytest.raises(ShapeError, match="4 nodes, the features have 5"):
        layer.bind((torch.rand(5, 3, dtype=torch.float64), prepared))
