"""Vectors divided into blocks, each with a norm of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks", "norm"]


@dataclass(frozen=True)
class Blocks:
    """Vectors `(..., N)` as `d` blocks one after another; for most maps one block, the whole vector.

    Attributes:
        sizes: of the blocks, adding up to `N`.
    """

    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """The blocks of `z (..., N)`."""
        return z.split(self.sizes, dim=-1)

    def norms(self, z: Tensor, p: float) -> Tensor:
        """The p-norms `(..., d)`."""
        return torch.stack([norm(part, p) for part in self.split(z)], dim=-1)

    def sums(self, z: Tensor) -> Tensor:
        """`(..., d)`."""
        return torch.stack([part.sum(dim=-1) for part in self.split(z)], dim=-1)

    def smallest(self, z: Tensor) -> Tensor:
        """Of every block the smallest entry, `(..., d)`."""
        return torch.stack([part.amin(dim=-1) for part in self.split(z)], dim=-1)

    def largest(self, z: Tensor) -> Tensor:
        """Of every block the largest entry, `(..., d)`."""
        return torch.stack([part.amax(dim=-1) for part in self.split(z)], dim=-1)

    def spread(self, values: Tensor) -> Tensor:
        """Values `(..., d)` for the entries of their blocks: `(..., N)`, or `(..., 1)` for one block."""
        if len(self.sizes) == 1:
            return values
        counts = torch.tensor(self.sizes, device=values.device)
        return values.repeat_interleave(counts, dim=-1, output_size=sum(self.sizes))

    def gradient(self, unit: Tensor, p: float) -> Tensor:
        """The gradients of the blocks' p-norms at positive vectors `(..., N)` whose blocks have norm 1."""
        if math.isfinite(p):
            return unit ** (p - 1)
        peaks = [torch.nn.functional.one_hot(part.argmax(dim=-1), part.shape[-1]) for part in self.split(unit)]
        return torch.cat(peaks, dim=-1).to(unit.dtype)


def norm(z: Tensor, p: float) -> Tensor:
    """The p-norms `(...)` of `z (..., N)`, whose powers stay in the range of numbers."""
    top = z.detach().abs().amax(dim=-1, keepdim=True)
    top = torch.where((top > 0) & top.isfinite(), top, 1.0)
    return top[..., 0] * torch.linalg.vector_norm(z / top, ord=p, dim=-1)
