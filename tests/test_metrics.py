"""The metrics of the positive cone: their axioms, their invariances, and Banach's bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subdeq_plugin.errors import OptionError
from subdeq_plugin.metrics import METRICS, hilbert, iterations_for, metric_function, ratio_range, thompson

SLACK = 1e-12


@st.composite
def states(draw, count: int = 1) -> tuple[Tensor, ...]:
    """Positive float64 states `(2, n)`, entries between 1e-6 and 1e6."""
    size = draw(st.integers(1, 6))
    entries = st.lists(st.floats(-6, 6), min_size=2 * size, max_size=2 * size)
    return tuple(10 ** torch.tensor(draw(entries), dtype=torch.float64).reshape(2, size) for _ in range(count))


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(points=states(3), factor=st.floats(1e-3, 1e3))
def test_axioms(metric, points, factor):
    x, y, z = points
    assert metric(x, y).shape == (2,)
    assert bool((metric(x, y) >= 0).all()) and torch.equal(metric(x, x), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(metric(x, y), metric(y, x), rtol=0, atol=SLACK)
    assert bool((metric(x, z) <= metric(x, y) + metric(y, z) + SLACK).all())
    torch.testing.assert_close(metric(x * z, y * z), metric(x, y), rtol=0, atol=SLACK)
    torch.testing.assert_close(metric(1 / x, 1 / y), metric(x, y), rtol=0, atol=SLACK)
    torch.testing.assert_close(metric(factor * x, factor * y), metric(x, y), rtol=0, atol=SLACK)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(points=states(2), factor=st.floats(1e-3, 1e3))
def test_definitions(points, factor):
    x, y = points
    gap = x.log() - y.log()
    torch.testing.assert_close(thompson(x, y), gap.abs().max(dim=1).values, rtol=1e-12, atol=SLACK)
    torch.testing.assert_close(hilbert(x, y), gap.max(dim=1).values - gap.min(dim=1).values, rtol=1e-12, atol=SLACK)
    torch.testing.assert_close(hilbert(factor * x, y), hilbert(x, y), rtol=0, atol=SLACK)
    assert bool((hilbert(x, y) <= 2 * thompson(x, y) + SLACK).all())
    length = torch.full((2,), abs(math.log(factor)), dtype=torch.float64)
    torch.testing.assert_close(thompson(factor * x, x), length, rtol=0, atol=SLACK)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(points=states(2), p=st.sampled_from([1.0, 2.0, 7.0, math.inf]))
def test_on_a_slice_the_metrics_are_equivalent(points, p):
    x, y = (point / torch.linalg.vector_norm(point, ord=p, dim=1, keepdim=True) for point in points)
    assert bool((thompson(x, y) <= hilbert(x, y) + SLACK).all())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(points=states(2), seed=st.integers(0, 1000))
def test_nonnegative_matrices_do_not_expand(points, seed):
    x, y = points
    n = x.shape[1]
    matrix = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    for metric in (thompson, hilbert):
        assert bool((metric(x @ matrix.T, y @ matrix.T) <= metric(x, y) + 1e-10).all())
        assert bool((metric(x**0.5, y**0.5) <= 0.5 * metric(x, y) + SLACK).all())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(points=states(1), eps=st.floats(1e-9, 2.0), seed=st.integers(0, 1000))
def test_thompson_bounds_the_relative_error_of_every_entry(points, eps, seed):
    (x,) = points
    y = x * torch.exp(eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).double() - 1))
    error = float(thompson(x, y).max())
    assert error <= eps + SLACK
    assert bool(((x - y).abs() <= (math.exp(error) - 1) * torch.minimum(x, y) * (1 + 1e-9) + 1e-14 * x).all())


def test_close_points_are_told_apart():
    x = torch.full((1, 3), 1e8, dtype=torch.float64)
    y = x * (1 + 4 * torch.finfo(torch.float64).eps)
    assert 0 < float(thompson(x, y)) < 2e-15


@pytest.mark.parametrize("entry", [0.0, -1.0, math.nan])
def test_points_outside_the_cone_have_no_finite_distance(entry):
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    x[1, 1] = entry
    for metric in METRICS.values():
        distance = metric(x, y)
        assert distance[0] == 0 and not bool(distance[1].isfinite())


def test_any_shape_of_sample():
    x, y = torch.rand(2, 3, 4, 5) + 0.5, torch.rand(2, 3, 4, 5) + 0.5
    for metric in METRICS.values():
        torch.testing.assert_close(metric(x, y), metric(x.flatten(1), y.flatten(1)))


def test_metrics_by_name():
    assert metric_function("thompson") is thompson and metric_function("hilbert") is hilbert
    with pytest.raises(OptionError, match="did you mean 'hilbert'"):
        metric_function("hilbret")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(eps=st.floats(1e-12, 10), rate=st.floats(0, 0.999), step=st.floats(1e-12, 1e6))
def test_iterations_for_is_the_smallest_number_that_is_enough(eps, rate, step):
    k = iterations_for(eps, rate, step)

    def bound(n: int) -> float:
        return rate**n / (1 - rate) * step

    assert k >= 0 and bound(k) <= eps * (1 + 1e-9)
    assert k == 0 or bound(k - 1) > eps * (1 - 1e-9)


@pytest.mark.parametrize(("eps", "rate"), [(0.0, 0.5), (-1.0, 0.5), (math.nan, 0.5), (1.0, 1.0), (1.0, -0.1),
                                           (1.0, math.nan)])  # fmt: skip
def test_iterations_for_refuses_values_out_of_range(eps, rate):
    with pytest.raises(OptionError, match="must be"):
        iterations_for(eps, rate, 1.0)


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SAMPLES = ((7,), (2, 3), (2, 3, 4))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "strided", "channels last"])
def test_the_range_of_ratios_is_that_of_the_quotients(dtype, sample, layout):
    for seed in range(5):
        draw = torch.rand(2, 5, *sample, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x, y = (torch.exp(8 * (draw - 0.5)) / torch.tensor([1.0, 3.0]).reshape(2, *[1] * (draw.dim() - 1))).to(dtype)
        if layout == "strided":
            x, y = (torch.stack([part, part], dim=-1)[..., 0] for part in (x, y))
        elif layout == "channels last" and x.dim() == 4:
            x, y = (part.contiguous(memory_format=torch.channels_last) for part in (x, y))
        kept, out = (x.clone(), y.clone()), torch.full_like(x, torch.nan)
        low, high = ratio_range(x, y, out)
        quotients = (x / y).flatten(1)
        assert low.dtype == high.dtype == dtype and low.shape == high.shape == (5,)
        assert torch.equal(low, quotients.amin(dim=1)) and torch.equal(high, quotients.amax(dim=1))
        assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])
        assert torch.equal(out, x / y), "the quotients are formed in the buffer"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize(
    ("top", "bottom"),
    [(math.nan, 1.0), (-math.nan, 1.0), (1.0, math.nan), (0.0, 0.0), (math.inf, math.inf), (-1.0, 1.0), (1.0, -1.0),
     (0.0, 1.0), (-0.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.inf), (-math.inf, 1.0), (1.0, -math.inf)],
)  # fmt: skip
def test_a_ratio_that_is_no_positive_number_is_seen_in_its_own_sample(dtype, sample, top, bottom):
    """Whatever stands beside it, the logarithms of the two ends are then not both finite."""
    x = torch.linspace(0.5, 2.0, 3 * math.prod(sample), dtype=torch.float64).reshape(3, *sample).to(dtype)
    y = torch.ones_like(x)
    clean = ratio_range(x, y, torch.empty_like(x))
    for place in (0, -1):
        bad, over = x.clone(), y.clone()
        bad[1].view(-1)[place], over[1].view(-1)[place] = top, bottom
        low, high = ratio_range(bad, over, torch.empty_like(x))
        assert not (float(low[1]) > 0 and 0 < float(high[1]) < math.inf)
        for ends, truth in ((low, clean[0]), (high, clean[1])):
            assert torch.equal(ends[::2], truth[::2])


@pytest.mark.parametrize("dtype", FLOATS)
def test_ratios_that_overflow_or_vanish(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([[info.max, 1.0], [info.tiny, 1.0], [info.tiny, info.max]], dtype=dtype)
    y = torch.tensor([[0.25, 1.0], [info.max, 1.0], [info.tiny, info.max]], dtype=dtype)
    low, high = ratio_range(x, y, torch.empty_like(x))
    assert high[0] == math.inf and low[0] == 1
    assert low[1] <= 2.0**-20 and high[1] == 1
    assert low[2] == high[2] == 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(points=states(2))
def test_the_metrics_are_those_of_the_range_of_ratios(points):
    x, y = points
    low, high = ratio_range(x, y, torch.empty_like(x))
    torch.testing.assert_close(torch.maximum(high.log(), -low.log()), thompson(x, y), rtol=1e-13, atol=0)
    torch.testing.assert_close(high.log() - low.log(), hilbert(x, y), rtol=1e-13, atol=SLACK)
