"""Interleaved repetitions, against a clock that only moves when a work says so."""

from __future__ import annotations

import math

import pytest

from subdeq_plugin.bench import Timing, interleave
from subdeq_plugin.errors import OptionError


class Clock:
    """Seconds that works spend."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float):
        """Takes these seconds in turn, the last of them from then on."""
        laps = iter(seconds)
        last = seconds[-1]

        def run() -> str:
            self.now += next(laps, last)
            self.log.append(name)
            return f"{name} {len(self.log)}"

        return run


def test_every_round_runs_every_work_twice_in_a_row_and_counts_the_second():
    clock = Clock()
    works = {"a": clock.work("a", 1.0, 0.25), "b": clock.work("b", 0.5), "c": clock.work("c", 0.125)}
    timings, results = interleave(works, 6, clock=clock)
    assert {name: timing.seconds for name, timing in timings.items()} == {
        "a": (0.25,) * 6, "b": (0.5,) * 6, "c": (0.125,) * 6
    }  # fmt: skip
    assert len(clock.log) == 36
    for begin in range(0, 36, 6):
        chunk = clock.log[begin : begin + 6]
        assert chunk[::2] == chunk[1::2] and sorted(chunk[::2]) == ["a", "b", "c"]
    last = {name: max(k for k, entry in enumerate(clock.log, 1) if entry == name) for name in works}
    assert results == {name: f"{name} {k}" for name, k in last.items()}


def orders(seed: int) -> list[tuple[str, ...]]:
    clock = Clock()
    names = "abcdef"
    interleave({name: clock.work(name, 0.1) for name in names}, 8, seed=seed, clock=clock)
    return [tuple(clock.log[k : k + 12 : 2]) for k in range(0, 96, 12)]


def test_the_order_is_shuffled_anew_every_round_and_fixed_by_the_seed():
    assert len(set(orders(0))) == 8
    assert orders(0) == orders(0) != orders(1)


def test_slow_works_are_repeated_less_and_need_no_warm_up():
    clock = Clock()
    works = {"slow": clock.work("slow", 3.0), "middle": clock.work("middle", 1.0), "fast": clock.work("fast", 0.1)}
    timings, _ = interleave(works, 5, budget=2.5, patience=2.0, clock=clock)
    assert [len(timings[name].seconds) for name in works] == [1, 3, 5]
    assert [clock.log.count(name) for name in works] == [1, 6, 10]


def test_the_device_has_finished_before_the_clock_is_read():
    clock = Clock()

    def wait() -> None:
        clock.now += 0.5

    timings, _ = interleave({"a": clock.work("a", 0.25)}, 2, synchronize=wait, clock=clock)
    assert timings["a"].seconds == (0.75, 0.75)


def test_median_and_quartiles():
    timing = Timing((4.0, 1.0, 3.0, 2.0, 5.0))
    assert timing.median == 3.0 and timing.quartiles == (2.0, 4.0)
    assert timing.per(2) == Timing((2.0, 0.5, 1.5, 1.0, 2.5))
    assert Timing((2.0,)).quartiles == (2.0, 2.0)
    assert Timing((1.0, 2.0)).quartiles == (1.25, 1.75)


def test_errors():
    with pytest.raises(OptionError, match="repetitions must be at least 1, got 0"):
        interleave({}, 0)


def test_a_real_clock():
    timings, results = interleave({"nothing": lambda: 7}, 3)
    assert results == {"nothing": 7} and all(0 <= lap < math.inf for lap in timings["nothing"].seconds)
