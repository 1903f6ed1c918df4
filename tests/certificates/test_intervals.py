"""Interval images against exact rational and 40-digit arithmetic; `ExactMap` serves the neighbouring suites too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath as mp
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from subdeq_plugin.activations import register_activation
from subdeq_plugin.certificates.intervals import Box, IntervalMap, LinearMap, normalized_image
from subdeq_plugin.layers import BoundMap, MapSpec
from subdeq_plugin.layers.normalize import Normalizer
from subdeq_plugin.layers.operators import ConvOperator, DenseOperator, GraphOperator, Operator, Propagation, csr
from tests.helpers import SCALARS
from tests.problems import seeded

D = torch.float64
INF = math.inf

register_activation("interval_swish", lambda t: t * t.sigmoid())
register_activation("interval_bump", lambda t: (-t.square()).exp() + 0.1 * t.tanh())


def _sigma(t: mpf) -> mpf:
    return 1 / (1 + mp.exp(-t))


# name -> (function, derivative)
EXACT: dict[str, tuple[Callable[[mpf], mpf], Callable[[mpf], mpf]]] = {
    **{name: (value, slope) for name, (value, slope, _) in SCALARS.items()},
    "interval_swish": (lambda t: t * _sigma(t), lambda t: _sigma(t) * (1 + t * _sigma(-t))),
    "interval_bump": (
        lambda t: mp.exp(-t * t) + mpf(0.1) * mp.tanh(t),
        lambda t: -2 * t * mp.exp(-t * t) + mpf(0.1) * mp.sech(t) ** 2,
    ),
}


def exact_matrix(operator: Operator, sample: tuple[int, ...]) -> list[list[Fraction]]:
    """The operator on a flattened sample, from its definition, in rational numbers."""
    if isinstance(operator, DenseOperator):
        return [[Fraction(v) for v in row] for row in operator.weight.tolist()]
    index = {place: k for k, place in enumerate(itertools.product(*map(range, sample)))}
    rows = [[Fraction(0)] * len(index) for _ in index]
    if isinstance(operator, ConvOperator):
        weight = operator.weight.tolist()
        height, width = len(weight[0][0]), len(weight[0][0][0])
        for (c, i, j), row in index.items():
            for d, u, v in itertools.product(range(sample[0]), range(height), range(width)):
                place = (d, i + operator.dilation[0] * (u - height // 2), j + operator.dilation[1] * (v - width // 2))
                if place in index:
                    rows[row][index[place]] += Fraction(weight[c][d][u][v])
        return rows
    dense = operator.propagation.matrix.to_dense().tolist()
    mix = None if operator.weight is None else operator.weight.tolist()
    for (n, f), row in index.items():
        for (m, g), column in index.items():
            factor = Fraction(int(f == g)) if mix is None else Fraction(mix[f][g])
            rows[row][column] = Fraction(dense[n][m]) * factor
    return rows


class ExactMap:
    """One sample of a `BoundMap` in 40-digit arithmetic, from the definitions."""

    def __init__(self, bound: BoundMap, sample: int = 0) -> None:
        shape = bound.state_shape
        assert shape is not None
        dims = bound.sample_dims
        self.shape = tuple(shape[len(shape) - dims :])
        self.size = math.prod(self.shape)
        self.fractions = exact_matrix(bound.operator, self.shape)
        self.matrix = [[(k, mpf(v.numerator) / v.denominator) for k, v in enumerate(r) if v] for r in self.fractions]
        self.inner, self.outer = (
            [mpf(0)] * self.size if part is None else [mpf(v) for v in part.reshape(-1, self.size)[sample].tolist()]
            for part in (bound.inner, bound.outer)
        )
        self.scalar, self.scalar_slope = EXACT[bound.activation.name]
        self.shift, self.power = mpf(bound.activation.shift), mpf(bound.activation.power)
        self.p = None if bound.normalizer is None else bound.normalizer.p
        self.groups = [] if bound.normalizer is None else groups(self.shape, bound.normalizer.dims)

    def argument(self, z: list[mpf]) -> list[mpf]:
        return [mp.fsum(a * z[k] for k, a in row) + b for row, b in zip(self.matrix, self.inner, strict=True)]

    def activation(self, t: mpf) -> mpf:
        base = self.scalar(t) + self.shift
        return base if self.power == 1 else base**self.power

    def slope(self, t: mpf) -> mpf:
        slope = self.scalar_slope(t)
        return slope if self.power == 1 else self.power * (self.scalar(t) + self.shift) ** (self.power - 1) * slope

    def __call__(self, z: list[mpf]) -> list[mpf]:
        value = [self.activation(t) + c for t, c in zip(self.argument(z), self.outer, strict=True)]
        return value if self.p is None else normalised(value, self.p, self.groups)

    def solve(self, start: list[float], digits: int = 40) -> list[mpf]:
        """A fixed point near a start that is one to double precision: Newton, or many plain steps under a norm."""
        with mp.workdps(digits + 15):
            z = [mpf(v) for v in start]
            for _ in range(600 if self.p is not None else 30):
                image = self(z)
                gap = [a - b for a, b in zip(image, z, strict=True)]
                if max(map(abs, gap)) <= mpf(10) ** -(digits + 8) * max(map(abs, z)):
                    return image
                if self.p is not None:
                    z = image
                    continue
                system = mp.eye(self.size)
                for i, t in enumerate(self.argument(z)):
                    for k, a in self.matrix[i]:
                        system[i, k] -= self.slope(t) * a
                step = mp.lu_solve(system, mp.matrix(gap))
                z = [v + s for v, s in zip(z, step, strict=True)]
        raise AssertionError("the reference did not converge")


def groups(shape: tuple[int, ...], dims: tuple[int, ...]) -> list[list[int]]:
    """The flat numbers of the entries of each group."""
    inside = {len(shape) + dim for dim in dims}
    found: dict[tuple[int, ...], list[int]] = {}
    for number, place in enumerate(itertools.product(*map(range, shape))):
        found.setdefault(tuple(v for k, v in enumerate(place) if k not in inside), []).append(number)
    return list(found.values())


def normalised(value: list[mpf], p: float, parts: list[list[int]]) -> list[mpf]:
    result = list(value)
    for part in parts:
        top = max(value[k] for k in part)
        norm = top if math.isinf(p) else top * mp.fsum((value[k] / top) ** mpf(p) for k in part) ** (1 / mpf(p))
        for k in part:
            result[k] = value[k] / norm
    return result


def uniform(*shape: int, seed: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=seeded(seed), dtype=D)


def operators(seed: int, *, nonnegative: bool) -> dict[str, tuple[Operator, tuple[int, ...]]]:
    """One operator of each kind, with the shape of a sample."""
    low = 0.0 if nonnegative else -1.0
    rows, columns = torch.tensor([0, 0, 1, 2, 2, 3, 3, 1]), torch.tensor([0, 1, 2, 1, 3, 0, 3, 1])
    spread = Propagation.of(csr(rows, columns, uniform(8, seed=seed, low=low), 4))
    return {
        "dense": (DenseOperator(uniform(5, 5, seed=seed, low=low)), (5,)),
        "conv": (ConvOperator(uniform(2, 2, 3, 3, seed=seed, low=low)), (2, 3, 4)),
        "dilated": (ConvOperator(uniform(2, 2, 3, 1, seed=seed, low=low), (2, 1)), (2, 4, 2)),
        "graph": (GraphOperator(spread), (4, 3)),
        "mixing": (GraphOperator(spread, uniform(3, 3, seed=seed + 1, low=low)), (4, 3)),
    }


KINDS = ("dense", "conv", "dilated", "graph", "mixing")


def boxes(shape: tuple[int, ...], seed: int) -> dict[str, Box]:
    """Two samples of boxes of each kind."""
    a, b = uniform(2, *shape, seed=seed), uniform(2, *shape, seed=seed + 1)
    lo, hi = torch.minimum(a, b), torch.maximum(a, b)
    scales = torch.exp(uniform(2, *shape, seed=seed + 2, low=-30.0, high=30.0))
    return {
        "point": Box.point(a),
        "thin": Box(a, torch.nextafter(a, torch.tensor(INF, dtype=D))),
        "wide": Box(lo, hi),
        "positive": Box(lo.abs() / 2, lo.abs() / 2 + hi.abs()),
        "positive point": Box.point(a.abs()),
        "from zero": Box(torch.zeros_like(lo), hi.abs()),
        "scattered": Box(lo * scales, hi * scales),
        "huge": Box(lo * 1e300, hi * 1e300),
        "tiny": Box(lo * 1e-300, hi * 1e-300),
        "denormal": Box(lo * 1e-320, hi * 1e-320),
        "positive denormal": Box(torch.zeros_like(lo), hi.abs() * 1e-322),
        "one wide entry": Box(a, torch.where(torch.arange(a[0].numel()).reshape(shape) == 1, a + 1e6, a)),
    }


def exact_image(matrix: list[list[Fraction]], lo: list[float], hi: list[float]) -> list[tuple[Fraction, Fraction]]:
    """The least and the largest value of each entry of `A z` over a box."""
    ends = [(Fraction(a), Fraction(b)) for a, b in zip(lo, hi, strict=True)]
    result = []
    for row in matrix:
        products = [sorted((a * end[0], a * end[1])) for a, end in zip(row, ends, strict=True) if a]
        result.append(
            (sum((low for low, _ in products), Fraction(0)), sum((high for _, high in products), Fraction(0)))
        )
    return result


def at_most(value: float, exact: Fraction) -> bool:
    return value == -INF or (value < INF and Fraction(value) <= exact)


def check_linear(linear: LinearMap, matrix: list[list[Fraction]], box: Box, tight: float | None) -> None:
    """Each sample's image holds the exact one; the gaps are below `tight` times `|A| |z|`."""
    image = linear.image(box)
    for lo, hi, low, high in zip(*(v.flatten(1).tolist() for v in (box.lo, box.hi, image.lo, image.hi)), strict=True):
        sizes = [max(abs(Fraction(a)), abs(Fraction(b))) for a, b in zip(lo, hi, strict=True)]
        for row, (least, most), found_low, found_high in zip(
            matrix, exact_image(matrix, lo, hi), low, high, strict=True
        ):
            assert at_most(found_low, least) and at_most(-found_high, -most)
            if tight is not None:
                room = Fraction(tight) * sum(abs(a) * size for a, size in zip(row, sizes, strict=True))
                room += Fraction(2.0**-1000)
                assert least - Fraction(found_low) <= room and Fraction(found_high) - most <= room


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonnegative", [False, True])
def test_linear_images_hold_the_exact_ones_and_are_sharp(kind, nonnegative):
    for seed in range(3):
        operator, shape = operators(10 * seed, nonnegative=nonnegative)[kind]
        linear, matrix = LinearMap.of(operator, operator.absolute()), exact_matrix(operator, shape)
        for box in boxes(shape, seed).values():
            check_linear(linear, matrix, box, 1e-14 * linear.terms)


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_of_every_size(kind):
    operator, shape = operators(3, nonnegative=False)[kind]
    for exponent in (-300, -150, 150):
        parts = [part * 10.0**exponent for part in operator.tensors]
        if not parts:
            continue
        scaled = operator.with_tensors(tuple(parts))
        linear = LinearMap.of(scaled, scaled.absolute())
        for name, box in boxes(shape, 5).items():
            if exponent < 150 or name != "huge":
                check_linear(linear, exact_matrix(scaled, shape), box, None)


def test_the_transpose():
    for kind in ("dense", "conv", "mixing"):
        operator, shape = operators(7, nonnegative=False)[kind]
        linear = LinearMap.transposed(operator, operator.absolute(), operator.terms() + 4)
        matrix = [list(column) for column in zip(*exact_matrix(operator, shape), strict=True)]
        for box in boxes(shape, 6).values():
            check_linear(linear, matrix, box, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonnegative", [False, True])
def test_cancellation_and_long_sums_are_in_the_rounding(kind, nonnegative):
    """Terms that cancel to nothing, and sums whose rounding errors all point the same way."""
    operator, shape = operators(4, nonnegative=nonnegative)[kind]
    linear, matrix = LinearMap.of(operator, operator.absolute()), exact_matrix(operator, shape)
    for seed in range(30):
        z = uniform(1, *shape, seed=seed) if not nonnegative else uniform(1, *shape, seed=seed, low=0.0)
        check_linear(linear, matrix, Box.point(z), None)
    weights = torch.full((64, 64), 0.1, dtype=D)
    weights[:, ::2] *= 1 if nonnegative else -1
    dense = DenseOperator(weights)
    for value in (0.1, 1 / 3, 1e16 + 2, 0.7):
        box = Box.point(torch.full((1, 64), value, dtype=D))
        check_linear(LinearMap.of(dense, dense.absolute()), exact_matrix(dense, (64,)), box, 1e-12)


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_bad_ends_lose_their_own_sample_only(bad, nonnegative):
    for kind in KINDS:
        operator, shape = operators(1, nonnegative=nonnegative)[kind]
        linear, matrix = LinearMap.of(operator, operator.absolute()), exact_matrix(operator, shape)
        clean = boxes(shape, 2)["positive"]
        for end in ("lo", "hi"):
            if (end, bad) in (("lo", INF), ("hi", -INF)):
                continue
            lo, hi = clean.lo.clone(), clean.hi.clone()
            (lo if end == "lo" else hi)[0].view(-1)[0] = bad
            image = linear.image(Box(lo, hi))
            low, high = image.lo[0].flatten().tolist(), image.hi[0].flatten().tolist()
            assert not image.lo.isnan().any() and not image.hi.isnan().any()
            finite = [0.0 if not math.isfinite(v) else v for v in lo[0].flatten().tolist()]
            for row, (least, most), below, above in zip(
                matrix, exact_image(matrix, finite, clean.hi[0].flatten().tolist()), low, high, strict=True
            ):
                touched = row[0] != 0
                if not touched:
                    assert at_most(below, least) and at_most(-above, -most)
                elif math.isnan(bad):
                    assert (below, above) == (-INF, INF)
                else:
                    unbounded_above = (bad > 0) == (row[0] > 0)
                    assert (above if unbounded_above else -below) == INF
            rest = Box(clean.lo[1:], clean.hi[1:])
            alone = linear.image(rest)
            assert bool((image.lo[1:] <= alone.lo + 1e-9).all()) and bool((image.hi[1:] >= alone.hi - 1e-9).all())
            assert bool(image.lo[1:].isfinite().all()) and bool(image.hi[1:].isfinite().all())


def test_sums_that_overflow_on_the_way_know_nothing():
    """`z + z - z - z` is zero although its partial sums leave the range of a double."""
    for size in (4, 5, 6, 8, 9):
        for signs in set(itertools.permutations([1.0, 1.0, -1.0, -1.0])):
            row = [0.0] * (size - 4) + list(signs)
            operator = DenseOperator(torch.tensor([row] * size, dtype=D))
            image = LinearMap.of(operator, operator.absolute()).image(
                Box.point(torch.full((1, size), 1.2e308, dtype=D))
            )
            assert bool((image.lo <= 0).all()) and bool((image.hi >= 0).all())


def test_a_graph_whose_first_stage_overflows_knows_nothing_below():
    spread = Propagation.of(csr(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.ones(2, dtype=D), 2))
    operator = GraphOperator(spread, torch.tensor([[1e-10]], dtype=D))
    image = LinearMap.of(operator, operator.absolute()).image(Box.point(torch.full((1, 2, 1), 1.2e308, dtype=D)))
    assert float(image.lo[0, 0, 0]) <= 2.4e298 <= float(image.hi[0, 0, 0])


NORMS = (1.0, 2.0, 3.0, 7.5, INF)
GROUPINGS = [
    ("state", (-1,), (4,)),
    ("state", (-3, -2, -1), (2, 2, 2)),
    ("channel", (-2, -1), (2, 2, 2)),
    ("pixel", (-3,), (2, 2, 2)),
    ("channel", (-2,), (3, 2)),
    ("node", (-1,), (3, 2)),
]


def check_normalised(normalizer: Normalizer, shape: tuple[int, ...], box: Box, tight: float | None) -> None:
    """Each entry's extremes are attained at two corners; they lie in the box, and near its ends."""
    image = normalized_image(normalizer, box)
    parts = groups(shape, normalizer.dims)
    with mp.workdps(40):
        for lo, hi, low, high in zip(
            *(v.flatten(1).tolist() for v in (box.lo, box.hi, image.lo, image.hi)), strict=True
        ):
            for part in parts:
                for k in part:
                    least = [mpf(lo[j] if j == k else hi[j]) for j in range(len(lo))]
                    most = [mpf(hi[j] if j == k else lo[j]) for j in range(len(lo))]
                    if max(most[j] for j in part) > 0 and max(least[j] for j in part) > 0:
                        true_low = normalised(least, normalizer.p, [part])[k]
                        true_high = normalised(most, normalizer.p, [part])[k]
                        assert mpf(low[k]) <= true_low and true_high <= mpf(high[k])
                        if tight is not None:
                            assert mpf(low[k]) >= true_low * (1 - tight) and mpf(high[k]) <= true_high * (1 + tight)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(("over", "dims", "shape"), GROUPINGS)
def test_normalised_boxes_are_attained_at_corners(p, over, dims, shape):
    normalizer = Normalizer(p, over, dims)
    for seed in range(4):
        low = uniform(2, *shape, seed=seed, low=0.05 if p <= 3 or p == INF else 0.5)
        for width in (0.0, 1e-12, 0.1, 2.0):
            for scale in (1.0, 1e-200, 1e250):
                wide = width * uniform(2, *shape, seed=seed + 50, low=0.0)
                tight = 1e-9 if width < 1 or p <= 3 or p == INF else 1e-6
                check_normalised(normalizer, shape, Box(scale * low, scale * (low + wide)), tight)


@pytest.mark.parametrize("p", [1.0, 2.0, 7.5, 30.0, 100.0, INF])
def test_normalised_boxes_of_very_different_entries(p):
    normalizer = Normalizer(p, "state", (-1,))
    for seed in range(12):
        low = torch.exp(uniform(2, 4, seed=seed, low=-400.0, high=0.0))
        high = low * torch.exp(uniform(2, 4, seed=seed + 20, low=0.0, high=300.0))
        check_normalised(normalizer, (4,), Box(low, high.clamp(max=1e300)), None)
        check_normalised(normalizer, (4,), Box(torch.zeros_like(low), high.clamp(max=1e300)), None)


@pytest.mark.parametrize("p", [1.5, 2.0, 7.5, 30.0, 100.0])
def test_powers_that_underflow_do_not_lower_the_upper_end(p):
    """The `p`-th power of the smaller entry is a denormal number; where the other is smaller still, it becomes 1."""
    for units in (0.51, 0.8, 1.4, 1.6, 2.6, 7.4):
        small = float(mp.power(mpf(units) * mpf(2) ** -1074, 1 / mpf(p)))
        box = Box(torch.full((1, 2), small / 4, dtype=D), torch.tensor([[1.0, small]], dtype=D))
        check_normalised(Normalizer(p, "state", (-1,)), (2,), box, None)


def test_ties_under_the_maximum_norm():
    normalizer = Normalizer(INF, "state", (-1,))
    for lo, hi in (
        ([1.0, 1.0], [2.0, 2.0]),
        ([2.0, 1.0], [2.0, 2.0]),
        ([1.0, 1.0], [1.0, 1.0]),
        ([0.0, 1.0], [5.0, 1.0]),
    ):
        check_normalised(normalizer, (2,), Box(torch.tensor([lo], dtype=D), torch.tensor([hi], dtype=D)), 1e-12)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    ("lo", "hi"),
    [
        ([-1e-300, 1.0], [1.0, 2.0]),
        ([math.nan, 1.0], [1.0, 2.0]),
        ([0.5, 1.0], [math.nan, 2.0]),
        ([0.5, 1.0], [INF, 2.0]),
        ([-INF, 1.0], [INF, 2.0]),
    ],
)
def test_a_group_without_sense_knows_nothing_and_leaves_the_others_alone(p, lo, hi):
    good = ([0.5, 1.0], [1.0, 2.0])
    box = Box(torch.tensor([[lo, good[0]]], dtype=D), torch.tensor([[hi, good[1]]], dtype=D))
    image = normalized_image(Normalizer(p, "node", (-1,)), box)
    assert image.lo[0, 0].tolist() == [-INF, -INF] and image.hi[0, 0].tolist() == [INF, INF]
    alone = normalized_image(Normalizer(p, "node", (-1,)), Box(box.lo[:, 1:], box.hi[:, 1:]))
    assert torch.equal(image.lo[:, 1:], alone.lo) and torch.equal(image.hi[:, 1:], alone.hi)


def make_map(
    weight: Any,
    inner: Any = None,
    outer: Any = None,
    activation: str = "tanh",
    shift: float = 0.0,
    power: float = 1.0,
    **options: Any,
) -> BoundMap:
    """A dense map, or that of a given operator, from lists or tensors."""
    parts = {
        name: None if v is None else torch.as_tensor(v, dtype=D) for name, v in (("inner", inner), ("outer", outer))
    }
    operator = weight if not isinstance(weight, list | Tensor) else DenseOperator(torch.as_tensor(weight, dtype=D))
    arrays = {**operator.arrays(), **{name: part for name, part in parts.items() if part is not None}}
    described = {"kind": operator.kind, "activation": activation, "shift": shift, "power": power}
    return BoundMap.from_spec(MapSpec(arrays, {**described, **operator.options(), **options}))


CASES = [(name, 0.0, 1.0) for name in sorted(SCALARS)] + [
    ("tanh", 1.3, 0.5),
    ("sigmoid", 0.1, -0.7),
    ("softplus", 0.0, 2.0),
    ("relu", 0.2, -1.0),
    ("elu", 1.1, 3.0),
    ("hardtanh", -0.3, 2.0),
    ("interval_swish", 0.5, 1.0),
    ("interval_bump", 0.2, 1.0),
    ("interval_bump", 1.5, 0.5),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("activation", "shift", "power"), CASES)
def test_images_of_maps_hold_their_points(kind, activation, shift, power):
    """Random points and corners of the box, with random injections of the injections' boxes."""
    operator, shape = operators(2, nonnegative=False)[kind]
    norms: list[tuple[Any, str]] = [(None, "state")]
    if activation in ("tanh", "sigmoid", "interval_bump") and shift > 0:
        norms += [("inf", "state"), (2, next(iter(set(operator.groups) - {"state"}), "state"))]
    base = uniform(1, *shape, seed=3)
    for (normalize, over), width in itertools.product(norms, (0.0, 0.3)):
        bound = make_map(operator, base, base.abs(), activation, shift, power, normalize=normalize, normalize_over=over)
        inner = Box(base - width * 0.5, base + width)
        outer = Box(base.abs() + 0.2, base.abs() + 0.2 + width)
        function = IntervalMap(bound, inner, outer)
        z = uniform(1, *shape, seed=9)
        box = Box(z, z + width)
        image = function.image(box)
        low, high = image.lo.flatten().tolist(), image.hi.flatten().tolist()
        exact = ExactMap(bound)
        for draw in range(6 if width else 1):
            points = []
            for number, part in enumerate((box, inner, outer)):
                share = uniform(1, *shape, seed=100 * draw + number, low=0.0)
                share = share.round() if draw % 2 else share
                points.append(part.clamp(part.lo + share * (part.hi - part.lo)).flatten().tolist())
            with mp.workdps(40):
                exact.inner, exact.outer = [mpf(v) for v in points[1]], [mpf(v) for v in points[2]]
                value = exact([mpf(v) for v in points[0]])
                for below, v, above in zip(low, value, high, strict=True):
                    if isinstance(v, mpf):
                        assert mpf(below) <= v <= mpf(above)
                        if not width and not math.isinf(below):
                            assert above - below <= 1e-11 * (1 + abs(v))


def test_a_point_is_enclosed_to_a_dozen_digits():
    """Without cancellation the relative width of the image of a point is 1e-12 at most."""
    for activation in ("tanh", "sigmoid", "softplus", "arctan", "erf", "softsign", "interval_swish"):
        bound = make_map(uniform(6, 6, seed=1, low=0.0), None, uniform(2, 6, seed=2, low=0.0), activation)
        image = IntervalMap.of(bound).image(Box.point(uniform(2, 6, seed=3, low=0.1)))
        assert bool(((image.hi - image.lo) <= 1e-12 * image.lo).all())


def test_rows_are_the_samples():
    bound = make_map(uniform(3, 3, seed=1), uniform(2, 4, 3, seed=2), uniform(2, 4, 3, seed=3))
    function = IntervalMap.of(bound)
    box = Box.point(uniform(2, 4, 3, seed=4))
    whole, chosen = function.image(box), torch.tensor([6, 1])
    part = function.rows(chosen).image(box.rows(chosen, 1))
    assert function.samples == 8 and torch.equal(part.lo, whole.lo.reshape(8, 3)[chosen])
    assert torch.equal(part.hi, whole.hi.reshape(8, 3)[chosen])
