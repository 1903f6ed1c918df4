"""Certified solves and training steps against torchdeq's and the bare products they consist of.

    OMP_NUM_THREADS=2 python benchmarks/speed.py --out benchmarks/results/speed.json --plot benchmarks/results

Every solver is asked for the same guaranteed error (gradients: the same distance to one computed in float64), at the
loosest tolerance of its own at which it gets there; see `docs/bench.md`. Repetitions are interleaved in a shuffled
order. The file holds one report of `subdeq bench` for each table; `--only` repeats some of them.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

import subdeq_plugin as sd
from subdeq_plugin import bench
from subdeq_plugin.bench.plots import draw

TORCHDEQ = ["torchdeq:fixed_point_iter", "torchdeq:anderson"]
OURS = ["subdeq:auto", "subdeq:picard", "subdeq:anderson"]


def mnist_model() -> bench.Problem:
    """87 units on images of 784 pixels, a batch of 128, as `subdeq train mnist` begins; pixels are random."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = sd.SubhomLinear(784, 87, "tanh", 0.1)
    torch.nn.init.normal_(layer.injection.weight, std=0.8 / 28, generator=generator)
    return bench.Problem.of("mnist model", (layer, torch.randn(128, 784, generator=generator)), "87x128")


def dense() -> bench.Report:
    sizes = [(87, 64), (87, 512), (512, 256), (1024, 256)]
    return bench.run(["dense"], [*OURS, *TORCHDEQ, "subdeq:auto?bfloat16=2"], sizes=sizes, budget=20.0)


def training() -> bench.Report:
    return bench.run([mnist_model()], ["subdeq:auto", *TORCHDEQ], works=["training"], errors=[1e-4], budget=20.0)


def conv() -> bench.Report:
    backends = ["subdeq:auto", "subdeq:auto?bfloat16=4", *TORCHDEQ]
    return bench.run(["conv"], backends, works=["training"], sizes=[(32, 28, 128)], errors=[1e-4], budget=60.0)


def graph() -> bench.Report:
    return bench.run(["graph"], ["subdeq:auto", *TORCHDEQ], sizes=[(100_000, 10, 64)], budget=30.0)


def hard() -> bench.Report:
    backends = ["subdeq:auto", "subdeq:anderson", "subdeq:newton_krylov", *TORCHDEQ, "torchdeq:broyden"]
    return bench.run(["dense-hard", "conv-hard", "graph-hard"], backends, max_iter=400, budget=30.0)


def slow() -> bench.Report:
    """What plain iteration takes on one of the hard problems."""
    return bench.run(["dense-hard"], ["subdeq:auto", "subdeq:picard"], max_iter=40_000, repetitions=3, budget=20.0)


def batches() -> bench.Report:
    sizes = [(87, 64 * 4**power) for power in range(6)]
    return bench.run(["dense"], ["subdeq:auto", "torchdeq:fixed_point_iter"], sizes=sizes, budget=10.0)


def edges() -> bench.Report:
    sizes = [(1000 * 4**power, 10, 8) for power in range(6)]
    return bench.run(["graph"], ["subdeq:auto", "torchdeq:fixed_point_iter"], sizes=sizes, budget=10.0)


TABLES: dict[str, Callable[[], bench.Report]] = {
    table.__name__: table for table in (dense, training, conv, graph, hard, slow, batches, edges)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="folder for the pictures of cost against batch and edges")
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(width=140)
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.only:
        report = TABLES[name]()
        console.print(report.table())
        record[name] = report.to_dict()
        if args.plot is not None and name in ("batches", "edges"):
            for picture in draw(report, args.plot / name):
                console.print(str(picture), highlight=False)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
