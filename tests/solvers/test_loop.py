"""The loop around a step: samples that are done are left out, and nobody notices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from subdeq_plugin.certificates import contraction_of
from subdeq_plugin.layers import BoundMap, MapSpec
from subdeq_plugin.metrics import Contraction
from subdeq_plugin.result import Solution, Status
from subdeq_plugin.solvers import SOLVERS, Anderson, Auto, Halpern, Iteration, NewtonKrylov, Picard, Problem, solve
from tests.helpers import iterate, log_distance
from tests.problems import (
    Affine,
    RecordedBound,
    Whole,
    make_input,
    make_layer,
    normal,
    ones_for,
    residuals,
    signed_bound,
)

ROWS = 40
HARD = (3, 17, 18, 39)
STEPS = {
    "picard": Picard(), "picard-damped": Picard(damping=0.7), "anderson": Anderson(), "anderson-2": Anderson(memory=2),
    "newton_krylov": NewtonKrylov(), "newton_krylov-rough": NewtonKrylov(linear_rtol=0.5, krylov_dim=2),
    "halpern": Halpern(), "gmres": SOLVERS["gmres"](), "auto": Auto(),
}  # fmt: skip


def mixed(seed: int = 6, activation: str = "tanh") -> BoundMap:
    """A proven dense map on 40 samples: most are saturated by their injection, a few are near its linear part."""
    layer = make_layer("dense", seed, shift=0.02, activation=activation)
    with torch.no_grad():
        layer.weight = torch.softmax(normal(5, 5, seed=seed), dim=1)
    bound = layer.bind(make_input("dense", seed, batch=ROWS)).detach()
    assert bound.outer is not None
    outer = 0.3 + 3 * torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outer[list(HARD)] = 0.0
    return bound.with_tensors([*bound.operator.tensors, outer])


def both(bound: BoundMap, solver: Any, **settings: Any) -> tuple[Solution, Solution, RecordedBound, Whole]:
    """Solved with samples left out, and as a map that does not say what its samples are."""
    apart, whole = RecordedBound.of(bound), Whole.of(bound)
    start = torch.exp(0.3 * normal(*bound.state_shape, seed=1, dtype=bound.dtype))
    return solve(apart, start, solver, **settings), solve(whole, start, solver, **settings), apart, whole


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mode", ["rel", "thompson", "certified"])
def test_leaving_finished_samples_out_changes_nothing(name, mode):
    bound = mixed()
    # Plain steps would do for an `Auto` with the proof: it has other tests.
    contraction = contraction_of(bound) if mode == "certified" else None
    tol = 1e-2 if name == "halpern" else 1e-9
    found, reference, apart, whole = both(
        bound, STEPS[name], tol=tol, max_iter=3000, stop_mode=mode, contraction=contraction
    )
    assert found.converged and reference.converged
    assert torch.equal(found.iterations, reference.iterations) and found.evaluations == reference.evaluations
    torch.testing.assert_close(found.value, reference.value, rtol=1e-9, atol=0)
    for one, other in ((found.abs_residual, reference.abs_residual), (found.rel_residual, reference.rel_residual)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-12)
    for one, other in ((found.abs_trace, reference.abs_trace), (found.rel_trace, reference.rel_trace)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-12)
        assert one.shape[0] == ROWS
    # The hard ones come last, and the evaluations in between are on few rows.
    assert int(found.iterations[list(HARD)].min()) > int(found.iterations.median())
    assert [len(state) for state in whole.states] == [ROWS] * len(whole.states)
    if name != "auto" or mode != "certified":
        assert min(len(state) for state in apart.states) <= 8


@pytest.mark.parametrize("name", STEPS)
def test_answers_and_statistics_are_in_the_order_of_the_samples(name):
    """Solved one by one they are the same."""
    bound = mixed(7)
    start = ones_for(bound)
    tol = 1e-2 if name == "halpern" else 1e-8
    together = solve(bound, start, STEPS[name], tol=tol, max_iter=3000)
    for row in (0, *HARD, 20, 38):
        alone = solve(bound.rows(torch.tensor([row])), start[:1], STEPS[name], tol=tol, max_iter=3000)
        torch.testing.assert_close(together.value[row], alone.value[0], rtol=1e-7, atol=0)
        assert together.iterations[row] == alone.iterations[0] and together.status[row] == alone.status[0]
    measured = residuals(bound, together.value)
    torch.testing.assert_close(together.abs_residual, measured[0], rtol=1e-3, atol=1e-14)
    torch.testing.assert_close(together.rel_residual, measured[1], rtol=1e-3, atol=1e-14)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mode", ["rel", "certified"])
def test_bad_samples_among_many(name, mode):
    bound = mixed(8)
    assert bound.outer is not None
    outer = bound.outer.clone()
    bad = {1: math.nan, 17: math.inf, 30: math.nan}
    for row, value in bad.items():
        outer[row, row % 5] = value
    spoilt = bound.with_tensors([*bound.operator.tensors, outer])
    tol = 1e-2 if name == "halpern" else 1e-8
    settings = {"tol": tol, "max_iter": 3000, "stop_mode": mode, "contraction": contraction_of(bound)}
    found = solve(spoilt, ones_for(bound), STEPS[name], **settings)
    good = torch.tensor([row not in bad for row in range(ROWS)])
    assert [row for row in range(ROWS) if found.statuses[row] == Status.NONFINITE] == sorted(bad)
    assert bool((found.status[good] == Status.CONVERGED).all())
    exact = iterate(bound, ones_for(bound), steps=20000)
    reach = {"certified": tol + 1e-12, "rel": 3e-1 if name == "halpern" else 1e-6}[mode]
    assert bool((log_distance("thompson", found.value, exact, 1)[good] <= reach).all())
    assert bool(found.abs_residual[good].isfinite().all()) and not bool(found.abs_residual[~good].isfinite().any())


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("max_iter", [1, 2, 5, 17])
def test_the_limit_in_the_middle_of_it(name, max_iter):
    bound = mixed(9)
    found, reference, apart, _ = both(bound, STEPS[name], tol=1e-9, max_iter=max_iter)
    assert found.evaluations == reference.evaluations <= max_iter
    assert len(apart.states) == found.evaluations
    assert torch.equal(found.status, reference.status) and torch.equal(found.iterations, reference.iterations)
    torch.testing.assert_close(found.value, reference.value, rtol=1e-9, atol=0)
    measured = residuals(bound, found.value)[1]
    good = found.status == Status.CONVERGED
    assert bool((measured[good] <= 1.001e-9).all()) and bool((measured[~good] > 0.999e-9).all())


@pytest.mark.parametrize("name", ["picard", "anderson", "newton_krylov"])
def test_recorded_states_have_all_samples(name):
    bound = mixed(10)
    settings = {"tol": 1e-9, "max_iter": 200, "indexing": (2, 6, 30, 200)}
    found, reference, _, _ = both(bound, STEPS[name], **settings)
    assert len(found.trajectory) == 4
    for one, other in zip(found.trajectory, reference.trajectory, strict=True):
        assert one.shape == bound.state_shape
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
    assert torch.equal(found.trajectory[-1], found.value)


@pytest.mark.parametrize("name", ["picard", "anderson", "newton_krylov", "auto"])
def test_states_with_several_leading_dimensions(name):
    bound = mixed(11)
    assert bound.outer is not None
    folded = bound.with_tensors([*bound.operator.tensors, bound.outer.reshape(4, 10, 5)])
    start = torch.exp(0.3 * normal(4, 10, 5, seed=1))
    settings = {"tol": 1e-9, "max_iter": 3000}
    found = solve(folded, start, STEPS[name], **settings)
    reference = solve(bound, start.reshape(ROWS, 5), STEPS[name], **settings)
    assert found.value.shape == (4, 10, 5) and found.status.shape == (ROWS,)
    torch.testing.assert_close(found.value.reshape(ROWS, 5), reference.value, rtol=1e-9, atol=0)
    assert torch.equal(found.iterations, reference.iterations)


@pytest.mark.parametrize("kind", ["conv", "graph"])
@pytest.mark.parametrize("name", ["anderson", "newton_krylov", "halpern"])
def test_images_and_graphs(kind, name):
    layer = make_layer(kind, 3, shift=0.02)
    bound = layer.bind(make_input(kind, 3, batch=12)).detach()
    part = bound.tensors[-1] * 0.01
    part[4:] += 2.0
    bound = bound.with_tensors([*bound.tensors[:-1], part])
    tol = 1e-2 if name == "halpern" else 1e-9
    found, reference, apart, _ = both(bound, STEPS[name], tol=tol, max_iter=3000)
    assert found.converged and torch.equal(found.iterations, reference.iterations)
    torch.testing.assert_close(found.value, reference.value, rtol=1e-8, atol=0)
    assert min(len(state) for state in apart.states) <= 6


def test_single_precision_samples_at_their_floor_are_left_out_too():
    bound = mixed(12).to("cpu", torch.float32)
    found, reference, apart, _ = both(bound, Anderson(), tol=0.0, max_iter=400)
    assert found.evaluations < 400 and not bool(found.failed.any())
    assert bool((residuals(bound, found.value)[1] <= 16 * torch.finfo(torch.float32).eps).all())
    assert sum(len(state) for state in apart.states) < ROWS * len(apart.states)
    assert torch.equal(found.failed, reference.failed)


@dataclass(frozen=True)
class Rows:
    """`z -> A_i z + c_i` with a matrix for every sample; those in `lost` turn to NaN at evaluation `since`."""

    matrices: Tensor
    constants: Tensor
    lost: tuple[int, ...] = ()
    since: int = 4
    calls: list[int] = field(default_factory=list)
    numbers: tuple[int, ...] = ()
    sample_dims: int = 1
    positive: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        self.calls.append(len(z))
        assert bool(z.isfinite().all()), "a sample that is lost goes back to its best state"
        image = (self.matrices @ z[..., None])[..., 0] + self.constants
        if len(self.calls) >= self.since:
            image[[number in self.lost for number in self._names]] = math.nan
        return image

    @property
    def _names(self) -> tuple[int, ...]:
        return self.numbers or tuple(range(len(self.constants)))

    def linearize(self, z: Tensor) -> Affine:
        return Affine(self.matrices, self.constants)

    def rows(self, index: Tensor) -> Rows:
        names = tuple(self._names[i] for i in index.tolist())
        return replace(self, matrices=self.matrices[index], constants=self.constants[index], numbers=names)


@pytest.mark.parametrize("name", ["picard", "anderson", "newton_krylov", "halpern", "auto"])
def test_maps_of_ones_own_are_split_by_their_rows(name):
    sizes = torch.linspace(0.01, 0.9, ROWS, dtype=torch.float64).flip(0)
    matrices = normal(ROWS, 3, 3, seed=1)
    matrices = sizes[:, None, None] * matrices / torch.linalg.matrix_norm(matrices, ord=2)[:, None, None]
    function = Rows(matrices, normal(ROWS, 3, seed=2))
    tol = 1e-2 if name == "halpern" else 1e-10
    found = solve(function, torch.zeros(ROWS, 3, dtype=torch.float64), STEPS[name], tol=tol, max_iter=3000)
    assert found.converged
    exact = torch.linalg.solve(torch.eye(3) - matrices, function.constants)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=60 * tol)
    assert function.calls[0] == ROWS and function.calls == sorted(function.calls, reverse=True)
    assert (function.calls[-1] <= ROWS // 2) == (found.iterations.unique().numel() > 1)


@pytest.mark.parametrize("name", ["picard", "anderson", "halpern"])
@pytest.mark.parametrize("since", [2, 3, 4])
def test_samples_that_get_lost_when_others_have_left_or_just_leave(name, since):
    sizes = torch.full((8,), 1e-12, dtype=torch.float64)
    sizes[[1, 4, 6]] = 0.9
    matrices = normal(8, 4, 4, seed=3)
    matrices = sizes[:, None, None] * matrices / torch.linalg.matrix_norm(matrices, ord=2)[:, None, None]
    function = Rows(matrices, torch.ones(8, 4, dtype=torch.float64), (4,), since)
    tol = 1e-4 if name == "halpern" else 1e-8
    found = solve(function, torch.zeros(8, 4, dtype=torch.float64), STEPS[name], tol=tol, max_iter=3000)
    assert function.calls[0] == 8 and (name == "halpern" or function.calls[2] < 8), "averages take their time"
    assert found.statuses[4] == Status.DIVERGED
    assert bool(found.value[4].isfinite().all())
    good = torch.arange(8) != 4
    assert bool((found.status[good] == Status.CONVERGED).all())
    exact = torch.linalg.solve(torch.eye(4) - matrices, function.constants)
    torch.testing.assert_close(found.value[good], exact[good], rtol=0, atol=100 * tol)


# What a method remembers


@pytest.mark.parametrize("solver", [Anderson(memory=3), Anderson(memory=2, damping=0.5), Halpern(), NewtonKrylov()],
                         ids=lambda solver: solver.name)  # fmt: skip
@pytest.mark.parametrize("before", [1, 2, 4, 7])
def test_a_memory_keeps_what_belongs_to_the_samples_kept(solver: Iteration, before):
    """Steps of a part of the batch after `keep` are those of that part alone."""
    function = signed_bound()
    index = torch.tensor([2, 0])
    part = function.rows(index)
    problem, other = Problem.of(function, ones_for(function)), Problem.of(part, part.start())
    z = torch.exp(normal(3, 5, seed=2))
    y = z[index]
    state, own = solver.start(problem, z), solver.start(other, y)
    for _ in range(before):
        z, y = solver.step(problem, z, problem(z), state), solver.step(other, y, other(y), own)
    state.keep(index)
    z = z[index]
    for _ in range(6):
        torch.testing.assert_close(z, y, rtol=1e-10, atol=0)
        z, y = solver.step(other, z, other(z), state), solver.step(other, y, other(y), own)
    for name, value in vars(own).items():
        if isinstance(value, Tensor):
            assert getattr(state, name).shape == value.shape, name
            torch.testing.assert_close(getattr(state, name), value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_memory_has_a_row_for_every_sample(name):
    """A tensor without one would be torn by `keep`."""
    solver = SOLVERS[name]()
    assert isinstance(solver, Iteration)
    function = signed_bound()
    problem, z = Problem.of(function, ones_for(function)), ones_for(function)
    state = solver.start(problem, z)
    for _ in range(3):
        z = solver.step(problem, z, problem(z), state)
    for value in () if state is None else vars(state).values():
        if isinstance(value, Tensor):
            assert value.shape[0] == 3


# Certified tests in the loop


@pytest.mark.parametrize("name", STEPS)
def test_the_certified_test_of_the_loop_is_its_formula(name):
    bound = mixed(13)
    found_rate = contraction_of(bound)
    assert found_rate is not None
    tol = 0.5 if name == "halpern" else 1e-5
    function = Whole.of(bound)
    found = solve(function, ones_for(bound), STEPS[name], tol=tol, max_iter=3000, stop_mode="certified",
                  contraction=found_rate)  # fmt: skip
    assert found.converged
    factor = found_rate.rate / (1 - found_rate.rate)
    exact = iterate(bound, ones_for(bound), steps=20000)
    assert bool((log_distance("thompson", found.value, exact, 1) <= tol + 1e-12).all())
    if name == "auto":
        return
    for row in (0, *HARD):
        state = function.states[int(found.iterations[row]) - 1]
        image = bound(state)
        torch.testing.assert_close(found.value[row], image[row], rtol=1e-13, atol=0)
        assert factor * float(log_distance("thompson", image, state, 1)[row]) <= tol
        for earlier in function.states[: int(found.iterations[row]) - 1]:
            assert factor * float(log_distance("thompson", bound(earlier), earlier, 1)[row]) > tol


def test_a_rate_of_zero_asks_for_one_image():
    bound = mixed(14)
    for solver in (Picard(), Anderson()):
        found = solve(bound, ones_for(bound), solver, tol=1e-6, stop_mode="certified",
                      contraction=Contraction.in_metric(0.0, "thompson"))  # fmt: skip
        assert found.converged and found.evaluations == 1
        torch.testing.assert_close(found.value, bound(ones_for(bound)), rtol=1e-14, atol=0)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("name", STEPS)
def test_a_map_that_leaves_the_cone_is_reported_not_warned_about(name, rate):
    """Its distance to the border is infinite, whatever factor stands before it."""
    arrays = {"weight": torch.zeros(2, 2), "outer": torch.zeros(1, 2)}
    bound = BoundMap.from_spec(MapSpec(arrays, {"kind": "dense", "activation": "relu"}))
    found = solve(bound, torch.ones(1, 2), STEPS[name], stop_mode="certified",
                  contraction=Contraction.in_metric(rate, "thompson"))  # fmt: skip
    assert found.statuses == (Status.NONFINITE,)


def test_traces_of_a_certified_solve_do_not_rise_in_its_own_measure():
    bound = mixed(15)
    found = solve(bound, ones_for(bound), Picard(), tol=1e-6, max_iter=3000, stop_mode="certified",
                  contraction=contraction_of(bound))  # fmt: skip
    assert found.abs_trace.shape == found.rel_trace.shape == (ROWS, found.evaluations)
    assert np.isfinite(found.abs_trace.numpy()).all()
    for row in range(ROWS):
        last = int(found.iterations[row]) - 1
        assert bool((found.abs_trace[row, last:] == found.abs_residual[row]).all()), "a finished sample keeps its value"
