"""The value that every proof in this package passes on: a proven subhomogeneity degree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import DegreeError

__all__ = ["POSITIVE", "REALS", "Degree", "Interval"]


@dataclass(frozen=True)
class Interval:
    """The real interval from `lo` to `hi`; an infinite or zero end is open, any other end is closed."""

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if math.isnan(self.lo) or math.isnan(self.hi) or self.lo >= self.hi:
            raise DegreeError(f"an interval needs lo < hi, got lo={self.lo!r}, hi={self.hi!r}.")

    def __contains__(self, other: Interval) -> bool:
        return self.lo <= other.lo and other.hi <= self.hi

    def __and__(self, other: Interval) -> Interval:
        return Interval(max(self.lo, other.lo), min(self.hi, other.hi))

    def __str__(self) -> str:
        if self == REALS:
            return "all real t"
        if self == POSITIVE:
            return "t > 0"
        return f"{self.lo:.6g} <= t <= {self.hi:.6g}"


REALS = Interval(-math.inf, math.inf)
POSITIVE = Interval(0.0, math.inf)


@dataclass(frozen=True)
class Degree:
    """A strong subhomogeneity degree: `F(z) > 0` and `|M| z <= bound * F(z)` for every `M` in Clarke's Jacobian.

    Definition: Sittoni and Tudisco, *Subhomogeneous Deep Equilibrium Models*, ICML 2024 (arXiv:2403.00720), in its
    strong form, in which the absolute value stands on `M` itself. On a log-convex domain such an `F` is
    `bound`-Lipschitz in Thompson's metric.

    Attributes:
        bound: an upper bound of the degree, rounded up; never an estimate.
        domain: the arguments for which it holds.
        provenance: the steps of the proof, in order.
        order_preserving: whether `M >= 0` was proven as well.
    """

    bound: float
    domain: Interval = POSITIVE
    provenance: tuple[str, ...] = ()
    order_preserving: bool = False

    def __post_init__(self) -> None:
        if not (self.bound >= 0 and math.isfinite(self.bound)):
            raise DegreeError(f"a degree's bound must be finite and nonnegative, got {self.bound!r}.")

    def __str__(self) -> str:
        kind = "order-preserving, " if self.order_preserving else ""
        return f"degree <= {self.bound:.8g} ({kind}{self.domain})"
