"""The activations once more, from their definitions: in float64 on arrays, and in ball arithmetic.

All of them are nondecreasing, which the enclosures at kinks use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flint import arb
from scipy import special

from .specs import Array

__all__ = ["SCALARS", "Scalar"]

Balls = Callable[[arb], arb]


@dataclass(frozen=True)
class Scalar:
    """`s` and `s'` on arrays and on balls; `kinks` with the argument's pieces between them.

    Attributes:
        value: on arrays.
        slope: on arrays; at a kink any one-sided value.
        pieces: on balls, `(s, s')` for each stretch between kinks.
        kinks: where one piece ends, increasing.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    pieces: tuple[tuple[Balls, Balls], ...]
    kinks: tuple[float, ...] = ()

    def enclose(self, t: arb) -> tuple[arb, arb]:
        """`s` and Clarke's subdifferential of it over the ball `t`."""
        found: tuple[arb, arb] | None = None
        for index, (value, slope) in enumerate(self.pieces):
            part = t
            if index > 0:
                if t < self.kinks[index - 1]:
                    continue
                if not t > self.kinks[index - 1]:
                    part = _clip(part, self.kinks[index - 1], below=True)
            if index < len(self.kinks):
                if t > self.kinks[index]:
                    continue
                if not t < self.kinks[index]:
                    part = _clip(part, self.kinks[index], below=False)
            here = value(part), slope(part)
            found = here if found is None else (found[0].union(here[0]), found[1].union(here[1]))
        assert found is not None
        return found


def _clip(t: arb, edge: float, *, below: bool) -> arb:
    """A ball that contains the part of `t` above (`below=True`) or under the edge, and the edge."""
    at = arb(edge)
    return at.union(t.upper() if below else t.lower())


def _logistic(t: arb) -> arb:
    return 1 / (1 + (-t).exp()) if t > 0 else 1 - 1 / (1 + t.exp()) if not t < 0 else t.exp() / (1 + t.exp())


def _softplus(t: arb) -> arb:
    return t + (-t).exp().log1p() if t > 0 else t.exp().log1p()


def _smooth(value: Balls, slope: Balls) -> tuple[tuple[Balls, Balls], ...]:
    return ((value, slope),)


def _level(number: float) -> tuple[Balls, Balls]:
    return (lambda t: arb(number), lambda t: arb(0))


_LINE: tuple[Balls, Balls] = (lambda t: t, lambda t: arb(1))
_LEAK = 0.01


def _ball_softsign(t: arb) -> arb:
    return t / (1 + abs(t))


SCALARS: dict[str, Scalar] = {
    "tanh": Scalar(
        np.tanh, lambda t: np.cosh(np.clip(t, -350, 350)) ** -2.0, _smooth(arb.tanh, lambda t: t.sech() ** 2)
    ),
    "sigmoid": Scalar(
        special.expit,
        lambda t: special.expit(t) * special.expit(-t),
        _smooth(_logistic, lambda t: _logistic(t) * _logistic(-t)),
    ),
    "softplus": Scalar(lambda t: np.logaddexp(0, t), special.expit, _smooth(_softplus, _logistic)),
    "softsign": Scalar(
        lambda t: t / (1 + np.abs(t)),
        lambda t: (1 + np.abs(t)) ** -2.0,
        _smooth(_ball_softsign, lambda t: 1 / (1 + abs(t)) ** 2),
    ),
    "arctan": Scalar(np.arctan, lambda t: 1 / (1 + t * t), _smooth(arb.atan, lambda t: 1 / (1 + t * t))),
    "erf": Scalar(
        special.erf,
        lambda t: 2 / np.sqrt(np.pi) * np.exp(-(t * t)),
        _smooth(arb.erf, lambda t: 2 / arb.pi().sqrt() * (-(t * t)).exp()),
    ),
    "relu": Scalar(lambda t: np.maximum(t, 0), lambda t: (t > 0) * 1.0, (_level(0.0), _LINE), (0.0,)),
    "leaky_relu": Scalar(
        lambda t: np.where(t > 0, t, _LEAK * t),
        lambda t: np.where(t > 0, 1.0, _LEAK),
        ((lambda t: arb(_LEAK) * t, lambda t: arb(_LEAK)), _LINE),
        (0.0,),
    ),
    "relu6": Scalar(
        lambda t: np.clip(t, 0, 6),
        lambda t: ((t > 0) & (t < 6)) * 1.0,
        (_level(0.0), _LINE, _level(6.0)),
        (0.0, 6.0),
    ),
    "hardtanh": Scalar(
        lambda t: np.clip(t, -1, 1),
        lambda t: (np.abs(t) < 1) * 1.0,
        (_level(-1.0), _LINE, _level(1.0)),
        (-1.0, 1.0),
    ),
    "elu": Scalar(
        lambda t: np.where(t > 0, t, np.expm1(np.minimum(t, 0))),
        lambda t: np.exp(np.minimum(t, 0)),
        ((arb.expm1, arb.exp), _LINE),
        (0.0,),
    ),
}
