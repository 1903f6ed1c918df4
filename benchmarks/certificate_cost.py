"""What certificates cost, against the forward solve of the same batch.

    OMP_NUM_THREADS=2 python benchmarks/certificate_cost.py --out benchmarks/results/certificate_cost.json

Dense layers in float32: `tanh(W z) + 0.1 + relu(U x + c)` with `W >= 0` (solved by the default solver to its default
guaranteed error), and `tanh(W z) + 1.2 + relu(U x + c)` with small signed `W`. "structural" is `certify(layer)`, for
every input; "enclosure" is `certify(layer.bind(x), conditions="enclosure")`, per sample. Medians of interleaved
repetitions.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import subdeq_plugin as sd

SIZES = ((87, 64), (87, 512), (200, 64), (1000, 64), (1000, 256))


def build(size: int, batch: int, signed: bool) -> tuple[sd.SubhomLinear, torch.Tensor]:
    torch.manual_seed(0)
    if not signed:
        return sd.SubhomLinear(50, size), torch.randn(batch, 50)
    layer = sd.SubhomLinear(50, size, weight="signed", shift=1.2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(size, size) * 0.6 / size)
    return layer, torch.randn(batch, 50)


def measure(size: int, batch: int, signed: bool, repetitions: int) -> dict[str, object]:
    layer, x = build(size, batch, signed)
    bound, model = layer.bind(x).detach(), sd.SubDEQ(layer)
    jobs: dict[str, Callable[[], object]] = {
        "solve": lambda: model(x),
        "structural": lambda: sd.certify(layer, conditions="subhomogeneous"),
        "enclosure": lambda: sd.certify(bound, conditions="enclosure"),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.no_grad():
        for repetition in range(repetitions + 2):  # the first two warm up
            for name, job in jobs.items():
                begin = time.perf_counter()
                job()
                if repetition >= 2:
                    times[name].append(time.perf_counter() - begin)
    middle = {name: 1e3 * median(values) for name, values in times.items()}
    certificate = sd.certify(bound, conditions="enclosure")
    return {
        "size": size,
        "batch": batch,
        "signed": signed,
        "milliseconds": middle,
        "structural / solve": middle["structural"] / middle["solve"],
        "enclosure / solve": middle["enclosure"] / middle["solve"],
        "proven": int(certificate.proven.sum()),
        "rate": certificate.rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [measure(*shape, signed, arguments.repetitions) for shape in SIZES for signed in (False, True)]
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| n | batch | weights | structural / solve | enclosure / solve | samples proven |")
    print("| --- " * 6 + "|")
    for row in rows:
        kind = "signed" if row["signed"] else ">= 0"
        print(
            f"| {row['size']} | {row['batch']} | {kind} | {row['structural / solve']:.2f} | "
            f"{row['enclosure / solve']:.2f} | {row['proven']} |"
        )


if __name__ == "__main__":
    main()
