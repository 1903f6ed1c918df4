"""The steps that a map of pieces is made of: what each does to a box, and to a degree proven for positive states.

Every step has positive arguments and positive values: whoever reads it from a module checks that. Degrees compose by
the rules of `subdeq_plugin.degrees.rules`; boxes are rounded outwards as in `intervals.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..activations import Activation
from ..degrees import POSITIVE, Degree
from ..degrees.rules import add_constant, compose, linear, normalized
from ..errors import DegreeError
from ..layers import Normalizer
from .intervals import Box, LinearMap, normalized_image

__all__ = ["AddStep", "LinearStep", "MaxStep", "NormStep", "PointStep", "Progress", "ReshapeStep", "ScaleStep", "Step"]

_SUBNORMAL = 2.0**-1022  # more than a product loses by gradual underflow


@dataclass(frozen=True)
class Progress:
    """What is proven of the first steps together.

    Attributes:
        degree: a strong degree over the positive states.
        box: where the value lies, for all of these states.
        last: the activation that was applied last, with the degree of its argument; None after any other step.
    """

    degree: Degree
    box: Box
    last: tuple[Activation, Degree] | None = None

    @classmethod
    def start(cls, shape: torch.Size, limit: float) -> Progress:
        """The identity on the states `0 < z <= limit`."""
        nothing = torch.zeros(shape, dtype=torch.float64)
        identity = Degree(1.0, POSITIVE, ("the state itself has degree 1",), order_preserving=True)
        return cls(identity, Box(nothing, torch.full_like(nothing, limit)))


@dataclass(frozen=True)
class Step(ABC):
    """One elementary step.

    Attributes:
        out: the shape of its value.
    """

    out: torch.Size

    @abstractmethod
    def image(self, box: Box) -> Box:
        """All values for arguments in a box of nonnegative numbers."""

    @abstractmethod
    def extend(self, progress: Progress) -> Progress:
        """What is proven with this step added.

        Raises:
            DegreeError: nothing is; the message says why.
        """


def _monotone(apply: Callable[[Box], Box], box: Box) -> Box:
    """The image of a nonnegative linear map, whose product would make NaN of zero times infinity."""
    if bool(box.hi.isfinite().all()):
        return apply(box)
    low = apply(Box.point(box.lo)).lo
    return Box(low, torch.full_like(low, torch.inf))


@dataclass(frozen=True)
class LinearStep(Step):
    """`A z` with `A >= 0`.

    Attributes:
        apply: `z -> A z` in float64.
        terms: how many products one entry sums, at most.
    """

    apply: Callable[[Tensor], Tensor]
    terms: int

    def image(self, box: Box) -> Box:
        function = LinearMap(self.apply, self.apply, True, self.terms, self.terms * _SUBNORMAL)
        return _monotone(function.image, box)

    def extend(self, progress: Progress) -> Progress:
        return Progress(compose(linear(), progress.degree), self.image(progress.box))


@dataclass(frozen=True)
class ScaleStep(Step):
    """`D z` with a nonnegative diagonal matrix that is known to lie in a box."""

    scale: Box

    def image(self, box: Box) -> Box:
        found = _monotone(lambda b: Box.outward(b.lo * self.scale.lo, b.hi * self.scale.hi), box)
        return Box(found.lo.clamp(min=0), found.hi)

    def extend(self, progress: Progress) -> Progress:
        return Progress(compose(linear(), progress.degree), self.image(progress.box))


@dataclass(frozen=True)
class AddStep(Step):
    """`z + c` with `c >= 0` in a box."""

    constant: Box

    def image(self, box: Box) -> Box:
        # Adding nothing is exact: a box of zeros must not grow below zero.
        nothing = (self.constant.lo == 0) & (self.constant.hi == 0)
        found = box + self.constant
        return Box(torch.where(nothing, box.lo, found.lo).clamp(min=0), torch.where(nothing, box.hi, found.hi))

    def extend(self, progress: Progress) -> Progress:
        least, upper = float(self.constant.lo.min()), float(progress.box.hi.max())
        degree = add_constant(progress.degree, least, upper if 0 < upper < math.inf else None)
        box = self.image(progress.box)
        if progress.last is None or progress.last[0].power != 1 or least == 0:
            return Progress(degree, box)
        # s + shift + c is an activation itself, whose degree over t > 0 falls with what is added.
        activation, inner = progress.last
        added = activation.shift + least
        if math.fsum((activation.shift, least, -added)) < 0:
            added = math.nextafter(added, -math.inf)
        try:
            shifted = Activation(activation.name, added)
            proof = shifted.degree(POSITIVE)
            if proof.domain.hi < activation.degree(POSITIVE).domain.hi:
                return Progress(degree, box)
            fused = compose(_extended(proof), inner)
        except DegreeError:
            return Progress(degree, box)
        order = degree.order_preserving or fused.order_preserving  # a constant does not change the derivative
        best = min(degree, fused, key=lambda candidate: candidate.bound)
        return Progress(replace(best, order_preserving=order), box, (shifted, inner))


@dataclass(frozen=True)
class PointStep(Step):
    """An activation, entrywise."""

    activation: Activation

    @property
    def reach(self) -> float:
        """The largest argument for which its degree is proven: infinite but for registered activations."""
        return self.activation.degree(POSITIVE).domain.hi

    def image(self, box: Box) -> Box:
        found = Box(*self.activation.enclose(box.lo, box.hi))
        return Box(found.lo.clamp(min=0), found.hi)  # it is proven positive for positive arguments

    def extend(self, progress: Progress) -> Progress:
        degree = compose(_extended(self.activation.degree(POSITIVE)), progress.degree)
        return Progress(degree, self.image(progress.box), (self.activation, progress.degree))


@dataclass(frozen=True)
class NormStep(Step):
    """Division by the p-norm of each group."""

    normalizer: Normalizer

    def image(self, box: Box) -> Box:
        if not bool(box.hi.isfinite().all()):
            return Box(torch.zeros_like(box.lo), torch.ones_like(box.hi))  # no entry exceeds the norm
        return normalized_image(self.normalizer, box)

    def extend(self, progress: Progress) -> Progress:
        return Progress(normalized(progress.degree), self.image(progress.box))


@dataclass(frozen=True)
class MaxStep(Step):
    """The maximum of some entries each: Clarke's Jacobian averages rows of the identity."""

    apply: Callable[[Tensor], Tensor]

    def image(self, box: Box) -> Box:
        return Box(self.apply(box.lo), self.apply(box.hi))

    def extend(self, progress: Progress) -> Progress:
        largest = Degree(1.0, POSITIVE, ("a maximum of entries has degree 1",), order_preserving=True)
        return Progress(compose(largest, progress.degree), self.image(progress.box))


@dataclass(frozen=True)
class ReshapeStep(Step):
    """The same entries in another shape."""

    def image(self, box: Box) -> Box:
        # Samples stay apart, so that the order of the entries is that of the memory.
        move = partial(torch.reshape, shape=self.out)
        return Box(move(box.lo), move(box.hi))

    def extend(self, progress: Progress) -> Progress:
        return replace(progress, box=self.image(progress.box))


def _extended(degree: Degree) -> Degree:
    """A degree proven in the range of a double, taken for all `t > 0`: the prover keeps the arguments there."""
    return Degree(degree.bound, POSITIVE, degree.provenance, degree.order_preserving)
