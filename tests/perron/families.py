"""Random nonnegative irreducible matrices, of every kind that makes a Perron pair hard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

Generator = np.random.Generator


def _ring(n: int) -> np.ndarray:
    """A cycle through all indices, so that whatever is added is irreducible."""
    return np.roll(np.eye(n), 1, axis=1)


def positive(rng: Generator, n: int) -> np.ndarray:
    return rng.random((n, n)) + 1e-3


def sparse(rng: Generator, n: int) -> np.ndarray:
    return rng.random((n, n)) * (rng.random((n, n)) < 3 / n) + 0.1 * _ring(n)


def ill_scaled(rng: Generator, n: int) -> np.ndarray:
    return np.exp(8 * rng.standard_normal((n, n)))


def similar(rng: Generator, n: int) -> np.ndarray:
    """A diagonal similarity, so that the entries of the vector spread over many magnitudes."""
    d = np.exp(10 * rng.standard_normal(n))
    return positive(rng, n) * d[:, None] / d[None, :]


def nearly_reducible(rng: Generator, n: int) -> np.ndarray:
    a = positive(rng, n)
    half = max(1, n // 2)
    a[half:, :half] *= 10.0 ** rng.uniform(-14, -3)
    a[:half, half:] *= 10.0 ** rng.uniform(-14, -3)
    return a


def nearly_periodic(rng: Generator, n: int) -> np.ndarray:
    return _ring(n) * rng.uniform(0.5, 2, (n, n)) + 10.0 ** rng.uniform(-12, -2) * rng.random((n, n))


def periodic(rng: Generator, n: int) -> np.ndarray:
    """A bipartite graph with all edges between the halves, or a cycle."""
    if n < 4:
        return _ring(n) * rng.uniform(0.5, 2, (n, n))
    half = n // 2
    a = np.zeros((n, n))
    a[:half, half:] = rng.random((half, n - half)) + 0.01
    a[half:, :half] = rng.random((n - half, half)) + 0.01
    return a


def directed(n: int = 300, seed: int = 0) -> sp.csr_array:
    """A sparse, irreducible, nonsymmetric matrix."""
    rng = np.random.default_rng(seed)
    ring = sp.coo_array((np.ones(n), (np.arange(n), np.roll(np.arange(n), 1))), shape=(n, n))
    return sp.csr_array(sp.random_array((n, n), density=5 / n, rng=rng) + ring)


FAMILIES: dict[str, Callable[[Generator, int], np.ndarray]] = {
    function.__name__: function
    for function in (positive, sparse, ill_scaled, similar, nearly_reducible, nearly_periodic, periodic)
}
