"""Time to a guaranteed error: Julia's solvers, ours in torch, torchdeq's and SciPy's on the same certified maps.

    OMP_NUM_THREADS=1 python benchmarks/julia_solvers.py --out benchmarks/results/julia_solvers.json

Every map is `(A z + inner + 0.001) ** mu` with row sums of `A` equal to 1 (for the graph, to 0.999) and a small
injection, so that plain iteration contracts by almost exactly `mu`. Every solver works in float64 until the
certificate's error bound, rounding included, is at most 1e-6 for every sample, or until it has spent its evaluations.
The bound of the answer is computed anew and recorded. Medians of interleaved repetitions; a solver that takes more than
two seconds gets one. What counts are ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import NoConvergence, newton_krylov
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.bench import SLOW, interleave
from subdeq_plugin.bridge import get_runtime
from subdeq_plugin.bridge.runtime import probe
from subdeq_plugin.integration.torchdeq import find_solver
from subdeq_plugin.solvers import Solver

EPS = 1e-6
JULIA = ["julia:auto", "julia:newton_krylov", "julia:newton_krylov?native=false", "julia:trust_region",
         "julia:pseudo_transient", "julia:newton_raphson", "julia:broyden", "julia:dfsane"]  # fmt: skip
OURS = ["subdeq:auto", "subdeq:picard", "subdeq:anderson", "subdeq:newton_krylov"]
THEIRS = ["fixed_point_iter", "anderson", "broyden"]
TELEPORT = 1e-3
HARDNESS = {"easy": 0.25, "hard": 0.999}


def _map(kind: str, arrays: dict[str, Tensor], shape: tuple[int, ...], mu: float, **options: object) -> sd.BoundMap:
    inner = 1e-3 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spec = {"kind": kind, "activation": "relu", "shift": 1e-3, "power": mu, **options}
    return sd.BoundMap.from_spec(sd.MapSpec({**arrays, "inner": inner}, spec))


def dense(size: int, batch: int, mu: float) -> sd.BoundMap:
    weight = torch.rand(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return _map("dense", {"weight": weight / weight.sum(1, keepdim=True)}, (batch, size), mu)


def conv(channels: int, side: int, batch: int, mu: float) -> sd.BoundMap:
    weight = torch.rand(channels, channels, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = weight / weight.flatten(1).sum(1)[:, None, None, None]
    return _map("conv2d", {"weight": weight}, (batch, channels, side, side), mu, dilation=[1, 1])


def graph(nodes: int, neighbours: int, features: int, mu: float) -> sd.BoundMap:
    columns = torch.randint(nodes, (nodes, neighbours), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(nodes)[:, None].expand_as(columns)
    values = torch.full(columns.shape, (1 - TELEPORT) / neighbours, dtype=torch.float64)
    edges = torch.sparse_coo_tensor(torch.stack([rows, columns]).flatten(1), values.flatten(), (nodes, nodes))
    matrix = edges.coalesce().to_sparse_csr()
    arrays = {
        "crow_indices": matrix.crow_indices(), "col_indices": matrix.col_indices(), "values": matrix.values()
    }  # fmt: skip
    return _map("graph", arrays, (nodes, features), mu, nodes=nodes)


# Name, map of the hardness, evaluations a solver may spend, and solvers that could not take the problem.
PROBLEMS: list[tuple[str, Callable[[float], sd.BoundMap], int, tuple[str, ...]]] = [
    ("dense 87 x 512", lambda mu: dense(87, 512, mu), 2000, ()),
    ("dense 1024 x 256", lambda mu: dense(1024, 256, mu), 400, ("julia:newton_raphson", "julia:broyden", "broyden")),
    ("conv 32 x 28 x 28 x 64", lambda mu: conv(32, 28, 64, mu), 40, ("julia:newton_raphson", "broyden")),
    ("graph 100000 x 16", lambda mu: graph(100_000, 10, 16, mu), 100, ("julia:newton_raphson", "broyden")),
]


def by_solver(key: str, bound: sd.BoundMap, certificate: sd.Certificate, limit: int) -> tuple[Tensor, int, int]:
    solution = sd.solve(
        bound, bound.start(), find_solver(key), certified_tol=EPS, max_iter=limit, certificate=certificate
    )
    return solution.value, solution.evaluations, solution.linear_evaluations


def by_scipy(bound: sd.BoundMap, certificate: sd.Certificate, limit: int) -> tuple[Tensor, int, int]:
    """SciPy's `newton_krylov` on the whole batch as one system, with ever smaller tolerances."""
    calls = 0

    def residual(z: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise NoConvergence
        return z - bound(torch.from_numpy(z)).numpy()

    z, tol = bound.start().numpy(), 1e-6
    try:
        while float(certificate.error_bound(torch.from_numpy(z).clamp(min=1e-12)).max()) > EPS:
            z, tol = newton_krylov(residual, z, f_tol=tol, method="lgmres"), 0.1 * tol
    except NoConvergence:
        pass  # the bound of what there is says so
    return torch.from_numpy(z).clamp(min=1e-12), calls, 0


def measure(name: str, hardness: str, repetitions: int, only: str) -> list[dict[str, object]]:
    make, limit, left_out = next((make, limit, out) for title, make, limit, out in PROBLEMS if title == name)
    bound = make(HARDNESS[hardness])
    certificate = sd.certify(bound)
    keys = [key for key in [*OURS, *JULIA, *THEIRS, "scipy newton_krylov"] if key not in left_out and only in key]
    start = bound.start()
    works: dict[str, Callable[[], tuple[Tensor, int, int]]] = {}
    for key in keys:
        scipy = key == "scipy newton_krylov"
        solve = partial(by_scipy, limit=10 * limit) if scipy else partial(by_solver, key, limit=limit)
        works[key] = partial(solve, bound, certificate)
    works["one evaluation"] = lambda: (bound(start), 1, 0)
    timings, answers = interleave(works, repetitions, budget=SLOW)
    seconds = {key: timing.median for key, timing in timings.items()}
    rows: list[dict[str, object]] = []
    for key in keys:
        value, evaluations, products = answers[key]
        error = float(certificate.error_bound(value).max())
        rows.append(
            {
                "problem": name,
                "hardness": hardness,
                "solver": key,
                "milliseconds": 1e3 * seconds[key],
                "in_evaluations": seconds[key] / seconds["one evaluation"],
                "evaluations": evaluations,
                "products": products,
                "guaranteed_error": error,
                "reached": error <= EPS,
            }
        )
    rows.sort(key=lambda row: (not row["reached"], row["milliseconds"]))
    return rows


def overhead(repetitions: int = 2000) -> dict[str, float]:
    """Microseconds of what the bridge adds: a job, an evaluation, and a whole small solve."""

    start = torch.ones(1, 64, dtype=torch.float64)
    image = torch.full_like(start, 2.0)
    few, many = (sd.parse_solver("julia:broyden?rule=diagonal") for _ in range(2))

    def solve(solver: Solver, limit: int) -> Callable[[], object]:
        # A map that costs nothing and has no fixed point: every evaluation up to the limit is spent.
        flip = [image, -image]

        def f(z: Tensor) -> Tensor:
            flip.reverse()
            return flip[0]

        return lambda: sd.solve(f, start, solver, tol=0.0, max_iter=limit)

    works = {"job": lambda: get_runtime().call(lambda julia: None), "short": solve(few, 2), "long": solve(many, 22)}
    timings, _ = interleave(works, repetitions)
    seconds = {name: timing.median for name, timing in timings.items()}
    return {
        "job_microseconds": 1e6 * seconds["job"],
        "evaluation_microseconds": 1e6 * (seconds["long"] - seconds["short"]) / 20,
        "solve_microseconds": 1e6 * seconds["short"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--problems", default="", help="only problems whose name contains this")
    parser.add_argument("--solvers", default="", help="only solvers whose key contains this")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # torchdeq's and SciPy's solvers overflow on their way where they fail
    result: dict[str, object] = {"julia": probe(), "torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    result["overhead"] = overhead()
    print(result)
    rows: list[dict[str, object]] = []
    result["rows"] = rows
    for name, _, _, _ in PROBLEMS:
        for hardness in HARDNESS:
            if args.problems not in f"{name} {hardness}":
                continue
            rows += measure(name, hardness, args.repetitions, args.solvers)
            for row in rows:
                if (row["problem"], row["hardness"]) == (name, hardness):
                    print({key: round(value, 9) if isinstance(value, float) else value for key, value in row.items()})
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
