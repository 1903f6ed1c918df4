"""Backends that misbehave, and reports made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from subdeq_plugin.bench import Answer, Backend, Equation, Problem, Report, Row, make_problem

SMALL = (6, 3)


def small(name: str = "dense", size: tuple[int, ...] = SMALL) -> Problem:
    """A problem that takes no time."""
    return make_problem(name, size)


def exact() -> Problem:
    """The same in float64."""
    return small().to("cpu", torch.float64)


@dataclass(frozen=True)
class Scripted(Backend):
    """A backend whose answers are those of a function of the task, the tolerance and the number of the call."""

    script: Callable[[Equation, float, int], Answer] = lambda task, tol, call: Answer(task.start)
    calls: list[float] = field(default_factory=list)
    reports: ClassVar[bool] = True

    def equation(self, task: Equation, tol: float, limit: int) -> Callable[[], Answer]:
        def solve() -> Answer:
            self.calls.append(tol)
            return self.script(task, tol, len(self.calls))

        return solve


def plain(task: Equation, tol: float) -> Answer:
    """Plain iteration until the relative residual is at most `tol`."""
    z, steps = task.start, 0
    while True:
        image, steps = task.function(z), steps + 1
        gap = (image - z).norm() / image.norm()
        z = image
        if float(gap) <= tol:
            return Answer(z, steps, 0)


def nan(task: Equation) -> Answer:
    """No answer at all."""
    return Answer(torch.full_like(task.start, torch.nan))


def row(backend: str, milliseconds: float | None, **changes: Any) -> Row:
    """A row of a cell called "p", with quartiles 10 % around the median."""
    seconds = None if milliseconds is None else milliseconds / 1e3
    given: dict[str, Any] = {
        "problem": "p", "size": "4x2", "work": "forward", "dtype": "float64", "device": "cpu", "error": 1e-6,
        "backend": backend, "entries": 8, "seconds": seconds, "repetitions": 0 if seconds is None else 5,
        "low": None if seconds is None else 0.9 * seconds, "high": None if seconds is None else 1.1 * seconds,
        "failure": "it did not work" if seconds is None else "", "to_fastest": None if seconds is None else 1.0,
    }  # fmt: skip
    return Row(**{**given, **changes})


def bare(milliseconds: float, **changes: Any) -> Row:
    """The baseline of ten bare products."""
    return row("bare products", milliseconds, baseline=True, evaluations=10, **changes)


def report(*rows: Row) -> Report:
    """A report of these rows."""
    return Report(rows, {"python": "3"}, {"seed": 0})
