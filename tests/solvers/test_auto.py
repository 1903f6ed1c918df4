"""`Auto`: what it does with a proof, with none, and with a false one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.layers import BoundMap
from subdeq_plugin.metrics import Contraction
from subdeq_plugin.result import Status
from subdeq_plugin.solvers import Anderson, Auto, Picard, solve
from tests.problems import PROBLEMS, Affine, RecordedBound, bound_map, normal, ones_for, residuals, with_norm

PROBE = 2


def euclidean(rate: float) -> Contraction:
    return Contraction(rate, "two-norm", lambda x, y: (x - y).norm(dim=1))


def certified_count(bound, start: Tensor, rate: float, tol: float) -> int:
    """The smallest `k` with `rate**k d_T(z_1, z_0) <= tol`, from logarithms."""
    first = float((bound(start).log() - start.log()).abs().max())
    return max(0, math.ceil(math.log(tol / first) / math.log(rate)))


def test_a_certified_solve_takes_plain_steps_before_the_first_test():
    function = RecordedBound.of(bound_map("dense", 1, shift=0.1))
    start = ones_for(function)
    contraction = sd.certify(function).contraction
    solution = solve(function, start, tol=1e-6, max_iter=100, contraction=contraction)
    assert solution.converged
    assert solution.evaluations == len(function.states)
    tests = solution.abs_trace.shape[1]
    assert solution.evaluations - tests >= 10, "residuals are formed at the end only"
    state = start
    for taken in list(function.states):
        torch.testing.assert_close(taken, state, rtol=1e-13, atol=0)
        state = BoundMap.__call__(function, state)
    assert float(residuals(function, solution.value)[1].max()) <= 1e-6


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["dense", "conv", "graph"]),
    activation=st.sampled_from(["tanh", "sigmoid", "softsign"]),
    shift=st.sampled_from([0.1, 0.3, 1.2]),
    exponent=st.integers(1, 12),
    spread=st.floats(0.0, 4.0),
)
def test_no_more_evaluations_than_the_proof_allows(seed, kind, activation, shift, exponent, spread):
    tol = 10.0**-exponent
    bound = bound_map(kind, seed, activation=activation, shift=shift)
    start = torch.exp(spread * normal(*ones_for(bound).shape, seed=seed))
    certificate = sd.certify(bound)
    assert certificate.rate is not None
    solution = solve(bound, start, tol=tol, max_iter=500, stop_mode="thompson", contraction=certificate.contraction)
    assert solution.converged
    # Even a start that happens to be good enough costs the probe.
    assert solution.evaluations <= max(certified_count(bound, start, certificate.rate, tol), 1) + PROBE + 1
    image = bound(solution.value)
    assert float((image.log() - solution.value.log()).abs().max()) <= tol * (1 + 1e-6)


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.1, 0.5])
def test_a_false_contraction_is_found_out(rate):
    function = Affine(with_norm(normal(4, 4, seed=1), 0.97), normal(3, 4, seed=2))
    start = torch.zeros(3, 4, dtype=torch.float64)
    solution = solve(lambda z: function(z), start, tol=1e-9, max_iter=300, contraction=euclidean(rate))
    assert solution.converged
    torch.testing.assert_close(solution.value, function.solution(), rtol=1e-6, atol=1e-7)
    assert float(residuals(function, solution.value)[1].max()) <= 1e-9 * 1.001


@pytest.mark.parametrize("rate", [0.1, 0.9, 0.999])
def test_a_false_contraction_on_an_expansion_still_gives_a_true_report(rate):
    # z -> 3 z + 1 on one row, an overflow on another: the proof is false for both.
    def function(z: Tensor) -> Tensor:
        return torch.stack([3 * z[0] + 1, z[1] ** 2 + 10, z[2].cos()])

    start = torch.full((3, 2), 2.0, dtype=torch.float64)
    solution = solve(function, start, tol=1e-9, max_iter=300, contraction=euclidean(rate))
    assert solution.status[1] in (Status.DIVERGED, Status.MAX_ITERATIONS)
    assert solution.status[2] == Status.CONVERGED
    assert float((solution.value[2] - 0.7390851332151607).abs().max()) < 1e-8
    measured = residuals(function, solution.value)[1]
    fine = solution.status == Status.CONVERGED
    assert bool((measured[fine] <= 1.001e-9).all()) and bool((measured[~fine] > 1e-9).all())
    assert bool(solution.value.isfinite().all())


def test_a_nan_sample_does_not_shorten_or_lengthen_the_solve_of_the_others():
    bound = bound_map("dense", 3)
    start = ones_for(bound)
    contraction = sd.certify(bound).contraction
    reference = solve(bound.with_tensors([bound.tensors[0], bound.tensors[1][:2]]), start[:2], tol=1e-8,
                      contraction=contraction)  # fmt: skip
    start[2] = torch.nan
    solution = solve(bound, start, tol=1e-8, contraction=contraction)
    assert solution.evaluations == reference.evaluations
    torch.testing.assert_close(solution.value[:2], reference.value, rtol=1e-14, atol=0)
    assert solution.statuses == (Status.CONVERGED, Status.CONVERGED, Status.NONFINITE)


def test_a_slow_proof_hands_over_to_acceleration():
    function, start = next(case for case in PROBLEMS if case.name == "dense-slow").make()
    contraction = sd.certify(function).contraction
    auto = solve(function, start, tol=1e-10, max_iter=500, contraction=contraction)
    picard = solve(function, start, Picard(), tol=1e-10, max_iter=500)
    patient = solve(function, start, Auto(patience=400), tol=1e-10, max_iter=500, contraction=contraction)
    assert auto.converged and picard.converged and patient.converged
    assert auto.evaluations < picard.evaluations / 4
    assert patient.evaluations - patient.abs_trace.shape[1] >= 40, "plain steps, taken on trust"


def test_acceleration_is_also_used_where_intermediate_states_are_wanted():
    function, start = next(case for case in PROBLEMS if case.name == "dense-slow").make()
    contraction = sd.certify(function).contraction
    solution = solve(function, start, tol=1e-9, max_iter=40, indexing=(5, 20, 40), contraction=contraction)
    assert solution.converged and len(solution.trajectory) == 3


def test_without_a_proof_it_is_anderson():
    function, start = next(case for case in PROBLEMS if case.name == "plain-signed-tanh").make()
    auto, anderson = solve(function, start, tol=1e-9), solve(function, start, Anderson(), tol=1e-9)
    assert torch.equal(auto.value, anderson.value) and auto.evaluations == anderson.evaluations


def test_an_affine_map_goes_to_gmres():
    function = Affine(with_norm(normal(6, 6, seed=3), 0.95), normal(2, 6, seed=4))
    solution = solve(function, torch.zeros(2, 6).double(), tol=1e-9, max_iter=50)
    assert solution.converged and solution.linear_evaluations > 0 and solution.evaluations <= 4
    torch.testing.assert_close(solution.value, function.solution(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_out_of_the_range_of_the_metric_is_no_crash(dtype):
    bound = bound_map("dense", 2, dtype, shift=1.603, normalize=1)
    start = torch.full((3, 5), 0.9 * torch.finfo(dtype).max, dtype=dtype)
    solution = solve(bound, start, tol=1e-5, contraction=sd.certify(bound).contraction)
    assert solution.converged
    assert float(residuals(bound, solution.value)[1].max()) <= 1e-5


def test_a_start_at_the_solution():
    bound = bound_map("dense", 2, shift=0.5)
    z = ones_for(bound)
    for _ in range(200):
        z = bound(z)
    for tol in (0.0, 1e-15, 1e-3):
        solution = solve(bound, z, tol=tol, contraction=sd.certify(bound).contraction)
        assert not bool(solution.failed.any())
        torch.testing.assert_close(solution.value, z, rtol=1e-14, atol=0)


@pytest.mark.parametrize("max_iter", [1, 2, 3, 4, 5])
def test_the_limit_holds_with_a_proof(max_iter):
    function = RecordedBound.of(bound_map("dense", 2))
    solution = solve(function, ones_for(function), tol=1e-14, max_iter=max_iter,
                     contraction=sd.certify(function).contraction)  # fmt: skip
    assert len(function.states) == solution.evaluations == max_iter
    assert solution.statuses == (Status.MAX_ITERATIONS,) * 3
