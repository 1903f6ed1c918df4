"""Proofs of `sup |t s'(t)| / (s(t) + shift)`, and of other bounds on a scalar function, by interval branch and bound.

Nothing here samples: every number returned is an upper bound that ball arithmetic has proven for all real arguments
of the domain, and every refusal says where the proof breaks.

Method: best-first branch and bound (E. Hansen, G. W. Walster, *Global Optimization Using Interval Analysis*, 2004)
with the mean-value form, which makes the overestimation quadratic in the width of a box.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flint import arb, ctx

from ..errors import DegreeError
from .degree import Interval
from .jets import Jet

__all__ = ["FLOAT_RANGE", "Piece", "ScalarProof", "boxes", "enclose_range", "prove_ratio", "prove_slope", "prove_value"]

# Without a lemma for the tail, a proof covers what a double can hold: 2**-1022 to 2**1022 and their negatives.
FLOAT_RANGE = 2.0**1022
_SMALLEST = 2.0**-1022
_CENTRE = 2.0**6  # beyond it the boxes double in size
_TAIL = 2.0**20  # where the lemmas for tails take over
_BITS = 96
_MAX_BOXES = 10_000
_MAX_SLOPE_BOXES = 300  # an infinite slope is usually seen at once, and often asked for in vain

Expression = Callable[[Jet], Jet]
# tail(T, shift) bounds |t s'(t)| / (s(t) + shift) over all |t| >= T on its side, T >= 64.
Tail = Callable[[arb, arb], arb]
# From a ball and the jet of `s + shift` on it: enclosures of the quantity to be bounded and of its derivative.
_Quantity = Callable[[arb, Jet], tuple[arb, arb]]


@dataclass(frozen=True)
class Piece:
    """A smooth piece of a scalar function.

    Attributes:
        lo, hi: its ends, possibly infinite.
        expression: the function on this piece, written for `Jet` (and, with the same method names, for tensors).
        tail: for a piece that reaches infinity, a bound proven on paper; None leaves the tail outside the proof.
    """

    lo: float
    hi: float
    expression: Expression
    tail: Tail | None = None


@dataclass(frozen=True)
class ScalarProof:
    """`bound` holds for every `t` of `domain`; `nondecreasing` was proven on it too."""

    bound: float
    domain: Interval
    nondecreasing: bool


def _ball(lo: float, hi: float) -> arb:
    return arb(lo).union(arb(hi))


def _up(value: arb) -> float:
    """A float that is not below any number in the ball."""
    upper = float(value.upper())
    return math.nextafter(upper, math.inf) if math.isfinite(upper) else math.inf


@dataclass(frozen=True)
class _Goal:
    """What is bounded from above: a quantity, or its magnitude, with or without `s + shift > 0` as a hypothesis."""

    quantity: _Quantity
    magnitude: bool = False
    positive: bool = False

    def of(self, value: arb) -> arb:
        return abs(value) if self.magnitude else value


@dataclass(frozen=True)
class _Box:
    """What interval arithmetic says of a goal on `[lo, hi]`."""

    upper: float
    positive: bool
    nonpositive: bool
    increasing: bool


def _degree(t: arb, base: Jet) -> tuple[arb, arb]:
    """`t s' / (s + shift)`."""
    ratio = t * base.first / base.value
    return ratio, (base.first + t * base.second) / base.value - ratio * base.first / base.value


def _log_slope(t: arb, base: Jet) -> tuple[arb, arb]:
    """`s' / (s + shift)`."""
    ratio = base.first / base.value
    return ratio, base.second / base.value - ratio * ratio


def _value(sign: int) -> _Quantity:
    """`+-(s + shift)`."""
    return lambda t, base: (sign * base.value, sign * base.first)


def _slope(sign: int, power: float) -> _Quantity:
    """`+-` the derivative of `(s + shift) ** power`."""

    def quantity(t: arb, base: Jet) -> tuple[arb, arb]:
        if power == 1:
            return sign * base.first, sign * base.second
        p = arb(power)
        outer = sign * p * base.value ** (p - 1)
        bend = sign * p * (p - 1) * base.value ** (p - 2)
        return outer * base.first, bend * base.first * base.first + outer * base.second

    return quantity


def _on(expression: Expression, ball: arb, shift: arb) -> Jet:
    """`s + shift` on `ball`."""
    s = expression(Jet.variable(ball))
    return Jet(s.value + shift, s.first, s.second)


def _examine(goal: _Goal, expression: Expression, lo: float, hi: float, shift: arb) -> _Box:
    ball = _ball(lo, hi)
    base = _on(expression, ball, shift)
    direct, slope = goal.quantity(ball, base)
    middle = arb(lo / 2 + hi / 2)
    centre = goal.quantity(middle, _on(expression, middle, shift))[0] + slope * (ball - middle)
    return _Box(
        upper=min(_up(goal.of(direct)), _up(goal.of(centre))),
        positive=bool(base.value > 0),
        nonpositive=bool(base.value <= 0),
        increasing=bool(base.first >= 0),
    )


def boxes(lo: float, hi: float) -> list[tuple[float, float]]:
    """Cover `[lo, hi]` by boxes whose size grows with their distance from zero."""
    marks = {lo, hi, 0.0, -1.0, 1.0, -_CENTRE, _CENTRE}
    scale = 2 * _CENTRE
    while scale <= FLOAT_RANGE:
        marks.update((scale, -scale))
        scale *= 2
    scale = _CENTRE / 2  # powers of two inside as well: one wide box would hide that a function increases
    while scale >= 2.0**-20:
        marks.update((scale, -scale))
        scale /= 2
    ends = sorted(mark for mark in marks if lo <= mark <= hi)
    return list(itertools.pairwise(ends))


def _prove_piece(
    goal: _Goal,
    piece: Piece,
    lo: float,
    hi: float,
    shift: float,
    name: str,
    gap: float,
    ceiling: float,
    most: int = _MAX_BOXES,
) -> tuple[float, bool]:
    """Upper bound of the goal on the bounded interval `[lo, hi]` of one piece, and whether `s' >= 0` there."""
    offset = arb(shift)
    increasing = True
    best = -math.inf  # a value the goal is known to attain, up to rounding: only steers the search
    heap: list[tuple[float, float, float]] = []
    count = 0

    def push(a: float, b: float) -> None:
        nonlocal best, increasing
        box = _examine(goal, piece.expression, a, b, offset)
        middle = arb(a / 2 + b / 2)
        base = _on(piece.expression, middle, offset)
        if goal.positive and (box.nonpositive or base.value <= 0):
            raise DegreeError(
                f"{name} with shift={shift!r} is not positive at t = {float(middle):.6g}; raise the shift."
            )
        sample = float(goal.of(goal.quantity(middle, base)[0]).lower())
        if math.isfinite(sample):
            best = max(best, sample)
        if not box.increasing:
            increasing = False
        heapq.heappush(heap, (-box.upper if box.positive or not goal.positive else -math.inf, a, b))

    for a, b in boxes(lo, hi):
        push(a, b)
    while heap and -heap[0][0] > best + gap * max(1.0, abs(best)):
        if best >= ceiling - gap and math.isfinite(heap[0][0]):
            return ceiling, increasing
        upper, a, b = heapq.heappop(heap)
        middle = a / 2 + b / 2
        count += 1
        if not a < middle < b or count > most or b - a < _SMALLEST:
            if math.isfinite(upper):
                return -upper, increasing  # not sharp to `gap`, but proven all the same
            raise DegreeError(
                f"{name} with shift={shift!r}: no finite bound could be proven near t = {middle:.6g}. "
                "Where s(t) + shift reaches zero, a larger shift gives a proof."
            )
        push(a, middle)
        push(middle, b)
    return -heap[0][0], increasing


def prove_ratio(
    pieces: Sequence[Piece],
    shift: float,
    domain: Interval,
    *,
    name: str,
    gap: float = 1e-9,
    ceiling: float = math.inf,
    weighted: bool = True,
) -> ScalarProof:
    """Prove an upper bound of `|t s'(t)| / (s(t) + shift)` over `domain`; of `|s'(t)| / (s(t) + shift)` unweighted.

    Args:
        pieces: the function `s`, smooth on each piece; together they cover `domain`.
        shift: the constant added to `s`.
        domain: the arguments `t`.
        name: of `s`, for messages.
        gap: how far, relatively, the bound may lie above the supremum.
        ceiling: a bound already proven on paper; the search ends once it comes within `gap` of it.
        weighted: whether the factor `|t|` is there. Without it a tail lemma for `|t| >= T` is divided by `T`.

    Returns:
        The bound, rounded up, with the domain it was proven on: the one asked for, cut to the range of a double
        (`FLOAT_RANGE`) where a piece reaches infinity and brings no lemma for its tail.

    Raises:
        DegreeError: `s + shift` is not positive somewhere, or the ratio is unbounded or could not be enclosed.
    """
    goal = _Goal(_degree if weighted else _log_slope, magnitude=True, positive=True)
    ratio = "|t s'(t)| / (s(t) + shift)" if weighted else "|s'(t)| / (s(t) + shift)"
    bound, increasing = 0.0, True
    reach_lo, reach_hi = domain.lo, domain.hi
    with ctx.workprec(_BITS):
        for piece in pieces:
            lo, hi = max(piece.lo, domain.lo), min(piece.hi, domain.hi)
            if lo >= hi:
                continue
            limit = _TAIL if piece.tail is not None else FLOAT_RANGE
            if math.isinf(lo):
                if piece.tail is None:
                    reach_lo = -limit
                lo = -limit
            if math.isinf(hi):
                if piece.tail is None:
                    reach_hi = limit
                hi = limit
            for side in (piece.lo, piece.hi):
                if piece.tail is not None and math.isinf(side) and side in (domain.lo, domain.hi):
                    tail = piece.tail(arb(_TAIL), arb(shift))
                    if not tail.is_finite():
                        raise DegreeError(
                            f"{name} with shift={shift!r}: {ratio} is unbounded, or s + shift is "
                            f"not positive, as t -> {side}; raise the shift, or use nonnegative weights."
                        )
                    bound = max(bound, _up(tail if weighted else tail / arb(_TAIL)))
            if lo < hi:
                piece_bound, piece_increasing = _prove_piece(goal, piece, lo, hi, shift, name, gap, ceiling)
                bound = max(bound, piece_bound)
                increasing = increasing and piece_increasing
    return ScalarProof(bound, Interval(reach_lo, reach_hi), increasing)


def _prove_both(
    goals: Sequence[_Goal],
    pieces: Sequence[Piece],
    shift: float,
    lo: float,
    hi: float,
    name: str,
    gap: float,
    most: int = _MAX_BOXES,
) -> tuple[float, float]:
    """Bounds of a quantity over the bounded interval `[lo, hi]`, from the goals of its negative and of itself."""
    bounds = [-math.inf, -math.inf]
    with ctx.workprec(_BITS):
        for side, goal in enumerate(goals):
            for piece in pieces:
                a, b = max(piece.lo, lo), min(piece.hi, hi)
                if a < b:
                    try:
                        upper = _prove_piece(goal, piece, a, b, shift, name, gap, math.inf, most)[0]
                    except DegreeError:
                        upper = math.inf
                    bounds[side] = max(bounds[side], upper)
    return -bounds[0], bounds[1]


def prove_value(pieces: Sequence[Piece], shift: float, lo: float, hi: float, *, name: str) -> tuple[float, float]:
    """Bounds of `s(t) + shift` over the bounded interval `[lo, hi]`, sharp to 1e-9; infinite where not provable."""
    return _prove_both((_Goal(_value(-1)), _Goal(_value(1))), pieces, shift, lo, hi, name, 1e-9)


def prove_slope(
    pieces: Sequence[Piece], shift: float, power: float, lo: float, hi: float, *, name: str
) -> tuple[float, float]:
    """Bounds of Clarke's subdifferential of `(s + shift) ** power` over the bounded interval `[lo, hi]`.

    They are sharp to 4e-6, and infinite where not provable. At a joint of two pieces both one-sided slopes count,
    and they span the subdifferential.
    """
    positive = not (power.is_integer() and power > 0)
    goals = tuple(_Goal(_slope(sign, power), positive=positive) for sign in (-1, 1))
    return _prove_both(goals, pieces, shift, lo, hi, name, 4e-6, _MAX_SLOPE_BOXES)


def enclose_range(pieces: Sequence[Piece], shift: float, lo: float, hi: float) -> tuple[float, float]:
    """Bounds `(low, high)` of `s(t) + shift` over the bounded interval `[lo, hi]`, rounded outwards."""
    low, high = math.inf, -math.inf
    with ctx.workprec(_BITS):
        for piece in pieces:
            a, b = max(piece.lo, lo), min(piece.hi, hi)
            for left, right in boxes(a, b) if a < b else ():
                value = piece.expression(Jet.variable(_ball(left, right))).value + arb(shift)
                if not value.is_finite():
                    return -math.inf, math.inf
                low = min(low, math.nextafter(float(value.lower()), -math.inf))
                high = max(high, _up(value))
    return low, high
