"""Maps that are known by their values only: callables, and operators that multiply without showing their entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from ..errors import ShapeError
from .base import EigenMap, Product

__all__ = ["FunctionMap", "operator_function"]


@dataclass(frozen=True)
class FunctionMap(EigenMap):
    """A callable on states of shape `shape`, taken to be order-preserving and homogeneous of degree 1.

    What it is taken for is checked as far as values can: brackets that exclude each other prove it wrong. Its rounding
    errors are not known, so its brackets hold up to rounding only.
    """

    function: Callable[[Tensor], Tensor]
    shape: torch.Size
    dtype: torch.dtype
    smallest: Tensor
    samples: int
    entries: int
    epsilon: float
    floor: float
    norm: float | None = None
    roundings: int | None = None

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor], start: Tensor) -> FunctionMap:
        """For states of the shape of `start (B, ...)`, or `(N,)` for one sample.

        Raises:
            ShapeError: the function returns another shape.
        """
        samples = start.shape[0] if start.dim() > 1 else 1
        smallest = torch.ones(samples, dtype=torch.float64, device=start.device)
        image = function(start.detach())
        if not isinstance(image, Tensor) or image.shape != start.shape:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ShapeError(f"target must return the shape of start, {tuple(start.shape)}, but returned {got}.")
        info = torch.finfo(start.dtype)
        entries = start.numel() // samples
        return cls(function, start.shape, start.dtype, smallest, samples, entries, info.eps, info.tiny**0.5)

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z.to(self.dtype).reshape(self.shape)).to(z.dtype).reshape(z.shape)

    def rows(self, z: Tensor) -> Tensor:
        """The function on `(B, ...)`, also where its argument is one sample without a batch."""
        return self.function(z.reshape(self.shape)).reshape(z.shape)

    def tangent(self, z: Tensor) -> Product:
        """A difference quotient: the function may be one that autograd does not see into."""
        image = self(z)
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True) * self.epsilon**0.5

        def product(v: Tensor) -> Tensor:
            size = torch.linalg.vector_norm(v, dim=1, keepdim=True)
            step = length / torch.where(size > 0, size, 1.0)
            return (self(z + step * v) - image) / step

        return product


def operator_function(operator: LinearOperator) -> Callable[[Tensor], Tensor]:
    """The products of a SciPy operator as a function of tensors `(N,)` on the CPU."""

    def product(z: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(operator.matvec(z.detach().cpu().numpy()), dtype=np.float64)).to(z.device)

    return product
