"""Certified solves: the distance that is promised, the starts, limits and false proofs they meet, and bad samples."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchdeq.solver import get_solver

import subdeq_plugin as sd
from subdeq_plugin.certificates import contraction_of
from subdeq_plugin.errors import OptionError
from subdeq_plugin.layers import BoundMap, MapSpec
from subdeq_plugin.metrics import METRICS, Contraction
from subdeq_plugin.result import Solution, Status
from subdeq_plugin.solvers import SOLVERS, Auto, Picard, Problem, Stop, solve
from subdeq_plugin.solvers.walk import walk
from tests.helpers import GROUPS, LayerCase, iterate, log_distance, rounding
from tests.problems import (
    Affine,
    RecordedBound,
    bound_map,
    make_input,
    make_layer,
    normal,
    ones_for,
    residuals,
    rotation,
    signed_bound,
)

REFERENCE = 1e-13  # how far the reference may be from the fixed point

# kind, keywords: both metrics, every operator, groupings, powers, activations with and without a form of their own.
MAPS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {"shift": 0.3}),
    "dense-fast": ("dense", {"shift": 3.0}),
    "dense-slow": ("dense", {"shift": 0.02}),
    "dense-sigmoid": ("dense", {"activation": "sigmoid", "shift": 0.0, "injection": "inside"}),
    "dense-softplus": ("dense", {"activation": "softplus", "shift": 0.1, "power": 0.6}),
    "dense-antitone": ("dense", {"activation": "softsign", "shift": 0.5, "power": -0.6}),
    "dense-2": ("dense", {"shift": 0.3, "normalize": 2}),
    "dense-inf": ("dense", {"shift": 0.1, "normalize": "inf"}),
    "conv": ("conv", {"shift": 0.3}),
    "conv-state": ("conv", {"shift": 0.3, "normalize": 1, "activation": "arctan"}),
    "conv-pixel": ("conv", {"shift": 1.2, "normalize": 2, "normalize_over": "pixel"}),
    "graph": ("graph", {"shift": 0.3, "activation": "sigmoid"}),
    "graph-node": ("graph", {"shift": 1.2, "normalize": 2, "normalize_over": "node"}),
    "mixing": ("graph", {"shift": 0.2, "mix_features": True}),
    "mixing-state": ("graph", {"shift": 0.3, "mix_features": True, "normalize": 2}),
}


def made(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> BoundMap:
    kind, keywords = MAPS[name]
    return bound_map(kind, seed, dtype, **keywords)


def proof(bound: BoundMap) -> Contraction:
    found = contraction_of(bound)
    assert found is not None
    return found


def truth(bound: BoundMap) -> Tensor:
    """The fixed point in float64, by plain iteration."""
    wide = bound.to("cpu", torch.float64)
    return iterate(wide, wide.start())


def error(bound: BoundMap, z: Tensor) -> Tensor:
    """How far each sample is from the fixed point, in the metric of the proof."""
    return log_distance(proof(bound).metric, z, truth(bound), bound.sample_dims)


def slack(bound: BoundMap) -> float:
    """How far rounding may carry a solve from the fixed point: that of one step, which a contraction sums up."""
    z = truth(bound).to(bound.dtype)
    return 2 * float(rounding(bound, z).max()) / (1 - proof(bound).rate) + REFERENCE


def certified(bound: BoundMap, start: Tensor | None = None, solver: Any = None, **settings: Any) -> Solution:
    given = {"tol": 1e-6, "max_iter": 400, "stop_mode": "certified", "contraction": proof(bound), **settings}
    return solve(bound, ones_for(bound) if start is None else start, solver, **given)


def dense(weight: Any, outer: Any, dtype: torch.dtype = torch.float64, **options: Any) -> BoundMap:
    arrays = {"weight": torch.as_tensor(weight, dtype=dtype), "outer": torch.as_tensor(outer, dtype=dtype)}
    return BoundMap.from_spec(MapSpec(arrays, {"kind": "dense", "activation": "tanh", **options}))


# The promise


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), exponent=st.floats(0.3, 11.0), spread=st.sampled_from([0.0, 0.5, 3.0]))
def test_converged_means_within_the_tolerance(name, dtype, seed, exponent, spread):
    bound = made(name, seed, dtype)
    tol = 10.0 ** -(exponent if dtype == torch.float64 else exponent / 2)
    start = torch.exp(spread * normal(*bound.state_shape, seed=seed)).to(dtype)
    kept = start.clone()
    found = certified(bound, start, tol=tol)
    assert torch.equal(start, kept), "the start was overwritten"
    assert found.value.shape == start.shape and found.value.dtype == dtype and found.value.is_contiguous()
    assert bool((error(bound, found.value) <= tol + slack(bound)).all())
    assert not bool(found.failed.any())
    # Below the rounding of the map nothing can be promised; well above it, everything must be.
    if tol > 30 * slack(bound):
        assert found.converged
    assert len(found.status) == 3 and bool((found.iterations <= found.evaluations).all())


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("name", ["dense", "dense-2", "conv", "graph-node", "dense-antitone"])
def test_every_solver_keeps_the_promise(solver, name):
    bound = made(name, 3)
    for tol in (0.3, 1e-2) if solver == "halpern" else (0.3, 1e-4, 1e-10):
        found = certified(bound, solver=SOLVERS[solver](), tol=tol, max_iter=3000)
        assert found.converged
        assert bool((error(bound, found.value) <= tol + REFERENCE).all())


@pytest.mark.parametrize("scale", [1e-1, 1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize(
    ("shift", "power", "norm"),
    [(0.0, 0.5, None), (1e-6, 0.3, None), (1e-9, 0.5, None), (2.0**-9, 0.5, None), (1e-4, 1.0, 2), (1e-4, 1.0, "inf"),
     (0.01, 1.0, "inf"), (2.0**-9, 0.7, 1)],
)  # fmt: skip
def test_the_promise_holds_where_the_activation_is_small(scale, shift, power, norm):
    """There an absolute rounding error is a large relative one."""
    weight = scale * torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    bound = dense(weight, torch.zeros(3, 5), torch.float32, shift=shift, power=power, normalize=norm)
    for tol in (1e-2, 1e-4, 3e-6):
        found = certified(bound, tol=tol)
        assert not bool(found.failed.any())
        assert bool((error(bound, found.value) <= tol + slack(bound)).all()), tol


@pytest.mark.parametrize("shift", [1e-3, 3e-3])
def test_the_promise_holds_where_the_proof_is_slow_and_the_start_good(shift):
    """The rounding of a step counts `1 / (1 - rate)` times: no more of it than the map's own may be let in."""
    t = torch.logspace(-4, 1, 4000, dtype=torch.float64)
    slowest = t[(t / torch.cosh(t) ** 2 / (torch.tanh(t) + shift)).argmax()]
    z = torch.tanh(slowest) + shift
    outer = torch.linspace(0, 1e-3, 400, dtype=torch.float64)[:, None] * z
    bound = dense([[float(slowest / z)]], outer, torch.float32, shift=shift)
    wide, exact = bound.to("cpu", torch.float64), torch.full((400, 1), float(z), dtype=torch.float64)
    for _ in range(4000):
        exact = wide(exact)
    own = float(((bound(exact.float()).double() - exact) / exact).abs().max()) + 2.0**-23
    rate = proof(bound).rate
    for factor in (1.0001, 1.05):
        tol = 8 * 2.0**-23 / float(z) * factor
        for moved in (1e-6, -3e-6, 1e-5, -1e-5, 3e-5, -3e-5, 1e-4, -1e-4, 3e-4, -3e-4, 1e-3):
            found = certified(bound, (exact * (1 + moved)).float(), tol=tol)
            gap = (found.value.double().log() - exact.log()).abs()[found.status == Status.CONVERGED]
            assert bool((gap <= tol + 2 * own / (1 - rate)).all()), (factor, moved, float(gap.max() / tol))


@pytest.mark.parametrize("kind", sorted(GROUPS))
def test_states_with_other_leading_dimensions(kind):
    for norm in (None, 2):
        case = LayerCase(kind, norm, shift=0.5)
        layer = case.layer()
        inputs = {"dense": [(3,), (2, 3, 3), (1, 3)], "conv": [(1, 2, 3, 4)]}.get(kind, [(5, 3), (1, 5, 3)])
        for shape in inputs:
            x = normal(*shape, seed=1)
            bound = layer.bind(x if kind in ("dense", "conv") else (x, case.input()[1])).detach()
            start = torch.exp(normal(*bound.state_shape, seed=2))
            found = certified(bound, start, tol=1e-7)
            assert found.converged and found.value.shape == start.shape
            assert bool((error(bound, found.value) <= 1e-7 + REFERENCE).all())


def test_a_start_in_any_layout_is_left_alone():
    bound = made("conv")
    z = torch.exp(normal(*bound.state_shape, seed=4))
    reference = certified(bound, z)
    for start in (
        z.contiguous(memory_format=torch.channels_last),
        torch.stack([z, z], dim=-1)[..., 0],
        z.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        kept = start.clone()
        found = certified(bound, start)
        assert torch.equal(start, kept) and found.evaluations == reference.evaluations
        torch.testing.assert_close(found.value, reference.value, rtol=1e-12, atol=0)
    ones = torch.ones(1, dtype=torch.float64).expand(bound.state_shape)
    torch.testing.assert_close(certified(bound, ones).value, certified(bound).value, rtol=1e-12, atol=0)


def test_an_answer_is_no_buffer_of_a_later_solve():
    bound = made("dense-sigmoid")
    first = certified(bound)
    kept = first.value.clone()
    certified(bound, 2 * ones_for(bound))
    assert torch.equal(first.value, kept)
    assert first.value.data_ptr() not in {tensor.data_ptr() for tensor in bound.tensors}


@pytest.mark.parametrize("mode", ["abs", "rel", "thompson", "hilbert"])
@pytest.mark.parametrize("name", ["dense", "dense-sigmoid", "dense-2", "conv", "graph", "mixing"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_residuals_are_those_of_the_map_itself(mode, name, dtype):
    """Whatever form of it was stepped: an answer that is called converged passes the test when it is made again."""
    bound = made(name, 5, dtype)
    for tol in (1e-2, 1e-4, 3e-6) if dtype == torch.float32 else (1e-2, 1e-6, 1e-11):
        found = solve(bound, ones_for(bound), tol=tol, max_iter=400, stop_mode=mode, contraction=proof(bound))
        assert found.converged
        with torch.no_grad():
            image = bound(found.value)
        absolute, relative = residuals(bound, found.value)
        if mode in METRICS:
            tested = log_distance(mode, image, found.value, bound.sample_dims)
        else:
            tested = absolute if mode == "abs" else relative
        assert bool((tested <= tol * (1 + 1e-3) + 4 * torch.finfo(dtype).eps).all())
        torch.testing.assert_close(found.abs_residual.double(), absolute, rtol=1e-2, atol=3 * torch.finfo(dtype).eps)


# Starts


@pytest.mark.parametrize("name", ["dense", "dense-2", "dense-antitone", "conv-pixel", "graph", "mixing-state"])
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_start_far_away(name, size, dtype):
    bound = made(name, 6, dtype)
    start = (size * torch.exp(3 * normal(*bound.state_shape, seed=7))).to(dtype)
    found = certified(bound, start, tol=1e-3)
    assert found.converged and found.evaluations < 60
    assert bool((error(bound, found.value) <= 1e-3 + slack(bound)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_starts_of_one_batch_near_and_far(dtype):
    bound = made("dense", 6, dtype)
    start = truth(bound).to(dtype)
    start[1] *= 1e12
    start[2] *= 1 + 1e-4
    found = certified(bound, start, tol=1e-4)
    assert found.converged
    assert bool((error(bound, found.value) <= 1e-4 + slack(bound)).all())


@pytest.mark.parametrize("name", ["dense", "dense-sigmoid", "dense-inf", "conv", "mixing"])
@pytest.mark.parametrize("mode", ["certified", "rel", "thompson"])
def test_a_start_at_the_fixed_point_stays_there(name, mode):
    for dtype in (torch.float64, torch.float32):
        bound = made(name, 8, dtype)
        z = iterate(bound, ones_for(bound), tol=0.0)
        found = solve(bound, z, tol=1e-5, max_iter=100, stop_mode=mode, contraction=proof(bound))
        assert found.converged and found.evaluations <= 8
        assert bool((log_distance("thompson", found.value, z, bound.sample_dims) <= 1e-6).all())


# Limits


@pytest.mark.parametrize("max_iter", range(1, 9))
@pytest.mark.parametrize("mode", ["certified", "rel"])
@pytest.mark.parametrize("name", ["dense", "dense-sigmoid", "dense-2", "conv", "graph", "mixing"])
def test_the_limit_is_kept_to_the_evaluation(max_iter, mode, name):
    function = RecordedBound.of(made(name, 2))
    kept = ones_for(function)
    found = solve(function, kept, tol=1e-13, max_iter=max_iter, stop_mode=mode, contraction=proof(function))
    assert len(function.states) == found.evaluations == max_iter
    assert found.statuses == (Status.MAX_ITERATIONS,) * 3
    assert torch.equal(kept, ones_for(function))
    assert bool((found.iterations <= max_iter).all()) and bool((found.iterations >= 1).all())
    assert bool(found.value.isfinite().all()) and bool((found.value > 0).all())


@pytest.mark.parametrize("max_iter", range(1, 13))
@pytest.mark.parametrize("tol", [0.5, 1e-2, 1e-4])
def test_within_a_small_limit_the_report_is_true(max_iter, tol):
    """Rows that need different numbers of evaluations: some make it, some do not."""
    bound = made("dense", 2)
    function = RecordedBound.of(bound)
    start = torch.exp(torch.tensor([[0.0], [6.0], [-9.0]], dtype=torch.float64)) * truth(bound)
    found = certified(function, start, tol=tol, max_iter=max_iter)
    assert len(function.states) == found.evaluations <= max_iter
    reached = error(bound, found.value) <= tol + REFERENCE
    assert bool(reached[found.status == Status.CONVERGED].all())
    assert set(found.statuses) <= {Status.CONVERGED, Status.MAX_ITERATIONS}
    if max_iter == 12 and tol >= 1e-2:
        assert found.converged


def test_the_limit_covers_all_stages_together():
    """Plain steps, then acceleration, then Newton's method."""
    layer = make_layer("dense", 6, shift=0.02)
    with torch.no_grad():
        layer.weight = torch.softmax(normal(5, 5, seed=6), dim=1)
        layer.injection.weight.mul_(0.05)
        layer.injection.bias.zero_()
    bound = layer.bind(make_input("dense", 6)).detach()
    counts = []
    for max_iter in (*range(1, 30), 60):
        function = RecordedBound.of(bound)
        found = certified(function, tol=1e-11, max_iter=max_iter)
        assert len(function.states) >= found.evaluations
        assert found.evaluations <= max_iter
        reached = error(bound, found.value) <= 1e-11 + slack(bound)
        assert bool(reached[found.status == Status.CONVERGED].all())
        assert all(bool((state > 0).all()) for state in function.states)
        counts.append(found.evaluations)
    assert found.converged and counts[-1] < 60


@pytest.mark.parametrize("mode", ["certified", "thompson", "rel"])
@pytest.mark.parametrize("name", ["dense", "dense-sigmoid", "dense-2", "conv", "graph", "mixing"])
def test_an_unattainable_tolerance_ends_in_single_precision(mode, name):
    bound = made(name, 4, torch.float32)
    for tol in (1e-9, 1e-12, 1e-30):
        found = solve(bound, ones_for(bound), tol=tol, max_iter=500, stop_mode=mode, contraction=proof(bound))
        assert found.evaluations < 100
        assert set(found.statuses) <= {Status.ROUNDING_FLOOR, Status.CONVERGED}
        # Converged it is only where the image is the state itself, to the last digit.
        image = bound(found.value)
        exact = found.status == Status.CONVERGED
        assert bool((log_distance("thompson", image, found.value, bound.sample_dims)[exact] <= 1e-6).all())
        assert bool((error(bound, found.value) <= slack(bound)).all())


# Bad samples


@pytest.mark.parametrize("name", ["dense", "dense-sigmoid", "dense-2", "conv-pixel", "graph", "mixing"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("mode", ["certified", "rel"])
def test_a_sample_with_a_bad_injection_is_named_and_alone(name, bad, mode):
    bound = made(name, 9)
    clean = solve(bound, ones_for(bound), tol=1e-8, max_iter=100, stop_mode=mode, contraction=proof(bound))
    part = bound.tensors[-1].clone()
    part[1].view(-1)[0] = bad
    spoilt = bound.with_tensors([*bound.tensors[:-1], part])
    found = solve(spoilt, ones_for(bound), tol=1e-8, max_iter=100, stop_mode=mode, contraction=proof(bound))
    assert found.statuses[0] == found.statuses[2] == Status.CONVERGED
    torch.testing.assert_close(found.value[::2], clean.value[::2], rtol=1e-7, atol=0)
    if not bool(spoilt(ones_for(bound))[1].isfinite().all()):
        assert found.statuses[1] == Status.NONFINITE
        assert found.evaluations <= clean.evaluations + 4, "one bad sample must not lengthen the solve of the others"
    assert bool((log_distance("thompson", found.value[::2], truth(bound)[::2], bound.sample_dims) < 1e-6).all())


@pytest.mark.parametrize("name", ["dense", "conv-state", "mixing"])
def test_a_sample_with_a_bad_start_is_named_and_alone(name):
    bound = made(name, 9)
    start = ones_for(bound)
    clean = certified(bound, start)
    start[2].view(-1)[1] = math.nan
    found = certified(bound, start)
    assert found.statuses == (Status.CONVERGED, Status.CONVERGED, Status.NONFINITE)
    torch.testing.assert_close(found.value[:2], clean.value[:2], rtol=1e-12, atol=0)


def test_a_batch_of_nothing_but_bad_samples():
    bound = made("dense")
    for mode in ("certified", "rel", "abs", "thompson"):
        found = solve(bound, torch.nan * ones_for(bound), tol=1e-6, stop_mode=mode, contraction=proof(bound))
        assert found.statuses == (Status.NONFINITE,) * 3 and found.evaluations <= 6


# False proofs


def shrunk(contraction: Contraction, rate: float) -> Contraction:
    return replace(contraction, rate=rate)


@pytest.mark.parametrize("rate", [1e-12, 1e-3, 0.1, 0.4])
@pytest.mark.parametrize("mode", ["abs", "rel", "thompson"])
@pytest.mark.parametrize("name", ["dense-slow", "dense", "dense-inf", "conv", "mixing"])
def test_residuals_are_true_although_the_rate_is_not(rate, mode, name):
    bound = made(name, 10)
    false = shrunk(proof(bound), rate)
    found = solve(bound, ones_for(bound), tol=1e-9, max_iter=300, stop_mode=mode, contraction=false)
    assert found.converged
    absolute, relative = residuals(bound, found.value)
    tested = {"abs": absolute, "rel": relative}.get(mode)
    if tested is None:
        tested = log_distance("thompson", bound(found.value), found.value, bound.sample_dims)
    assert bool((tested <= 1.001e-9).all())
    assert bool((log_distance("thompson", found.value, truth(bound), bound.sample_dims) < 1e-6).all())


@pytest.mark.parametrize("rate", [1e-6, 0.3, 0.9])
def test_what_a_false_proof_promises_is_at_least_measured(rate):
    bound = made("dense-slow", 10)
    found = certified(bound, tol=1e-6, contraction=shrunk(proof(bound), rate))
    assert found.converged
    gap = log_distance("thompson", bound(found.value), found.value, 1)
    assert bool((rate / (1 - rate) * gap <= 1.001e-6).all())


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("mode", ["certified", "rel", "abs", "thompson", "hilbert"])
def test_a_false_proof_of_a_map_without_fixed_point(rate, mode):
    """`2 z + 1` on the positive cone runs away, whatever was claimed."""
    bound = dense([[2.0]], [[1.0], [3.0]], activation="relu")
    for solver in (Auto(), Auto(patience=3), Picard()):
        found = solve(bound, ones_for(bound), solver, tol=1e-6, max_iter=60, stop_mode=mode,
                      contraction=Contraction.in_metric(rate, "thompson"))  # fmt: skip
        assert found.evaluations <= 60
        assert found.value.shape == (2, 1)
        image = bound(found.value)
        if mode == "certified" and rate == 0.0:
            continue  # a map that maps everything to one point: then any image is the answer
        if found.converged:
            assert mode in ("rel", "abs", "hilbert", "certified")
            tested = {"abs": residuals(bound, found.value)[0], "rel": residuals(bound, found.value)[1]}.get(mode)
            tested = log_distance("hilbert", image, found.value, 1) if tested is None else tested
            assert mode == "hilbert" or bool((tested <= 1.001e-6).all())


@pytest.mark.parametrize("mode", ["certified", "rel"])
def test_a_false_proof_of_a_map_that_oscillates(mode):
    bound = dense([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]] * 3, activation="relu", power=-1.0)
    start = torch.tensor([[1.0, 1.0], [2.0, 0.5], [1e3, 1e-3]], dtype=torch.float64)
    found = solve(bound, start, tol=1e-6, max_iter=200, stop_mode=mode,
                  contraction=Contraction.in_metric(0.5, "thompson"))  # fmt: skip
    gap = log_distance("thompson", bound(found.value), found.value, 1)
    good = found.status == Status.CONVERGED
    assert bool((gap[good] <= 1e-5).all()) and bool(good[0])


def test_a_proof_in_a_metric_with_weights():
    """One that has numbers for every sample: compaction must not tear them apart."""
    matrix = rotation(0.9)
    function = Affine(matrix, normal(6, 2, seed=3))
    weights = torch.exp(normal(6, 1, seed=4))
    contraction = Contraction(0.9, "weighted", lambda x, y: ((x - y) / weights).norm(dim=1))
    for solver in (Auto(), Auto(patience=200), Picard()):
        found = solve(function, torch.zeros(6, 2, dtype=torch.float64), solver, tol=1e-7, max_iter=600,
                      stop_mode="certified", contraction=contraction)  # fmt: skip
        assert found.converged
        assert bool((((found.value - function.solution()) / weights).norm(dim=1) <= 1.0001e-7).all())


def test_a_sample_that_overflows_on_the_way_goes_back_to_its_start():
    """Within the untested steps: its best state is then the start, which is what the report speaks of."""

    def function(z: Tensor) -> Tensor:
        return torch.stack([z[0].cos(), z[1] ** 9, 0.5 * z[2] + 1])

    start = torch.full((3, 2), 100.0, dtype=torch.float64)
    false = Contraction(0.5, "two-norm", lambda x, y: (x - y).norm(dim=1))
    for mode in ("certified", "rel"):
        found = solve(function, start, tol=1e-8, max_iter=200, stop_mode=mode, contraction=false)
        assert found.statuses == (Status.CONVERGED, Status.DIVERGED, Status.CONVERGED)
        assert bool(found.value.isfinite().all())
        torch.testing.assert_close(found.value[2], torch.full((2,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)
        assert float((found.value[0] - 0.7390851332151607).abs().max()) < 1e-6


# What is refused


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_certified_test_needs_a_proof(solver):
    for function, start in ((torch.cos, torch.ones(2, 2)), (signed_bound(), ones_for(signed_bound()))):
        with pytest.raises(OptionError, match="needs a proven contraction"):
            solve(function, start, SOLVERS[solver](), stop_mode="certified")
        with pytest.raises(OptionError, match="needs a proven contraction"):
            get_solver(f"subdeq:{solver}")(function, start, stop_mode="certified")


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_torchdeqs_convention_finds_the_proof_itself(solver):
    bound = made("dense", 3)
    tol = 1e-2 if solver == "halpern" else 1e-7
    value, _, info = get_solver(f"subdeq:{solver}")(bound, ones_for(bound), 3000, tol, "certified")
    assert info["status"].tolist() == [0, 0, 0]
    assert bool((error(bound, value) <= tol + REFERENCE).all())


@pytest.mark.parametrize("key", ["anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter"])
@pytest.mark.parametrize("name", ["dense", "dense-2", "conv", "mixing"])
def test_foreign_solvers_keep_the_promise_in_the_core(key, name):
    bound = made(name, 3)
    for f_tol in (1e-1, 1e-6):
        deq = sd.CertifiedDEQ(f_solver=key, f_tol=f_tol, f_max_iter=200, on_failure="raise")
        out, _ = deq(bound)
        assert bool((error(bound, out[0]) <= f_tol + REFERENCE).all())


@pytest.mark.parametrize("key", ["anderson", "broyden", "fixed_point_iter"])
def test_foreign_solvers_keep_the_limit_as_nearly_as_they_can(key):
    for limit in (2, 3, 7):
        function = RecordedBound.of(made("dense", 3))
        deq = sd.CertifiedDEQ(f_solver=key, f_tol=1e-13, f_max_iter=limit, on_failure="ignore")
        deq(function)
        found = deq.forward_solution
        assert found is not None and len(function.states) == found.evaluations
        # Their own count may be one too many, and the answer takes one to be measured.
        assert found.evaluations <= limit + 2
        assert not found.converged


# The walk itself


def by_hand(bound: BoundMap, tol: float, **settings: Any):
    problem = Problem.of(bound, ones_for(bound), proof(bound))
    stop = Stop(tol, settings.pop("max_iter", 400), settings.pop("mode", "certified"))
    return walk(problem, proof(bound), problem.flatten(ones_for(bound)), stop, **{"patience": 24, **settings})


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_taken_on_the_word_of_the_proof_alone(name, dtype):
    """As on a device from which nothing is to be read back."""
    bound = made(name, 1, dtype)
    for tol in (1e-1, 1e-3):
        plain = by_hand(bound, tol, tested=False)
        value = plain.state.reshape(bound.state_shape)
        reached = error(bound, value) <= tol + slack(bound)
        assert bool(reached[torch.from_numpy(plain.finished)].all())
        assert plain.evaluations < 400
        if dtype == torch.float64:
            assert plain.finished.all()


@pytest.mark.parametrize("tested", [True, False])
def test_one_evaluation_is_left_over(tested):
    for max_iter in (4, 5, 8, 20):
        bound = RecordedBound.of(made("dense-slow", 1))
        plain = by_hand(bound, 1e-14, max_iter=max_iter, tested=tested)
        assert len(bound.states) == plain.evaluations < max_iter
        assert not plain.finished.any()


def test_a_walk_ends_where_patience_does():
    bound = RecordedBound.of(made("dense-slow", 1))
    hasty = by_hand(bound, 1e-12, patience=2)
    assert hasty.evaluations <= 8 and not hasty.finished.any()
    patient = by_hand(made("dense-slow", 1), 1e-9, patience=300)
    assert patient.finished.all()


def test_hardly_a_test_is_made():
    """The number of states that are tested shows in the calls of the metric; here, in steps between two tests."""
    bound = RecordedBound.of(made("dense", 1))
    plain = by_hand(bound, 1e-9)
    assert plain.finished.all() and plain.evaluations > 12
    # An ideal walk would stop at the first iterate that passes: no more than two steps are wasted.
    z, first = ones_for(bound), 1
    image, factor = BoundMap.__call__(bound, z), proof(bound).rate / (1 - proof(bound).rate)
    while bool((factor * log_distance("thompson", image, z, 1) > 1e-9).any()):
        z, first = image, first + 1
        image = BoundMap.__call__(bound, z)
    assert first <= plain.evaluations <= first + 2


@pytest.mark.parametrize("name", ["dense", "dense-2", "conv", "graph", "mixing"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_first_steps_in_a_shorter_dtype_change_no_promise(name, steps):
    for dtype in (torch.float64, torch.float32):
        bound = made(name, 7, dtype)
        for max_iter in (4, 5, 9, 200):
            start = ones_for(bound)
            found = certified(bound, start, Auto(bfloat16=steps), tol=1e-4, max_iter=max_iter)
            assert found.evaluations <= max_iter and torch.equal(start, ones_for(bound))
            reached = error(bound, found.value) <= 1e-4 + slack(bound)
            assert bool(reached[found.status == Status.CONVERGED].all())
        assert found.converged


@pytest.mark.parametrize("mode", ["certified", "rel"])
@pytest.mark.parametrize("name", ["dense", "dense-2", "conv-pixel", "graph"])
def test_a_large_batch_in_parts_is_the_same_batch(name, mode, monkeypatch):
    kind, keywords = MAPS[name]
    x = make_input(kind, 3, batch=13)
    bound = make_layer(kind, 3, **keywords).bind(x).detach()
    start = torch.exp(normal(*bound.state_shape, seed=5))
    given = {"tol": 1e-8, "max_iter": 100, "stop_mode": mode, "contraction": proof(bound)}
    whole = solve(bound, start, **given)
    size = start[0].numel() * start.element_size()
    for samples in (1, 2, 5, 8):
        monkeypatch.setattr("subdeq_plugin.solvers.walk._CACHED", samples * size)
        kept, parts = start.clone(), solve(bound, start, **given)
        assert torch.equal(start, kept)
        assert parts.converged and whole.converged and parts.value.shape == whole.value.shape
        assert bool((log_distance("thompson", parts.value, whole.value, bound.sample_dims) <= 1e-6).all())
        if mode == "certified":
            assert bool((error(bound, parts.value) <= 1e-8 + REFERENCE).all())
        else:
            assert bool((residuals(bound, parts.value)[1] <= 1.001e-8).all())
        assert bool((parts.rel_residual <= 1e-7).all())
        assert parts.evaluations <= whole.evaluations
        if samples == 1:
            alone = [solve(bound.rows(slice(i, i + 1)), start[i : i + 1], **given).evaluations for i in range(13)]
            assert parts.evaluations == max(alone) > min(alone)


def test_statistics_of_a_large_batch_in_parts_are_those_of_each_part(monkeypatch):
    bound = make_layer("dense", 3, shift=0.3).bind(make_input("dense", 3, batch=9)).detach()
    start = torch.exp(3 * normal(9, 5, seed=5))
    given = {"tol": 1e-8, "max_iter": 100, "stop_mode": "certified", "contraction": proof(bound)}
    alone = [solve(bound.rows(slice(i, i + 1)), start[i : i + 1], **given) for i in range(9)]
    monkeypatch.setattr("subdeq_plugin.solvers.walk._CACHED", 5 * 8)
    found = solve(bound, start, **given)
    assert found.iterations.tolist() == [int(one.iterations) for one in alone]
    torch.testing.assert_close(
        found.abs_residual, torch.cat([one.abs_residual for one in alone]), rtol=1e-3, atol=1e-14
    )


def test_a_large_batch_in_parts_with_bad_and_slow_samples(monkeypatch):
    monkeypatch.setattr("subdeq_plugin.solvers.walk._CACHED", 2 * 5 * 8)
    layer = make_layer("dense", 3, shift=0.05)
    x = make_input("dense", 3, batch=11)
    x[4, 0] = math.nan
    bound = layer.bind(x).detach()
    clean = torch.arange(11) != 4
    for max_iter in (4, 6, 9, 300):
        found = solve(bound, ones_for(bound), tol=1e-9, max_iter=max_iter, stop_mode="certified",
                      contraction=contraction_of(layer.bind(x[:3])))  # fmt: skip
        assert found.evaluations <= max_iter
        assert found.statuses[4] == Status.NONFINITE
        part = bound.rows(clean.nonzero().flatten())
        reached = torch.zeros(11, dtype=torch.bool)
        reached[clean] = error(part, found.value[clean]) <= 1e-9 + REFERENCE
        assert bool(reached[found.status == Status.CONVERGED].all())
    assert found.status[clean].tolist() == [0] * 10
