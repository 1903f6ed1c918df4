"""What an activation is: a scalar function, a shift, a power, and the degrees proven for them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from flint import arb, ctx
from torch import Tensor

from ..degrees import POSITIVE, REALS, Degree, Interval, Piece, enclose_range, prove_ratio
from ..degrees.jets import Jet
from ..degrees.rules import power as power_rule
from ..errors import DegreeError, DomainError, OptionError, unknown_name
from .ranges import Shape, enclose, enclose_slope, range_over, slope_over

__all__ = ["TINY", "Activation", "InPlace", "ScalarFunction", "activation_names", "lookup", "store"]


@dataclass(frozen=True)
class InPlace:
    """`s(t) = scale * g(stretch * t) + offset` with a `g` that overwrites its argument: for the inside of a solve.

    Attributes:
        apply: `g`; overwrites a tensor and returns it.
        stretch, scale, offset: powers of two, or small integers, so that they are exact.
        error: a bound of the absolute rounding error beyond that of `s` itself, in rounding units; 0 for the same
            function in another form of call.
    """

    apply: Callable[[Tensor], Tensor]
    stretch: float = 1.0
    scale: float = 1.0
    offset: float = 0.0
    error: float = 0.0


@dataclass(frozen=True)
class ScalarFunction:
    """A locally Lipschitz scalar function `s`, applied entrywise.

    Attributes:
        name: how users ask for it.
        value: `s` on tensors of any shape.
        derivative: `s'` on tensors; at a kink, any element of Clarke's subdifferential.
        pieces: `s` again, as smooth pieces that interval arithmetic can enclose.
        concave_like: a lemma, proven in the docstring of the function's definition: `s >= 0` and `t s'(t) <= s(t)`
            for `t > 0`. It makes `mu_+ <= 1` for every shift >= 0, attained or not.
        nondecreasing: a lemma as well; where False, the proof itself may still find it out.
        accurate: whether `value` is accurate to 32 units in the last place in float64, as torch's own functions are;
            where False, error bounds evaluate the pieces in ball arithmetic instead.
        concave: a lemma: `s` is concave, nondecreasing and nonnegative on `t >= 0`.
        shape: lemmas on the range of `s` and of `s'`, for a nondecreasing `s` whose slope has a single peak; without
            them enclosures evaluate the pieces in ball arithmetic.
        in_place: a form that overwrites its argument, where that is faster than `value`.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    pieces: tuple[Piece, ...]
    concave_like: bool = False
    nondecreasing: bool = False
    accurate: bool = True
    concave: bool = False
    shape: Shape | None = None
    in_place: InPlace | None = None

    @property
    def overwriting(self) -> InPlace:
        """`in_place`, or the same by a copy."""
        return self.in_place or InPlace(lambda t: t.copy_(self.value(t)))


_DOUBLE_BITS = 54  # accuracy that leaves the nearest double one rounding away

_REGISTRY: dict[str, ScalarFunction] = {}
_LARGEST = sys.float_info.max
# Below this a float64 has lost, or is about to lose, relative accuracy to gradual underflow.
TINY = 2.0**-900


def store(function: ScalarFunction) -> ScalarFunction:
    """Add a scalar function under its name; a name is never overwritten.

    Raises:
        OptionError: the name is taken, or is not an identifier.
    """
    if not isinstance(function.name, str) or not function.name.isidentifier():
        raise OptionError(f"an activation's name must be an identifier, got {function.name!r}.")
    if function.name in _REGISTRY:
        raise OptionError(f"activation {function.name!r} is already registered; choose another name.")
    _REGISTRY[function.name] = function
    return function


def lookup(name: str) -> ScalarFunction:
    """The scalar function called `name`.

    Raises:
        OptionError: there is none; the message names the nearest one.
    """
    if name not in _REGISTRY:
        raise unknown_name("activation", name, _REGISTRY)
    return _REGISTRY[name]


def activation_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTRY))


@lru_cache(maxsize=1024)
def _shifted_degree(function: ScalarFunction, shift: float, domain: Interval) -> Degree:
    """The degree of `s + shift` on `domain`, by proof or by lemma."""
    what = f"{function.name}(t) + {shift:.8g}"
    lemma = function.concave_like and shift >= 0 and domain in POSITIVE
    at_most_one = Degree(1.0, domain, (f"{what}: t s'(t) <= s(t) for t > 0, so degree 1",), function.nondecreasing)
    if lemma and shift == 0 and float(function.value(torch.zeros(()))) == 0:
        return at_most_one  # the ratio is 0/0 at the origin: interval arithmetic cannot improve on the lemma
    try:
        proof = prove_ratio(function.pieces, shift, domain, name=function.name, ceiling=1.0 if lemma else math.inf)
    except DegreeError:
        if not lemma:
            raise
        return at_most_one  # a shift so small that boxes cannot separate it from zero
    if lemma and proof.bound >= 1:
        return at_most_one
    return Degree(
        proof.bound,
        proof.domain,
        (f"{what}: |t s'(t)| / (s(t) + shift) <= {proof.bound:.10g} for {proof.domain}, by interval arithmetic",),
        function.nondecreasing or proof.nondecreasing,
    )


@lru_cache(maxsize=1024)
def _log_slope(function: ScalarFunction, shift: float, domain: Interval) -> float:
    """The proven bound of `|s'(t)| / (s(t) + shift)`, infinite where there is none."""
    try:
        return prove_ratio(function.pieces, shift, domain, name=function.name, weighted=False).bound
    except DegreeError:
        return math.inf


@dataclass(frozen=True)
class Activation:
    """`t -> (s(t) + shift) ** power`, entrywise, with `s` one of the registered scalar functions.

    Args:
        name: of the scalar function; see `activation_names()`.
        shift: added to it; must make it positive where the layer uses it.
        power: nonzero exponent.

    Raises:
        OptionError: unknown name, or a shift or power that is not finite, or power 0.

    The shift and the power are the two ways in which the paper (Sittoni and Tudisco, ICML 2024, section 5) makes an
    activation subhomogeneous of a small degree.
    """

    name: str
    shift: float = 0.0
    power: float = 1.0
    function: ScalarFunction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", lookup(self.name))
        for option in ("shift", "power"):
            number = getattr(self, option)
            if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _LARGEST:
                raise OptionError(f"{option} must be a finite number, got {number!r}.")
            object.__setattr__(self, option, float(number))
        if self.power == 0:
            raise OptionError("power must not be 0: the layer would not depend on its state.")

    def __call__(self, t: Tensor) -> Tensor:
        """The activation of `t`, any shape and floating dtype."""
        base = self.function.value(t)
        if self.shift != 0:
            base = base + self.shift
        return base if self.power == 1 else base**self.power

    def derivative(self, t: Tensor) -> Tensor:
        """Its derivative at `t`, the same shape; at a kink, an element of Clarke's subdifferential."""
        slope = self.function.derivative(t)
        if self.power == 1:
            return slope
        base = self.function.value(t) + self.shift
        return self.power * base ** (self.power - 1) * slope

    def degree(self, domain: Interval = POSITIVE) -> Degree:
        """The proven bound of `sup |t a'(t)| / a(t)` over `domain`, for this activation `a`.

        Over `POSITIVE` it is `mu_+`, the constant for nonnegative weights; over `REALS` it is `mu_R`.

        Raises:
            DegreeError: the activation is not positive on the domain, or its degree is unbounded or not provable.
        """
        degree = _shifted_degree(self.function, self.shift, domain)
        return degree if self.power == 1 else power_rule(degree, self.power)

    @property
    def mu_plus(self) -> float:
        """`mu_+`: the proven degree over `t > 0`, rounded up; infinite where none is proven."""
        return self._bound_over(POSITIVE)

    @property
    def mu_R(self) -> float:
        """`mu_R`: the proven degree over all real `t`, rounded up; infinite where none is proven."""
        return self._bound_over(REALS)

    def _bound_over(self, domain: Interval) -> float:
        try:
            return self.degree(domain).bound
        except DegreeError:
            return math.inf

    @property
    def concave(self) -> bool:
        """Whether this activation is proven concave, nondecreasing and nonnegative on `t >= 0`.

        `x ** power` is concave and nondecreasing for `0 < power <= 1`, and keeps that of `s + shift`.
        """
        return self.function.concave and self.shift >= 0 and 0 < self.power <= 1

    def enclose(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the activation over the intervals `lo <= t <= hi`, entrywise and rounded outwards.

        Args:
            lo, hi: float64 of equal shape, `lo <= hi`; infinite ends are limits.

        Returns:
            Lower and upper bounds, float64 of the same shape; `-inf` and `inf` where nothing is known, as for NaN.
            For functions of the catalogue they are sharp to a few units in the last place, if torch's elementary
            functions are accurate to 32. For registered ones they are sharp if all the intervals are thin, with
            `hi - lo <= 2**-30 (1 + |lo|)`, and otherwise come from a table; beyond `FLOAT_RANGE` nothing is known.
        """
        return enclose(self.function, self.shift, self.power, lo, hi)

    def enclose_slope(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of every element of Clarke's subdifferential over `lo <= t <= hi`; arguments as in `enclose`.

        The intervals are closed: at a kink both one-sided slopes count.
        """
        return enclose_slope(self.function, self.shift, self.power, lo, hi)

    def range(self, domain: Interval = REALS) -> tuple[float, float]:
        """Proven bounds of the activation over a domain, either may be infinite.

        Those of a registered function hold for arguments in the range of a double, `|t| <= FLOAT_RANGE`.
        """
        return range_over(self.function, self.shift, self.power, domain)

    def slope(self, domain: Interval = REALS) -> tuple[float, float]:
        """Proven bounds of Clarke's subdifferential over a domain, infinite where not provable; see `range`."""
        return slope_over(self.function, self.shift, self.power, domain)

    def log_slope(self, domain: Interval = REALS) -> float:
        """The proven `sup |a'(t)| / a(t)` over a domain, rounded up; infinite where not provable; see `range`."""
        bound = _log_slope(self.function, self.shift, domain)
        return bound if abs(self.power) == 1 else math.nextafter(abs(self.power) * bound, math.inf)

    def supremum(self, edge: float) -> float:
        """An upper bound of the activation over `0 < t <= edge`, for `edge >= 1`; infinite where none was found.

        Up to 1 by enclosure; beyond it by the degree: `|ln a(t) - ln a(1)| <= mu ln t`.
        """
        low, high = enclose_range(self.function.pieces, self.shift, 0.0, 1.0)
        mu = self.degree().bound
        if not 0 < low <= high < math.inf or mu >= 1:
            return math.inf
        try:
            return max(low**self.power, high**self.power) * edge**mu * (1 + 1e-9)
        except OverflowError:
            return math.inf

    def reference(self, t: Tensor) -> Tensor:
        """The activation of a float64 tensor, with `s` accurate to 32 units in the last place; NaN where it is not.

        For a registered function it is `s + shift`, whose sum may cancel, that is enclosed to double precision.
        """
        if self.function.accurate:
            return self(t)
        with ctx.workprec(96):
            values = [self._enclosed(at) for at in t.flatten().tolist()]
        base = torch.tensor(values, dtype=t.dtype).reshape(t.shape)
        return torch.where(base.abs() >= TINY, base, torch.nan) ** self.power

    def _enclosed(self, at: float) -> float:
        for piece in self.function.pieces:
            if at <= piece.hi:
                ball = piece.expression(Jet.variable(arb(at))).value + arb(self.shift)
                return float(ball.mid()) if ball.rel_accuracy_bits() >= _DOUBLE_BITS else math.nan
        return math.nan

    def __reduce__(self) -> tuple[type[Activation], tuple[str, float, float]]:
        # By name: the functions themselves cannot be pickled, and need not be.
        return Activation, (self.name, self.shift, self.power)

    def require_positive(self, domain: Interval = POSITIVE) -> None:
        """Refuse an activation that is not positive on `domain`.

        Raises:
            DomainError: with the argument at which it fails.
        """
        if self.function.concave_like and self.shift >= 0 and domain in POSITIVE:
            return
        try:
            _shifted_degree(self.function, self.shift, domain)
        except DegreeError as error:
            raise DomainError(
                f"shift={self.shift!r} leaves activation {self.name!r} without a proof that it is positive for "
                f"{domain}: {error}"
            ) from error
