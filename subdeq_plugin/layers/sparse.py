"""Sparse square matrices in CSR form and their products with dense states."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._shapes import autocast_off

__all__ = ["Propagation", "SparseProduct", "csr", "csr_tensor", "multiply", "rows_of"]


def csr_tensor(starts: Tensor, columns: Tensor, values: Tensor, nodes: int) -> Tensor:
    """A sparse CSR matrix `(nodes, nodes)` from its row starts `(nodes + 1,)`, columns and values `(edges,)`.

    Raises:
        RuntimeError: the indices are not those of a CSR matrix (torch's own check).
    """
    with warnings.catch_warnings():
        # torch announces once per process that CSR is "in beta"; the products used here are tested.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, (nodes, nodes), check_invariants=True)


def csr(rows: Tensor, columns: Tensor, values: Tensor, nodes: int) -> Tensor:
    """A sparse CSR matrix `(nodes, nodes)` with duplicate entries summed."""
    coo = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (nodes, nodes), check_invariants=True)
    matrix = coo.coalesce()
    counts = torch.bincount(matrix.indices()[0], minlength=nodes)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return csr_tensor(starts, matrix.indices()[1], matrix.values(), nodes)


def _transposed(matrix: Tensor) -> Tensor:
    return csr(matrix.col_indices(), rows_of(matrix), matrix.values(), matrix.shape[0])


def _magnitude(matrix: Tensor) -> Tensor:
    return csr_tensor(matrix.crow_indices(), matrix.col_indices(), matrix.values().abs(), matrix.shape[0])


def rows_of(matrix: Tensor) -> Tensor:
    """The row of every stored entry of a CSR matrix: `(edges,)`."""
    starts = matrix.crow_indices()
    return torch.repeat_interleave(torch.arange(matrix.shape[0], device=starts.device), starts.diff())


def multiply(matrix: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """`A X` for a sparse CSR `A (n, n)` and dense `X (n, m)`, without autograd; in `out` where that is faster."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous():
        # A row of the product is a bag of rows of `X` with weights; torch sums bags several times faster.
        bags = (matrix.col_indices(), matrix.crow_indices())
        weights = matrix.values().to(x.dtype)
        product: Tensor = torch.embedding_bag(x, *bags, False, 0, False, weights, True)[0]
        return product
    if out is None:
        return torch.sparse.mm(matrix, x)
    return torch.addmm(out, matrix, x, beta=0.0, out=out)


class SparseProduct(torch.autograd.Function):
    """`A X` for a constant sparse `A` and dense `X (n, m)`; the backward product uses the stored transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        # Sparse products exist in float32 and float64 only, so autocast must not lower them.
        with autocast_off(x.device):
            return multiply(matrix, x.to(matrix.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        product: Tensor = SparseProduct.apply(grads[0], ctx.transposed, ctx.matrix)
        return product, None, None


@dataclass(frozen=True)
class Propagation:
    """A sparse CSR matrix `(n, n)` with its transpose, which backward products need.

    Attributes:
        matrix: the propagation matrix.
        transposed: its transpose.
        settings: of the layer that prepared it; another layer's certificate does not cover it.
    """

    matrix: Tensor
    transposed: Tensor
    settings: tuple[float | bool | str, ...] = ()

    @classmethod
    def of(cls, matrix: Tensor, settings: tuple[float | bool | str, ...] = ()) -> Propagation:
        """From the matrix alone."""
        return cls(matrix, _transposed(matrix), settings)

    def clone(self) -> Propagation:
        """A copy whose entries later changes in place do not reach."""
        return Propagation(self.matrix.clone(), self.transposed.clone(), self.settings)

    def absolute(self) -> Propagation:
        """The matrix of absolute values; no layer prepared it, so it carries no settings."""
        return Propagation(_magnitude(self.matrix), _magnitude(self.transposed))

    def to(self, device: torch.device, dtype: torch.dtype) -> Propagation:
        return Propagation(self.matrix.to(device, dtype), self.transposed.to(device, dtype), self.settings)
