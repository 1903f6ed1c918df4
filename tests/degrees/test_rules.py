"""The calculus of degrees: exact rounding, hypotheses, and the rules themselves on random maps."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subdeq_plugin.degrees import POSITIVE, REALS, Degree, Interval, rules
from subdeq_plugin.errors import DegreeError

SETTINGS = settings(deadline=None, max_examples=200, derandomize=True)
BOUNDS = st.floats(0, 1e6, allow_nan=False)


def degree(bound: float, order: bool = True, domain: Interval = POSITIVE) -> Degree:
    return Degree(bound, domain, ("given",), order)


def smallest_float_above(value: Fraction) -> float:
    got = float(value)
    while Fraction(got) < value:
        got = math.nextafter(got, math.inf)
    while Fraction(math.nextafter(got, -math.inf)) >= value:
        got = math.nextafter(got, -math.inf)
    return got


@SETTINGS
@given(st.fractions())
def test_round_up_is_the_smallest_float_not_below(value):
    assert rules.round_up(value) == smallest_float_above(value)


def test_round_up_of_tiny_and_huge_numbers():
    assert rules.round_up(Fraction(1, 10**400)) == 5e-324
    assert rules.round_up(Fraction(10) ** 400) == math.inf
    assert rules.round_up(Fraction(0)) == 0.0
    assert rules.round_up(-(Fraction(10) ** 400)) < -1e308


@SETTINGS
@given(BOUNDS, BOUNDS)
def test_composition_and_product_round_up_exactly(a, b):
    exact = Fraction(a) * Fraction(b)
    assert rules.compose(degree(a), degree(b)).bound == smallest_float_above(exact)
    assert rules.multiply(degree(a), degree(b)).bound == smallest_float_above(Fraction(a) + Fraction(b))


@SETTINGS
@given(BOUNDS, st.floats(-100, 100, allow_nan=False))
def test_power_and_normalisation_round_up_exactly(a, p):
    assert rules.power(degree(a), p).bound == smallest_float_above(abs(Fraction(p)) * Fraction(a))
    assert rules.normalized(degree(a)).bound == smallest_float_above(2 * Fraction(a))


@SETTINGS
@given(BOUNDS, st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_adding_a_constant_rounds_up_exactly(a, constant, upper):
    got = rules.add_constant(degree(a), constant, upper).bound
    assert got == smallest_float_above(Fraction(a) * Fraction(upper) / (Fraction(upper) + Fraction(constant)))
    assert rules.add_constant(degree(a), constant).bound == a


@SETTINGS
@given(BOUNDS, BOUNDS)
def test_sum_maximum_and_minimum_take_the_larger(a, b):
    for rule in (rules.add, rules.maximum, rules.minimum):
        assert rule(degree(a), degree(b)).bound == max(a, b)


def test_order_is_tracked():
    up, down = degree(0.5), degree(0.5, order=False)
    for rule in (rules.compose, rules.add, rules.multiply, rules.maximum, rules.minimum):
        assert rule(up, up).order_preserving
        assert not rule(up, down).order_preserving and not rule(down, up).order_preserving
    assert rules.power(up, 2).order_preserving
    assert not rules.power(up, -2).order_preserving and not rules.power(up, 0).order_preserving
    assert not rules.normalized(up).order_preserving
    assert rules.linear().order_preserving and rules.linear().bound == 1
    assert rules.pnorm(3).order_preserving and rules.pnorm(math.inf).bound == 1


def test_domains_intersect_and_provenance_accumulates():
    wide, narrow = degree(0.5, domain=REALS), degree(0.25, domain=Interval(1.0, 9.0))
    assert rules.add(wide, narrow).domain == Interval(1.0, 9.0)
    assert rules.compose(wide, narrow).domain == Interval(1.0, 9.0)
    assert len(rules.add(wide, narrow).provenance) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: rules.compose(degree(0.5, domain=Interval(1.0, 2.0)), degree(1.0)),
        lambda: rules.add(degree(1.0, domain=Interval(1.0, 2.0)), degree(1.0, domain=Interval(3.0, 4.0))),
        lambda: rules.add_constant(degree(0.5), -1e-30),
        lambda: rules.add_constant(degree(0.5), math.nan),
        lambda: rules.add_constant(degree(0.5), math.inf, 1.0),
        lambda: rules.add_constant(degree(0.5), 1.0, 0.0),
        lambda: rules.power(degree(0.5), math.inf),
        lambda: rules.power(degree(0.5), math.nan),
        lambda: rules.power(degree(10.0), 1.7e308),
        lambda: rules.pnorm(0.5),
        lambda: rules.pnorm(math.nan),
        lambda: Degree(-1e-300),
        lambda: Degree(math.nan),
        lambda: Degree(math.inf),
        lambda: Interval(1.0, 1.0),
        lambda: Interval(math.nan, 1.0),
    ],
)
def test_unproven_steps_are_refused(call):
    with pytest.raises(DegreeError):
        call()


def test_texts_name_the_domain():
    assert str(POSITIVE) == "t > 0" and str(REALS) == "all real t" and "<= t <=" in str(Interval(-1.0, 2.0))
    assert "order-preserving" in str(degree(0.5)) and "0.5" in str(degree(0.5))
    assert POSITIVE in REALS and REALS not in POSITIVE


@pytest.mark.parametrize("seed", range(5))
def test_rules_hold_on_random_maps(seed):
    """`F(z) = (A z) ** a` and `G(z) = (B z) ** b` have degrees `a` and `b`; check each rule through log-distances."""
    rng = np.random.default_rng(seed)
    first, second = np.exp(rng.uniform(-5, 5, (2, 4, 4)))
    a, b = rng.uniform(0.1, 2.0, 2)
    f, g = (lambda z: (first @ z) ** a), (lambda z: (second @ z) ** b)
    df, dg = degree(a), degree(b)
    cases = [
        (lambda z: f(g(z)), rules.compose(df, dg)),
        (lambda z: f(z) + g(z), rules.add(df, dg)),
        (lambda z: f(z) * g(z), rules.multiply(df, dg)),
        (lambda z: np.maximum(f(z), g(z)), rules.maximum(df, dg)),
        (lambda z: np.minimum(f(z), g(z)), rules.minimum(df, dg)),
        (lambda z: f(z) ** -1.7, rules.power(df, -1.7)),
        (lambda z: f(z) + 3.0, rules.add_constant(df, 3.0)),
        (lambda z: f(z) / np.linalg.norm(f(z), 3), rules.normalized(df)),
        (lambda z: np.full(4, np.linalg.norm(z, 2.5)), rules.pnorm(2.5)),
    ]
    for _ in range(40):
        x, y = np.exp(rng.uniform(-6, 6, (2, 4)))
        before = np.abs(np.log(x) - np.log(y)).max()
        for mapping, proven in cases:
            after = np.abs(np.log(mapping(x)) - np.log(mapping(y))).max()
            assert after <= proven.bound * before * (1 + 1e-12) + 1e-13
