"""Where the time of one call goes: a small dense forward pass, and the training step of a convolution.

    OMP_NUM_THREADS=2 python benchmarks/profile_solve.py --out benchmarks/results/profile.txt

The first table is Python's own profile of `SubDEQ` on 87 units and a batch of 64, by function; its clock makes Python
look slower than it is. The second is torch's profile of a training step of 32 channels on 28 x 28 images, by operation.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

import subdeq_plugin as sd

ROWS = 30


def timed(work: Callable[[], object], repetitions: int) -> float:
    """Median of the milliseconds of a call."""
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * median(times)


def dense() -> tuple[str, str]:
    torch.manual_seed(0)
    model, x = sd.SubDEQ(sd.SubhomLinear(784, 87), f_tol=1e-6), torch.randn(64, 784)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    timed(forward, 50)
    milliseconds = timed(forward, 300)
    recorder = cProfile.Profile()
    recorder.enable()
    timed(forward, 500)
    recorder.disable()
    text = io.StringIO()
    pstats.Stats(recorder, stream=text).strip_dirs().sort_stats("cumulative").print_stats(ROWS)
    evaluations = model.stats.forward.evaluations if model.stats.forward else 0
    return f"dense 87 x 64, forward: {milliseconds:.2f} ms, {evaluations} evaluations; 500 calls", text.getvalue()


def convolution() -> tuple[str, str]:
    torch.manual_seed(0)
    model, x = sd.SubDEQ(sd.SubhomConv2d(1, 32, 3)), torch.randn(128, 1, 28, 28)

    def step() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    timed(step, 3)
    milliseconds = timed(step, 10)
    with profile(activities=[ProfilerActivity.CPU]) as recorder:
        timed(step, 5)
    table = recorder.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=45)
    stats = model.stats
    done = f"{stats.forward.evaluations} + {stats.backward.evaluations}" if stats.forward and stats.backward else ""
    return f"convolution 32 x 28 x 28 x 128, training step: {milliseconds:.0f} ms, {done} evaluations; 5 steps", table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text = "\n\n".join(f"{title}\n\n{table.strip()}" for title, table in (dense(), convolution()))
    args.out.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    print(text)


if __name__ == "__main__":
    main()
