"""Dense operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Product, all_nonnegative

__all__ = ["DenseOperator"]


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

    def product(self, factor: float = 1.0, *, transposed: bool = False) -> Product:
        scaled = self.weight if factor == 1 else factor * self.weight
        right = scaled if transposed else scaled.t()

        def product(z: Tensor, out: Tensor, add: Tensor | None = None) -> Tensor:
            return torch.mm(z, right, out=out) if add is None else torch.addmm(add, z, right, out=out)

        return product

    @property
    def layout(self) -> torch.memory_format:
        return torch.contiguous_format

    def gradients(self, z: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        n = z.shape[-1]
        return (c.reshape(-1, n).t() @ z.reshape(-1, n),)

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

    @property
    def rows_stored(self) -> bool:
        return self.weight.shape[1] > 0

    def terms(self) -> int:
        return self.weight.shape[1]

    def row_sum(self) -> float:
        return float(self.weight.double().abs().sum(dim=1).max())

    def absolute(self) -> DenseOperator:
        return DenseOperator(self.weight.abs())

    @property
    def nonnegative(self) -> bool:
        return all_nonnegative(self.coefficients())

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
