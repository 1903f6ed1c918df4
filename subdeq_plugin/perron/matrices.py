"""Nonnegative matrices as eigenproblems: batches of dense ones, and a sparse one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from ..layers.sparse import csr_tensor
from .base import TINY, EigenMap, Product
from .birkhoff import birkhoff_ratio

__all__ = ["DenseMatrix", "SparseMatrix", "from_scipy", "times_power"]

_MODERATE = 2.0**200
_SMALL = 128  # entries up to which NumPy multiplies batches on the CPU three times as fast as torch
_LU = 600  # entries beyond which a sparse factorisation is tried


@dataclass(frozen=True)
class DenseMatrix(EigenMap):
    """`z -> A z` for each of the matrices `(B, N, N)`."""

    matrices: Tensor
    smallest: Tensor
    samples: int
    entries: int
    roundings: int
    curvature: float = 2.0

    @classmethod
    def of(cls, matrices: Tensor) -> tuple[DenseMatrix, Tensor]:
        """From nonnegative float64 `(B, N, N)`; and the exponents `(B,)` of the powers of two divided out."""
        exponents, smallest = _scale(matrices.flatten(1))
        scaled = times_power(matrices, -exponents[:, None, None])
        return cls(scaled, smallest, matrices.shape[0], matrices.shape[1], matrices.shape[1]), exponents

    def __call__(self, z: Tensor) -> Tensor:
        if self.entries <= _SMALL and z.device.type == "cpu":
            return torch.from_numpy(np.einsum("bij,bj->bi", self.matrices.numpy(), z.numpy()))
        return torch.bmm(self.matrices, z[:, :, None])[:, :, 0]

    def tangent(self, z: Tensor) -> Product:
        return self

    def rate(self) -> Tensor:
        # Entries that have lost digits to underflow say nothing.
        return torch.where(self.smallest > TINY, birkhoff_ratio(self.matrices), 1.0)

    def to_scipy(self, row: int) -> sp.csr_array:
        """The (scaled) matrix of one sample."""
        return sp.csr_array(self.matrices[row].cpu().numpy())

    def rows(self, which: Tensor) -> DenseMatrix:
        """The matrices with the indices `which (K,)`."""
        return DenseMatrix(self.matrices[which], self.smallest[which], len(which), self.entries, self.roundings)

    def sample(self, row: int) -> DenseMatrix:
        return self.rows(torch.tensor([row], device=self.matrices.device))

    def jacobian(self, z: Tensor) -> Tensor:
        return self.matrices


@dataclass(frozen=True)
class SparseMatrix(EigenMap):
    """`z -> A z` for one sparse matrix; the batch has one sample.

    Attributes:
        matrix: SciPy CSR `(N, N)`, whose products on the CPU are faster than torch's.
        on_device: the same as a CSR tensor on another device; None on the CPU.
    """

    matrix: sp.csr_array
    on_device: Tensor | None
    smallest: Tensor
    samples: int
    entries: int
    roundings: int
    curvature: float = 2.0

    @classmethod
    def of(cls, matrix: sp.csr_array, device: torch.device) -> tuple[SparseMatrix, Tensor]:
        """From a nonnegative float64 matrix; and the exponent `(1,)` of the power of two divided out."""
        values = torch.from_numpy(matrix.data)
        exponents, smallest = _scale(values[None])
        scaled = sp.csr_array((times_power(values, -exponents).numpy(), *_short(matrix)), shape=matrix.shape)
        if not scaled.data.all():
            scaled = scaled.copy()  # the indices may be the caller's
            scaled.eliminate_zeros()
        return cls._of(scaled, smallest.to(device)), exponents.to(device)

    @classmethod
    def _of(cls, matrix: sp.csr_array, smallest: Tensor) -> SparseMatrix:
        on_device = None if smallest.device.type == "cpu" else from_scipy(matrix).to(smallest.device)
        longest = int(np.diff(matrix.indptr).max())
        return cls(matrix, on_device, smallest, 1, matrix.shape[0], longest)

    def __call__(self, z: Tensor) -> Tensor:
        if self.on_device is not None:
            return torch.mv(self.on_device, z[0])[None]
        return torch.from_numpy(self.matrix @ z[0].numpy())[None]

    def tangent(self, z: Tensor) -> Product:
        return self

    def to_scipy(self, row: int) -> sp.csr_array:
        """The (scaled) matrix."""
        return self.matrix

    def transposed(self) -> SparseMatrix:
        """The map of the transpose."""
        return self._of(sp.csr_array(self.matrix.T), self.smallest)

    def jacobian(self, z: Tensor) -> Tensor:
        return torch.from_numpy(self.matrix.toarray()).to(z.device)[None]

    def shifted_solve(self, z: Tensor, shift: Tensor) -> Tensor:
        if self.entries <= _LU:
            return super().shifted_solve(z, shift)
        vector = z[0].cpu().numpy()
        scaled = sp.csc_array(self.matrix.multiply(1 / vector[:, None]).multiply(vector[None, :]))
        try:
            solution = splu(float(shift) * sp.eye_array(self.entries, format="csc") - scaled).solve(
                np.ones(self.entries)
            )
        except RuntimeError:  # singular to working precision
            return torch.full_like(z, math.nan)
        return z * torch.from_numpy(solution).to(z)


def _short(matrix: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Columns and row starts, as 32-bit integers where they fit: products wait for memory."""
    kind = np.int32 if max(matrix.nnz, *matrix.shape) < 2**31 else np.int64
    return matrix.indices.astype(kind, copy=False), matrix.indptr.astype(kind, copy=False)


def from_scipy(matrix: sp.csr_array) -> Tensor:
    """SciPy's CSR matrix as a float64 tensor."""
    starts, columns = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return csr_tensor(starts, columns, torch.from_numpy(matrix.data.astype(np.float64)), matrix.shape[0])


def _scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of nonnegative values `(B, K)`: exponents of powers of two to divide by, and the smallest nonzero after that.

    Values of moderate size are left alone. Where the division loses one to underflow, the smallest is 0.
    """
    if not values.shape[1]:
        return values.new_zeros(values.shape[0], dtype=torch.int32), values.new_full((values.shape[0],), math.inf)
    largest, smallest = values.amax(dim=1), values.amin(dim=1)
    if bool((smallest == 0).any()):
        smallest = torch.where(values > 0, values, math.inf).amin(dim=1)
    moderate = (largest < _MODERATE) & (largest > 1 / _MODERATE)
    exponents = torch.where(moderate, 0, torch.frexp(largest).exponent)
    return exponents, times_power(smallest, -exponents)


def times_power(values: Tensor, exponents: Tensor) -> Tensor:
    """`values * 2**exponents`, exact up to underflow; in two steps, since `2**exponents` alone may overflow."""
    if not bool(exponents.any()):
        return values
    half = torch.div(exponents, 2, rounding_mode="floor")
    return torch.ldexp(torch.ldexp(values, half), exponents - half)
