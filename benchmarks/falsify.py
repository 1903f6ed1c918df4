"""Try to break the certificates: many adversarial layers, each attacked; one false certificate is a failure.

    python benchmarks/falsify.py --layers 100000 --seed 0 --processes 2 --out benchmarks/results/falsification.json

Every certified layer is attacked for a second fixed point, and on a sample of them the error bounds and intervals are
compared with fixed points proven in ball arithmetic. A finished chunk is kept in `OUT.chunks.jsonl`, so that a run that
was cut off goes on where it was; the file is removed at the end. Exit code 1 if anything was violated: each violation
is in the result with its layer, and `--replay OUT` runs those layers again.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flint
import numpy
import scipy
import torch

import subdeq_plugin as sd
from tests.falsification.campaign import Settings, Tally, hunt, run_chunk
from tests.falsification.families import FAMILIES
from tests.falsification.layers import run_layers
from tests.falsification.specs import load

CHUNK = 100
KEPT = 200  # violations and unsolved layers written in full, each

# The families of maps, and layers with claims for every input.
NAMES = (*FAMILIES, "layers")
Key = tuple[str, int, int]


def chunks(layers: int, seed: int) -> Iterator[Key]:
    """`(family, seed, count)` of every chunk, the families in turn."""
    number = 0
    while layers > 0:
        family = NAMES[number % len(NAMES)]
        count = min(CHUNK, layers)
        yield family, seed * 1_000_003 + number // len(NAMES), count
        layers -= count
        number += 1


def work(key: Key, share: float) -> dict[str, Any]:
    """One chunk, as JSON-compatible values."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    family, seed, count = key
    settings = Settings(alone=0.25, bounds=share, frontier=0.1)
    tally = (
        run_layers(seed, count, settings) if family == "layers" else run_chunk(family, seed, count, settings=settings)
    )
    return {
        "key": list(key),
        "share": share,
        "seconds": time.perf_counter() - begin,
        "counts": dict(tally.counts),
        "theorems": dict(tally.theorems),
        "violations": tally.violations,
        "unsolved": tally.unsolved,
    }


def finished(journal: Path, share: float) -> dict[Key, dict[str, Any]]:
    """The chunks that an earlier run left; a last line cut short is ignored."""
    records = {}
    if journal.exists():
        for line in journal.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            family, seed, count = record["key"]
            if record["share"] == share:
                records[family, seed, count] = record
    return records


def run(todo: list[Key], done: dict[Key, dict[str, Any]], processes: int, share: float, journal: Path) -> None:
    """Work through the chunks, a few ahead of the workers, and note each in the journal as it ends."""
    begin, total, ready = time.perf_counter(), sum(key[2] for key in todo), 0
    with ProcessPoolExecutor(processes) as pool, journal.open("a") as notes:
        queue, running = iter(todo), set[Future[dict[str, Any]]]()
        while True:
            for key in queue:
                running.add(pool.submit(work, key, share))
                if len(running) >= 2 * processes:
                    break
            if not running:
                break
            complete, running = wait(running, return_when=FIRST_COMPLETED)
            for future in complete:
                record = future.result()
                family, seed, count = record["key"]
                done[family, seed, count] = record
                notes.write(json.dumps(record) + "\n")
                notes.flush()
                ready += count
            spent = time.perf_counter() - begin
            wrong = sum(len(record["violations"]) for record in done.values())
            left = spent / ready * (total - ready)
            line = f"{ready}/{total} layers, {1e3 * spent / ready:.1f} ms each, {left:.0f} s left, {wrong} violations"
            print(f"\r{line}    ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def summary(records: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """Everything counted, by family and by theorem."""
    families: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    total, theorems = Counter[str](), Counter[str]()
    violations, unsolved = [], []
    for record in records:
        family = record["key"][0]
        families[family].update(record["counts"])
        total.update(record["counts"])
        theorems.update(record["theorems"])
        for found, kept in ((record["violations"], violations), (record["unsolved"], unsolved)):
            kept += [{"family": family, **entry} for entry in found]
    return {
        "command": command,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "python-flint": flint.__version__,
            "subdeq_plugin": sd.__version__,
        },
        "seconds_of_work": round(sum(record["seconds"] for record in records), 1),
        "total": dict(sorted(total.items())),
        "theorems": dict(sorted(theorems.items())),
        "families": {name: dict(sorted(counts.items())) for name, counts in families.items()},
        "violations_in_all": len(violations),
        "violations": violations[:KEPT],
        "unsolved": unsolved[:KEPT],
    }


def replay(path: Path) -> int:
    """Hunt again among the layers that an earlier run found violated; the number of violations."""
    specs = [load(entry["spec"]) for entry in json.loads(path.read_text())["violations"]]
    tally = Tally()
    for seed, spec in enumerate(specs):
        tally.add(hunt([spec], seed, settings=Settings(alone=1.0, bounds=1.0, frontier=0.0, probes=99)))
    for entry in tally.violations:
        print(json.dumps({name: value for name, value in entry.items() if name != "spec"}))
    print(f"{len(specs)} layers, {len(tally.violations)} violations")
    return len(tally.violations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--bounds", type=float, default=0.15, help="share of the certificates whose bounds are checked")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--replay", type=Path)
    args = parser.parse_args()
    if args.replay is not None:
        sys.exit(1 if replay(args.replay) else 0)
    if args.out is None:
        parser.error("--out is required, or --replay")
    journal = args.out.with_name(args.out.name + ".chunks.jsonl")
    keys = list(chunks(args.layers, args.seed))
    done = {key: record for key, record in finished(journal, args.bounds).items() if key in set(keys)}
    run([key for key in keys if key not in done], done, args.processes, args.bounds, journal)
    command = f"python benchmarks/falsify.py --layers {args.layers} --seed {args.seed} --bounds {args.bounds}"
    result = summary([done[key] for key in keys], f"{command} --processes {args.processes} --out {args.out}")
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    journal.unlink()
    print(json.dumps({name: result[name] for name in ("seconds_of_work", "total", "theorems")}, indent=1))
    sys.exit(1 if result["violations_in_all"] else 0)


if __name__ == "__main__":
    main()
