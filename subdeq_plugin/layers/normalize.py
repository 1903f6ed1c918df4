"""Normalisation `G = F / phi(F)` with a p-norm over the whole state of a sample or over groups of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OptionError

__all__ = ["Normalizer", "NormalizerJet", "parse_norm"]


def parse_norm(normalize: object) -> float | None:
    """`None | 1 | 2 | "inf" | p` as None or a float `p >= 1`.

    Raises:
        OptionError: anything else.
    """
    if normalize is None:
        return None
    if normalize == "inf":
        return math.inf
    if isinstance(normalize, int | float) and not isinstance(normalize, bool) and normalize >= 1:
        return float(normalize)
    raise OptionError(f'normalize must be None, "inf" or a number p >= 1, got {normalize!r}.')


@dataclass(frozen=True)
class Normalizer:
    """Division by the p-norm of each group of entries.

    Attributes:
        p: exponent of the norm, `1 <= p <= inf`.
        over: name of the grouping; "state" means one norm for a whole sample.
        dims: the trailing dimensions (negative) that form one group.
    """

    p: float
    over: str
    dims: tuple[int, ...]

    @property
    def whole_state(self) -> bool:
        """Whether one norm covers the whole sample (the case in which Hilbert's metric applies)."""
        return self.over == "state"

    def norm(self, value: Tensor) -> Tensor:
        """`phi` of each group of a positive tensor, with the grouped dimensions kept at size 1."""
        if math.isinf(self.p):
            return value.amax(dim=self.dims, keepdim=True)
        if self.p > 2:
            # Scaled, or the powers of small entries would underflow to a norm of zero. The scale is a constant to
            # autograd: the norm is homogeneous, so its derivative does not depend on it.
            scale = value.detach().amax(dim=self.dims, keepdim=True)
            return scale * torch.linalg.vector_norm(value / scale, ord=self.p, dim=self.dims, keepdim=True)
        return torch.linalg.vector_norm(value, ord=self.p, dim=self.dims, keepdim=True)

    def __call__(self, value: Tensor) -> Tensor:
        """`value / phi(value)`."""
        return value / self.norm(value)

    def group_size(self, shape: torch.Size) -> int:
        """Number of entries in one group of a state of this shape."""
        return math.prod(shape[dim] for dim in self.dims)

    def linearize(self, value: Tensor) -> NormalizerJet:
        """The normaliser at `value` together with its Jacobian products."""
        return NormalizerJet(self, value)


class NormalizerJet:
    """`G = F / phi(F)` at one point: the value and exact Jacobian products.

    `dG = (dF - G <w, dF>) / phi` with `w = d phi / dF`. For the infinity-norm `w` spreads evenly over the largest
    entries: an element of Clarke's Jacobian, and the one that `torch.amax` takes.
    """

    def __init__(self, normalizer: Normalizer, value: Tensor) -> None:
        self._dims = normalizer.dims
        self._phi = normalizer.norm(value)
        self.value = value / self._phi
        if math.isinf(normalizer.p):
            top = (value == self._phi).to(value.dtype)
            self._w = top / top.sum(dim=normalizer.dims, keepdim=True)
        else:
            self._w = self.value ** (normalizer.p - 1)

    def rows(self, pick: Callable[[Tensor], Tensor]) -> NormalizerJet:
        """The same for some of the samples, which `pick` takes from a tensor of the state's dimensions."""
        part = copy(self)
        part._phi, part.value, part._w = pick(self._phi), pick(self.value), pick(self._w)
        return part

    def jvp(self, v: Tensor) -> Tensor:
        """`dG` applied to a tangent of `F`."""
        return (v - self.value * (self._w * v).sum(dim=self._dims, keepdim=True)) / self._phi

    def vjp(self, u: Tensor) -> Tensor:
        """The transpose of `dG` applied to a cotangent of `G`."""
        return (u - self._w * (self.value * u).sum(dim=self._dims, keepdim=True)) / self._phi
