"""Reducible, periodic and defective matrices: detected, told, and solved."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from flint import arb, fmpq

import subdeq_plugin as sd
from subdeq_plugin.perron import power_mean
from subdeq_plugin.perron.structure import Pattern


def pattern(matrix: np.ndarray) -> Pattern:
    return Pattern(sp.csr_array(matrix))


@pytest.mark.parametrize("period", [1, 2, 3, 6])
def test_the_period_is_that_of_networkx(period):
    rng = np.random.default_rng(period)
    for _ in range(20):
        graph = nx.DiGraph()
        nx.add_cycle(graph, range(12 * period))
        for _ in range(6):  # chords that keep the period
            i = int(rng.integers(12 * period))
            graph.add_edge(i, (i + 1 + period * int(rng.integers(12))) % (12 * period))
        found = pattern(nx.to_numpy_array(graph))
        assert found.irreducible
        assert found.period % period == 0
        assert found.primitive == nx.is_aperiodic(graph)


def test_classes_are_strongly_connected_components():
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = (rng.random((15, 15)) < 0.08) * rng.random((15, 15))
        graph = nx.from_numpy_array(matrix, create_using=nx.DiGraph)
        assert pattern(matrix).classes == nx.number_strongly_connected_components(graph)


def test_a_triangular_matrix_has_its_diagonal():
    matrix = torch.tensor([[1.0, 5.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    result = sd.perron(matrix)
    assert float(result.lower) == float(result.upper) == float(result.eigenvalue) == 3.0
    torch.testing.assert_close(matrix @ result.eigenvector, 3 * result.eigenvector)
    assert float(result.eigenvector.sum()) == pytest.approx(1)
    assert not result.patterns[0].irreducible


def test_random_reducible_matrices():
    rng = np.random.default_rng(1)
    for _ in range(60):
        n = int(rng.integers(2, 20))
        matrix = (rng.random((n, n)) < 1.2 / n) * rng.random((n, n))
        result = sd.perron(torch.from_numpy(matrix))
        radius = np.abs(np.linalg.eigvals(matrix)).max()
        assert float(result.lower) <= radius * (1 + 1e-9) + 1e-12
        assert float(result.upper) >= radius * (1 - 1e-9) - 1e-6 * (radius < 1e-3)
        x = result.eigenvector.numpy()
        assert (x >= 0).all()
        np.testing.assert_allclose(matrix @ x, float(result.eigenvalue) * x, atol=1e-9)


def test_the_zero_matrix():
    result = sd.perron(torch.zeros(3, 3, dtype=torch.float64))
    assert float(result.eigenvalue) == float(result.upper) == 0.0
    assert result.converged


def test_a_long_chain_without_cycles():
    n = 3000
    matrix = sp.csr_array(sp.diags_array(np.ones(n - 1), offsets=1))
    result = sd.perron(matrix)
    assert float(result.upper) == 0.0
    np.testing.assert_array_equal(matrix @ result.eigenvector.numpy(), 0)
    assert float(result.eigenvector.sum()) == 1


@pytest.mark.parametrize(
    ("matrix", "multiplicity", "index"),
    [
        ([[1.0, 1.0], [0.0, 1.0]], 2, 2),
        ([[1.0, 0.0], [0.0, 1.0]], 2, 1),
        ([[1.0, 1.0], [0.0, 2.0]], 1, 1),
        ([[1.0, 2.0], [3.0, 4.0]], 1, 1),
        # Two basic classes joined by one that is not; two chains of two into one class.
        ([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 2.0]], 2, 2),
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], 3, 2),
        ([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], 3, 3),
        # Cycles of one length and radius.
        ([[0.0, 2.0, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 2.0, 0.0]], 2, 2),
    ],
)
def test_defective_matrices_are_told(matrix, multiplicity, index):
    a = np.array(matrix)
    radius = np.abs(np.linalg.eigvals(a)).max()
    n = len(a)
    # The definition: ranks of powers of A - rho I.
    ranks = [np.linalg.matrix_rank(np.linalg.matrix_power(a - radius * np.eye(n), k), tol=1e-6) for k in range(n + 2)]
    assert n - ranks[-1] == multiplicity
    assert next(k for k in range(n + 1) if ranks[k] == ranks[k + 1]) == index
    for target in (torch.from_numpy(a), sp.csr_array(a)):
        result = sd.perron(target)
        assert int(result.multiplicity) == multiplicity
        assert int(result.index) == index


def test_multiplicities_of_batches_and_of_other_maps():
    batch = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    result = sd.perron(batch)
    assert result.multiplicity.tolist() == [2, 2, 1]
    assert result.index.tolist() == [2, 1, 1]
    assert int(sd.perron(power_mean(torch.ones(2, 2), 2)).multiplicity) == 0


def test_the_cost_of_elimination():
    path = sp.diags_array([np.ones(999), np.ones(999)], offsets=[-1, 1])
    assert Pattern(sp.csr_array(path)).elimination == 1000
    cycle = sp.csr_array(np.roll(np.eye(100), 1, axis=1))
    assert Pattern(cycle).elimination == 2 + 49 * 8
    side = sp.eye_array(10, k=1) + sp.eye_array(10, k=-1)
    grid = sp.csr_array(sp.kron(side, sp.eye_array(10)) + sp.kron(sp.eye_array(10), side))
    diagonals = [*range(1, 11), *range(9, 0, -1)]
    assert Pattern(grid).elimination == sum(width**3 for width in diagonals)


@pytest.mark.parametrize("n", [700, 3000])
def test_tiny_gaps_of_narrow_matrices(n):
    """A path: the relative gap is `15 / n^2`, and the eigenvalue `2 cos(pi / (n + 1))`."""
    path = sp.csr_array(sp.diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[-1, 1]))
    result = sd.perron(path)
    assert result.converged
    assert float(result.width) < 1e-12
    exact = 2 * arb.cos_pi_fmpq(fmpq(1, n + 1))
    assert arb(float(result.lower)) <= exact
    assert arb(float(result.upper)) >= exact
    sines = np.sin(np.pi * np.arange(1, n + 1) / (n + 1))
    np.testing.assert_allclose(result.eigenvector, sines / sines.sum(), rtol=1e-8)
