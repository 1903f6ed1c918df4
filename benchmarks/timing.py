"""Medians of interleaved repetitions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

T = TypeVar("T")
SLOW = 2.0  # seconds


def timed(
    works: dict[str, Callable[[], T]], repetitions: int, patience: float = math.inf
) -> tuple[dict[str, float], dict[str, T]]:
    """Of every work the median of its seconds, and its result.

    Repetitions are interleaved, so that all meet the same moods of the machine. Each is preceded by one that does not
    count: a solver's caches are cold after those before it. What takes longer than `SLOW` is not repeated. A run that
    would not count, but takes longer than `patience`, counts after all, and there is no other.
    """
    results: dict[str, T] = {}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            if seconds[name] and seconds[name][0] > SLOW:
                continue
            results[name], took = _lap(work)
            if took <= patience:
                results[name], took = _lap(work)
            seconds[name].append(took)
    return {name: median(laps) for name, laps in seconds.items()}, results


def _lap(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin
