"""Second-order jets over real balls: value, first and second derivative of an expression, each rigorously enclosed.

An expression written once with these method names works on a `torch.Tensor` (to compute), and on a `Jet` of `arb`
balls (to prove). Ball arithmetic: F. Johansson, *Arb: efficient arbitrary-precision midpoint-radius interval
arithmetic*, IEEE Transactions on Computers 66 (2017), doi:10.1109/TC.2017.2690633.
"""

from __future__ import annotations

from dataclasses import dataclass

from flint import arb

__all__ = ["Jet"]

_Number = int | float


def _ball(value: Jet | _Number) -> Jet:
    return value if isinstance(value, Jet) else Jet(arb(value), arb(0), arb(0))


def _sech_squared(x: arb) -> arb:
    """`sech(x)**2`, by its monotonicity in `|x|`: on wide balls `1 / cosh**2` would enclose nothing."""
    return x.abs_upper().sech().union(x.abs_lower().sech()) ** 2


def _exp(x: arb) -> arb:
    """`exp(x)`, by its monotonicity: tight on wide balls."""
    return x.lower().exp().union(x.upper().exp())


def _softplus(x: arb) -> arb:
    """`log(1 + exp(x))` of a thin ball, written so that neither sign overflows."""
    magnitude = abs(x)
    return (x + magnitude) / 2 + (-magnitude).exp().log1p()


@dataclass(frozen=True)
class Jet:
    """`value`, `first` and `second` enclose `f(t)`, `f'(t)` and `f''(t)` for every `t` of one ball."""

    value: arb
    first: arb
    second: arb

    @classmethod
    def variable(cls, ball: arb) -> Jet:
        """The identity function on `ball`."""
        return cls(ball, arb(1), arb(0))

    def _chain(self, value: arb, first: arb, second: arb) -> Jet:
        """`g(self)`, given `g`, `g'` and `g''` on the ball `self.value`."""
        return Jet(value, first * self.first, second * self.first * self.first + first * self.second)

    def __add__(self, other: Jet | _Number) -> Jet:
        o = _ball(other)
        return Jet(self.value + o.value, self.first + o.first, self.second + o.second)

    __radd__ = __add__

    def __neg__(self) -> Jet:
        return Jet(-self.value, -self.first, -self.second)

    def __sub__(self, other: Jet | _Number) -> Jet:
        return self + (-_ball(other))

    def __rsub__(self, other: _Number) -> Jet:
        return _ball(other) - self

    def __mul__(self, other: Jet | _Number) -> Jet:
        o = _ball(other)
        return Jet(
            self.value * o.value,
            self.first * o.value + self.value * o.first,
            self.second * o.value + 2 * self.first * o.first + self.value * o.second,
        )

    __rmul__ = __mul__

    def reciprocal(self) -> Jet:
        inverse = 1 / self.value
        return self._chain(inverse, -inverse * inverse, 2 * inverse * inverse * inverse)

    def __truediv__(self, other: Jet | _Number) -> Jet:
        return self * _ball(other).reciprocal()

    def __rtruediv__(self, other: _Number) -> Jet:
        return _ball(other) * self.reciprocal()

    def __pow__(self, exponent: _Number) -> Jet:
        p = arb(exponent)
        if isinstance(exponent, int) and exponent >= 2:
            lower = self.value ** (exponent - 2)
            return self._chain(lower * self.value * self.value, p * lower * self.value, p * (p - 1) * lower)
        return self._chain(self.value**p, p * self.value ** (p - 1), p * (p - 1) * self.value ** (p - 2))

    def square(self) -> Jet:
        return self * self

    def exp(self) -> Jet:
        e = _exp(self.value)
        return self._chain(e, e, e)

    def expm1(self) -> Jet:
        e = _exp(self.value)
        return self._chain(self.value.expm1(), e, e)

    def log(self) -> Jet:
        inverse = 1 / self.value
        return self._chain(self.value.log(), inverse, -inverse * inverse)

    def log1p(self) -> Jet:
        inverse = 1 / (1 + self.value)
        return self._chain(self.value.log1p(), inverse, -inverse * inverse)

    def sqrt(self) -> Jet:
        root = self.value.sqrt()
        return self._chain(root, 1 / (2 * root), -1 / (4 * root * self.value))

    def sin(self) -> Jet:
        sine, cosine = self.value.sin_cos()
        return self._chain(sine, cosine, -sine)

    def cos(self) -> Jet:
        sine, cosine = self.value.sin_cos()
        return self._chain(cosine, -sine, -cosine)

    def tanh(self) -> Jet:
        value, slope = self.value.tanh(), _sech_squared(self.value)
        return self._chain(value, slope, -2 * value * slope)

    def sigmoid(self) -> Jet:
        half = self.value / 2
        value, slope = (1 + half.tanh()) / 2, _sech_squared(half) / 4
        return self._chain(value, slope, -slope * half.tanh())

    def softplus(self) -> Jet:
        half = self.value / 2
        value = _softplus(self.value.lower()).union(_softplus(self.value.upper()))
        return self._chain(value, (1 + half.tanh()) / 2, _sech_squared(half) / 4)

    def atan(self) -> Jet:
        slope = 1 / (1 + self.value * self.value)
        return self._chain(self.value.atan(), slope, -2 * self.value * slope * slope)

    arctan = atan

    def erf(self) -> Jet:
        slope = 2 / arb.const_sqrt_pi() * _exp(-(self.value * self.value))
        return self._chain(self.value.erf(), slope, -2 * self.value * slope)
