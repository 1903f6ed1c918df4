"""Jets against mpmath: value, first and second derivative, at points and over balls."""

from __future__ import annotations

import mpmath as mp
import pytest
from flint import arb, ctx

from subdeq_plugin.degrees.jets import Jet

EXPRESSIONS = {
    "add": (lambda t: 2 + t + t, lambda t: 2 + 2 * t),
    "subtract": (lambda t: 3 - t - 1, lambda t: 2 - t),
    "multiply": (lambda t: t * t * 0.5, lambda t: t * t / 2),
    "divide": (lambda t: 1 / (2 + t * t) + t / 4, lambda t: 1 / (2 + t * t) + t / 4),
    "negate": (lambda t: -t * t, lambda t: -t * t),
    "integer power": (lambda t: t**3, lambda t: t**3),
    "square": (lambda t: t.square(), lambda t: t * t),
    "real power": (lambda t: (t * t + 1) ** 0.75, lambda t: (t * t + 1) ** mp.mpf(0.75)),
    "negative power": (lambda t: (t * t + 1) ** -2, lambda t: (t * t + 1) ** -2),
    "reciprocal": (lambda t: (2 + t * t).reciprocal(), lambda t: 1 / (2 + t * t)),
    "exp": (lambda t: t.exp(), mp.exp),
    "expm1": (lambda t: t.expm1(), mp.expm1),
    "log": (lambda t: (t * t + 1).log(), lambda t: mp.log(t * t + 1)),
    "log1p": (lambda t: (t * t).log1p(), lambda t: mp.log1p(t * t)),
    "sqrt": (lambda t: (t * t + 1).sqrt(), lambda t: mp.sqrt(t * t + 1)),
    "sin": (lambda t: t.sin(), mp.sin),
    "cos": (lambda t: t.cos(), mp.cos),
    "tanh": (lambda t: t.tanh(), mp.tanh),
    "sigmoid": (lambda t: t.sigmoid(), lambda t: 1 / (1 + mp.exp(-t))),
    "softplus": (lambda t: t.softplus(), lambda t: mp.log1p(mp.exp(t))),
    "atan": (lambda t: t.atan(), mp.atan),
    "arctan": (lambda t: t.arctan(), mp.atan),
    "erf": (lambda t: t.erf(), mp.erf),
    "nested": (lambda t: (t * t.sigmoid() + 1).tanh() / (2 + t.cos()), None),
}
POINTS = (-3.7, -1.0, -0.25, 0.5, 1.0, 2.75, 8.5)


def _nested(t):
    return mp.tanh(t / (1 + mp.exp(-t)) + 1) / (2 + mp.cos(t))


@pytest.fixture(autouse=True)
def _precision():
    with ctx.workprec(96), mp.workdps(40):
        yield


def _close(ball: arb, exact: mp.mpf) -> bool:
    assert float(ball.rad()) <= 1e-20 * max(1.0, abs(float(exact)))
    return abs(mp.mpf(ball.mid().str(35, radius=False)) - exact) <= mp.mpf("1e-18") * max(1, abs(exact))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_derivatives_at_points(name):
    expression, exact = EXPRESSIONS[name]
    exact = exact or _nested
    for point in POINTS:
        jet = expression(Jet.variable(arb(point)))
        t = mp.mpf(point)
        assert _close(jet.value, exact(t)), point
        assert _close(jet.first, mp.diff(exact, t, 1)), point
        assert _close(jet.second, mp.diff(exact, t, 2)), point


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize(("lo", "hi"), [(-2.0, 1.5), (0.0, 0.125), (1.0, 4.0), (-40.0, -3.0)])
def test_balls_enclose_every_point(name, lo, hi):
    expression = EXPRESSIONS[name][0]
    whole = expression(Jet.variable(arb(lo).union(arb(hi))))
    for step in range(33):
        at = expression(Jet.variable(arb(lo + (hi - lo) * step / 32)))
        for wide, narrow in ((whole.value, at.value), (whole.first, at.first), (whole.second, at.second)):
            assert wide.overlaps(narrow)
            if wide.is_finite():
                assert wide.contains(narrow.mid())


def test_tight_enclosures_far_from_zero():
    for name in ("tanh", "sigmoid", "softplus", "erf", "atan"):
        jet = EXPRESSIONS[name][0](Jet.variable(arb(2.0**40).union(arb(2.0**41))))
        assert jet.value.is_finite() and jet.first.is_finite() and jet.second.is_finite()
        assert float(jet.first.abs_upper()) <= 1.0 + 1e-9


def test_operations_without_a_rule_fail_loudly():
    t = Jet.variable(arb(1.0))
    for call in (lambda: abs(t), lambda: 2**t, lambda: max(t, 0), lambda: t.relu()):
        with pytest.raises((TypeError, AttributeError, ValueError)):
            call()
