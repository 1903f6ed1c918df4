"""Layers of this package as eigenproblems: `F(z) = lambda z` for a layer with its input fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..degrees import POSITIVE
from ..errors import DegreeError, DomainError, ShapeError
from ..layers import BoundMap
from .base import TINY, EigenMap, Jacobian, Product, columns

__all__ = ["FlatLayer", "LayerMap"]

_FUNCTION = 33  # roundings that an activation and its shift may be wrong by,
_POWER = 40  # and a power
_HOMOGENEOUS = ("relu", "leaky_relu")


@dataclass(frozen=True)
class FlatLayer:
    """A bound layer on flattened states `(..., N)` in float64, differentiable in its tensors."""

    bound: BoundMap
    shape: torch.Size

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.bound.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> FlatLayer:
        return FlatLayer(self.bound.with_tensors(tensors), self.shape)

    def __call__(self, z: Tensor) -> Tensor:
        return self.bound.to(z.device, z.dtype)(z.reshape(self.shape)).reshape(z.shape)

    def linearize(self, z: Tensor) -> Jacobian:
        inner = self.bound.to(z.device, z.dtype).linearize(z.reshape(self.shape))
        return Jacobian(
            lambda v: inner.jvp(v.reshape(self.shape)).reshape(v.shape),
            lambda u: inner.vjp(u.reshape(self.shape)).reshape(u.shape),
        )

    def jacobian(self, z: Tensor) -> Tensor:
        return columns(self.linearize(z).jvp, z)


@dataclass(frozen=True)
class LayerMap(EigenMap):
    """A layer as an eigenproblem."""

    flat: FlatLayer
    samples: int
    entries: int
    smallest: Tensor
    roundings: int | None
    norm: float | None

    @classmethod
    def of(cls, bound: BoundMap, shape: torch.Size, norm: float) -> LayerMap:
        """For states of that shape, of that norm where the layer is not homogeneous of degree 1.

        Raises:
            DomainError: the layer is normalised, does not preserve the order, or is not subhomogeneous of degree at
                most 1.
            ShapeError: the layer has no states of that shape.
        """
        defect = bound.operator.defect(shape)
        if defect:
            raise ShapeError(f"start does not fit the layer: {defect}.")
        _require(bound)
        fixed = bound.detach().to(bound.operator.coefficients()[0].device, torch.float64)
        injected = bound.inner is not None or bound.outer is not None
        activation = bound.activation
        plain = activation.name in _HOMOGENEOUS and activation.shift == 0 and activation.power == 1
        count = fixed.operator.terms() + 4 + _FUNCTION * math.ceil(max(1.0, abs(activation.power))) + _POWER
        smallest = 1.0
        for part in fixed.operator.coefficients():
            smallest *= float(part[part > 0].min()) if bool((part > 0).any()) else 1.0
        lead = shape[: len(shape) - bound.sample_dims]
        samples = math.prod(lead)
        return cls(
            FlatLayer(fixed, shape),
            samples,
            math.prod(shape) // samples,
            torch.full((samples,), smallest, dtype=torch.float64, device=fixed.operator.coefficients()[0].device),
            count if activation.function.accurate else None,
            None if plain and not injected else norm,
        )

    def __call__(self, z: Tensor) -> Tensor:
        # A root of what has lost its digits to underflow is wrong by more than underflow: there is no bracket.
        lost = self.smallest * z.amin(dim=1) < TINY
        return torch.where(lost[:, None], math.nan, self.flat(z))

    def tangent(self, z: Tensor) -> Product:
        return self.flat.linearize(z).jvp

    def rate(self) -> Tensor:
        return torch.full_like(self.smallest, self.flat.bound.activation.degree(POSITIVE).bound)


def _require(bound: BoundMap) -> None:
    if bound.normalizer is not None:
        raise DomainError("the layer is normalised already, and its eigenvalue is 1; pass one with normalize=None.")
    parts = [*bound.operator.coefficients(), *(part for part in (bound.inner, bound.outer) if part is not None)]
    if not all(bool((part >= 0).all()) and bool(part.isfinite().all()) for part in parts):
        raise DomainError("the layer's weights and injections must be nonnegative and finite: use weight='nonneg'.")
    try:
        degree = bound.activation.degree(POSITIVE)
    except DegreeError as error:
        raise DomainError(f"the activation has no degree of subhomogeneity: {error}") from error
    if not degree.order_preserving:
        raise DomainError(f"the activation {bound.activation.name!r} is not proven to be nondecreasing.")
    if degree.bound > 1:
        raise DomainError(f"the activation has degree {degree.bound:g}, above 1; lower its power.")
