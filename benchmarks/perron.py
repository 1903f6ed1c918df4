"""Perron vectors: time to a bracket of relative width 1e-10, against ARPACK, NetworkX and plain power iteration.

    OMP_NUM_THREADS=1 python benchmarks/perron.py --out benchmarks/results/perron.json

Sparse matrices have about 10 entries a row: "random" with a large spectral gap; "twins", two diagonally similar ones of
which every hundredth row is linked to the other by 0.01, with a relative gap of about 4e-5; "lattice", a square with 8
neighbours and a loop of weight 2 at each point, with a gap of about `10 / rows`. Every vector is bracketed anew from
its own entries by the same function. ARPACK is SciPy's `eigs`, or `eigsh` where the matrix is symmetric, with `tol=0`;
since it has no tolerance for brackets, ours is also timed to the width that ARPACK's vector has, or 1e-12. NetworkX
gets 60 steps. What counts are ratios within one run; what takes longer than two seconds is done only once.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigs, eigsh

import subdeq_plugin as sd
from subdeq_plugin.bench import SLOW, interleave
from subdeq_plugin.bridge.runtime import probe

WIDTH = 1e-10
PRODUCTS = 5000
JULIA = ("auto", "krylov", "noda", "newton")
NETWORKX = 30_000  # rows up to which its graphs are built,
STEPS = 60  # and how many steps it gets: each takes half a second
MESHES = 200_000  # rows up to which a lattice is solved by anything here in a minute

Matrix = sp.csr_array
Work = Callable[[], np.ndarray]


def random(rows: int, seed: int = 0) -> Matrix:
    rng = np.random.default_rng(seed)
    cycle = np.arange(rows)
    into = np.concatenate([np.repeat(cycle, 9), cycle])
    of = np.concatenate([rng.integers(rows, size=9 * rows), np.roll(cycle, 1)])
    return Matrix((rng.random(10 * rows) + 0.1, (into, of)), shape=(rows, rows))


def twins(rows: int) -> Matrix:
    half = random(rows // 2)
    scale = np.exp(np.random.default_rng(1).uniform(-1, 1, rows // 2))
    other = half.multiply(scale[:, None]).multiply(1 / scale[None, :])
    ends = np.arange(0, rows // 2, 100)
    into, of = np.concatenate([ends, ends + rows // 2]), np.concatenate([ends + rows // 2, ends])
    link = sp.coo_array((np.full(len(into), 0.01), (into, of)), shape=(rows, rows))
    return Matrix(sp.block_diag([half, other], format="csr") + link)


def lattice(rows: int) -> Matrix:
    side = round(rows**0.5)
    line = sp.diags_array([np.ones(side - 1), np.ones(side), np.ones(side - 1)], offsets=[-1, 0, 1])
    return Matrix(sp.kron(line, line) + sp.eye_array(side * side))


CASES: dict[str, Callable[[int], Matrix]] = {"random": random, "twins": twins, "lattice": lattice}


def width(matrix: Matrix, vector: np.ndarray) -> float:
    """Relative, of the bracket that a vector gives."""
    if not (vector > 0).all():
        return float("inf")
    quotients = (matrix @ vector) / vector
    return float(1 - quotients.min() / quotients.max())


def by_arpack(matrix: Matrix) -> np.ndarray:
    find, which = (eigsh, "LA") if abs(matrix - matrix.T).max() == 0 else (eigs, "LR")
    try:
        _, vectors = find(matrix, k=1, which=which, tol=0, maxiter=PRODUCTS // 20)
    except ArpackNoConvergence:
        return np.zeros(matrix.shape[0])
    return np.abs(vectors[:, 0])


def by_power(matrix: Matrix) -> np.ndarray:
    x = np.ones(matrix.shape[0])
    for _ in range(PRODUCTS):
        y = matrix @ x
        quotients = y / x
        if 1 - quotients.min() / quotients.max() <= WIDTH:
            break
        x = y / y.max()
    return x


def by_networkx(graph: nx.DiGraph) -> np.ndarray:
    try:
        # Its vectors are left ones, and its tolerance is for the change of the mean entry.
        scores = nx.eigenvector_centrality(graph, max_iter=STEPS, tol=WIDTH / graph.number_of_nodes(), weight="weight")
    except nx.PowerIterationFailedConvergence:
        return np.zeros(graph.number_of_nodes())
    return np.array([scores[node] for node in range(graph.number_of_nodes())])


def ours(matrix: Matrix, tol: float = WIDTH, **options: str) -> np.ndarray:
    with torch.no_grad():
        return sd.perron(matrix, tol=tol, max_iter=PRODUCTS, **options).eigenvector.numpy()


def sparse(case: str, rows: int, repetitions: int) -> list[dict[str, object]]:
    matrix = CASES[case](rows)
    reached = width(matrix, by_arpack(matrix))
    works: dict[str, Work] = {
        "perron": lambda: ours(matrix),
        "ARPACK": lambda: by_arpack(matrix),
        "power": lambda: by_power(matrix),
    }
    if reached < WIDTH:  # its starts are random, and some do not get there
        works["perron to ARPACK's width"] = lambda: ours(matrix, max(reached, 1e-12))
    if rows <= NETWORKX:
        graph = nx.from_scipy_sparse_array(Matrix(matrix.T), create_using=nx.DiGraph)
        works["NetworkX"] = lambda: by_networkx(graph)
    for method in JULIA:
        works[f"julia:{method}"] = lambda method=method: ours(matrix, backend="julia", method=method)
    timings, vectors = interleave(works, repetitions, budget=SLOW)
    seconds = {name: timing.median for name, timing in timings.items()}
    rows_ = []
    for name, vector in vectors.items():
        found = width(matrix, vector)
        aim = max(reached, 1e-12) if "width" in name else WIDTH
        rows_.append(
            {
                "case": case,
                "rows": rows,
                "solver": name,
                "milliseconds": 1e3 * seconds[name],
                "to_perron": seconds[name] / seconds["perron"],
                "width": found,
                "reached": found <= aim * 1.01,
            }
        )
    return rows_


def batches(count: int, size: int, repetitions: int) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(count, size, size, generator=generator, dtype=torch.float64)
    few = positive * (torch.rand(count, size, size, generator=generator) < 0.1) + 0.1 * torch.eye(size).roll(1, 0)
    rows = []
    for name, matrices in (("positive", positive), ("6 entries a row", few)):
        arrays = matrices.numpy()
        works: dict[str, Callable[[], object]] = {
            "perron": lambda matrices=matrices: sd.perron(matrices),
            "loop of torch.linalg.eig": lambda matrices=matrices: [torch.linalg.eig(a) for a in matrices],
            "loop of scipy.linalg.eig": lambda arrays=arrays: [scipy.linalg.eig(a) for a in arrays],
            "loop of ARPACK": lambda arrays=arrays: [eigs(a, k=1, which="LR", tol=0) for a in arrays],
            "torch.linalg.eig of the batch": lambda matrices=matrices: torch.linalg.eig(matrices),
            "julia:auto": lambda matrices=matrices: sd.perron(matrices, backend="julia"),
        }
        timings, results = interleave(works, repetitions, budget=SLOW)
        seconds = {name: timing.median for name, timing in timings.items()}
        found = results["perron"]
        assert isinstance(found, sd.PerronResult)
        assert found.converged
        rows += [
            {
                "case": f"{count} matrices {size} x {size}, {name}",
                "solver": solver,
                "milliseconds": 1e3 * seconds[solver],
                "to_perron": seconds[solver] / seconds["perron"],
            }
            for solver in works
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, object] = {"julia": probe(), "torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    for make in (random, lattice):  # Julia compiles at the first call of each
        for method in JULIA:
            ours(make(900), backend="julia", method=method)
    rows = batches(1000, 64, args.repetitions)
    for row in rows:
        print(row, flush=True)
    for count in args.rows:
        for case in args.cases:
            if case == "lattice" and count > MESHES:
                continue
            for row in sparse(case, count, args.repetitions):
                print(row, flush=True)
                rows.append(row)
    result["rows"] = rows
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
