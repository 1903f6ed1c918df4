"""What every solver must do, by whichever door it is entered. A concrete suite supplies the fixture `route`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from subdeq_plugin.errors import DomainError, OptionError, ShapeError
from subdeq_plugin.layers import BoundMap
from subdeq_plugin.result import Status
from tests.problems import (
    PROBLEMS,
    Affine,
    Map,
    RecordedBound,
    Whole,
    bound_map,
    make_input,
    make_layer,
    non_normal,
    normal,
    ones_for,
    plain,
    residuals,
    signed_bound,
)


@dataclass
class Outcome:
    """A solve as every door reports it."""

    value: Tensor
    trajectory: list[Tensor]
    status: Tensor
    absolute: Tensor
    relative: Tensor
    steps: Tensor
    abs_trace: Tensor
    rel_trace: Tensor
    evaluations: int


@dataclass(frozen=True)
class Route:
    """A solver behind one door: `solve(function, start, max_iter=, tol=, stop_mode=, indexing=)`."""

    name: str
    solve: Callable[..., Outcome]

    def __str__(self) -> str:
        return self.name


def tolerance(z: Tensor) -> float:
    """A tolerance well above the rounding error of the dtype."""
    return 1e-5 if z.dtype == torch.float32 else 1e-10


def _square_plus_ten(z: Tensor) -> Tensor:
    return z * z + 10.0


def _cosine(z: Tensor) -> Tensor:
    return z.cos()


def _tanh(z: Tensor) -> Tensor:
    return torch.tanh(0.9 * z.flip(0)) + torch.tensor([0.3, -0.2, 0.1], dtype=z.dtype)


def _growing(z: Tensor) -> Tensor:
    return 3 * z + 1


def _broken(z: Tensor) -> Tensor:
    return z + torch.nan


def by_row(*maps: Map) -> Map:
    """The map whose sample `i` obeys `maps[i]`: samples cannot influence each other."""
    return lambda z: torch.stack([one(row) for one, row in zip(maps, z, strict=True)])


class SolverContract:
    """Residuals, row independence, failure paths, statistics and refusals."""

    @pytest.fixture
    def route(self) -> Route:
        """The solver under test."""
        raise NotImplementedError

    # Solutions

    @pytest.mark.parametrize("case", PROBLEMS, ids=str)
    def test_solves_the_problem_and_tells_the_truth_about_it(self, route, case):
        function, start = case.make()
        tol = tolerance(start)
        given = start.clone()
        outcome = route.solve(function, start, max_iter=3000, tol=tol, stop_mode="rel", indexing=())
        absolute, relative = residuals(function, outcome.value, case.samples)
        assert bool((relative <= tol * (1 + 1e-6)).all()), relative
        assert torch.equal(start, given), "the start was overwritten"
        assert (outcome.value.shape, outcome.value.dtype) == (start.shape, start.dtype)
        assert not outcome.value.requires_grad
        assert outcome.status.tolist() == [int(Status.CONVERGED)] * case.samples
        floor = 50 * torch.finfo(start.dtype).eps
        size = outcome.value.double().reshape(case.samples, -1).norm(dim=1)
        assert bool(((outcome.absolute.double() - absolute).abs() <= 1e-3 * absolute + floor * size).all())
        assert bool(((outcome.relative.double() - relative).abs() <= 1e-3 * relative + floor).all())

    @pytest.mark.parametrize("mode", ["abs", "rel"])
    def test_statistics_have_one_row_per_sample(self, route, mode):
        function, start = PROBLEMS[15].make()
        outcome = route.solve(function, start, max_iter=400, tol=1e-8, stop_mode=mode, indexing=())
        batch = start.shape[0]
        for row in (outcome.absolute, outcome.relative, outcome.steps, outcome.status):
            assert row.shape == (batch,)
        length = outcome.abs_trace.shape[1]
        assert outcome.abs_trace.shape == outcome.rel_trace.shape == (batch, length)
        assert 1 <= length <= outcome.evaluations <= 400
        assert bool((outcome.steps >= 1).all()) and bool((outcome.steps <= outcome.evaluations).all())
        tested = outcome.abs_trace if mode == "abs" else outcome.rel_trace
        assert bool((tested.diff(dim=1) <= 0).all()), "the trace is that of the best iterate"
        torch.testing.assert_close(outcome.abs_trace[:, -1], outcome.absolute, rtol=0, atol=0)
        torch.testing.assert_close(outcome.rel_trace[:, -1], outcome.relative, rtol=0, atol=0)
        measured = residuals(function, outcome.value)[0 if mode == "abs" else 1]
        assert bool((measured <= 1.001e-8).all())

    def test_a_sample_at_its_solution_costs_one_evaluation(self, route):
        function = Affine(0.5 * torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
        start = torch.full((2, 3), 2.0, dtype=torch.float64)
        outcome = route.solve(function, start, max_iter=50, tol=1e-12, stop_mode="abs", indexing=())
        assert torch.equal(outcome.value, start)
        assert len(function.states) == outcome.evaluations == 1

    def test_one_number_per_sample(self, route):
        start = torch.tensor([0.3, 2.0], dtype=torch.float64)
        outcome = route.solve(torch.cos, start, max_iter=500, tol=1e-11, stop_mode="abs", indexing=())
        assert outcome.status.shape == (2,)
        assert float((outcome.value - 0.7390851332151607).abs().max()) < 1e-9

    def test_a_single_number(self, route):
        outcome = route.solve(torch.cos, torch.tensor(1.0), max_iter=500, tol=1e-5, stop_mode="abs", indexing=())
        assert outcome.value.shape == () and outcome.status.shape == (1,)
        assert abs(float(outcome.value) - 0.73908513) < 1e-4

    # Samples do not influence each other

    @pytest.mark.parametrize("make", [lambda: PROBLEMS[15].make(), lambda: _described(), lambda: _positive()],
                             ids=["plain", "affine", "positive"])  # fmt: skip
    def test_changing_a_sample_leaves_the_others_alone(self, route, make):
        function, start = make()
        other = start.clone()
        other[0] = other[0] * 1.7 + 0.3
        for max_iter, tol in ((4, 0.0), (300, 1e-10)):
            first = route.solve(function, start, max_iter=max_iter, tol=tol, stop_mode="rel", indexing=())
            second = route.solve(function, other, max_iter=max_iter, tol=tol, stop_mode="rel", indexing=())
            torch.testing.assert_close(first.value[1:], second.value[1:], rtol=1e-12, atol=1e-13)
            assert torch.equal(first.steps[1:], second.steps[1:])

    def test_alone_or_in_company_is_the_same(self, route):
        maps = (_cosine, _tanh, lambda z: 0.97 * z.flip(0) + 1.0, lambda z: 0.1 * z.sin() + 2.0)
        start = normal(4, 3, seed=3)
        together = route.solve(by_row(*maps), start, max_iter=3000, tol=1e-9, stop_mode="rel", indexing=())
        for i, one in enumerate(maps):
            alone = route.solve(by_row(one), start[i : i + 1], max_iter=3000, tol=1e-9, stop_mode="rel", indexing=())
            torch.testing.assert_close(together.value[i : i + 1], alone.value, rtol=1e-11, atol=1e-12)
            assert together.steps[i] == alone.steps[0]

    def test_a_finished_sample_is_frozen(self, route):
        function = Whole.of(signed_bound())
        start = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
        tol = 1e-6
        outcome = route.solve(function, start, max_iter=3000, tol=tol, stop_mode="rel", indexing=())
        reference = signed_bound()
        finished = [residuals(reference, state)[1] <= tol for state in function.states]
        frozen = 0
        for row in range(3):
            first = next(i for i, done in enumerate(finished) if done[row])
            assert torch.equal(outcome.value[row], function.states[first][row])
            for later in function.states[first + 1 :]:
                frozen += 1
                assert torch.equal(later[row], function.states[first][row])
        assert frozen > 0, "the rows were meant to finish at different times"

    def test_finished_samples_may_be_left_out(self, route):
        function, whole = RecordedBound.of(signed_bound()), Whole.of(signed_bound())
        start = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
        settings = {"max_iter": 3000, "tol": 1e-6, "stop_mode": "rel", "indexing": ()}
        outcome, reference = route.solve(function, start, **settings), route.solve(whole, start, **settings)
        torch.testing.assert_close(outcome.value, reference.value, rtol=1e-12, atol=1e-13)
        assert torch.equal(outcome.steps, reference.steps) and torch.equal(outcome.status, reference.status)
        torch.testing.assert_close(outcome.absolute, reference.absolute, rtol=1e-6, atol=1e-15)
        assert sum(len(state) for state in function.states) <= sum(len(state) for state in whole.states)

    def test_bad_samples_leave_the_others_exact_and_are_named(self, route):
        good = (_cosine, _tanh)
        maps = (good[0], _broken, _square_plus_ten, _growing, good[1])
        start = torch.full((5, 3), 2.0, dtype=torch.float64)
        settings = {"max_iter": 300, "tol": 1e-9, "stop_mode": "rel", "indexing": ()}
        outcome = route.solve(by_row(*maps), start, **settings)
        for row, one in ((0, good[0]), (4, good[1])):
            alone = route.solve(by_row(one), start[:1], **settings)
            torch.testing.assert_close(outcome.value[row], alone.value[0], rtol=1e-11, atol=1e-12)
            assert outcome.status[row] == Status.CONVERGED
            assert outcome.steps[row] == alone.steps[0]
        assert outcome.status[1] == Status.NONFINITE
        assert outcome.status[2] in (Status.DIVERGED, Status.MAX_ITERATIONS, Status.STALLED)  # it has no fixed point
        exact = bool((outcome.value[3] + 0.5).abs().max() < 1e-8)
        assert exact == (outcome.status[3] == Status.CONVERGED)
        assert bool(outcome.value[2:4].isfinite().all()), "the best finite iterate is returned"
        assert bool((outcome.relative[2:4] <= torch.tensor([12 / 14, 5 / 7]) + 1e-9).all()), "worse than the start"
        assert not bool(outcome.absolute[1].isfinite())

    def test_nan_in_the_start_of_one_sample(self, route):
        function, start = _positive()
        clean = route.solve(function, start, max_iter=300, tol=1e-9, stop_mode="rel", indexing=())
        start[1, 2] = torch.nan
        outcome = route.solve(function, start, max_iter=300, tol=1e-9, stop_mode="rel", indexing=())
        assert [int(code) for code in outcome.status] == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
        torch.testing.assert_close(outcome.value[::2], clean.value[::2], rtol=1e-12, atol=0)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_a_bad_injection_in_a_certified_layer(self, route, bad):
        layer, x = make_layer("dense", 2), make_input("dense", 2)
        clean = route.solve(layer.bind(x).detach(), torch.ones(3, 5).double(), max_iter=99, tol=1e-9,
                            stop_mode="rel", indexing=())  # fmt: skip
        x[0, 0] = bad
        bound = layer.bind(x).detach()
        outcome = route.solve(bound, torch.ones(3, 5).double(), max_iter=99, tol=1e-9, stop_mode="rel", indexing=())
        assert outcome.status.tolist() == [Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]
        torch.testing.assert_close(outcome.value[1:], clean.value[1:], rtol=1e-8, atol=0)

    # Limits

    def test_the_limit_gives_the_best_iterate(self, route):
        function = Affine(non_normal(6), normal(3, 6, seed=5))
        start = normal(3, 6, seed=4)
        outcome = route.solve(function, start, max_iter=4, tol=1e-14, stop_mode="abs", indexing=())
        states = list(function.states)
        assert len(states) == outcome.evaluations <= 4
        best = torch.stack([residuals(function, state)[0] for state in states]).min(dim=0).values
        measured = residuals(function, outcome.value)[0]
        torch.testing.assert_close(measured, best, rtol=1e-9, atol=1e-12)
        unsolved = measured > 1e-12
        assert bool((outcome.status[unsolved] == Status.MAX_ITERATIONS).all())

    @pytest.mark.parametrize("max_iter", [1, 2, 3])
    def test_very_small_limits_are_kept(self, route, max_iter):
        function = RecordedBound.of(bound_map("dense", 4))
        start = torch.full((3, 5), 3.0, dtype=torch.float64)
        outcome = route.solve(function, start, max_iter=max_iter, tol=1e-14, stop_mode="rel", indexing=())
        assert len(function.states) == outcome.evaluations == max_iter
        assert outcome.status.tolist() == [Status.MAX_ITERATIONS] * 3

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_an_unattainable_tolerance_ends_at_the_rounding_floor(self, route, dtype):
        bound = bound_map("dense", 4, dtype, shift=0.3)
        outcome = route.solve(bound, ones_for(bound), max_iter=2000, tol=0.0, stop_mode="rel", indexing=())
        assert not bool((outcome.status > Status.ROUNDING_FLOOR).any())
        assert bool((residuals(bound, outcome.value)[1] <= 16 * torch.finfo(dtype).eps).all())
        assert outcome.evaluations < 2000

    # Proofs

    @pytest.mark.parametrize(
        ("kind", "keywords"),
        [("dense", {"shift": 0.3}), ("dense", {"shift": 0.6, "normalize": 2}), ("conv", {"shift": 0.3}),
         ("graph", {"shift": 0.8, "normalize": "inf"})],
    )  # fmt: skip
    def test_a_certified_test_puts_the_answer_within_the_tolerance(self, route, kind, keywords):
        bound = bound_map(kind, 4, **keywords)
        start, z = torch.full_like(ones_for(bound), 2.0), ones_for(bound)
        given = start.clone()
        for _ in range(200):
            z = bound(z)
        for tol in (1e-1, 1e-7):
            outcome = route.solve(bound, start, max_iter=3000, tol=tol, stop_mode="certified", indexing=())
            assert outcome.status.tolist() == [int(Status.CONVERGED)] * 3
            assert torch.equal(start, given), "the start was overwritten"
            gap = (outcome.value.log() - z.log()).reshape(3, -1)
            distance = gap.abs().amax(dim=1) if "normalize" not in keywords else gap.amax(dim=1) - gap.amin(dim=1)
            assert bool((distance <= tol + 1e-13).all())

    @pytest.mark.parametrize("make", [lambda: (torch.cos, torch.ones(2, 3)), lambda: _positive()])
    def test_a_certified_test_without_a_proof_is_refused(self, route, make):
        function, start = make()
        with pytest.raises(OptionError, match="needs a proven contraction"):
            route.solve(function, start, max_iter=10, tol=1e-4, stop_mode="certified", indexing=())

    # Trajectories

    @pytest.mark.parametrize("indexing", [(1, 300), (2, 5, 300), (300,), (1, 2, 3, 4, 5, 300), (100, 200, 300), (3, 4)])
    @pytest.mark.parametrize("certified", [True, False])
    def test_one_state_for_each_index_and_the_last_is_final(self, route, indexing, certified):
        bound = bound_map("dense", 4, shift=0.2) if certified else signed_bound()
        outcome = route.solve(bound, ones_for(bound), max_iter=300, tol=1e-9, stop_mode="rel", indexing=indexing)
        assert len(outcome.trajectory) == len(indexing)
        assert torch.equal(outcome.trajectory[-1], outcome.value)
        worst = [float(residuals(bound, state)[1].max()) for state in outcome.trajectory]
        assert worst == sorted(worst, reverse=True)
        assert worst[-1] <= 1.001e-9
        assert all(state.shape == bound.state_shape for state in outcome.trajectory)
        if indexing[0] == 1:
            assert torch.equal(outcome.trajectory[0], ones_for(bound))

    def test_recorded_states_are_those_of_a_shorter_solve(self, route):
        bound = signed_bound()
        start = ones_for(bound)
        long = route.solve(bound, start, max_iter=60, tol=1e-13, stop_mode="rel", indexing=(3, 6, 60))
        for index, state in zip((3, 6), long.trajectory, strict=False):
            short = route.solve(bound, start, max_iter=index, tol=1e-13, stop_mode="rel", indexing=(index,))
            torch.testing.assert_close(state, short.value, rtol=1e-14, atol=0)

    # The cone

    @pytest.mark.parametrize("seed", range(4))
    def test_iterates_stay_positive(self, route, seed):
        keywords = [
            {"shift": 0.02},
            {"activation": "relu", "shift": 1e-3, "power": 0.9},
            {"activation": "relu", "shift": 0.01, "power": -0.8},
            {"shift": 1.603, "normalize": "inf"},
        ]
        function = RecordedBound.of(bound_map("dense", seed, **keywords[seed]))
        start = torch.exp(3 * normal(3, 5, seed=seed) + torch.tensor([[-9.0], [0.0], [9.0]]))
        outcome = route.solve(function, start, max_iter=2000, tol=1e-9, stop_mode="thompson", indexing=())
        states = list(function.states)
        assert states and all(bool((state > 0).all()) for state in states)
        image = function(outcome.value)
        assert float((image.log() - outcome.value.log()).abs().max()) <= 1.001e-9

    @pytest.mark.parametrize("entry", [0.0, -1.0, torch.inf])
    def test_a_start_outside_the_cone_is_refused(self, route, entry):
        bound = bound_map("dense")
        start = ones_for(bound)
        start[1, 1] = entry
        with pytest.raises(DomainError, match="strictly positive"):
            route.solve(bound, start, max_iter=10, tol=1e-4, stop_mode="rel", indexing=())

    # Refusals

    def test_an_empty_batch_is_refused(self, route):
        with pytest.raises(ShapeError, match="empty"):
            route.solve(torch.cos, torch.empty(0, 3), max_iter=10, tol=1e-4, stop_mode="rel", indexing=())

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_a_start_that_is_not_floating_point_is_refused(self, route, dtype):
        with pytest.raises(ShapeError, match="floating-point"):
            route.solve(torch.cos, torch.ones(2, 3, dtype=dtype), max_iter=10, tol=1e-4, stop_mode="rel", indexing=())

    def test_half_precision_states_are_solved(self, route):
        matrix = (0.2 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))).bfloat16()
        start = torch.ones(2, 4, dtype=torch.bfloat16)
        outcome = route.solve(lambda z: torch.tanh(z @ matrix.T) + 0.5, start, max_iter=100, tol=0.05,
                              stop_mode="rel", indexing=())  # fmt: skip
        assert outcome.value.dtype == torch.bfloat16
        assert bool((residuals(lambda z: torch.tanh(z @ matrix.T) + 0.5, outcome.value)[1] <= 0.06).all())


def _described() -> tuple[Map, Tensor]:
    return plain(Affine(non_normal(6), normal(3, 6, seed=5))), normal(3, 6, seed=4)


def _positive() -> tuple[BoundMap, Tensor]:
    bound = signed_bound()
    return bound, ones_for(bound)
