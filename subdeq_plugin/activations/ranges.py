"""Rigorous enclosures of an activation and of its slope over intervals, rounded outwards.

A function of the catalogue is nondecreasing and its slope has a single peak, so the ends of an interval and the peak
tell everything (`Shape`); torch's rounding errors are added. A registered function is enclosed once on each cell of a
partition of the real line, by ball arithmetic, and a query combines the cells that it meets: range minima by a sparse
table (M. A. Bender, M. Farach-Colton, *The LCA problem revisited*, LATIN 2000, doi:10.1007/10719839_9).

Interval arithmetic: R. E. Moore, R. B. Kearfott, M. J. Cloud, *Introduction to Interval Analysis*, SIAM 2009.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from flint import arb, ctx
from torch import Tensor

from ..degrees import Interval
from ..degrees.jets import Jet
from ..degrees.rigorous import FLOAT_RANGE, Expression, boxes, prove_slope, prove_value

if TYPE_CHECKING:
    from .base import ScalarFunction

__all__ = ["Shape", "enclose", "enclose_slope", "range_over", "slope_over"]

Bounds = tuple[Tensor, Tensor]
_Pair = tuple[float, float]
_Jets = tuple[_Pair, _Pair, _Pair, _Pair, _Pair]

_LARGEST = sys.float_info.max
_RELATIVE = 33 * 2.0**-52  # 32 units in the last place, and the rounding made in subtracting them
_ABSOLUTE = 2.0**-1000  # more than gradual underflow can take away
_THIN = 2.0**-30
_BITS = 96
_STEP = 2.0**-6  # width of the cells of a table up to _FINE; beyond it they grow, _OCTAVE to each doubling
_FINE = 16.0
_OCTAVE = 8
_REACH = 2.0**20


@dataclass(frozen=True)
class Shape:
    """What is known on paper of a nondecreasing function `s`, and of how torch computes it.

    Attributes:
        low, high: bounds of `s`, equal to its infimum and supremum or their outward roundings.
        slope_low, slope_high: the same for `s'`.
        peak: `s'` is nondecreasing before it and nonincreasing after it; may be infinite.
        zero: the value `s(0)`, where it is a double.
        error: bound of the relative error of the computed value; 0 if it is exact.
        slope_error: bound of the absolute error of the computed derivative besides its relative one; 0 if it is exact.
        identity: `s(t) = t` for `t >= 0`, computed exactly.
    """

    low: float
    high: float
    slope_low: float
    slope_high: float
    peak: float
    zero: float | None = None
    error: float = _RELATIVE
    slope_error: float = _ABSOLUTE
    identity: bool = False


def _unknown_where_nan(low: Tensor, high: Tensor) -> Bounds:
    # The sum is NaN for the bounds -inf, inf as well, which stay what they are.
    nan = (low + high).isnan()
    return low.masked_fill(nan, -math.inf), high.masked_fill(nan, math.inf)


def _plus(value: Tensor, shift: float, toward: float) -> Tensor:
    """`value + shift`, rounded towards `toward` (an infinity), and exact where the sum is a double.

    The rounding error is itself a double (D. Knuth, *The Art of Computer Programming*, volume 2, section 4.2.2).
    """
    total = value + shift
    part = total - value
    error = (value - (total - part)) + (shift - part)
    wrong = ~(error >= 0 if toward < 0 else error <= 0)  # with infinities the error is NaN: round these as well
    return torch.where(wrong, torch.nextafter(total, total.new_full((), toward)), total)


def _widen(low: Tensor, high: Tensor) -> Bounds:
    """Ends that an elementary function computed, moved outwards; an end that overflowed is brought back first."""
    low, high = low.clamp(max=_LARGEST), high.clamp(min=-_LARGEST)
    return low - (low.abs() * _RELATIVE + _ABSOLUTE), high + (high.abs() * _RELATIVE + _ABSOLUTE)


def _power(low: Tensor, high: Tensor, power: float) -> Bounds:
    """`x ** power` for `low <= x <= high`; infinite where that is not defined, or not bounded, on all of it."""
    if power == 1:
        return low, high
    first, last = low**power, high**power
    if not (power.is_integer() and power > 0):
        known = low > 0 if power < 0 else low >= 0
        below, above = _widen(*((last, first) if power < 0 else (first, last)))
        return torch.where(known, below.clamp(min=0), -math.inf), torch.where(known, above, math.inf)
    if power % 2:
        below, above = _widen(first, last)
        return torch.where(low >= 0, below.clamp(min=0), below), torch.where(high <= 0, above.clamp(max=0), above)
    below, above = _widen(torch.minimum(first, last), torch.maximum(first, last))
    return below.clamp(min=0).masked_fill((low < 0) & (high > 0), 0.0), above


def _power_less_one(low: Tensor, high: Tensor, power: float) -> Bounds:
    """`x ** (power - 1)` for `low <= x <= high`, also where `power - 1` is not a double."""
    exponent = power - 1
    if math.fsum((power, -1.0, -exponent)) == 0:
        return _power(low, high, exponent)
    below, above = (_power(low, high, math.nextafter(exponent, side)) for side in (-math.inf, math.inf))
    return torch.minimum(below[0], above[0]), torch.maximum(below[1], above[1])


def _times(first: Bounds, second: Bounds) -> Bounds:
    """The product of two intervals; an infinite end stands for unbounded finite numbers, so zero times it is zero."""
    lows, highs = [], []
    for x in first:
        for y in second:
            product = x * y
            alike = (x >= 0) == (y >= 0)
            below, above = (torch.nextafter(product, product.new_full((), side)) for side in (-math.inf, math.inf))
            below = torch.where(alike, below.clamp(min=0), below)  # rounding does not change a sign
            above = torch.where(alike, above, above.clamp(max=0))
            nothing = (x == 0) | (y == 0)
            lows.append(below.masked_fill(nothing, 0.0))
            highs.append(above.masked_fill(nothing, 0.0))
    return torch.stack(lows).amin(0), torch.stack(highs).amax(0)


def _sum(value: float, shift: float, toward: float) -> float:
    total = value + shift
    error = math.fsum((value, shift, -total)) if math.isfinite(total) else 0.0
    return math.nextafter(total, toward) if error * toward > 0 else total


def _shape_base(function: ScalarFunction, shape: Shape, shift: float, lo: Tensor, hi: Tensor) -> Bounds:
    """Bounds of `s + shift`, by monotonicity."""
    low, high = (function.value(t.clamp(-_LARGEST, _LARGEST)) for t in (lo, hi))
    # Where values are rounded anyhow, so is the sum, in the same step; exact ones are added with care.
    folded = 0.0 if shape.identity or not shape.error else shift
    if shape.error:
        slacks = [end.abs().mul_(shape.error).add_(_ABSOLUTE) for end in (low, high)]
        if shape.identity:
            slacks = [slack.mul_(t < 0) for slack, t in zip(slacks, (lo, hi), strict=True)]
        if folded:
            low, high = low + folded, high + folded
            slacks = [slack.add_(end.abs(), alpha=2.0**-51) for slack, end in zip(slacks, (low, high), strict=True)]
        low, high = low - slacks[0], high + slacks[1]
    if shape.zero is not None:
        low = torch.where(lo >= 0, low.clamp(min=_sum(shape.zero, folded, -math.inf)), low)
        high = torch.where(hi <= 0, high.clamp(max=_sum(shape.zero, folded, math.inf)), high)
    least, most = _sum(shape.low, folded, -math.inf), _sum(shape.high, folded, math.inf)
    low, high = low.clamp(least, most), high.clamp(least, most)
    # At the largest double the bounded functions have come within their rounding of the limit already.
    low = low.masked_fill(lo == -math.inf, least) if least == -math.inf else low
    high = high.masked_fill(hi == math.inf, most) if most == math.inf else high
    return (low, high) if folded == shift else (_plus(low, shift, -math.inf), _plus(high, shift, math.inf))


def _shape_slopes(function: ScalarFunction, shape: Shape, lo: Tensor, hi: Tensor) -> Bounds:
    """Bounds of Clarke's subdifferential of `s`, by the peak of `s'`.

    The ends are moved outwards by a unit in the last place at least: an end that is a kink has both its slopes
    counted.
    """
    lo, hi = (t.clamp(-_LARGEST, _LARGEST) for t in (lo, hi))
    lo = (lo - (lo.abs() * 2.0**-52 + _ABSOLUTE)).clamp(min=-_LARGEST)
    hi = (hi + (hi.abs() * 2.0**-52 + _ABSOLUTE)).clamp(max=_LARGEST)
    low = torch.minimum(function.derivative(lo), function.derivative(hi))
    top = hi if shape.peak == math.inf else torch.minimum(lo.clamp(min=shape.peak), hi)
    high = function.derivative(top)
    if shape.slope_error:
        # A slope is at most a few operations on one elementary function.
        low = low - (low.abs() * (2 * _RELATIVE) + shape.slope_error)
        high = high + (high.abs() * (2 * _RELATIVE) + shape.slope_error)
    return low.clamp(shape.slope_low, shape.slope_high), high.clamp(shape.slope_low, shape.slope_high)


def _floats(ball: arb) -> _Pair:
    if not ball.is_finite():
        return -math.inf, math.inf
    return math.nextafter(float(ball.lower()), -math.inf), math.nextafter(float(ball.upper()), math.inf)


def _middle(lo: float, hi: float) -> float:
    return min(max(lo / 2 + hi / 2, lo), hi)  # halves of denormal numbers may leave the interval


def _on_box(expression: Expression, lo: float, hi: float, shift: float) -> _Jets:
    """Bounds of `s + shift` on `[lo, hi]` and at its middle, of `s'` on it and there, and of `s''` on it."""
    ball, middle = arb(lo).union(arb(hi)), arb(_middle(lo, hi))
    wide, centre = expression(Jet.variable(ball)), expression(Jet.variable(middle))
    direct = _floats(wide.value + arb(shift))
    mean = _floats(centre.value + wide.first * (ball - middle) + arb(shift))
    value = (max(direct[0], mean[0]), min(direct[1], mean[1]))
    return value, _floats(centre.value + arb(shift)), _floats(wide.first), _floats(centre.first), _floats(wide.second)


def _thin(function: ScalarFunction, shift: float, lo: Tensor, hi: Tensor) -> tuple[Bounds, Bounds]:
    """Bounds of `s + shift` and of `s'`, each interval by itself in ball arithmetic."""
    rows = []
    with ctx.workprec(_BITS):
        for a, b in zip(lo.flatten().tolist(), hi.flatten().tolist(), strict=True):
            row = [math.inf, -math.inf, math.inf, -math.inf]
            for piece in function.pieces:
                left, right = max(a, piece.lo), min(b, piece.hi)
                if left <= right:
                    value, _, slope, _, _ = _on_box(piece.expression, left, right, shift)
                    row = [min(row[0], value[0]), max(row[1], value[1]), min(row[2], slope[0]), max(row[3], slope[1])]
            rows.append(row)
    table = torch.tensor(rows, dtype=torch.float64, device=lo.device).reshape(*lo.shape, 4)
    return (table[..., 0], table[..., 1]), (table[..., 2], table[..., 3])


def _levels(lows: Tensor) -> Tensor:
    """`(K, n)`: in row `k` the minima of `2**k` neighbours."""
    rows = [lows]
    while 2 ** len(rows) <= len(lows):
        previous, reach = rows[-1], 2 ** (len(rows) - 1)
        rows.append(torch.minimum(previous, torch.cat([previous[reach:], previous[-1:].expand(reach)])))
    return torch.stack(rows)


@dataclass(frozen=True)
class _Table:
    """Enclosures of a registered function on the cells of a partition of the real line.

    Attributes:
        edges: `(n + 1,)`, increasing, with infinite ends.
        centres: `(n,)`, the points at which Taylor's formula starts.
        value_at, slope_at, bends: `(2, n)`, bounds of `s` and `s'` at the centre of each cell, and of `s''` on it;
            those of a constant where a cell is too long for them.
        minima: `(4, K, n)`, sparse tables of the lower and of the negated upper bounds of `s` and of `s'`.
    """

    edges: Tensor
    centres: Tensor
    value_at: Tensor
    slope_at: Tensor
    bends: Tensor
    minima: Tensor

    def to(self, device: torch.device) -> _Table:
        return self if self.edges.device == device else _Table(*(part.to(device) for part in vars(self).values()))

    def _at(self, t: Tensor, cell: Tensor) -> Bounds:
        """Bounds of `s(t)`, `t` in the cell of that index, by Taylor's formula; its rounding errors are added."""
        x = t - self.centres[cell]
        tilt = [side[cell] * x for side in self.slope_at]
        bend = [side[cell] * (x * x / 2) for side in self.bends]
        ends = [side[cell] for side in self.value_at]
        size = ends[0].abs().maximum(ends[1].abs()) + tilt[0].abs().maximum(tilt[1].abs())
        slack = (size + bend[0].abs().maximum(bend[1].abs())) * 2.0**-49 + _ABSOLUTE
        low = ends[0] + torch.minimum(*tilt) + torch.minimum(*bend) - slack
        high = ends[1] + torch.maximum(*tilt) + torch.maximum(*bend) + slack
        return _unknown_where_nan(low, high)

    def query(self, lo: Tensor, hi: Tensor) -> tuple[Bounds, Bounds]:
        """Bounds of `s` and of `s'` over the intervals; cells that only touch an interval count."""
        last = len(self.edges) - 2
        i = torch.searchsorted(self.edges[1:], lo.contiguous()).clamp(max=last)
        j = (torch.searchsorted(self.edges[:-1], hi.contiguous(), right=True) - 1).clamp(0, last)
        i = torch.minimum(i, j)  # differs only for NaN and for ends in the wrong order
        level = torch.frexp((j - i + 1).double()).exponent.long() - 1
        found = torch.minimum(self.minima[:, level, i], self.minima[:, level, j - 2**level + 1])
        low, high, slopes = found[0], -found[1], (found[2], -found[3])
        (low_lo, high_lo), (low_hi, high_hi) = self._at(lo, i), self._at(hi, j)
        # Where s is monotone its ends are its extrema, sharper than whole cells.
        rising, falling = slopes[0] >= 0, slopes[1] <= 0
        low = torch.where(rising, low.maximum(low_lo), torch.where(falling, low.maximum(low_hi), low))
        high = torch.where(rising, high.minimum(high_hi), torch.where(falling, high.minimum(high_lo), high))
        nan = lo.isnan() | hi.isnan()
        return (low.masked_fill(nan, -math.inf), high.masked_fill(nan, math.inf)), slopes


@lru_cache(maxsize=64)
def _table(function: ScalarFunction) -> _Table:
    fine = [_STEP * k for k in range(int(_FINE / _STEP) + 1)]
    coarse = [_FINE * 2.0 ** (k / _OCTAVE) for k in range(1, int(_OCTAVE * math.log2(_REACH / _FINE)))]
    positive = [*fine, *coarse, _REACH, FLOAT_RANGE]
    joints = [piece.hi for piece in function.pieces]
    edges = sorted({*positive, *(-edge for edge in positive), *joints, -math.inf, math.inf})
    zero, nothing = (0.0, 0.0), (-math.inf, math.inf)
    centres: list[float] = []
    rows: list[_Jets] = []
    with ctx.workprec(_BITS):
        rest = iter(function.pieces)
        piece = next(rest)
        for lo, hi in itertools.pairwise(edges):
            while piece.hi <= lo:
                piece = next(rest)
            fine_enough = max(-lo, hi) <= _REACH
            centres.append(_middle(lo, hi) if fine_enough else 0.0)
            if fine_enough:
                rows.append(_on_box(piece.expression, lo, hi, 0.0))
            elif max(-lo, hi) > FLOAT_RANGE:
                rows.append((nothing, nothing, nothing, zero, zero))
            else:  # too long for Taylor's formula, but not for the range of a few boxes
                found = [_on_box(piece.expression, a, b, 0.0) for a, b in boxes(lo, hi)]
                value, slope = ((min(box[k][0] for box in found), max(box[k][1] for box in found)) for k in (0, 2))
                rows.append((value, value, slope, zero, zero))
    parts = torch.tensor(rows, dtype=torch.float64).permute(1, 2, 0).contiguous()
    minima = torch.stack([_levels(sign * parts[k][side]) for k in (0, 2) for side, sign in ((0, 1), (1, -1))])
    ends, middles = (torch.tensor(points, dtype=torch.float64) for points in (edges, centres))
    return _Table(ends, middles, parts[1], parts[3], parts[4], minima)


def _both(function: ScalarFunction, shift: float, lo: Tensor, hi: Tensor) -> tuple[Bounds, Bounds]:
    """Bounds of `s + shift` and of `s'` for a registered function."""
    if bool((hi - lo <= _THIN * (1 + lo.abs())).all()):
        return _thin(function, shift, lo, hi)
    (low, high), slopes = _table(function).to(lo.device).query(lo, hi)
    return (_plus(low, shift, -math.inf), _plus(high, shift, math.inf)), slopes


def _base(function: ScalarFunction, shift: float, lo: Tensor, hi: Tensor) -> Bounds:
    if function.shape is None:
        return _both(function, shift, lo, hi)[0]
    return _shape_base(function, function.shape, shift, lo, hi)


def enclose(function: ScalarFunction, shift: float, power: float, lo: Tensor, hi: Tensor) -> Bounds:
    """Bounds of `(s(t) + shift) ** power` over `lo <= t <= hi`; see `Activation.enclose`."""
    with torch.no_grad():
        return _unknown_where_nan(*_power(*_base(function, shift, lo.double(), hi.double()), power))


def enclose_slope(function: ScalarFunction, shift: float, power: float, lo: Tensor, hi: Tensor) -> Bounds:
    """Bounds of Clarke's subdifferential of `(s + shift) ** power`; see `Activation.enclose_slope`."""
    with torch.no_grad():
        lo, hi = lo.double(), hi.double()
        if function.shape is None:
            base, slopes = _both(function, shift, lo, hi)
        else:
            slopes = _shape_slopes(function, function.shape, lo, hi)
            base = _base(function, shift, lo, hi) if power != 1 else slopes
        if power != 1:
            outer = _times(_power_less_one(*base, power), (torch.full_like(lo, power),) * 2)
            slopes = _times(outer, slopes)
            undefined = (outer[0] == -math.inf) & (outer[1] == math.inf)  # zero times this is not zero
            slopes = slopes[0].masked_fill(undefined, -math.inf), slopes[1].masked_fill(undefined, math.inf)
        # A derivative of NaN need not be NaN: relu's is not.
        return _unknown_where_nan(slopes[0].masked_fill(lo.isnan() | hi.isnan(), math.nan), slopes[1])


def _of_interval(lo: float, hi: float) -> Bounds:
    return torch.tensor([lo], dtype=torch.float64), torch.tensor([hi], dtype=torch.float64)


def _numbers(bounds: Bounds) -> tuple[float, float]:
    return float(bounds[0]), float(bounds[1])


@lru_cache(maxsize=1024)
def range_over(function: ScalarFunction, shift: float, power: float, domain: Interval) -> tuple[float, float]:
    """Bounds of `(s + shift) ** power` over a domain; see `Activation.range`."""
    if function.shape is not None:
        return _numbers(enclose(function, shift, power, *_of_interval(domain.lo, domain.hi)))
    lo, hi = max(domain.lo, -FLOAT_RANGE), min(domain.hi, FLOAT_RANGE)
    if lo >= hi:
        return -math.inf, math.inf
    base = prove_value(function.pieces, shift, lo, hi, name=function.name)
    return _numbers(_unknown_where_nan(*_power(*_of_interval(*base), power)))


@lru_cache(maxsize=1024)
def slope_over(function: ScalarFunction, shift: float, power: float, domain: Interval) -> tuple[float, float]:
    """Bounds of Clarke's subdifferential of `(s + shift) ** power` over a domain; see `Activation.slope`.

    By branch and bound in the middle; the tails of a function of the catalogue by its shape. The product of the ranges
    of the factors is a bound as well, and sometimes the only one.
    """
    reach = FLOAT_RANGE if function.shape is None else _REACH
    lo, hi = max(domain.lo, -reach), min(domain.hi, reach)
    product = [-math.inf, math.inf]
    parts = []
    if function.shape is not None:
        ends = (domain.lo, domain.hi)
        product = list(_numbers(enclose_slope(function, shift, power, *_of_interval(*ends))))
        if power == 1:
            return product[0], product[1]
        tails = ((domain.lo, min(domain.hi, -reach)), (max(domain.lo, reach), domain.hi))
        parts = [
            _numbers(enclose_slope(function, shift, power, *_of_interval(*end))) for end in tails if end[0] < end[1]
        ]
    if lo < hi:
        parts.append(prove_slope(function.pieces, shift, power, lo, hi, name=function.name))
    low = min((part[0] for part in parts), default=-math.inf)
    high = max((part[1] for part in parts), default=math.inf)
    return max(low, product[0]), min(high, product[1])
