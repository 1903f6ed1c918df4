"""Sparse propagation over the nodes of a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sparse import Propagation, SparseProduct, csr_tensor, multiply, rows_of
from .base import Product, all_nonnegative, columns, sample_shape
from .dense import DenseOperator

__all__ = ["GraphOperator"]


def _each(matrix: Tensor, z: Tensor, out: Tensor) -> Tensor:
    """`P Z` for every graph of a batch `(B, n, d)`; in `out` where that is faster."""
    if len(z) == 1:
        only = out[0]
        product = multiply(matrix, z[0], only)
        return out if product is only else product[None]
    for graph, image in zip(z, out, strict=True):
        product = multiply(matrix, graph, image)
        if product is not image:
            image.copy_(product)
    return out


@dataclass(frozen=True)
class GraphOperator:
    """`Z -> P Z` or `Z -> P Z W^T`: `z` is `(..., n, d)`, the propagation `P` `(n, n)`, `weight` `(d, d)`.

    The nodes of one graph are coupled, so a whole graph is one sample.
    """

    propagation: Propagation
    weight: Tensor | None = None
    kind: ClassVar[str] = "graph"
    sample_dims: ClassVar[int] = 2
    groups: ClassVar[dict[str, tuple[int, ...]]] = {"state": (-2, -1), "channel": (-2,), "node": (-1,)}

    @property
    def _matrix(self) -> Tensor:
        return self.propagation.matrix

    def _propagate(self, z: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        nodes, features = z.shape[-2:]
        side_by_side = z.reshape(-1, nodes, features).transpose(0, 1).reshape(nodes, -1)
        product: Tensor = SparseProduct.apply(side_by_side, matrix, transposed)
        return product.reshape(nodes, -1, features).transpose(0, 1).reshape(z.shape)

    def __call__(self, z: Tensor) -> Tensor:
        spread = self._propagate(z, self._matrix, self.propagation.transposed)
        return spread if self.weight is None else F.linear(spread, self.weight)

    def transpose(self, u: Tensor) -> Tensor:
        mixed = u if self.weight is None else F.linear(u, self.weight.t())
        return self._propagate(mixed, self.propagation.transposed, self._matrix)

    def product(self, factor: float = 1.0, *, transposed: bool = False) -> Product:
        sparse = self.propagation.transposed if transposed else self._matrix
        if self.weight is None:
            if factor != 1:
                values = factor * sparse.values()
                sparse = csr_tensor(sparse.crow_indices(), sparse.col_indices(), values, sparse.shape[0])

            def spread(z: Tensor, out: Tensor, add: Tensor | None = None) -> Tensor:
                image = _each(sparse, z, out)
                return image if add is None else image.add_(add)

            return spread
        mix = DenseOperator(self.weight).product(factor, transposed=transposed)

        def mixed(z: Tensor, out: Tensor, add: Tensor | None = None) -> Tensor:
            # The features are mixed first either way: `P (Z W^T) = (P Z) W^T`.
            features = z.shape[-1]
            between = mix(z.reshape(-1, features), torch.empty_like(z).reshape(-1, features)).reshape(z.shape)
            image = _each(sparse, between, out)
            return image if add is None else image.add_(add)

        return mixed

    @property
    def layout(self) -> torch.memory_format:
        return torch.contiguous_format

    def gradients(self, z: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        if self.weight is None:
            return ()
        spread = self._propagate(z, self._matrix, self.propagation.transposed)
        return DenseOperator(self.weight).gradients(spread, c)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return () if self.weight is None else (self.weight,)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> GraphOperator:
        return replace(self, weight=tensors[0] if tensors else None)

    def defect(self, state_shape: torch.Size | None) -> str:
        nodes = self._matrix.shape[0]
        if state_shape is not None and (len(state_shape) < 2 or state_shape[-2] != nodes):
            return f"a state of shape {tuple(state_shape)} does not fit a graph of {nodes} nodes"
        if self.weight is None:
            return ""
        return DenseOperator(self.weight).defect(None if state_shape is None else state_shape[-1:])

    def coefficients(self) -> tuple[Tensor, ...]:
        return (self._matrix.values(), *self.tensors)

    def zero_row(self, state_shape: torch.Size | None) -> str:
        nonzero = self._matrix.values() != 0
        empty = torch.bincount(rows_of(self._matrix)[nonzero], minlength=self._matrix.shape[0]) == 0
        if bool(empty.any()):
            return f"node {int(empty.nonzero()[0])} (it has no neighbour; add self-loops)"
        return DenseOperator(self.weight).zero_row(None) if self.weight is not None else ""

    @property
    def rows_stored(self) -> bool:
        return bool((self._matrix.crow_indices().diff() > 0).all())

    def terms(self) -> int:
        neighbours = int(self._matrix.crow_indices().diff().max())
        return neighbours if self.weight is None else neighbours + self.weight.shape[1]

    def row_sum(self) -> float:
        ones = torch.ones(self._matrix.shape[0], 1, dtype=torch.float64, device=self._matrix.device)
        spread = float((self.propagation.to(ones.device, ones.dtype).absolute().matrix @ ones).max())
        return spread if self.weight is None else spread * DenseOperator(self.weight).row_sum()

    def absolute(self) -> GraphOperator:
        return GraphOperator(self.propagation.absolute(), None if self.weight is None else self.weight.abs())

    @property
    def nonnegative(self) -> bool:
        return all_nonnegative(self.coefficients())

    def diagonal(self, state_shape: torch.Size | None) -> Tensor:
        rows, values = rows_of(self._matrix), self._matrix.values()
        loops = rows == self._matrix.col_indices()
        nodes = torch.zeros(self._matrix.shape[0], 1, dtype=values.dtype, device=values.device)
        nodes[rows[loops], 0] = values[loops]
        return nodes if self.weight is None else nodes * self.weight.diagonal()

    def matrix(self, state_shape: torch.Size | None) -> Tensor:
        mixed = None if self.weight is None else torch.Size([self._matrix.shape[0], self.weight.shape[1]])
        return columns(self, mixed or sample_shape(self, state_shape), self._matrix.device)

    def to(self, device: torch.device, dtype: torch.dtype) -> GraphOperator:
        weight = None if self.weight is None else self.weight.to(device, dtype)
        return GraphOperator(self.propagation.to(device, dtype), weight)

    def arrays(self) -> dict[str, Tensor]:
        arrays = {
            "crow_indices": self._matrix.crow_indices(),
            "col_indices": self._matrix.col_indices(),
            "values": self._matrix.values(),
        }
        return arrays if self.weight is None else {**arrays, "weight": self.weight}

    def options(self) -> dict[str, Any]:
        return {"nodes": self._matrix.shape[0]}

    @classmethod
    def restore(cls, arrays: dict[str, Tensor], options: dict[str, Any]) -> GraphOperator:
        nodes = int(options["nodes"])
        matrix = csr_tensor(arrays["crow_indices"], arrays["col_indices"], arrays["values"], nodes)
        return cls(Propagation.of(matrix), arrays.get("weight"))
