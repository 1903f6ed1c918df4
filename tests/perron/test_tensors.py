"""Tensors and hypergraphs: against their definitions, XGI, and dense forms of the same."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import xgi
from torch.autograd import gradcheck

import subdeq_plugin as sd
from subdeq_plugin.errors import DomainError, ShapeError
from subdeq_plugin.perron import Chain, h_eigen, node_edge
from subdeq_plugin.perron.tensors import Hyperedges
from subdeq_plugin.result import Status


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


def adjacency(edges, nodes, order) -> torch.Tensor:
    """The adjacency tensor, entry by entry, from its definition."""
    tensor = torch.zeros((nodes,) * order, dtype=torch.float64)
    for edge in edges:
        tuples = [index for index in itertools.product(edge, repeat=order) if set(index) == set(edge)]
        for index in tuples:
            tensor[index] += len(edge) / len(tuples)
    return tensor


EDGES = [(0, 1, 2), (1, 2, 3), (3, 4), (0, 4, 2, 1), (2, 4), (0, 3, 4)]


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("method", ["auto", "power", "noda", "newton", "anderson"])
def test_an_h_eigenpair_of_a_tensor(order, method):
    tensor = random(*[5] * order)
    result = sd.perron(h_eigen(tensor), method=method)
    x = result.eigenvector
    image = tensor
    for _ in range(order - 1):
        image = image @ x
    torch.testing.assert_close(image, result.eigenvalue * x ** (order - 1), rtol=1e-11, atol=0)
    assert result.lower <= result.eigenvalue <= result.upper
    assert float(result.width) < 1e-11


@pytest.mark.parametrize("edges", [EDGES, [e for e in EDGES if len(e) == 3] + [(0, 1, 4)]])
def test_a_hypergraph_is_its_adjacency_tensor(edges):
    order = max(map(len, edges))
    chain = h_eigen(edges)
    tensor = adjacency(edges, 5, order)
    z = random(2, 5)
    expected = z.new_empty(2, 5)
    for row in range(2):
        image = tensor
        for _ in range(order - 1):
            image = image @ z[row]
        expected[row] = image
    torch.testing.assert_close(chain.pieces[0](z), expected)
    ours, dense = sd.perron(chain), sd.perron(h_eigen(tensor))
    torch.testing.assert_close(ours.eigenvector, dense.eigenvector, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.eigenvalue, dense.eigenvalue)


def test_derivatives_of_hypergraphs():
    piece = h_eigen(EDGES).pieces[0]
    assert isinstance(piece, Hyperedges)
    z, v, u = random(1, 5), random(1, 5, seed=1), random(1, 5, seed=2)
    jacobian = piece.linearize(z)
    quotient = (piece(z + 1e-6 * v) - piece(z - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(jacobian.jvp(v), quotient, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close((jacobian.vjp(u) * v).sum(), (jacobian.jvp(v) * u).sum())

    def pair(tensor):
        result = sd.perron(h_eigen(tensor))
        return result.eigenvalue, result.eigenvector

    assert gradcheck(pair, (random(3, 3, 3).requires_grad_(),), atol=1e-7)


def connected(seed: int, sizes: tuple[int, ...]) -> xgi.Hypergraph:
    rng = np.random.default_rng(seed)
    graph = xgi.Hypergraph()
    for size in sizes:
        graph.add_edges_from([rng.choice(12, size=size, replace=False).tolist() for _ in range(14)])
    assert xgi.is_connected(graph)
    assert graph.num_nodes == 12
    return graph


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_h_eigenvector_centrality_is_that_of_xgi(sizes, seed):
    graph = connected(seed, sizes)
    theirs = xgi.h_eigenvector_centrality(graph, max_iter=10_000, tol=1e-13, seed=0)
    result = sd.perron(h_eigen([tuple(edge) for edge in graph.edges.members()]))
    assert result.status <= Status.ROUNDING_FLOOR
    np.testing.assert_allclose(result.eigenvector, [theirs[node] for node in range(12)], atol=1e-8)


@pytest.mark.parametrize("powers", [(2, 0.5, 2, 0.5), (1, 1, 1, 0.5), (1, 0.5, 2, 0.5)])
def test_node_edge_centrality_is_that_of_xgi(powers):
    graph = connected(3, (2, 3, 4))
    functions = dict(zip("fg", ((lambda x, p=p: x**p) for p in powers[:2]), strict=True))
    functions |= dict(zip(("phi", "psi"), ((lambda x, p=p: x**p) for p in powers[2:]), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes, edges = xgi.node_edge_centrality(graph, **functions, max_iter=20_000, tol=1e-14)
    incidence, rows, columns = xgi.incidence_matrix(graph, sparse=False, index=True)
    to_nodes, to_edges = (sd.perron(chain) for chain in node_edge(torch.from_numpy(incidence).double(), *powers))
    np.testing.assert_allclose(to_nodes.eigenvector, [nodes[rows[i]] for i in range(len(rows))], atol=1e-8)
    np.testing.assert_allclose(to_edges.eigenvector, [edges[columns[i]] for i in range(len(columns))], atol=1e-8)


def test_the_largest_degree_is_the_eigenvalue_of_a_regular_hypergraph():
    edges = list(itertools.combinations(range(5), 3))
    result = sd.perron(h_eigen(edges))
    assert float(result.eigenvalue) == pytest.approx(math.comb(4, 2), rel=1e-12)
    torch.testing.assert_close(result.eigenvector, torch.full((5,), 0.2, dtype=torch.float64))


def test_what_is_refused():
    for arguments, error, message in (
        ((random(3, 4),), ShapeError, "of one size"),
        (([],), ShapeError, "no edges"),
        (([(0, 0, 1)],), ShapeError, "different nodes"),
        (([(0,)],), ShapeError, "two or more"),
        (([(0, 5)], 3), ShapeError, "numbered from 0 to 2"),
        (([(0, 1)], 3), DomainError, "node 2 is in no edge"),
        (([(0, 1)], 2, [1.0, 2.0]), ShapeError, "1 edges, got 2"),
        (([(0, 1)], 2, [-1.0]), DomainError, "positive and finite"),
        ((-random(3, 3, 3),), DomainError, "nonnegative"),
        ((torch.zeros(2, 2, 2),), DomainError, "row 0"),
    ):
        with pytest.raises(error, match=message):
            h_eigen(*arguments)
    with pytest.raises(DomainError, match="degree 4, above 1"):
        node_edge(random(3, 4), 2, 1, 2, 1)
    with pytest.raises(DomainError, match="zero column"):
        node_edge(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ShapeError, match="nodes, edges"):
        node_edge(random(3))
    assert isinstance(node_edge(random(3, 4))[0], Chain)
