"""Dominant eigenvectors by ARPACK, through SciPy."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs, eigsh

__all__ = ["krylov_vector"]

_RESTART = 20  # products of a restart
_SMALL = 16  # entries up to which a dense eigenvalue problem is no more work


def krylov_vector(
    matrix: sp.csr_array, start: np.ndarray, max_iter: int, *, balanced: bool = False
) -> tuple[np.ndarray, int]:
    """The absolute value of an eigenvector for the eigenvalue with the largest real part, and the products it took.

    For a nonnegative matrix that eigenvalue is the spectral radius. Where ARPACK does not converge, `start` comes back.

    Args:
        matrix: `(n, n)`.
        start: `(n,)`.
        max_iter: products.
        balanced: work with `D^-1 A D`, `D = diag(start)`. ARPACK's errors are of the size of the largest entry; near an
            eigenvector all entries are then of one size.
    """
    n = matrix.shape[0]
    scale = start if balanced else np.ones(n)
    if n <= _SMALL:
        values, vectors = np.linalg.eig(matrix.toarray() * scale / scale[:, None])
        return scale * np.abs(vectors[:, int(np.argmax(values.real))]), 0
    used = 0

    def product(x: np.ndarray) -> np.ndarray:
        nonlocal used
        used += 1
        return (matrix @ (scale * x)) / scale if balanced else matrix @ x

    operator = LinearOperator(matrix.shape, matvec=product, dtype=np.float64)
    find, which = (eigsh, "LA") if not balanced and _symmetric(matrix, start) else (eigs, "LR")
    try:
        _, vectors = find(operator, k=1, which=which, v0=start / scale, maxiter=max(1, max_iter // _RESTART), tol=0)
    except ArpackNoConvergence as error:
        vectors = error.eigenvectors
    except ArpackError:
        vectors = np.empty((n, 0))
    return (scale * np.abs(vectors[:, 0]) if vectors.shape[1] else start), used


def _symmetric(matrix: sp.csr_array, probe: np.ndarray) -> bool:
    """Whether `A = A^T`; a product tells most matrices that are not."""
    if not np.allclose(matrix @ probe, matrix.T @ probe):
        return False
    return bool(abs(matrix - matrix.T).max() == 0)
