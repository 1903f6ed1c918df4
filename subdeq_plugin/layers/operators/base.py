"""What `BoundMap` needs of a linear operator.

Every operator is an immutable value. `tensors` are the differentiable ones, in a fixed order; `arrays` and `options`
describe the operator completely, without closures.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ...errors import OptionError

__all__ = ["Operator", "Product", "all_nonnegative", "columns", "sample_shape"]


class Product(Protocol):
    """`z -> factor * A z + add` on states with one leading dimension, prepared for the inside of a solve."""

    def __call__(self, z: Tensor, out: Tensor, add: Tensor | None = None) -> Tensor:
        """The product, in `out` where that is faster; `out` has the shape of `z` and overlaps nothing."""
        ...


class Operator(Protocol):
    """What `BoundMap` needs of a linear operator on states; the last `sample_dims` dimensions form one sample."""

    kind: ClassVar[str]
    sample_dims: ClassVar[int]
    groups: ClassVar[dict[str, tuple[int, ...]]]

    def __call__(self, z: Tensor) -> Tensor: ...

    def transpose(self, u: Tensor) -> Tensor: ...

    def product(self, factor: float = 1.0, *, transposed: bool = False) -> Product:
        """`factor` times the operator, or its transpose, without autograd and without checks."""
        ...

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of states in which `product` is fastest."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...

    def gradients(self, z: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `<c, A z>` with respect to `tensors`; `z` and `c` are states, without autograd."""
        ...

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

    @property
    def rows_stored(self) -> bool:
        """Whether every row stores a coefficient, be it zero."""
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


def all_nonnegative(parts: tuple[Tensor, ...]) -> bool:
    return all(bool((part >= 0).all()) for part in parts)


def sample_shape(operator: Operator, state_shape: torch.Size | None) -> torch.Size:
    if state_shape is None:
        raise OptionError(f"the matrix of a {operator.kind} operator needs the state's shape; pass state_shape.")
    return state_shape[-operator.sample_dims :]


def columns(operator: Operator, sample: torch.Size, device: torch.device) -> Tensor:
    """The images of the unit vectors of a sample, as the columns of a matrix."""
    exact = operator.to(device, torch.float64)
    units = torch.eye(sample.numel(), dtype=torch.float64, device=device)
    return exact(units.reshape(-1, *sample)).reshape(units.shape).t()
