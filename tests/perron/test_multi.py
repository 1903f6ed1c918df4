"""Multi-homogeneous maps: HITS, singular vectors of tensors, and Z-eigenvectors, against their own equations."""

from __future__ import annotations

import math
import warnings

import networkx as nx
import numpy as np
import pytest
import torch
import xgi
from scipy.optimize import minimize
from torch.autograd import gradcheck, gradgradcheck

import subdeq_plugin as sd
from subdeq_plugin.errors import DomainError, OptionError, ShapeError
from subdeq_plugin.perron import (
    BlockPowers,
    Chain,
    Contractions,
    Matrix,
    Multihomogeneous,
    Powers,
    hits,
    singular_vectors,
    z_eigen,
)
from subdeq_plugin.result import Status
from tests.perron.test_tensors import adjacency, connected, random

LETTERS = "ijkl"


def contracted(tensor: torch.Tensor, vectors: list[torch.Tensor], k: int) -> torch.Tensor:
    """`T` contracted with all vectors but the k-th, by einsum."""
    letters = LETTERS[: tensor.dim()]
    others = [j for j in range(tensor.dim()) if j != k]
    inputs = ",".join([letters, *(letters[j] for j in others)])
    return torch.einsum(f"{inputs}->{letters[k]}", tensor, *(vectors[j] for j in others))


def sparse_tensor(seed: int = 0) -> torch.Tensor:
    """`(12, 12, 4)` with few entries and without zero slices."""
    rng = np.random.default_rng(seed)
    tensor = torch.zeros(12, 12, 4, dtype=torch.float64)
    for i in range(12):
        tensor[i, (i + 1) % 12, i % 4] = rng.random() + 0.5
    for _ in range(30):
        i, j = rng.integers(12, size=2)
        tensor[i, j, rng.integers(4)] = rng.random() + 0.1
    return tensor


@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 3), (3, 4, 2, 5)])
@pytest.mark.parametrize("power", [0.25, None, (0.1, 0.5, 0.3, 0.2)])
@pytest.mark.parametrize("method", ["auto", "power", "newton", "anderson"])
@pytest.mark.parametrize("normalize", [1, 2, "inf"])
def test_scores_satisfy_their_equations(shape, power, method, normalize):
    power = power[: len(shape)] if isinstance(power, tuple) else power
    tensor = random(*shape)
    result = sd.perron(hits(tensor, power), method=method, normalize=normalize)
    powers = [1.0 if len(shape) == 2 else 1 / len(shape)] * len(shape) if power is None else power
    powers = [powers] * len(shape) if isinstance(powers, float) else powers
    assert result.status <= Status.ROUNDING_FLOOR
    for k, x in enumerate(result.blocks):
        assert x.shape == (shape[k],)
        assert float(torch.linalg.vector_norm(x, ord=float(normalize))) == pytest.approx(1, abs=1e-12)
        image = contracted(tensor, list(result.blocks), k) ** powers[k]
        torch.testing.assert_close(image, result.factors[k] * x, rtol=1e-10, atol=0)
        assert result.factor_bounds[k, 0] <= result.factors[k] <= result.factor_bounds[k, 1]
    assert result.lower <= result.eigenvalue <= result.upper
    torch.testing.assert_close(result.eigenvalue, (result.factors**result.weights).prod())
    assert float(result.width) < 1e-11
    assert float(result.error_bound) < 1e-9


def test_hits_of_networkx():
    graph = nx.gnp_random_graph(60, 0.1, seed=1, directed=True)
    matrix = torch.from_numpy(nx.to_numpy_array(graph))
    rows, columns = (matrix.sum(dim) > 0 for dim in (1, 0))
    hubs, authorities = nx.hits(graph, tol=1e-14, max_iter=10000)
    result = sd.perron(hits(matrix[rows][:, columns]))
    for ours, theirs, mask in zip(result.blocks, (hubs, authorities), (rows, columns), strict=True):
        expected = torch.tensor([theirs[node] for node in graph], dtype=torch.float64)
        np.testing.assert_allclose(ours, expected[mask] / expected[mask].sum(), atol=1e-8)


def test_hits_of_a_matrix_is_its_leading_singular_pair():
    matrix = random(6, 9)
    result = sd.perron(hits(matrix), normalize=2)
    left, values, right = torch.linalg.svd(matrix)
    torch.testing.assert_close(result.eigenvalue, values[0])
    torch.testing.assert_close(result.factors, values[[0, 0]])
    torch.testing.assert_close(result.blocks[0], left[:, 0].abs())
    torch.testing.assert_close(result.blocks[1], right[0].abs())
    torch.testing.assert_close(result.weights, torch.full((2,), 0.5, dtype=torch.float64))


def test_sparse_and_dense_tensors_agree():
    tensor = sparse_tensor()
    dense, sparse = (sd.perron(hits(form)) for form in (tensor, tensor.to_sparse()))
    torch.testing.assert_close(sparse.eigenvector, dense.eigenvector, rtol=1e-12, atol=0)
    assert float(dense.rate) == pytest.approx(2 / 3)
    assert dense.sizes == (12, 12, 4)


@pytest.mark.parametrize("exponent", [3.5, 5.0])
def test_singular_vectors_maximise_the_form(exponent):
    tensor = random(3, 4, 2)
    result = sd.perron(singular_vectors(tensor, exponent), normalize=exponent)
    best = float(torch.einsum("ijk,i,j,k->", tensor, *result.blocks))
    array, ends = tensor.numpy(), [3, 7, 9]

    def negative(z: np.ndarray) -> float:
        parts = [np.abs(part) for part in np.split(z, ends[:-1])]
        size = math.prod(float(np.linalg.norm(part, exponent)) for part in parts)
        return -float(np.einsum("ijk,i,j,k->", array, *parts)) / size

    found = min(minimize(negative, np.random.default_rng(i).random(9) + 0.1).fun for i in range(5))
    assert best == pytest.approx(-found, rel=1e-7)
    assert float(result.rate) < 1


@pytest.mark.parametrize("power", [1.0, 0.5, 1 / 3])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_bounds_hold_before_convergence(power, steps):
    """The eigenvalue at the end is between the bounds after a few steps, from any start."""
    tensor = sparse_tensor() if power < 1 else random(7, 5)
    final = sd.perron(hits(tensor, power))
    for seed in range(5):
        start = random(len(final.eigenvector), seed=seed) ** 3
        early = sd.perron(hits(tensor, power), start, method="power", max_iter=steps)
        assert early.lower <= final.upper
        assert final.lower <= early.upper
        error = max(float(sd.hilbert(a[None], b[None])) for a, b in zip(early.blocks, final.blocks, strict=True))
        assert error <= float(early.error_bound) + 1e-11
        assert bool((early.factor_bounds[:, 0] <= final.factor_bounds[:, 1]).all())
        assert bool((final.factor_bounds[:, 0] <= early.factor_bounds[:, 1]).all())


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 5)])
@pytest.mark.parametrize("power", [1.0, 0.3])
def test_maps_contract_as_their_matrix_says(shape, power):
    function = hits(random(*shape), power)
    growth = function.contraction
    for seed in range(100):
        x, y = (random(1, sum(shape), seed=2 * seed + k) ** 4 for k in (0, 1))
        before, after = (
            torch.stack([sd.hilbert(a, b)[0] for a, b in zip(u.split(shape, 1), v.split(shape, 1), strict=True)])
            for u, v in ((x, y), (function(x), function(y)))
        )
        assert bool((after <= growth @ before * (1 + 1e-12) + 1e-12).all())


def test_the_homogeneity_matrix():
    function = hits(random(3, 4, 5), (0.5, 0.25, 1.0))
    expected = torch.tensor([[0.0, 0.5, 0.5], [0.25, 0, 0.25], [1, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(function.homogeneity, expected)
    x, scale = random(12), torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    stretched = function(x * scale.repeat_interleave(torch.tensor([3, 4, 5])))
    factors = (expected @ scale.log()).exp().repeat_interleave(torch.tensor([3, 4, 5]))
    torch.testing.assert_close(stretched, factors * function(x))


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_gradients(power):
    def pair(tensor):
        result = sd.perron(hits(tensor, power), normalize=2)
        return result.eigenvalue, result.eigenvector, result.factors

    tensor = random(3, 2) if power == 1.0 else random(2, 3, 2)
    assert gradcheck(pair, (tensor.requires_grad_(),), atol=1e-6)
    assert gradgradcheck(lambda t: pair(t)[0], (tensor,), atol=1e-5)


class TestZEigenvectors:
    @pytest.mark.parametrize("order", [2, 3, 4])
    @pytest.mark.parametrize("method", ["auto", "newton"])
    @pytest.mark.parametrize("normalize", [1, 2])
    def test_the_only_one_of_a_positive_tensor(self, order, method, normalize):
        tensor = random(*[4] * order) + 2
        result = sd.perron(z_eigen(tensor), method=method, normalize=normalize)
        x = result.eigenvector
        torch.testing.assert_close(contracted(tensor, [x] * order, 0), result.eigenvalue * x, rtol=1e-10, atol=0)
        assert result.lower <= result.eigenvalue <= result.upper
        assert float(result.rate) < 1
        assert float(result.width) < 1e-9
        assert float(result.error_bound) < 1e-9

    @pytest.mark.parametrize(("size", "seed"), [(3, 0), (3, 1), (4, 0), (4, 1)])
    def test_uniform_hypergraphs_are_those_of_xgi(self, size, seed):
        graph = connected(seed, (size,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = xgi.z_eigenvector_centrality(graph, max_iter=10_000, tol=1e-14)
        result = sd.perron(z_eigen([tuple(edge) for edge in graph.edges.members()]))
        assert result.status <= Status.ROUNDING_FLOOR
        np.testing.assert_allclose(result.eigenvector, [theirs[node] for node in range(12)], atol=1e-8)
        assert float(result.error_bound) < 1e-9

    @pytest.mark.parametrize("seed", [0, 1])
    def test_hypergraphs_with_edges_of_several_sizes(self, seed):
        edges = [tuple(edge) for edge in connected(seed, (2, 3)).edges.members()]
        result = sd.perron(z_eigen(edges), normalize=2)
        tensor = adjacency(edges, 12, 3)
        x = result.eigenvector
        torch.testing.assert_close(tensor @ x @ x, result.eigenvalue * x, rtol=1e-9, atol=0)
        assert result.lower <= result.eigenvalue <= result.upper
        assert float(result.width) < 1e-9

    def test_several_of_them(self):
        """`x_1^2 = lambda x_1`, `x_2^2 = lambda x_2` with a weak coupling: each start leads to a pair of its own."""
        tensor = torch.full((2, 2, 2), 1e-3, dtype=torch.float64)
        tensor[0, 0, 0] = tensor[1, 1, 1] = 1
        starts = ([1.0, 0.01], [0.01, 1.0], [1.0, 1.0])
        results = [sd.perron(z_eigen(tensor), torch.tensor(s, dtype=torch.float64), method="newton") for s in starts]
        values = [float(result.eigenvalue) for result in results]
        assert values[0] == pytest.approx(values[1])
        assert abs(values[0] - values[2]) > 0.1
        for result in results:
            x = result.eigenvector
            torch.testing.assert_close(tensor @ x @ x, result.eigenvalue * x)
            assert result.lower <= result.eigenvalue <= result.upper
            assert float(result.rate) == 1.0
            assert float(result.error_bound) < 1e-9

    def test_no_bounds_without_an_eigenvector(self):
        edges = [tuple(edge) for edge in connected(0, (3,)).edges.members()]
        result = sd.perron(z_eigen(edges), max_iter=2)
        assert result.status == Status.MAX_ITERATIONS
        assert float(result.lower) == 0.0
        assert bool(result.upper.isinf())
        assert bool(result.error_bound.isinf())
        assert bool(result.factor_bounds[:, 1].isinf().all())

    def test_gradients(self):
        def pair(tensor):
            result = sd.perron(z_eigen(tensor), normalize=2)
            return result.eigenvalue, result.eigenvector

        assert gradcheck(pair, ((random(3, 3, 3) + 1).requires_grad_(),), atol=1e-6)


def test_what_is_refused():
    tensor = random(3, 4, 5)
    with pytest.raises(ShapeError, match="two or more dimensions"):
        hits(random(3))
    with pytest.raises(OptionError, match="3 of them"):
        hits(tensor, (0.5, 0.5))
    with pytest.raises(DomainError, match="positive and finite"):
        hits(tensor, -1.0)
    with pytest.raises(DomainError, match="nonnegative"):
        hits(-tensor)
    with pytest.raises(DomainError, match="slice 1 along dimension 0"):
        hits(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(OptionError, match="above 1"):
        singular_vectors(tensor, 1.0)
    with pytest.raises(ShapeError, match="works on 3 blocks, but sizes has 2"):
        Multihomogeneous((Contractions.of(tensor),), (3, 9))
    with pytest.raises(DomainError, match="one power for each"):
        Multihomogeneous((BlockPowers((1.0,), (3, 4)),), (3, 4))
    with pytest.raises(DomainError, match="reverses"):
        Multihomogeneous((Matrix(random(3, 3)), Powers(-1.0)), (3,))
    with pytest.raises(DomainError, match="use Multihomogeneous"):
        Chain((Contractions.of(tensor),))
    for method in ("noda", "krylov"):
        with pytest.raises(OptionError, match="not for this map"):
            sd.perron(hits(tensor), method=method)
    with pytest.raises(OptionError, match="left eigenvectors"):
        sd.perron(hits(tensor), side="left")
    assert sd.perron(random(3, 3)).blocks[0].shape == (3,)
