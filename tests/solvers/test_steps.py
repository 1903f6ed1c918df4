"""What each step method promises beyond the contract: Picard, Anderson, Halpern, Newton-Krylov."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.errors import OptionError
from subdeq_plugin.result import Status
from subdeq_plugin.solvers import Anderson, Auto, Gmres, Halpern, NewtonKrylov, Picard, Problem, Stop, solve
from tests.problems import Affine, bound_map, non_normal, normal, ones_for, plain, residuals, rotation, with_norm

ZERO = torch.zeros(1, 2, dtype=torch.float64)


def zeros(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, columns, dtype=torch.float64)


# Picard


def test_picard_applies_the_map():
    function = Affine(rotation(0.5), normal(2, 2, seed=1))
    solve(function, zeros(2, 2), Picard(), tol=0.0, max_iter=6)
    for before, after in zip(function.states, function.states[1:], strict=False):
        torch.testing.assert_close(after, before @ function.matrix.T + function.constant, rtol=0, atol=1e-15)


def test_picard_converges_at_the_certified_rate():
    bound = bound_map("dense", 3, shift=0.1)
    rate = sd.certify(bound).rate
    assert rate is not None
    z, steps = ones_for(bound), []
    for _ in range(12):
        new = solve(bound, z, Picard(), tol=0.0, max_iter=2).value
        steps.append(float((bound(z).log() - z.log()).abs().max()))
        z = bound(z)
        torch.testing.assert_close(new, z, rtol=1e-15, atol=0)
    assert all(later <= rate * step * (1 + 1e-9) for step, later in pairwise(steps))


def test_damping_makes_a_reflection_converge():
    function = Affine(-torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    plain_steps = solve(function, zeros(1, 3), Picard(), tol=1e-12, max_iter=50)
    damped = solve(function, zeros(1, 3), Picard(damping=0.5), tol=1e-12, max_iter=50)
    assert not plain_steps.converged and damped.converged
    torch.testing.assert_close(damped.value, torch.full((1, 3), 0.5, dtype=torch.float64))


# Anderson


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [0.5, 0.99, 2.0])
def test_anderson_ends_on_a_linear_map_like_gmres(n, size):
    matrix = with_norm(normal(n, n, seed=n), size)
    function = Affine(matrix, normal(3, n, seed=40 + n))
    solution = solve(plain(function), zeros(3, n), Anderson(memory=n + 1), tol=1e-6, max_iter=50)
    assert solution.converged
    assert solution.evaluations <= n + 2
    torch.testing.assert_close(solution.value, function.solution(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Anderson, NewtonKrylov, Gmres, Auto, Halpern, Picard])
@pytest.mark.parametrize("scale", [1e-8, 1e-15, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_right_hand_sides_converge_like_large_ones(kind, scale, dtype):
    matrix, constant = with_norm(normal(8, 8, seed=2), 0.7).to(dtype), normal(4, 8, seed=3, dtype=dtype)
    start, tol = torch.zeros(4, 8, dtype=dtype), 1e-4
    reference = solve(plain(Affine(matrix, constant)), start, kind(), tol=tol, max_iter=400)
    small = solve(plain(Affine(matrix, scale * constant)), start, kind(), tol=tol, max_iter=400)
    assert reference.converged and small.converged
    assert abs(small.evaluations - reference.evaluations) <= 1
    truth = Affine(matrix, scale * constant).solution()
    assert float((small.value.double() - truth).norm() / truth.norm()) <= 5 * tol


def test_anderson_recovers_from_growing_residuals():
    function = Affine(non_normal(20), normal(2, 20, seed=4))
    solution = solve(plain(function), zeros(2, 20), Anderson(memory=4), tol=1e-9, max_iter=800)
    assert solution.converged
    torch.testing.assert_close(solution.value, function.solution(), rtol=1e-4, atol=1e-4)


def test_anderson_forgets_its_history_when_the_residual_has_grown_tenfold():
    solver, z = Anderson(), normal(2, 4, seed=5)
    problem = Problem.of(torch.cos, z)
    state = solver.start(problem, z)
    for k in range(3):
        z = solver.step(problem, z, z + 0.1 * normal(2, 4, seed=6 + k), state)
    residual = 0.1 * normal(2, 4, seed=10)
    residual[0] *= 30
    proposal = solver.step(problem, z, z + residual, state)
    torch.testing.assert_close(proposal[0], z[0] + residual[0], rtol=1e-15, atol=0)
    assert float((proposal[1] - z[1] - residual[1]).abs().max()) > 1e-3, "the other sample keeps its history"


# Halpern


def test_halpern_converges_on_a_rotation_where_picard_does_not():
    function = Affine(rotation(1.0), torch.ones(2, dtype=torch.float64))
    picard = solve(plain(function), ZERO, Picard(), tol=1e-3, max_iter=2000, stop_mode="abs")
    halpern = solve(plain(function), ZERO, Halpern(), tol=1e-3, max_iter=2000, stop_mode="abs")
    assert not picard.converged
    assert halpern.converged
    assert float((halpern.value - function.solution()).abs().max()) < 1e-2


def test_halpern_without_restarts_has_the_proven_rate():
    # |z_k - f(z_k)| <= 2 |z_0 - z*| / (k + 1), Sabach and Shtern 2017.
    function = Affine(rotation(1.0, angle=2.0), torch.ones(2, dtype=torch.float64))
    solve(function, ZERO, Halpern(restart=0.0), tol=0.0, max_iter=400, stop_mode="abs")
    distance = float(function.solution().norm())
    states = list(function.states)
    for k in (1, 10, 100, 399):
        assert float(residuals(function, states[k])[0]) <= 2 * distance / (k + 1) * (1 + 1e-9)


def test_halpern_converges_on_a_homogeneous_map_where_picard_does_not():
    # Degree exactly one: an irreducible but periodic nonnegative matrix, geometric means with a constant ray.
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)

    class Swap:
        sample_dims, positive = 1, True

        def __call__(self, z: Tensor) -> Tensor:
            return z @ swap

        def linearize(self, z: Tensor) -> Affine:
            return Affine(swap, torch.zeros(2, dtype=torch.float64))

    start = torch.tensor([[1.0, 9.0]], dtype=torch.float64)
    picard = solve(Swap(), start, Picard(), tol=1e-2, max_iter=500, stop_mode="thompson")
    halpern = solve(Swap(), start, Halpern(), tol=1e-2, max_iter=500, stop_mode="thompson")
    assert not picard.converged and halpern.converged
    # Averages of logarithms keep the geometric mean.
    assert abs(float(halpern.value.log().mean()) - math.log(3.0)) < 1e-12


# Newton-Krylov


def test_newton_converges_quadratically():
    bound = bound_map("dense", 5, activation="softplus", shift=0.1, power=0.9)
    start = ones_for(bound)
    solution = solve(bound, start, NewtonKrylov(linear_rtol=1e-12), tol=1e-14, max_iter=20)
    trace = solution.rel_trace.max(dim=0).values
    errors = [float(value) for value in trace if float(value) > 1e-14]
    assert solution.evaluations <= 7
    late = [math.log(b) / math.log(a) for a, b in pairwise(errors[1:]) if a < 1e-2]
    assert late and max(late) > 1.7


def test_newton_is_linear_when_its_linear_solves_are_rough():
    bound = bound_map("dense", 5, activation="softplus", shift=0.1, power=0.9)
    rough = solve(bound, ones_for(bound), NewtonKrylov(linear_rtol=0.5), tol=1e-12, max_iter=60)
    fine = solve(bound, ones_for(bound), NewtonKrylov(linear_rtol=1e-10), tol=1e-12, max_iter=60)
    assert rough.converged and fine.converged
    assert rough.evaluations > fine.evaluations


def test_newton_backtracks_where_the_full_step_overshoots():
    # arctan(4 (z - 1)) = 0 as a fixed point: Newton's full step diverges from |z - 1| > 0.35.
    class Arctan:
        sample_dims, positive = 1, False

        def __call__(self, z: Tensor) -> Tensor:
            return z - torch.atan(4 * (z - 1))

        def linearize(self, z: Tensor) -> Affine:
            slope = 1 - 4 / (1 + 16 * (z - 1) ** 2)
            return Affine(slope[..., None], torch.zeros_like(z))

    start = torch.tensor([[1.8], [0.3], [1.1]], dtype=torch.float64)
    first_step = (Arctan()(start) - start) / (1 - Arctan().linearize(start).matrix[..., 0])
    assert bool(((start + first_step - 1).abs()[:2] > 1).all()), "the full step was meant to overshoot"
    damped = solve(Arctan(), start, NewtonKrylov(), tol=1e-10, max_iter=40, stop_mode="abs")
    assert damped.converged
    torch.testing.assert_close(damped.value, torch.ones(3, 1, dtype=torch.float64))


def test_newton_solves_an_expansive_map_that_picard_cannot():
    matrix = 3 * rotation(1.0)
    function = Affine(matrix, torch.ones(2, dtype=torch.float64))
    assert not solve(plain(function), ZERO, Picard(), tol=1e-8, max_iter=100).converged
    solution = solve(plain(function), ZERO, NewtonKrylov(), tol=1e-8, max_iter=100)
    assert solution.converged
    torch.testing.assert_close(solution.value[0], function.solution())


# Failure and limits of every step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_diverging_iteration_is_named_and_the_start_returned(dtype):
    start = torch.tensor([[2.0, 1.0], [0.5, 0.5]], dtype=dtype)

    def function(z: Tensor) -> Tensor:
        return torch.stack([z[0] ** 3 + 2, z[1].cos()])

    solution = solve(function, start, Picard(), tol=1e-5, max_iter=200)
    assert solution.statuses == (Status.DIVERGED, Status.CONVERGED)
    assert torch.equal(solution.value[0], start[0])
    assert solution.failed.tolist() == [True, False]
    assert "1 of 2 samples failed" in solution.describe_failures()


def test_an_iteration_that_grows_out_of_the_range_has_diverged():
    solution = solve(lambda z: 3 * z + 1, torch.ones(2, 3), Picard(), tol=1e-5, max_iter=200)
    assert solution.statuses == (Status.DIVERGED,) * 2
    slow = solve(lambda z: 3 * z + 1, torch.ones(2, 3), Picard(), tol=1e-5, max_iter=20, stop_mode="abs")
    assert slow.statuses == (Status.MAX_ITERATIONS,) * 2
    assert torch.equal(slow.value, torch.ones(2, 3))


def test_one_nan_is_retried_once_from_the_best_state():
    calls = 0

    def function(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * z + 1 + (torch.nan if calls == 4 else 0.0)

    solution = solve(function, zeros(2, 2), Picard(), tol=1e-10, max_iter=100)
    assert solution.converged
    torch.testing.assert_close(solution.value, torch.full((2, 2), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", [Picard, Anderson, Halpern, Auto])
def test_the_retry_is_a_plain_step_from_the_best_state(kind):
    states: list[Tensor] = []

    def function(z: Tensor) -> Tensor:
        states.append(z.clone())
        image = torch.cos(z) + 0.1 * z.flip(1)
        return image + torch.nan if len(states) == 4 else image

    solution = solve(function, zeros(1, 2) + 0.1, kind(), tol=1e-10, max_iter=300)
    assert solution.converged
    seen = [states[0], states[1], states[2]]
    best = min(seen, key=lambda z: float((torch.cos(z) + 0.1 * z.flip(1) - z).norm() / torch.cos(z).norm()))
    torch.testing.assert_close(states[4], torch.cos(best) + 0.1 * best.flip(1), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (Picard, "damping", 0.0), (Picard, "damping", 1.5), (Picard, "damping", math.nan),
        (Anderson, "memory", 0), (Anderson, "damping", -1.0), (Anderson, "regularization", -1.0),
        (Halpern, "restart", 1.0), (Halpern, "restart", -0.1),
        (NewtonKrylov, "linear_rtol", 0.0), (NewtonKrylov, "linear_rtol", 1.0), (NewtonKrylov, "krylov_dim", 0),
        (NewtonKrylov, "backtracks", -1), (Gmres, "linear_rtol", 2.0), (Gmres, "krylov_dim", 0), (Auto, "patience", 0),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(kind, option, value):
    with pytest.raises(OptionError, match=f"{option} must be .*, got {value!r}"):
        kind(**{option: value})


@pytest.mark.parametrize("max_iter", [0, -1, 2.5, math.nan, math.inf, None, "many"])
def test_a_limit_that_is_no_positive_integer_is_refused(max_iter):
    with pytest.raises(OptionError, match="max_iter must be a positive integer"):
        Stop(max_iter=max_iter)


@pytest.mark.parametrize("tol", [-1e-3, math.nan, True, None, "small"])
def test_a_tolerance_that_is_no_nonnegative_number_is_refused(tol):
    with pytest.raises(OptionError, match="tol must be a nonnegative number"):
        Stop(tol=tol)


def test_an_unknown_residual_is_refused():
    with pytest.raises(OptionError, match="did you mean 'thompson'"):
        Stop(mode="thomson")
