"""Enclosures of activations: sound on adversarial intervals, and tight."""

from __future__ import annotations

import itertools
import math
import random

import mpmath as mp
import pytest
import torch
from mpmath import mpf

from subdeq_plugin.activations import Activation, register_activation
from subdeq_plugin.degrees import POSITIVE, Interval
from tests.helpers import SCALARS

INF = math.inf
HUGE = 1.7e308
TINY = 5e-324
SHAPES = ((0.0, 1.0), (1.2, 1.0), (-0.3, 1.0), (1.2, 0.5), (0.3, 2.0), (1.7, -0.7), (0.3, 3.0), (0.0, 0.5), (2.0, 0.1))

register_activation("ranges_swish", lambda t: t * t.sigmoid())
register_activation("ranges_wave", lambda t: t.sin() + t / 4)
register_activation(
    "ranges_pieces", pieces=[(-INF, -1.0, lambda t: 0 * t - 1), (-1.0, 0.3, lambda t: t), (0.3, INF, lambda t: 0.6 - t)]
)
register_activation("ranges_root", pieces=[(-INF, 1.0, lambda t: 0 * t + 1), (1.0, INF, lambda t: t.sqrt())])
USER = {
    "ranges_swish": (lambda t: t / (1 + mp.exp(-t)), lambda t: (1 + mp.exp(-t) * (1 + t)) / (1 + mp.exp(-t)) ** 2, ()),
    "ranges_wave": (lambda t: mp.sin(t) + t / 4, lambda t: mp.cos(t) + mpf(1) / 4, ()),
    "ranges_pieces": (
        lambda t: max(mpf(-1), min(t, mpf(0.6) - t)) if t < mpf(0.3) else mpf(0.6) - t,
        lambda t: mpf(0) if t < -1 else mpf(1) if t < mpf(0.3) else mpf(-1),
        (-1.0, 0.3),
    ),
    "ranges_root": (
        lambda t: mp.sqrt(t) if t > 1 else mpf(1),
        lambda t: 1 / (2 * mp.sqrt(t)) if t > 1 else mpf(0),
        (1.0,),
    ),
}


def tensors(intervals):
    return tuple(torch.tensor(ends, dtype=torch.float64) for ends in zip(*intervals, strict=True))


def adversarial(seed: int, user: bool = False) -> list[tuple[float, float]]:
    """Thin, wide, tiny and huge intervals, and intervals that end at or beside kinks."""
    rng = random.Random(seed)
    marks = [0.0, 1.0, -1.0, 6.0, 0.3, 0.015625, -16.0, 16.0]
    marks += [math.nextafter(mark, side) for mark in marks for side in (-INF, INF)]
    marks += [1e-300, -1e-300, 1e-310, 20.0, 40.0, -40.0, 709.8, -709.8, -745.2, 1e5, -1e5]
    marks += [2e6, -2e6] if user else [HUGE, -HUGE, 1e160, -1e160]
    pairs = [tuple(sorted(rng.sample(marks, 2))) for _ in range(60)]
    pairs += [(mark, mark) for mark in marks]
    for _ in range(60):
        middle = rng.choice((1, -1)) * 10 ** rng.uniform(-8, 2.5)
        width = 10 ** rng.uniform(-16, 2)
        pairs.append((middle - width, middle + width))
    return pairs


def points(lo: float, hi: float, kinks, rng) -> list[float]:
    near = [math.nextafter(kink, side) for kink in kinks for side in (-INF, INF)]
    inner = [rng.uniform(lo, hi) if hi - lo < INF else rng.uniform(-9, 9) for _ in range(8)]
    return [t for t in (lo, hi, 0.0, -1e-3, 0.1, -1.2785, *kinks, *near, *inner) if lo <= t <= hi]


def exact(activation, function, t):
    base = function(mpf(t)) + mpf(activation.shift)
    if base <= 0 and not (activation.power.is_integer() and activation.power > 0):
        return mpf(0) if base == 0 and activation.power > 0 else None
    return base ** mpf(activation.power)


def exact_slope(activation, scalar, t):
    if activation.power == 1:
        return scalar[1](mpf(t))
    base = scalar[0](mpf(t)) + mpf(activation.shift)
    if base <= 0 and not (activation.power.is_integer() and activation.power > 0):
        return None
    return activation.power * base ** (mpf(activation.power) - 1) * scalar[1](mpf(t))


def check_sound(activation, scalar, intervals):
    lo, hi = tensors(intervals)
    (low, high), (flat, steep) = activation.enclose(lo, hi), activation.enclose_slope(lo, hi)
    assert not bool(low.isnan().any() | high.isnan().any() | flat.isnan().any() | steep.isnan().any())
    rng = random.Random(3)
    rows = zip(intervals, low.tolist(), high.tolist(), flat.tolist(), steep.tolist(), strict=True)
    with mp.workdps(400 if max(abs(lo).max(), abs(hi).max()) < 1e4 else 60):
        for (a, b), below, above, left, right in rows:
            for t in points(a, b, scalar[2], rng):
                value, slope = exact(activation, scalar[0], t), exact_slope(activation, scalar, t)
                if value is None:
                    assert (below, above) == (-INF, INF), (a, b)
                else:
                    assert below <= value <= above, (a, b, t)
                if slope is None:
                    assert (left, right) == (-INF, INF) or scalar[1](mpf(t)) == 0, (a, b)
                elif t not in scalar[2]:
                    assert left <= slope <= right, (a, b, t)


@pytest.mark.parametrize(("shift", "power"), SHAPES)
@pytest.mark.parametrize("name", sorted(SCALARS))
def test_catalogue_enclosures_are_sound(name, shift, power):
    check_sound(Activation(name, shift, power), SCALARS[name], adversarial(hash((shift, power)) % 1000))


@pytest.mark.parametrize(("shift", "power"), SHAPES)
@pytest.mark.parametrize("name", sorted(USER))
def test_user_enclosures_are_sound(name, shift, power):
    activation, intervals = Activation(name, shift, power), adversarial(7, user=True)
    check_sound(activation, USER[name], intervals)
    thin = [pair for pair in intervals if pair[1] - pair[0] <= 2.0**-30 * (1 + abs(pair[0]))]
    check_sound(activation, USER[name], thin)


@pytest.mark.parametrize("name", sorted(SCALARS))
def test_wide_enclosures_are_the_range(name):
    activation = Activation(name, 1.2)
    intervals = [(-3.0, 2.0), (-40.0, 50.0), (0.5, 0.75), (-1e-5, 1e-5), (-8.0, -2.5), (2.0, 7.0)]
    lo, hi = tensors(intervals)
    (low, high), (flat, steep) = activation.enclose(lo, hi), activation.enclose_slope(lo, hi)
    for k, (a, b) in enumerate(intervals):
        t = torch.cat([torch.linspace(a, b, 4001, dtype=torch.float64), torch.tensor([min(max(0.0, a), b)])])
        values, slopes = activation(t), activation.derivative(t)
        torch.testing.assert_close(torch.stack([low[k], high[k]]), torch.stack([values.min(), values.max()]))
        assert values.min() - low[k] <= 1e-13 and high[k] - values.max() <= 1e-12
        assert slopes.min() - flat[k] <= 1e-9 and steep[k] - slopes.max() <= 1e-9


def test_piecewise_linear_functions_are_enclosed_exactly():
    lo, hi = tensors([(-1.0, 2.0), (0.1, 0.2), (7.0, 8.0), (-3.0, -2.0), (0.0, 0.0)])
    low, high = Activation("relu").enclose(lo, hi)
    assert low.tolist() == [0, 0.1, 7, 0, 0] and high.tolist() == [2, 0.2, 8, 0, 0]
    low, high = Activation("relu6", 0.5).enclose(lo, hi)
    assert low.tolist()[2:] == [6.5, 0.5, 0.5] and high.tolist()[2:] == [6.5, 0.5, 0.5]
    point = torch.tensor([0.1], dtype=torch.float64)
    below, above = (float(end) for end in Activation("relu", 0.7).enclose(point, point))
    assert above == math.nextafter(below, INF)
    with mp.workdps(40):
        assert below <= mpf(0.1) + mpf(0.7) <= above
    low, high = Activation("leaky_relu").enclose(lo[1:3], hi[1:3])
    assert low.tolist() == [0.1, 7] and high.tolist() == [0.2, 8]


def test_rounding_does_not_cost_the_sign():
    lo, hi = tensors([(0.0, 1.0), (TINY, 1.0), (-800.0, 0.0), (-INF, INF)])
    for name in ("tanh", "softsign", "arctan", "erf", "elu", "hardtanh"):
        assert bool((Activation(name).enclose(lo, hi)[0][:2] >= 0).all())
        assert float(Activation(name).enclose(-hi, -lo)[1][0]) <= 0
    for name in ("sigmoid", "softplus"):
        assert bool((Activation(name).enclose(lo, hi)[0] >= 0).all())
    assert bool((Activation("tanh", 1.0, 0.5).enclose(lo, hi)[0] >= 0).all())
    for name in SCALARS:
        assert bool((Activation(name).enclose_slope(lo, hi)[0] >= 0).all())
        assert bool((Activation(name, 2.0, -0.7).enclose_slope(lo, hi)[1][:2] <= 0).all())


@pytest.mark.parametrize(
    ("name", "kinks"), [("relu", (0.0,)), ("leaky_relu", (0.0,)), ("relu6", (0.0, 6.0)), ("hardtanh", (-1.0, 1.0))]
)
def test_both_slopes_of_a_kink_count(name, kinks):
    flat = 0.01 if name == "leaky_relu" else 0.0
    for kink in kinks:
        lo, hi = tensors([(kink, kink), (kink, kink + 0.5), (kink - 0.5, kink)])
        low, high = Activation(name).enclose_slope(lo, hi)
        assert low.tolist() == [flat] * 3 and high.tolist() == [1.0] * 3
    low, high = Activation(name).enclose_slope(*tensors([(0.25, 0.5), (-9.0, -8.0)]))
    assert low.tolist() == [1.0, flat] and high.tolist() == [1.0, flat]


def test_both_slopes_of_a_joint_count():
    for lo, hi in ((0.3, 0.3), (0.3, 0.8), (-0.2, 0.3)):
        low, high = Activation("ranges_pieces").enclose_slope(*tensors([(lo, hi)]))
        assert low <= -1 <= 1 <= high <= 1 + 1e-12


@pytest.mark.parametrize("name", sorted(SCALARS))
def test_infinite_ends_are_limits(name):
    with mp.workdps(30):
        ends = [SCALARS[name][0](mpf(t)) for t in (-1e300, 1e300)]
    low, high = Activation(name).enclose(*tensors([(-INF, INF), (3.0, INF), (-INF, -3.0), (INF, INF), (-INF, -INF)]))
    assert float(low[0]) <= ends[0] and float(high[0]) >= ends[1]
    if abs(ends[1]) > 1e9:
        assert high[0] == high[1] == high[3] == INF and low[3] >= 1e300
    else:
        assert abs(high[0] - float(ends[1])) < 1e-15 and abs(low[3] - float(ends[1])) < 1e-13
    assert low[2] == low[4] == low[0] and (math.isinf(low[0]) == (name == "leaky_relu"))
    flat, steep = Activation(name).enclose_slope(*tensors([(-INF, INF), (INF, INF), (-INF, -INF)]))
    assert bool((flat >= 0).all()) and float(steep[0]) >= 0.25 and bool((steep <= 1.2).all())


def test_user_tables_are_sharp_in_the_middle():
    activation = Activation("ranges_wave", 2.0)
    lo, hi = tensors([(0.2, 1.0), (2.1, 3.0), (-9.0, 9.0), (1.0, 1.0 + 1e-6)])
    low, high = activation.enclose(lo, hi)
    for k in range(4):
        values = activation(torch.linspace(float(lo[k]), float(hi[k]), 20001, dtype=torch.float64))
        slack = 1e-3 if k == 2 else 1e-6
        assert 0 <= values.min() - low[k] <= slack and 0 <= high[k] - values.max() <= slack
    assert bool((activation.enclose(*tensors([(-1.0, INF), (1e308, 1.1e308)]))[1] == INF).all())


def test_points_of_a_user_function_are_sharp():
    t = torch.tensor([[0.3, -5.0], [1e-9, 30.0]], dtype=torch.float64)
    low, high = Activation("ranges_swish", 1.0).enclose(t, t)
    assert low.shape == t.shape and bool(((high - low) <= 1e-15 * high).all())


@pytest.mark.parametrize(
    ("name", "slope"),
    [("tanh", (0, 1)), ("sigmoid", (0, 0.25)), ("leaky_relu", (0.01, 1)), ("erf", (0, 2 / math.sqrt(math.pi)))],
)
def test_slopes_over_the_reals_by_lemma(name, slope):
    low, high = Activation(name, 0.7).slope()
    assert low == slope[0] and slope[1] <= high <= math.nextafter(slope[1], INF)
    assert mpf(high) >= (2 / mp.sqrt(mp.pi) if name == "erf" else slope[1])


@pytest.mark.parametrize("power", [0.5, 2.0, -0.7, 3.0])
@pytest.mark.parametrize("name", ["tanh", "arctan", "softplus", "ranges_swish", "ranges_root"])
def test_bounds_over_domains_are_sharp(name, power):
    activation = Activation(name, 1.9, power)
    for domain in (Interval(-2.0, 3.0), Interval(-0.5, 30.0)):
        t = torch.linspace(domain.lo, domain.hi, 60001, dtype=torch.float64)
        values, slopes = activation(t), activation.derivative(t)
        (low, high), (flat, steep) = activation.range(domain), activation.slope(domain)
        assert values.min() - 1e-6 <= low <= values.min() + 1e-13 and values.max() <= high + 1e-12
        assert high <= float(values.max()) * (1 + 1e-6)
        # The steps of the sample miss the extrema by a little, and a joint has two slopes.
        assert flat <= slopes.min() + 1e-12 and slopes.max() <= steep + 1e-12
        assert steep - slopes.max() <= 1e-5 * (1 + abs(steep)) or name == "ranges_root"
        assert slopes.min() - flat <= 1e-5 * (1 + abs(flat)) or name == "ranges_root"
        ratio = (slopes.abs() / values).max()
        assert ratio <= activation.log_slope(domain) <= ratio + 1e-5 or name == "ranges_root"


def test_log_slope_of_a_shifted_tanh():
    assert Activation("tanh", 1.2).log_slope() == pytest.approx(1.07335008, abs=1e-7)
    assert Activation("tanh", 1.2, -0.5).log_slope() == pytest.approx(0.53667504, abs=1e-7)
    assert Activation("relu", 0.5).log_slope(POSITIVE) == pytest.approx(2.0)
    assert Activation("tanh", 1.0).log_slope() == Activation("tanh").log_slope(POSITIVE) == INF
    assert Activation("ranges_wave", 2.0).log_slope() == INF


def test_what_is_not_provable_is_infinite():
    assert Activation("ranges_wave", 2.0, 0.5).range() == (-INF, INF)
    assert Activation("softplus", 0.0, 2.0).slope()[1] == INF
    assert Activation("tanh", 0.5, -1.0).slope() == Activation("tanh", 0.5, -1.0).range() == (-INF, INF)
    low, high = Activation("tanh", 0.5, 0.5).enclose(*tensors([(-3.0, 1.0), (-0.1, 1.0)]))
    assert low[0] == -INF and high[0] == INF and 0 < low[1] < high[1] < INF
    flat, steep = Activation("hardtanh", -0.5, 0.5).enclose_slope(*tensors([(-3.0, -2.0)]))
    assert flat == -INF and steep == INF


def test_concavity():
    assert all(Activation(name).concave == (name != "softplus") for name in SCALARS)
    assert Activation("tanh", 0.2, 0.5).concave and not Activation("ranges_swish").concave
    for shift, power in ((-0.1, 1.0), (0.1, 1.5), (0.1, -0.5)):
        assert not Activation("tanh", shift, power).concave


def test_a_power_whose_derivative_has_no_double_exponent():
    """`0.1 - 1` and `1e-20 - 1` are rounded; the error is magnified by the logarithm of the base."""
    for power, t in itertools.product((1e-20, 0.1, math.pi), (1e300, 3.7, 1e-290)):
        point = torch.tensor([t], dtype=torch.float64)
        flat, steep = (float(end) for end in Activation("relu", 0.0, power).enclose_slope(point, point))
        with mp.workdps(40):
            slope = mpf(power) * mpf(t) ** (mpf(power) - 1)
            assert flat <= slope <= steep
            assert steep == INF or steep - flat <= 1e-12 * slope + mpf(2) ** -990


def test_shapes_and_gradients():
    t = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
    for name in ("tanh", "ranges_swish"):
        for power in (1.0, 2.0):
            activation = Activation(name, 1.5, power)
            for low, high in (activation.enclose(t, t + 1), activation.enclose_slope(t, t + 1)):
                assert low.shape == high.shape == t.shape and low.dtype == torch.float64 and not low.requires_grad
    empty = torch.empty(0, 3, dtype=torch.float64)
    assert all(bound.shape == (0, 3) for bound in Activation("ranges_swish").enclose(empty, empty))
