"""A bound map on boxes: outward-rounded interval arithmetic in float64, batched.

Every function returns a box that contains the exact image of every point of its argument. Sums of products carry the
standard bound `gamma_k = k u / (1 - k u)` (N. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., SIAM
2002, section 3.1), boxes of mixed signs are propagated by midpoint and radius (S. M. Rump, *Verification methods*, Acta
Numerica 19, 2010, section 10, doi:10.1017/S096249291000005X). Elementary functions are taken to be accurate to
`ELEMENTARY_UNITS`, and subnormal numbers not to be flushed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..degrees import REALS
from ..layers import BoundMap, Normalizer
from ..layers.operators import GraphOperator, Operator
from .verified import UNIT
from .verified import gamma as roundings

__all__ = [
    "ELEMENTARY_UNITS",
    "UNIT",
    "Box",
    "IntervalMap",
    "LinearMap",
    "gamma",
    "norm_bounds",
    "normalized_image",
    "nudge",
]

ELEMENTARY_UNITS = 64  # an elementary function of torch is taken to be accurate to 32 ulp, 64 times `UNIT`
_SUBNORMAL = 2.0**-1022  # more than a product loses by gradual underflow
_FEW_SUBNORMALS = 2.0**-1060  # more than the rounding of a handful of subnormal results


def gamma(terms: int) -> float:
    """Relative error bound of a sum of `terms` products, with room for a handful of roundings in using it."""
    return roundings(terms + 4)


def nudge(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """One float outwards: makes up for one rounding of each bound."""
    return torch.nextafter(lo, torch.full_like(lo, -torch.inf)), torch.nextafter(hi, torch.full_like(hi, torch.inf))


@dataclass(frozen=True)
class Box:
    """All states between `lo` and `hi`, entry by entry: float64, in the state's shape."""

    lo: Tensor
    hi: Tensor

    @classmethod
    def point(cls, z: Tensor) -> Box:
        """The box that holds `z` alone."""
        return cls(z, z)

    @classmethod
    def outward(cls, lo: Tensor, hi: Tensor) -> Box:
        """One float wider than the bounds computed; nothing known where one of them is NaN."""
        lo, hi = nudge(lo, hi)
        lost = lo.isnan() | hi.isnan()
        return cls(torch.where(lost, -torch.inf, lo), torch.where(lost, torch.inf, hi))

    def __and__(self, other: Box) -> Box:
        return Box(torch.maximum(self.lo, other.lo), torch.minimum(self.hi, other.hi))

    def __add__(self, other: Box) -> Box:
        return Box.outward(self.lo + other.lo, self.hi + other.hi)

    def clamp(self, z: Tensor) -> Tensor:
        """The point of the box nearest to `z`; NaN stays NaN."""
        return torch.minimum(torch.maximum(z, self.lo), self.hi)

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value in each entry."""
        return torch.maximum(self.lo.abs(), self.hi.abs())

    def rows(self, kept: Tensor, sample_dims: int) -> Box:
        """The samples with the given numbers, as one leading dimension."""
        shape = (-1, *self.lo.shape[self.lo.dim() - sample_dims :])
        return Box(self.lo.reshape(shape)[kept], self.hi.reshape(shape)[kept])


@dataclass(frozen=True)
class LinearMap:
    """A linear map with what is needed to enclose its products: itself, its absolute value, and its rounding.

    Attributes:
        apply: `z -> A z` in floating point.
        absolute: `z -> |A| z` in floating point.
        nonnegative: whether `A >= 0`.
        terms: how many products one entry sums, at most.
        loss: what gradual underflow can cost one entry.
    """

    apply: Callable[[Tensor], Tensor]
    absolute: Callable[[Tensor], Tensor]
    nonnegative: bool
    terms: int
    loss: float

    @classmethod
    def of(cls, operator: Operator, absolute: Operator) -> LinearMap:
        """The operator itself."""
        return cls(operator, absolute, operator.nonnegative, operator.terms(), _underflow(operator, operator.terms()))

    @classmethod
    def transposed(cls, operator: Operator, absolute: Operator, terms: int) -> LinearMap:
        """The transpose; `terms` bounds the products in one of its rows."""
        loss = _underflow(operator, terms)
        return cls(operator.transpose, absolute.transpose, operator.nonnegative, terms, loss)

    def image(self, box: Box) -> Box:
        """`A z` for all `z` of the box."""
        slack = gamma(self.terms)
        if self.nonnegative and bool((box.lo >= 0).all()):
            low = self.apply(box.lo)
            # A sum, or the first stage of one, that overflows on its way says nothing of what it would have been.
            lo = torch.where(low.isfinite(), (low * (1 - slack) - self.loss).clamp(min=0), 0.0)
            return Box.outward(lo, self.apply(box.hi) * (1 + slack) + self.loss)
        middle = box.lo / 2 + box.hi / 2
        radius = torch.maximum(box.hi - middle, middle - box.lo) * (1 + 2 * UNIT)
        spread = self.absolute(radius + slack * middle.abs()) * (1 + slack) + 2 * self.loss
        centre = self.apply(middle)
        centre = torch.where(centre.isfinite(), centre, torch.nan)  # overflow on the way: nothing is known
        return Box.outward(centre - spread, centre + spread)


def _underflow(operator: Operator, terms: int) -> float:
    # A graph's product goes through two stages: the second magnifies what the first has lost.
    weight = operator.weight if isinstance(operator, GraphOperator) else None
    return terms * _SUBNORMAL * (1.0 if weight is None else 1.0 + float(weight.abs().sum()))


def norm_bounds(normalizer: Normalizer, box: Box) -> Box:
    """Bounds of `phi(F)` for all `F >= 0` of a box, with the grouped dimensions kept at size 1."""
    lo = _norm_of(normalizer, box.lo.clamp(min=0), -1.0)
    return Box(torch.where(lo > 2.0**-900, lo, 0.0), _norm_of(normalizer, box.hi, 1.0))


def _norm_of(normalizer: Normalizer, value: Tensor, side: float) -> Tensor:
    top = value.amax(dim=normalizer.dims, keepdim=True)
    if math.isinf(normalizer.p):
        return top
    # The largest entry is scaled to 1: no power overflows, and one that underflows does not matter beside it.
    slack = 4 * (normalizer.group_size(value.shape) + 4 * ELEMENTARY_UNITS + 2 * normalizer.p + 8) * UNIT
    total = ((value / top) ** normalizer.p).sum(dim=normalizer.dims, keepdim=True)
    return torch.where(top > 0, top * total ** (1 / normalizer.p) * (1 + side * slack), 0.0)


def normalized_image(normalizer: Normalizer, box: Box) -> Box:
    """`F / phi(F)` for all `F` of a box: an entry grows with its own numerator and shrinks with every other one."""
    dims = normalizer.dims
    lo, hi = box.lo.clamp(min=0), box.hi
    top = hi.amax(dim=dims, keepdim=True)
    if math.isinf(normalizer.p):
        first = hi == top
        alone = first & (first.sum(dim=dims, keepdim=True) == 1)
        second = torch.where(first, 0.0, hi).amax(dim=dims, keepdim=True)
        below = lo / torch.maximum(lo, torch.where(alone, second, top))
        above = hi / torch.maximum(hi, lo.amax(dim=dims, keepdim=True))
    else:
        p = normalizer.p
        slack = 4 * (normalizer.group_size(hi.shape) + 4 * ELEMENTARY_UNITS + 2 * p + 8) * UNIT
        # The largest entry is scaled to 1, so that no power overflows and each sum is at least its largest term.
        low, high = lo / top, hi / top
        low_power = low**p
        gap = (high**p - low_power).clamp(min=0)
        smallest = low_power.sum(dim=dims, keepdim=True)
        largest = (high**p).sum(dim=dims, keepdim=True)
        below = low / (largest * (1 + slack) - gap) ** (1 / p) * (1 - slack)
        # A power that underflows is missed by at most the absolute term.
        least = ((smallest + gap) * (1 - slack) - 2.0**-1000).clamp(min=0)
        above = torch.where(least > 0, high / least ** (1 / p) * (1 + slack), 1.0)
    bounds = Box.outward(below - _FEW_SUBNORMALS, above + _FEW_SUBNORMALS)
    known = Box(bounds.lo.clamp(min=0), bounds.hi.clamp(max=1))
    sensible = (box.lo >= 0).all(dim=dims, keepdim=True) & hi.isfinite().all(dim=dims, keepdim=True)
    return Box(torch.where(sensible, known.lo, -torch.inf), torch.where(sensible, known.hi, torch.inf))


@dataclass(frozen=True)
class IntervalMap:
    """A `BoundMap` in float64 on the CPU, with injections known to lie in boxes.

    Attributes:
        bound: the map; its own injections lie in the boxes.
        inner, outer: where the exact injections lie.
    """

    bound: BoundMap
    inner: Box | None
    outer: Box | None
    _absolute: Operator = field(repr=False, compare=False, default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self._absolute is None:
            object.__setattr__(self, "_absolute", self.bound.operator.absolute())

    @classmethod
    def of(cls, bound: BoundMap, injected: Box | None = None) -> IntervalMap:
        """The map that a bound map's own tensors define, or one whose injection is only known to lie in a box."""
        exact = bound.detach().to("cpu", torch.float64)
        inner, outer = (None if part is None else injected or Box.point(part) for part in (exact.inner, exact.outer))
        return cls(exact, inner, outer)

    @cached_property
    def nonnegative(self) -> bool:
        """Whether the linear part is nonnegative."""
        return self.bound.operator.nonnegative

    @cached_property
    def sliced(self) -> bool:
        """Whether theorem B applies in Hilbert's metric: one norm over the state, and an order-preserving map."""
        normalizer, activation = self.bound.normalizer, self.bound.activation
        return (
            normalizer is not None and normalizer.whole_state and self.nonnegative and activation.slope(REALS)[0] >= 0
        )

    @property
    def ratio_metric(self) -> str:
        """The metric of theorems A and B for this map."""
        return "hilbert" if self.sliced else "thompson"

    @cached_property
    def linear(self) -> LinearMap:
        """The linear part on boxes."""
        return LinearMap.of(self.bound.operator, self._absolute)

    @property
    def absolute(self) -> Operator:
        """`|A|`."""
        return self._absolute

    @property
    def shape(self) -> torch.Size:
        """The shape of a state."""
        shape = self.bound.state_shape
        assert shape is not None
        return shape

    @property
    def samples(self) -> int:
        """How many samples a state has."""
        return math.prod(self.shape[: len(self.shape) - self.bound.sample_dims])

    def rows(self, kept: Tensor) -> IntervalMap:
        """The map of the samples with the given numbers."""
        dims = self.bound.sample_dims
        boxes = [None if box is None else box.rows(kept, dims) for box in (self.inner, self.outer)]

        def part(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.reshape(-1, *value.shape[value.dim() - dims :])[kept]

        bound = replace(self.bound, inner=part(self.bound.inner), outer=part(self.bound.outer))
        return IntervalMap(bound, boxes[0], boxes[1], self._absolute)

    def flat(self, value: Tensor) -> Tensor:
        """A state, or anything of its shape, as `(B, N)`."""
        return value.reshape(-1, value.shape[value.dim() - self.bound.sample_dims :].numel())

    def spread(self, v: Tensor) -> Tensor:
        """`|A| v` for `v (B, N)`, in floating point."""
        return self.flat(self.absolute(v.reshape(self.shape)))

    def argument(self, box: Box) -> Box:
        """What the activation is applied to."""
        t = self.linear.image(box)
        return t if self.inner is None else t + self.inner

    def activated(self, t: Box) -> Box:
        """The map before normalisation, from the activation's arguments."""
        value = Box(*self.bound.activation.enclose(t.lo, t.hi))
        return value if self.outer is None else value + self.outer

    def normalized(self, value: Box) -> Box:
        """The map after normalisation."""
        return value if self.bound.normalizer is None else normalized_image(self.bound.normalizer, value)

    def image(self, box: Box) -> Box:
        """`f(z)` for all `z` of the box."""
        return self.normalized(self.activated(self.argument(box)))
