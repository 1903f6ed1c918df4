"""The activations that come with the package.

A new one is one entry here: its value and derivative on tensors, its smooth pieces for the proofs, and, where it has
them, the lemmas named in `ScalarFunction`. Every entry is put through `tests/contracts/test_activation_contract.py`.

Lemmas used below. `T >= 64` throughout and `c` is the shift.

- *Bounded and increasing.* `|t| s'(t)` decreases in `|t|` beyond `T`, so on the right it is at most `T s'(T)` while
  `s + c >= s(T) + c`; on the left it is at most `T s'(-T)` while `s + c > inf s + c`.
- *Concave.* For `t > 0`, `s` concave and `s(0) >= 0` give `t s'(t) <= s(t) - s(0) <= s(t)`.
- *Softplus.* It is convex, but `t sigmoid(t) <= t <= softplus(t)`.

Lemmas on shapes and concavity. All these `s` are nondecreasing, so that their ranges end at their limits.

- *Odd and smooth* (tanh, softsign, arctan, erf). `s'` is even and decreases in `|t|`: `sech(t)**2`, `(1 + |t|)**-2`,
  `1 / (1 + t**2)`, `2 exp(-t**2) / sqrt(pi)`. Its peak is at 0, and `s` is concave on `t >= 0` with `s(0) = 0`.
- *Sigmoid.* `1/2 + tanh(t/2) / 2`, so the peak of its slope is `1/4` at 0; `s(0) = 1/2`.
- *Convex* (softplus, relu, leaky_relu, elu). `s'` is nondecreasing: the sigmoid; 0 then 1; 0.01 then 1; `exp(t)` then
  1. Its peak is at infinity. But for softplus they are the identity on `t >= 0`, hence concave there.
- *Clipped* (relu6, hardtanh). `s'` is 1 on one interval and 0 outside. On `t >= 0` they are `min(t, 6)` and
  `min(t, 1)`.

Errors of the derivatives: `s (1 - s)` loses up to `2 * 32` units of 1 by cancellation, and four times that stays below
the bound given for `tanh`; in `exp(-t**2)` the rounding of `t**2` weighs `t**2 exp(-t**2) 2**-53 < 2**-53`.

In place, `tanh(t)` is `2 sigmoid(2 t) - 1`: torch's sigmoid is several times faster on a CPU, and wrong by no more than
a few units of 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from flint import arb
from torch import Tensor

from ..degrees import Piece
from ..degrees.jets import Jet
from ..degrees.rigorous import Expression, Tail
from .base import InPlace, ScalarFunction, store
from .ranges import Shape

__all__: list[str] = []

_INF = math.inf
_UNBOUNDED = arb.pos_inf()
_HALF_PI = math.nextafter(math.pi / 2, _INF)
_TWO_OVER_ROOT_PI = math.nextafter(2 / math.sqrt(math.pi), 2.0)
_CANCELLATION = 2.0**-45


def _over(numerator: arb, denominator: arb) -> arb:
    return numerator / denominator if denominator > 0 else _UNBOUNDED


def _right(expression: Expression) -> Tail:
    """Tail lemma of a bounded increasing function, on the right."""

    def tail(edge: arb, shift: arb) -> arb:
        at = expression(Jet.variable(edge))
        return _over(edge * at.first, at.value + shift)

    return tail


def _left(expression: Expression, infimum: arb) -> Tail:
    """Tail lemma of a bounded increasing function with the given infimum, on the left."""

    def tail(edge: arb, shift: arb) -> arb:
        return _over(edge * expression(Jet.variable(-edge)).first, infimum + shift)

    return tail


def _linear_tail(edge: arb, shift: arb) -> arb:
    """`s(t) = t` beyond the edge: `t / (t + c)` is at most 1 for `c >= 0`, and decreases towards 1 for `c < 0`."""
    return arb(1) if shift >= 0 else _over(edge, edge + shift)


def _flat(level: float) -> Tail:
    """`s` is constant beyond the edge."""
    return lambda edge, shift: _over(arb(0), level + shift)


def _identity(t: Jet) -> Jet:
    return t


def _constant(level: float) -> Expression:
    return lambda t: 0 * t + level


def _bounded_smooth(expression: Expression, infimum: arb) -> tuple[Piece, ...]:
    return (
        Piece(-_INF, 0.0, expression, _left(expression, infimum)),
        Piece(0.0, _INF, expression, _right(expression)),
    )


def _tanh_slope(t: Tensor) -> Tensor:
    """`4 s(2 t) (1 - s(2 t))` for the sigmoid `s`; on the left of 0 nothing cancels, and it is even."""
    s = torch.sigmoid(-2 * t.abs())
    return 4 * s * (1 - s)


store(
    ScalarFunction(
        "tanh",
        torch.tanh,
        _tanh_slope,
        _bounded_smooth(lambda t: t.tanh(), arb(-1)),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(-1.0, 1.0, 0.0, 1.0, peak=0.0, zero=0.0, slope_error=_CANCELLATION),
        in_place=InPlace(torch.sigmoid_, stretch=2.0, scale=2.0, offset=-1.0, error=2.0),
    )
)


def _sigmoid_slope(t: Tensor) -> Tensor:
    s = torch.sigmoid(t)
    return s * (1 - s)


store(
    ScalarFunction(
        "sigmoid",
        torch.sigmoid,
        _sigmoid_slope,
        _bounded_smooth(lambda t: t.sigmoid(), arb(0)),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(0.0, 1.0, 0.0, 0.25, peak=0.0, zero=0.5, slope_error=_CANCELLATION),
        in_place=InPlace(torch.sigmoid_),
    )
)


def _softplus_right(edge: arb, shift: arb) -> arb:
    """`t sigmoid(t) / (softplus(t) + c) <= t / (t + c)`."""
    return _linear_tail(edge, shift)


store(
    ScalarFunction(
        "softplus",
        # torch's default threshold of 20 replaces softplus(t) by t too early: a relative error of 1e-10 at t = 20.
        lambda t: F.softplus(t, threshold=40.0),
        torch.sigmoid,
        (
            Piece(-_INF, 0.0, lambda t: t.softplus(), _left(lambda t: t.softplus(), arb(0))),
            Piece(0.0, _INF, lambda t: t.softplus(), _softplus_right),
        ),
        concave_like=True,
        nondecreasing=True,
        shape=Shape(0.0, _INF, 0.0, 1.0, peak=_INF),
    )
)

_softsign_left: Expression = lambda t: t / (1 - t)  # noqa: E731
_softsign_right: Expression = lambda t: t / (1 + t)  # noqa: E731
store(
    ScalarFunction(
        "softsign",
        F.softsign,
        lambda t: (1 + t.abs()) ** -2,
        (
            Piece(-_INF, 0.0, _softsign_left, _left(_softsign_left, arb(-1))),
            Piece(0.0, _INF, _softsign_right, _right(_softsign_right)),
        ),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(-1.0, 1.0, 0.0, 1.0, peak=0.0, zero=0.0),
    )
)

store(
    ScalarFunction(
        "arctan",
        torch.atan,
        lambda t: 1 / (1 + t**2),
        _bounded_smooth(lambda t: t.atan(), -arb.pi() / 2),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(-_HALF_PI, _HALF_PI, 0.0, 1.0, peak=0.0, zero=0.0),
        in_place=InPlace(torch.atan_),
    )
)

store(
    ScalarFunction(
        "erf",
        torch.erf,
        lambda t: 2 / math.sqrt(math.pi) * torch.exp(-(t**2)),
        _bounded_smooth(lambda t: t.erf(), arb(-1)),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(-1.0, 1.0, 0.0, _TWO_OVER_ROOT_PI, peak=0.0, zero=0.0, slope_error=_CANCELLATION),
        in_place=InPlace(torch.erf_),
    )
)

store(
    ScalarFunction(
        "relu",
        torch.relu,
        lambda t: (t > 0).to(t.dtype),
        (Piece(-_INF, 0.0, _constant(0.0), _flat(0.0)), Piece(0.0, _INF, _identity, _linear_tail)),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(0.0, _INF, 0.0, 1.0, peak=_INF, zero=0.0, error=0.0, slope_error=0.0),
        in_place=InPlace(torch.relu_),
    )
)

_SLOPE = 0.01
store(
    ScalarFunction(
        "leaky_relu",
        lambda t: F.leaky_relu(t, _SLOPE),
        lambda t: torch.where(t > 0, torch.ones_like(t), torch.full_like(t, _SLOPE)),
        (
            Piece(-_INF, 0.0, lambda t: _SLOPE * t, lambda edge, shift: _UNBOUNDED),
            Piece(0.0, _INF, _identity, _linear_tail),
        ),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(-_INF, _INF, _SLOPE, 1.0, peak=_INF, zero=0.0, slope_error=0.0, identity=True),
        in_place=InPlace(lambda t: F.leaky_relu_(t, _SLOPE)),
    )
)

store(
    ScalarFunction(
        "relu6",
        F.relu6,
        lambda t: ((t > 0) & (t < 6)).to(t.dtype),
        (
            Piece(-_INF, 0.0, _constant(0.0), _flat(0.0)),
            Piece(0.0, 6.0, _identity),
            Piece(6.0, _INF, _constant(6.0), _flat(6.0)),
        ),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(0.0, 6.0, 0.0, 1.0, peak=3.0, zero=0.0, error=0.0, slope_error=0.0),
        in_place=InPlace(lambda t: t.clamp_(0.0, 6.0)),
    )
)

store(
    ScalarFunction(
        "hardtanh",
        F.hardtanh,
        lambda t: (t.abs() < 1).to(t.dtype),
        (
            Piece(-_INF, -1.0, _constant(-1.0), _flat(-1.0)),
            Piece(-1.0, 1.0, _identity),
            Piece(1.0, _INF, _constant(1.0), _flat(1.0)),
        ),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(-1.0, 1.0, 0.0, 1.0, peak=0.0, zero=0.0, error=0.0, slope_error=0.0),
        in_place=InPlace(lambda t: t.clamp_(-1.0, 1.0)),
    )
)

_elu_left: Expression = lambda t: t.expm1()  # noqa: E731
store(
    ScalarFunction(
        "elu",
        F.elu,
        lambda t: torch.where(t > 0, torch.ones_like(t), torch.exp(t.clamp(max=0))),
        (Piece(-_INF, 0.0, _elu_left, _left(_elu_left, arb(-1))), Piece(0.0, _INF, _identity, _linear_tail)),
        concave_like=True,
        nondecreasing=True,
        concave=True,
        shape=Shape(-1.0, _INF, 0.0, 1.0, peak=_INF, zero=0.0, identity=True),
        in_place=InPlace(F.elu_),
    )
)
