"""The linear part `z -> A z` of a layer, matrix-free: apply, transpose, and the facts a certificate checks.

Every operator is an immutable value. `tensors` are the differentiable ones, in a fixed order; `arrays` and `options`
describe the operator completely, without closures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .sparse import Propagation, SparseProduct, csr, csr_tensor, rows_of

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

    def absolute(self) -> Operator:
        """The operator with the absolute values of the coefficients."""
        ...

    @property
    def nonnegative(self) -> bool:
        """Whether all coefficients are `>= 0`; NaN is not."""
        ...

    def diagonal(self, state_shape: torch.Size | None) -> Tensor:
        """The diagonal `A_ii`, broadcastable to one sample of the state: its last `sample_dims` dimensions."""
        ...

    def matrix(self, state_shape: torch.Size | None) -> Tensor:
        """The operator on one flattened sample: `(N, N)` float64, where `N` is the number of entries of a sample.

        Every entry is exact, except that with a mixing weight an entry of a graph is one rounded product.

        Args:
            state_shape: the shape of a state or a sample; a convolution and a graph without mixing weight need it.

        Raises:
            OptionError: the shape is needed and missing.
        """
        ...

    def to(self, device: torch.device, dtype: torch.dtype) -> Operator: ...

    def arrays(self) -> dict[str, Tensor]: ...

    def options(self) -> dict[str, Any]: ...

    @classmethod
    def restore(cls, arrays: dict[str, Tensor], options: dict[str, Any]) -> Operator: ...


def _nonnegative(parts: tuple[Tensor, ...]) -> bool:
    return all(bool((part >= 0).all()) for part in parts)


def _sample_shape(operator: Operator, state_shape: torch.Size | None) -> torch.Size:
    if state_shape is None:
        raise OptionError(f"the matrix of a {operator.kind} operator needs the state's shape; pass state_shape.")
    return state_shape[-operator.sample_dims :]


def _columns(operator: Operator, sample: torch.Size, device: torch.device) -> Tensor:
    """The images of the unit vectors of a sample, as the columns of a matrix."""
    exact = operator.to(device, torch.float64)
    units = torch.eye(sample.numel(), dtype=torch.float64, device=device)
    return exact(units.reshape(-1, *sample)).reshape(units.shape).t()


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

    def absolute(self) -> DenseOperator:
        return DenseOperator(self.weight.abs())

    @property
    def nonnegative(self) -> bool:
        return _nonnegative(self.coefficients())

    def diagonal(self, state_shape: torch.Size | None) -> Tensor:
        return self.weight.diagonal()

    def matrix(self, state_shape: torch.Size | None) -> Tensor:
        return self.weight.double()

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

    def absolute(self) -> ConvOperator:
        return replace(self, weight=self.weight.abs())

    @property
    def nonnegative(self) -> bool:
        return _nonnegative(self.coefficients())

    def diagonal(self, state_shape: torch.Size | None) -> Tensor:
        height, width = self.weight.shape[-2:]
        return self.weight[:, :, height // 2, width // 2].diagonal()[:, None, None]

    def matrix(self, state_shape: torch.Size | None) -> Tensor:
        # Zero padding and stride 1: at most one tap leads from one entry to another, so nothing is summed.
        return _columns(self, _sample_shape(self, state_shape), self.weight.device)

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
        product: Tensor = SparseProduct.apply(columns, matrix, transposed)
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
        nonzero = self._matrix.values() != 0
        empty = torch.bincount(rows_of(self._matrix)[nonzero], minlength=self._matrix.shape[0]) == 0
        if bool(empty.any()):
            return f"node {int(empty.nonzero()[0])} (it has no neighbour; add self-loops)"
        return DenseOperator(self.weight).zero_row(None) if self.weight is not None else ""

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
        return _nonnegative(self.coefficients())

    def diagonal(self, state_shape: torch.Size | None) -> Tensor:
        rows, values = rows_of(self._matrix), self._matrix.values()
        loops = rows == self._matrix.col_indices()
        nodes = torch.zeros(self._matrix.shape[0], 1, dtype=values.dtype, device=values.device)
        nodes[rows[loops], 0] = values[loops]
        return nodes if self.weight is None else nodes * self.weight.diagonal()

    def matrix(self, state_shape: torch.Size | None) -> Tensor:
        mixed = None if self.weight is None else torch.Size([self._matrix.shape[0], self.weight.shape[1]])
        return _columns(self, mixed or _sample_shape(self, state_shape), self._matrix.device)

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


OPERATORS: dict[str, type[DenseOperator] | type[ConvOperator] | type[GraphOperator]] = {
    operator.kind: operator for operator in (DenseOperator, ConvOperator, GraphOperator)
}
