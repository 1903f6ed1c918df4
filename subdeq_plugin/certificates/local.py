"""What is known of a map on one box: its image, its slopes, and bounds of its Jacobian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .intervals import Box, IntervalMap, gamma, norm_bounds

__all__ = ["Local"]


@dataclass(frozen=True)
class Local:
    """`f(z) = N(a(A z + b) + c)` on a box, with every Clarke Jacobian `diag(a') A` of the unnormalised part bounded.

    Attributes:
        function: the map.
        box: the states.
        argument: the activation's arguments.
        value: the map before normalisation.
    """

    function: IntervalMap
    box: Box
    argument: Box
    value: Box

    @classmethod
    def at(cls, function: IntervalMap, box: Box) -> Local:
        """Evaluate the map on the box."""
        argument = function.argument(box)
        return cls(function, box, argument, function.activated(argument))

    @cached_property
    def image(self) -> Box:
        """The map on the box."""
        return self.function.normalized(self.value)

    @cached_property
    def slopes(self) -> Box:
        """Bounds of every element of the activation's Clarke derivative."""
        return Box(*self.function.bound.activation.enclose_slope(self.argument.lo, self.argument.hi))

    @cached_property
    def degree(self) -> Tensor:
        """A strong subhomogeneity degree on the box, for each sample: `(B,)`, infinite where the box is not positive.

        `|M| z <= sup |a'| |A| hi` and `F >= lo(F)`.
        """
        function = self.function
        slack = 1 + gamma(function.bound.operator.terms() + 4)
        top = self.slopes.magnitude * function.absolute(self.box.hi) * slack * slack
        ratio = function.flat(top / self.value.lo) * slack
        positive = function.flat((self.value.lo > 0) & (self.box.lo >= 0) & (self.box.hi > 0)).all(dim=1)
        # A product that underflows loses its relative accuracy; such slopes count for nothing else than a refusal.
        degree = ratio.amax(dim=1) + 2.0**-900
        return torch.where(positive & ~degree.isnan(), degree, torch.inf)

    @property
    def rates(self) -> Tensor:
        """The factor of one step on the box in `function.ratio_metric`, by theorem A or B: `(B,)`."""
        degree = self.degree
        return degree if self.function.bound.normalizer is None or self.function.sliced else 2 * degree

    def majorant(self, v: Tensor) -> Tensor:
        """`|J| v` at most, for `v (B, N) >= 0` and every Jacobian `J` of the map on the box; in floating point."""
        function = self.function
        product = function.flat(self.slopes.magnitude) * function.spread(v)
        normalizer = function.bound.normalizer
        if normalizer is None:
            return product
        # dG = (dF - G <w, dF>) / phi with w = G^(p-1), or a point of the simplex over the largest entries.
        grouped = product.reshape(self.value.lo.shape)
        if math.isinf(normalizer.p):
            candidates = self.value.hi >= self.value.lo.amax(dim=normalizer.dims, keepdim=True)
            inner = torch.where(candidates, grouped, 0.0).amax(dim=normalizer.dims, keepdim=True)
        else:
            inner = (self.image.hi ** (normalizer.p - 1) * grouped).sum(dim=normalizer.dims, keepdim=True)
        phi = norm_bounds(normalizer, self.value).lo
        return function.flat((grouped + self.image.hi * inner) / phi)

    @property
    def terms(self) -> int:
        """How many roundings the majorant's entries carry, at most."""
        normalizer = self.function.bound.normalizer
        size = 0 if normalizer is None else 2 * normalizer.group_size(self.value.lo.shape) + 200
        return self.function.bound.operator.terms() + size + 8
