"""The proof that an eigenvector is near: right where it says so, silent where it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flint import arb, arb_mat, ctx

import subdeq_plugin as sd
from subdeq_plugin.perron import Chain, Largest, h_eigen, hits, power_mean, z_eigen
from tests.perron.families import FAMILIES, directed
from tests.perron.reference import perron_root
from tests.perron.test_multi import sparse_tensor
from tests.perron.test_tensors import EDGES, random


def exact_vector(matrix: np.ndarray, start: np.ndarray) -> list[arb]:
    """An eigenvector to 80 digits, from the bounds on the eigenvalue and inverse iteration in ball arithmetic."""
    _, high = perron_root(matrix, start)
    n = len(matrix)
    with ctx.workprec(400):
        shift = (high * (1 + arb(10) ** -45)).mid()
        system = arb_mat([[shift * int(i == j) - arb(float(matrix[i, j])) for j in range(n)] for i in range(n)])
        x = arb_mat([[arb(float(entry))] for entry in start])
        for _ in range(3):
            x = system.solve(x)
            x = arb_mat([[(x[i, 0] / x[0, 0]).mid()] for i in range(n)])
        return [x[i, 0] for i in range(n)]


def distance(vector: np.ndarray, exact: list[arb]) -> float:
    with ctx.workprec(400):
        logs = [(arb(float(a)) / b).log() for a, b in zip(vector, exact, strict=True)]
        mids = [log.mid() for log in logs]
        return float(max(mids) - min(mids))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [2, 6, 15])
def test_the_distance_holds_at_eighty_digits(family, size):
    rng = np.random.default_rng(size)
    proven = 0
    for _ in range(12):
        matrix = FAMILIES[family](rng, size)
        for max_iter in (5, 1000):
            result = sd.perron(torch.from_numpy(matrix), max_iter=max_iter)
            x, bound = result.eigenvector.numpy(), float(result.error_bound)
            if np.isfinite(bound):
                proven += max_iter == 1000
                assert distance(x, exact_vector(matrix, x)) <= bound
    if family in ("positive", "sparse", "similar", "periodic"):
        assert proven >= 10, proven


def test_perturbed_vectors_are_further_away():
    matrix = directed(40)
    vector = sd.perron(matrix).eigenvector
    for size in (1e-9, 1e-6, 1e-3, 0.3):
        moved = vector * (1 + size * torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        early = sd.perron(matrix, moved, max_iter=1, method="power")
        true = float(sd.hilbert(early.eigenvector[None], vector[None]))
        assert true > size / 10
        assert true <= float(early.error_bound) + 1e-12


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("harmonic", lambda: power_mean(random(5, 5) * (random(5, 5, seed=1) > 0.5) + torch.eye(5).roll(1, 0), -1)),
        ("hypergraph", lambda: h_eigen(EDGES)),
        ("z", lambda: z_eigen(EDGES)),
        ("scores", lambda: hits(sparse_tensor(), 0.5)),
    ],
)
def test_nonlinear_maps(name, target):
    function = target()
    exact = sd.perron(function)
    assert float(exact.error_bound) < 1e-9
    for seed in range(10):
        noise = torch.rand(exact.eigenvector.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        start = exact.eigenvector * (1 + 10.0 ** -(seed + 1) * noise)
        early = sd.perron(function, start, max_iter=1, method="power")
        true = max(float(sd.hilbert(a[None], b[None])) for a, b in zip(early.blocks, exact.blocks, strict=True))
        assert true <= float(early.error_bound) + float(exact.error_bound)


def test_where_nothing_is_proven():
    for target in (
        torch.eye(3, dtype=torch.float64),  # every vector is one
        torch.tensor([[1.0, 5.0], [0.0, 3.0]], dtype=torch.float64)[[1, 0]][:, [1, 0]] * 0 + torch.eye(2),
        Chain((Largest(random(3, 3)),)),  # not differentiable
        lambda z: 2 * z,
    ):
        start = torch.ones(3, dtype=torch.float64) if callable(target) and not isinstance(target, Chain) else None
        assert bool(sd.perron(target, start).error_bound.isinf().all())


def test_batches_are_proven_one_by_one():
    matrices = torch.stack([random(4, 4) * torch.tensor([[1.0, 0, 1, 1]]), torch.eye(4, dtype=torch.float64)])
    matrices[0, 0, 1] = 1
    bound = sd.perron(matrices).error_bound
    assert float(bound[0]) < 1e-9
    assert bool(bound[1].isinf())
