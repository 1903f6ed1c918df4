"""Seconds of works whose repetitions are interleaved, so that all meet the same moods of the machine."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import OptionError

__all__ = ["SLOW", "Timing", "interleave"]

T = TypeVar("T")
SLOW = 2.0  # seconds from which on a work needs no run that does not count: its caches are warm by its own doing


@dataclass(frozen=True)
class Timing:
    """The counted repetitions of one work.

    Attributes:
        seconds: of every counted repetition, in the order they were made; at least one.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the seconds; of a single repetition, itself twice."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def per(self, count: int) -> Timing:
        """The timing of one of the `count` equal parts that a work consists of."""
        return Timing(tuple(lap / count for lap in self.seconds))


def interleave(
    works: dict[str, Callable[[], T]],
    repetitions: int = 20,
    *,
    seed: int = 0,
    budget: float = math.inf,
    patience: float = SLOW,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Timing], dict[str, T]]:
    """Time works in rounds: each round runs every work once, in an order of its own.

    The order is shuffled anew for every round, so that no work always follows the same one. A counted run comes right
    after one that does not count, since the caches are cold after another work.

    Args:
        works: what to time, by name.
        repetitions: the number of rounds.
        seed: of the orders.
        budget: a work whose counted runs have taken more seconds than this takes part in no further round.
        patience: a run that would not count, but takes more seconds than this, counts after all, and no other follows.
        synchronize: called at the end of every run, before the clock is read; for devices that work on their own.
        clock: seconds; replaced by tests.

    Returns:
        By name, the timing and the result of the last run.

    Raises:
        OptionError: fewer than one repetition.
    """
    if repetitions < 1:
        raise OptionError(f"repetitions must be at least 1, got {repetitions!r}.")
    laps: dict[str, list[float]] = {name: [] for name in works}
    results: dict[str, T] = {}
    order = random.Random(seed)

    def lap(work: Callable[[], T]) -> tuple[T, float]:
        begin = clock()
        result = work()
        if synchronize is not None:
            synchronize()
        return result, clock() - begin

    for _ in range(repetitions):
        for name in order.sample(list(works), len(works)):
            if sum(laps[name]) > budget:
                continue
            results[name], took = lap(works[name])
            if took <= patience:
                results[name], took = lap(works[name])
            laps[name].append(took)
    return {name: Timing(tuple(seconds)) for name, seconds in laps.items()}, results
