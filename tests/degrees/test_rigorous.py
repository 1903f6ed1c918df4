"""Proven suprema: the published table, independent maximisation, extreme shifts, and refusals."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf

from subdeq_plugin.activations import Activation
from subdeq_plugin.degrees import POSITIVE, REALS, Interval, Piece, enclose_range, prove_ratio
from subdeq_plugin.degrees.rigorous import FLOAT_RANGE
from subdeq_plugin.errors import DegreeError
from tests.helpers import POSITIVE_GRID, REAL_GRID, SCALARS, supremum

TABLE = [
    ("tanh", 1.01, 3.09172, 0.276696),
    ("tanh", 1.2, 0.999123, 0.246994),
    ("tanh", 1.603, 0.499195, 0.201446),
    ("tanh", 0.1, None, 0.713294),
    ("tanh", 0.01, None, 0.926969),
    ("sigmoid", 0.0, None, 0.278465),
    ("softplus", 0.0, None, 1.0),
    ("softsign", 1.2, 0.420204, 0.150385),
    ("relu6", 1.2, 6 / 7.2, 6 / 7.2),
    ("relu", 0.0, None, 1.0),
    ("leaky_relu", 0.0, None, 1.0),
]


@pytest.mark.parametrize(("name", "shift", "real", "positive"), TABLE)
def test_the_table(name, shift, real, positive):
    activation = Activation(name, shift)
    found = supremum(*SCALARS[name][:2], shift, POSITIVE_GRID)
    bound = activation.degree(POSITIVE).bound
    assert found <= mpf(bound) and bound == pytest.approx(positive, abs=1e-6)
    if real is None:
        with pytest.raises(DegreeError, match="shift"):
            activation.degree(REALS)
    else:
        bound = activation.degree(REALS).bound
        assert supremum(*SCALARS[name][:2], shift, REAL_GRID) <= mpf(bound)
        assert bound == pytest.approx(real, abs=1e-6 if real < 1 else 5e-6)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.sampled_from(sorted(SCALARS)),
    st.floats(-12, 12).map(lambda e: 10.0**e),
    st.floats(-6, 6).map(lambda e: 10.0**e),
    st.floats(0.01, 6).map(lambda e: 10.0**e),
)
def test_bounded_domains_are_safe_and_sharp(name, shift, lo, factor):
    domain = Interval(lo, lo * factor)
    bound = Activation(name, shift).degree(domain).bound
    inner = np.clip(POSITIVE_GRID, domain.lo, domain.hi)
    grid = np.sort(np.concatenate([np.geomspace(domain.lo, domain.hi, 60), inner[::8]]))
    found = supremum(*SCALARS[name][:2], shift, np.clip(grid, domain.lo, domain.hi))
    assert found <= mpf(bound)
    assert bound <= found + mpf("1e-3")


@pytest.mark.parametrize("name", sorted(SCALARS))
@pytest.mark.parametrize("shift", [5e-324, 1e-300, 1e-20, 1e-9, 1e9, 1e300, 1.7e308])
def test_extreme_shifts_stay_safe(name, shift):
    bound = Activation(name, shift).degree(POSITIVE).bound
    assert 0 < bound <= 1.0
    assert supremum(*SCALARS[name][:2], shift, np.geomspace(1e-300, 1e300, 601)) <= mpf(bound)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "erf", "arctan", "softsign"])
@pytest.mark.parametrize(("lo", "hi"), [(-0.6, 7.0), (-0.1, 0.2), (-0.7, -0.2)])
def test_domains_with_negative_arguments(name, lo, hi):
    shift = 0.9
    bound = Activation(name, shift).degree(Interval(lo, hi)).bound
    found = supremum(*SCALARS[name][:2], shift, np.linspace(lo, hi, 400))
    assert found <= mpf(bound) <= found + mpf("1e-6")


def test_shifts_that_barely_keep_positivity():
    for shift in (math.nextafter(1.0, 2.0), 1 + 1e-12, 1 + 1e-6):
        bound = Activation("tanh", shift).degree(REALS).bound
        assert supremum(*SCALARS["tanh"][:2], shift, REAL_GRID) <= mpf(bound)
    with pytest.raises(DegreeError):
        Activation("tanh", 1.0).degree(REALS)
    with pytest.raises(DegreeError):
        Activation("tanh", -1e-300).degree(POSITIVE)


@pytest.mark.parametrize("shift", [-0.1, 0.0, -0.499, 1e-6 - 0.5])
def test_negative_shifts_that_stay_positive(shift):
    bound = Activation("sigmoid", shift).degree(POSITIVE).bound
    found = supremum(*SCALARS["sigmoid"][:2], shift, POSITIVE_GRID)
    assert found <= mpf(bound) <= found + mpf("1e-6")


def test_a_function_without_a_tail_lemma_is_proven_up_to_the_range_of_a_double():
    proof = prove_ratio([Piece(-math.inf, math.inf, lambda t: t.atan())], 2.0, REALS, name="atan")
    assert proof.domain == Interval(-FLOAT_RANGE, FLOAT_RANGE) and proof.nondecreasing
    assert supremum(*SCALARS["arctan"][:2], 2.0, REAL_GRID) <= mpf(proof.bound)


def test_monotonicity_is_proven_not_assumed():
    falling = prove_ratio([Piece(-math.inf, math.inf, lambda t: (-t).tanh())], 2.0, POSITIVE, name="falling")
    assert not falling.nondecreasing and falling.bound > 0
    wavy = prove_ratio([Piece(-math.inf, math.inf, lambda t: t.sin())], 3.0, Interval(0.0, 20.0), name="wavy")
    assert not wavy.nondecreasing
    found = supremum(mp.sin, mp.cos, 3.0, np.linspace(0, 20, 2000))
    assert found <= mpf(wavy.bound) <= found + mpf("1e-6")


@pytest.mark.parametrize(
    ("expression", "shift", "domain"),
    [
        (lambda t: t.sin(), 1.0, POSITIVE),  # touches zero
        (lambda t: t.exp(), 0.0, POSITIVE),  # the ratio is t: unbounded
        (lambda t: t.log(), 1.0, POSITIVE),  # negative near zero
        (lambda t: 1 / (t - 1), 5.0, Interval(0.5, 2.0)),  # a pole
        (lambda t: t * t, 0.0, Interval(-1.0, 1.0)),  # zero inside
    ],
)
def test_what_cannot_be_proven_is_refused_with_its_place(expression, shift, domain):
    with pytest.raises(DegreeError, match=r"odd with shift=.*t ="):
        prove_ratio([Piece(-math.inf, math.inf, expression)], shift, domain, name="odd")


def test_enclose_range_contains_the_values():
    pieces = Activation("tanh").function.pieces
    for lo, hi in ((0.0, 1.0), (-3.0, 2.0), (0.5, 1e6)):
        low, high = enclose_range(pieces, 0.25, lo, hi)
        values = np.tanh(np.linspace(lo, hi, 1000)) + 0.25
        assert low <= values.min() and values.max() <= high
        assert high - values.max() < 0.3
    assert enclose_range([Piece(-math.inf, math.inf, lambda t: t.log())], 0.0, -1.0, 1.0) == (-math.inf, math.inf)
