"""Dense forward solves: our solvers and torchdeq's on the same map, same residual, interleaved repetitions.

    OMP_NUM_THREADS=2 python benchmarks/dense_solvers.py --out benchmarks/results/dense_solvers.json

Every solver is asked for a relative residual of 1e-6 on `tanh(W z) + y + 1.2`, `W >= 0`, in float32; the residual of
its answer is recomputed and recorded. Times are medians; what counts is the ratio to the bare matrix products of plain
iteration in the same run.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torchdeq.solver import get_solver

import subdeq_plugin as sd

SIZES = [(87, 64), (87, 512), (512, 256)]
SOLVERS = ["subdeq:auto", "subdeq:picard", "subdeq:anderson", "subdeq:newton_krylov", "fixed_point_iter", "anderson"]
TOL = 1e-6


def problem(size: int, batch: int) -> sd.BoundMap:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(size, size, generator=generator) * (2 / size)
    outer = torch.rand(batch, size, generator=generator)
    options = {"kind": "dense", "activation": "tanh", "shift": 1.2}
    return sd.BoundMap.from_spec(sd.MapSpec({"weight": weight, "outer": outer}, options))


def measure(size: int, batch: int, repetitions: int) -> list[dict[str, object]]:
    f = problem(size, batch)
    z0 = torch.ones(batch, size)
    weight = f.tensors[0]
    products = 9  # what plain iteration needs here
    jobs = {key: partial(get_solver(key), f, z0, max_iter=60, tol=TOL, stop_mode="rel") for key in SOLVERS}
    times: dict[str, list[float]] = {key: [] for key in [*jobs, "bare products"]}
    answers = {}
    for repetition in range(repetitions + 3):  # the first three warm up
        for key, job in jobs.items():
            begin = time.perf_counter()
            answers[key] = job()
            times[key].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        z = z0
        for _ in range(products):
            z = torch.nn.functional.linear(z, weight)
        times["bare products"].append(time.perf_counter() - begin)
        if repetition == 2:
            times = {key: [] for key in times}
    base = median(times["bare products"])
    rows = [{"solver": "bare products", "size": size, "batch": batch, "milliseconds": 1e3 * base, "ratio": 1.0}]
    for key, (z, _, info) in answers.items():
        residual = float(((f(z) - z).norm(dim=1) / f(z).norm(dim=1)).max())
        rows.append(
            {
                "solver": key,
                "size": size,
                "batch": batch,
                "milliseconds": 1e3 * median(times[key]),
                "ratio": median(times[key]) / base,
                "recomputed_residual": residual,
                "evaluations": info.get("evaluations", int(info["nstep"].max())),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [row for size, batch in SIZES for row in measure(size, batch, args.repetitions)]
    for row in rows:
        print({key: round(value, 8) if isinstance(value, float) else value for key, value in row.items()})
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "tolerance": TOL, "rows": rows}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
