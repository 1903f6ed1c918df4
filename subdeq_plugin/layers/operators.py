"""The linear part `z -> A z` of a layer, matrix-free: apply, transpose, and the facts a certificate checks.

Every operator is an immutable value. `tensors` are the differentiable ones, in a fixed order; `arrays` and `options`
describe the operator completely, without closures.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shapes import autocast_off

__all__ = ["OPERATORS", "ConvOperator", "DenseOperator", "GraphOperator", "Operator", "Propagation", "csr"]


class Operator(Protocol):
    """What `BoundMap` needs of a linear operator on states; the last `sample_dims` dimensions form one sample."""

    kind: ClassVar[str]
    sample_dims: ClassVar[int]
    groups: ClassVar[dict[str, tuple[int, ...]]]

    def __call__(self, z: Tensor) -> Tensor: ...

    def transpose(self, u: Tensor) -> Tensor: ...

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Operator: ...

    def defect(self, state_shape: torch.Size | None) -> str:
        """Empty when this is a map of a state space (of states of the given shape) to itself; else what is wrong."""
        ...

    def coefficients(self) -> tuple[Tensor, ...]:
        """Tensors that are nonnegative exactly when the operator is."""
        ...

    def zero_row(self, state_shape: torch.Size | None) -> str:
        """Empty when every row has a nonzero coefficient; else a description of one row without."""
        ...

    def terms(self) -> int:
        """Upper bound on the number of products summed into one entry of the result."""
        ...

    def row_sum(self) -> float:
        """Upper bound on the sum of the absolute coefficients in any row, to rounding."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype) -> Operator: ...

    def arrays(self) -> dict[str, Tensor]: ...

    def options(self) -> dict[str, Any]: ...

    @classmethod
    def restore(cls, arrays: dict[str, Tensor], options: dict[str, Any]) -> Operator: ...


@dataclass(frozen=True)
class DenseOperator:
    """`z -> z W^T`: `z` is `(..., n)`, `weight` is `(n, n)`."""

    weight: Tensor
    kind: ClassVar[str] = "dense"
    sample_dims: ClassVar[int] = 1
    groups: ClassVar[dict[str, tuple[int, ...]]] = {"state": (-1,)}

    def __call__(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight)

    def transpose(self, u: Tensor) -> Tensor:
        return F.linear(u, self.weight.t())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> DenseOperator:
        return DenseOperator(*tensors)

    def defect(self, state_shape: torch.Size | None) -> str:
        if self.weight.dim() != 2 or self.weight.shape[0] != self.weight.shape[1]:
            return f"the weight must be square, it has shape {tuple(self.weight.shape)}"
        if state_shape is not None and state_shape[-1:] != self.weight.shape[1:]:
            return f"a state of shape {tuple(state_shape)} does not fit a weight of shape {tuple(self.weight.shape)}"
        return ""

    def coefficients(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def zero_row(self, state_shape: torch.Size | None) -> str:
        empty = (self.weight != 0).sum(dim=1) == 0
        return f"state unit {int(empty.nonzero()[0])}" if bool(empty.any()) else ""

    def terms(self) -> int:
        return self.weight.shape[1]

    def row_sum(self) -> float:
        return float(self.weight.double().abs().sum(dim=1).max())

    def to(self, device: torch.device, dtype: torch.dtype) -> DenseOperator:
        return DenseOperator(self.weight.to(device, dtype))

    def arrays(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def options(self) -> dict[str, Any]:
        return {}

    @classmethod
    def restore(cls, arrays: dict[str, Tensor], options: dict[str, Any]) -> DenseOperator:
        return cls(arrays["weight"])


@dataclass(frozen=True)
class ConvOperator:
    """Zero-padded cross-correlation that keeps the image size: `z` is `(B, C, H, W)`, `weight` `(C, C, kh, kw)`."""

    weight: Tensor
    dilation: tuple[int, int] = (1, 1)
    kind: ClassVar[str] = "conv2d"
    sample_dims: ClassVar[int] = 3
    groups: ClassVar[dict[str, tuple[int, ...]]] = {"state": (-3, -2, -1), "channel": (-2, -1), "pixel": (-3,)}

    @property
    def _padding(self) -> tuple[int, int]:
        height, width = self.weight.shape[-2:]
        return self.dilation[0] * (height - 1) // 2, self.dilation[1] * (width - 1) // 2

    def __call__(self, z: Tensor) -> Tensor:
        return F.conv2d(z, self.weight, padding=self._padding, dilation=self.dilation)

    def transpose(self, u: Tensor) -> Tensor:
        return F.conv_transpose2d(u, self.weight, padding=self._padding, dilation=self.dilation)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> ConvOperator:
        return replace(self, weight=tensors[0])

    def defect(self, state_shape: torch.Size | None) -> str:
        shape = tuple(self.weight.shape)
        if len(shape) != 4 or shape[0] != shape[1] or shape[2] % 2 == 0 or shape[3] % 2 == 0:
            return f"the weight must be (C, C, kh, kw) with odd kernel sizes, it has shape {shape}"
        if state_shape is not None and (len(state_shape) != 4 or state_shape[1] != shape[1]):
            return f"a state of shape {tuple(state_shape)} does not fit a weight of shape {shape}"
        return ""

    def coefficients(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def zero_row(self, state_shape: torch.Size | None) -> str:
        taps = (self.weight != 0).double()
        if state_shape is None:
            # For an unknown image size only the centre tap is certain to lie inside the image at every pixel.
            height, width = self.weight.shape[-2:]
            empty = taps[:, :, height // 2, width // 2].sum(dim=1) == 0
            return f"the centre tap of output channel {int(empty.nonzero()[0])}" if bool(empty.any()) else ""
        ones = torch.ones(1, *state_shape[-3:], dtype=taps.dtype, device=taps.device)
        counts = F.conv2d(ones, taps, padding=self._padding, dilation=self.dilation)[0].round()
        if bool((counts == 0).any()):
            channel, row, column = (counts == 0).nonzero()[0].tolist()
            return f"output channel {channel} at pixel ({row}, {column}), counting the zero padding"
        return ""

    def terms(self) -> int:
        return self.weight[0].numel()

    def row_sum(self) -> float:
        return float(self.weight.double().abs().flatten(1).sum(dim=1).max())

    def to(self, device: torch.device, dtype: torch.dtype) -> ConvOperator:
        return replace(self, weight=self.weight.to(device, dtype))

    def arrays(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def options(self) -> dict[str, Any]:
        return {"dilation": list(self.dilation)}

    @classmethod
    def restore(cls, arrays: dict[str, Tensor], options: dict[str, Any]) -> ConvOperator:
        height, width = options["dilation"]
        return cls(arrays["weight"], (int(height), int(width)))


def _csr_tensor(starts: Tensor, columns: Tensor, values: Tensor, nodes: int) -> Tensor:
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
    return _csr_tensor(starts, matrix.indices()[1], matrix.values(), nodes)


def _transposed(matrix: Tensor) -> Tensor:
    nodes = matrix.shape[0]
    starts = matrix.crow_indices()
    rows = torch.repeat_interleave(torch.arange(nodes, device=starts.device), starts.diff())
    return csr(matrix.col_indices(), rows, matrix.values(), nodes)


class _SparseProduct(torch.autograd.Function):
    """`A X` for a constant sparse `A` and dense `X (n, m)`; the backward product uses the stored transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        # Sparse products exist in float32 and float64 only, so autocast must not lower them.
        with autocast_off(x.device):
            return torch.sparse.mm(matrix, x.to(matrix.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        product: Tensor = _SparseProduct.apply(grads[0], ctx.transposed, ctx.matrix)
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

    def to(self, device: torch.device, dtype: torch.dtype) -> Propagation:
        return Propagation(self.matrix.to(device, dtype), self.transposed.to(device, dtype), self.settings)


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
        columns = z.reshape(-1, nodes, features).transpose(0, 1).reshape(nodes, -1)
        product: Tensor = _SparseProduct.apply(columns, matrix, transposed)
        return product.reshape(nodes, -1, features).transpose(0, 1).reshape(z.shape)

    def __call__(self, z: Tensor) -> Tensor:
        spread = self._propagate(z, self._matrix, self.propagation.transposed)
        return spread if self.weight is None else F.linear(spread, self.weight)

    def transpose(self, u: Tensor) -> Tensor:
        mixed = u if self.weight is None else F.linear(u, self.weight.t())
        return self._propagate(mixed, self.propagation.transposed, self._matrix)

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
        rows = torch.repeat_interleave(
            torch.arange(self._matrix.shape[0], device=self._matrix.device),
            self._matrix.crow_indices().diff(),
        )
        nonzero = self._matrix.values() != 0
        empty = torch.bincount(rows[nonzero], minlength=self._matrix.shape[0]) == 0
        if bool(empty.any()):
            return f"node {int(empty.nonzero()[0])} (it has no neighbour; add self-loops)"
        return DenseOperator(self.weight).zero_row(None) if self.weight is not None else ""

    def terms(self) -> int:
        neighbours = int(self._matrix.crow_indices().diff().max())
        return neighbours if self.weight is None else neighbours + self.weight.shape[1]

    def row_sum(self) -> float:
        ones = torch.ones(self._matrix.shape[0], 1, dtype=torch.float64, device=self._matrix.device)
        magnitude = _csr_tensor(
            self._matrix.crow_indices(),
            self._matrix.col_indices(),
            self._matrix.values().double().abs(),
            self._matrix.shape[0],
        )
        spread = float((magnitude @ ones).max())
        return spread if self.weight is None else spread * DenseOperator(self.weight).row_sum()

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
        matrix = _csr_tensor(arrays["crow_indices"], arrays["col_indices"], arrays["values"], nodes)
        return cls(Propagation.of(matrix), arrays.get("weight"))


OPERATORS: dict[str, type[DenseOperator] | type[ConvOperator] | type[GraphOperator]] = {
    operator.kind: operator for operator in (DenseOperator, ConvOperator, GraphOperator)
}
