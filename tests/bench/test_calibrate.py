"""The walk down the ladder of tolerances, with backends that follow a script."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from subdeq_plugin.bench import Answer, Training
from subdeq_plugin.bench.backends import Own
from subdeq_plugin.bench.calibrate import calibrate, count, describe, ladder
from subdeq_plugin.bench.judges import Verdict
from subdeq_plugin.bench.tasks import make_task

from .synthetic import Scripted, nan, plain, small


@pytest.fixture
def task():
    return make_task(small("dense-hard"), "forward")


@pytest.mark.parametrize(("dtype", "last"), [(torch.float32, 1e-9), (torch.float64, 1e-18)])
def test_the_ladder(dtype, last):
    steps = ladder(dtype)
    assert steps[0] == 0.1 and last <= steps[-1] < 10 * last
    assert all(a / b == pytest.approx(10**0.5) for a, b in pairwise(steps))


def scripted(errors):
    """A backend whose answer at a tolerance is a number that the judge takes for its error."""
    return Scripted("scripted", lambda task, tol, call: Answer(torch.tensor(errors(tol)), 3, 0))


def judged_by_value(task):
    return type(task)(task.function, task.start, None, lambda value: Verdict(float(value)))


def test_the_first_tolerance_that_suffices_is_taken_for_every_error(task):
    backend = scripted(lambda tol: 7 * tol)
    found = calibrate(backend, judged_by_value(task), (1e-3, 1e-5, 1e-4), 10)
    assert backend.calls == list(ladder(torch.float64)[: len(backend.calls)])
    for error, calibration in found.items():
        expected = next(tol for tol in ladder(torch.float64) if 7 * tol <= error)
        assert (
            calibration.tol == expected and calibration.error == pytest.approx(7 * expected) and not calibration.failure
        )
    assert len(backend.calls) == ladder(torch.float64).index(found[1e-5].tol) + 1


def test_a_loose_tolerance_may_suffice_by_luck(task):
    backend = scripted(lambda tol: 0.0 if tol == 0.1 else 1.0)
    assert calibrate(backend, judged_by_value(task), (1e-6,), 10)[1e-6].tol == 0.1
    assert backend.calls == [0.1]


def test_what_is_never_reached_is_kept_with_the_best_error(task):
    backend = scripted(lambda tol: max(tol, 1e-4) if tol > 1e-9 else 1e-2)
    found = calibrate(backend, judged_by_value(task), (1e-3, 1e-6), 10)
    assert found[1e-3].tol is not None
    assert found[1e-6].tol is None and found[1e-6].error == pytest.approx(1e-4)
    assert "the smallest tolerance tried, 3e-18, is not small enough" in found[1e-6].failure
    assert len(backend.calls) == len(ladder(torch.float64))


def test_an_exception_ends_the_walk_and_is_kept(task):
    def script(task, tol, call):
        if call == 3:
            raise ZeroDivisionError("no\nmore")
        return Answer(torch.tensor(1.0))

    backend = Scripted("raises", script)
    (calibration,) = calibrate(backend, judged_by_value(task), (1e-6,), 10).values()
    assert (calibration.tol, calibration.error, calibration.failure) == (None, 1.0, "ZeroDivisionError: no")
    assert len(backend.calls) == 3


def test_nan_is_no_answer(task):
    (calibration,) = calibrate(Scripted("nan", lambda t, tol, call: nan(t)), task, (1e-6,), 10).values()
    assert calibration.tol is None and math.isinf(calibration.error)
    assert calibration.failure == "the answer has NaN or infinite entries"


def test_a_liar_is_judged_by_its_answer(task):
    """It says that it has converged at once."""
    (calibration,) = calibrate(Scripted("liar", lambda t, tol, call: Answer(t.start, 1)), task, (1e-6,), 10).values()
    assert calibration.tol is None
    assert calibration.error == pytest.approx(task.judge(task.start).error)


def test_used_up_evaluations_end_the_walk(task):
    """Reported by the backend itself."""
    backend = Scripted("lazy", lambda t, tol, call: Answer(t.start, 10, 0, call == 4))
    (calibration,) = calibrate(backend, task, (1e-6,), 10).values()
    assert len(backend.calls) == 4 and calibration.failure == "10 evaluations are not enough"


def steps(func, x0, max_iter, tol, **keywords):
    """Plain iteration that says nothing of what it did."""
    z = x0
    for _ in range(max_iter):
        image = func(z)
        done = float((image - z).norm() / image.norm()) <= tol
        z = image
        if done:
            break
    return z, [], {}


def test_used_up_evaluations_are_seen_at_the_map(task):
    (calibration,) = calibrate(Own("mine", steps), task, (1e-6,), 50).values()
    assert calibration.tol is None and calibration.failure == "50 evaluations are not enough"
    assert calibration.error < task.judge(task.start).error


@pytest.mark.parametrize("work", ["forward", "adjoint", "training"])
def test_a_real_solver_reaches_it_and_its_uses_are_counted(work):
    task = make_task(small(), work)
    backend = Own("mine", steps)
    (calibration,) = calibrate(backend, task, (1e-5,), 50).values()
    answer = backend.prepare(task, calibration.tol, 50)()
    assert calibration.error == task.judge(answer.value).error <= 1e-5
    looser = ladder(torch.float32)[ladder(torch.float32).index(calibration.tol) - 1]
    assert task.judge(backend.prepare(task, looser, 50)().value).error > 1e-5
    counts = count(backend, task, calibration.tol, 50)
    assert counts.source == "counted"
    if work == "training":
        assert isinstance(task, Training) and counts.evaluations > 1 and counts.products > 1
    else:
        assert (counts.evaluations, counts.products) == (uses(task, calibration.tol), 0)


def uses(task, tol):
    return plain(task, tol).evaluations


def test_counts_that_cannot_be_seen_are_taken_from_the_report(task):
    class Foreign(Scripted):
        counted = False

    script = lambda t, tol, call: Answer(t.function(t.start), 17, 4)  # noqa: E731
    assert count(Foreign("foreign", script), task, 0.1, 50).source == "reported"
    more = count(Scripted("more", script), task, 0.1, 50)
    assert (more.evaluations, more.products, more.source) == (17, 4, "reported")
    fewer = count(Scripted("fewer", lambda t, tol, call: Answer(t.function(t.start), 0, 0)), task, 0.1, 50)
    assert (fewer.evaluations, fewer.products, fewer.source) == (1, 0, "counted")
    products = count(Scripted("products", lambda t, tol, call: Answer(t.function(t.start), 1, 9)), task, 0.1, 50)
    assert (products.evaluations, products.products, products.source) == (1, 9, "reported")


def test_exceptions_in_one_line():
    assert describe(ValueError("a\nb")) == "ValueError: a" and describe(KeyError()) == "KeyError"
    assert len(describe(ValueError("x" * 1000))) == 200
