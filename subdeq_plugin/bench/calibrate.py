"""The tolerance at which a backend reaches a guaranteed error, and how often it uses the map on the way.

Backends stop by residuals of their own kinds, so the same tolerance means something else to each. All are asked the
same way instead: tolerances are tried from loose to tight, by factors of `sqrt(10)`, and the first whose answer is
judged good enough is the backend's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .backends import Answer, Backend
from .maps import Tally
from .tasks import Task, Training

__all__ = ["Calibration", "Counts", "calibrate", "count", "describe", "ladder"]

_LONGEST = 200  # characters of somebody else's message


@dataclass(frozen=True)
class Calibration:
    """How a backend reaches an error.

    Attributes:
        tol: its tolerance; None if it does not reach it.
        error: what its answer is worth at that tolerance; else the best it came to.
        failure: why it does not reach it; empty if it does.
    """

    tol: float | None
    error: float
    failure: str = ""


@dataclass(frozen=True)
class Counts:
    """Uses of the map in one solve, on the whole batch; None where nothing is known.

    Attributes:
        evaluations: of the map.
        products: with its Jacobian or the transpose.
        source: "counted" at the map, "reported" by the backend, or empty.
    """

    evaluations: int | None = None
    products: int | None = None
    source: str = ""


def ladder(dtype: torch.dtype) -> tuple[float, ...]:
    """The tolerances to try, from 0.1 down to a hundredth of the rounding unit."""
    steps = math.floor(-2 * math.log10(torch.finfo(dtype).eps / 100))
    return tuple(10.0 ** (-step / 2) for step in range(2, steps + 1))


def describe(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def calibrate(backend: Backend, task: Task, errors: Sequence[float], limit: int) -> dict[float, Calibration]:
    """For every error the first tolerance of the ladder whose answer has at most that guaranteed error.

    The walk ends where the smallest error is reached, where the evaluations are used up (a tighter tolerance would
    change nothing), and at an exception.

    Args:
        backend: whose tolerance it is.
        task: the work.
        errors: to be reached.
        limit: the largest number of evaluations.
    """
    best, why = math.inf, ""
    found: dict[float, Calibration] = {}
    for tol in ladder(task.start.dtype):
        tally = Tally()
        try:
            answer = backend.prepare(task if backend.reports else task.counted(tally), tol, limit)()
            verdict = task.judge(answer.value)
        except Exception as error:  # whatever a backend raises is its result
            why = describe(error)
            break
        reached, why = verdict.error, verdict.reason
        best = min(best, reached)  # a NaN is never smaller
        for wanted in errors:
            if wanted not in found and reached <= wanted:
                found[wanted] = Calibration(tol, reached)
        if len(found) == len(set(errors)):
            break
        if _exhausted(answer, tally, task, limit):
            why = f"{limit} evaluations are not enough" + (f"; {why}" if why else "")
            break
        why = why or f"the smallest tolerance tried, {tol:.1g}, is not small enough"
    return {wanted: found.get(wanted, Calibration(None, best, why)) for wanted in errors}


def _exhausted(answer: Answer, tally: Tally, task: Task, limit: int) -> bool:
    # The products of a backend that does not report are those of its backward solve, which has the same limit.
    return answer.exhausted or tally.evaluations >= limit or (isinstance(task, Training) and tally.products >= limit)


def count(backend: Backend, task: Task, tol: float, limit: int) -> Counts:
    """How often a solve uses the map: counted there, where the backend uses the map that it is given.

    Where it reports more than was seen, it has made the map its own, and its report is what is known.
    """
    tally = Tally()
    answer = backend.prepare(task.counted(tally) if backend.counted else task, tol, limit)()
    reported = Counts(answer.evaluations, answer.products, "reported" if answer.evaluations is not None else "")
    if not backend.counted or (reported.evaluations or 0) > tally.evaluations:
        return reported
    if (reported.products or 0) > tally.products:
        return Counts(tally.evaluations, reported.products, "reported")
    return Counts(tally.evaluations, tally.products, "counted")
