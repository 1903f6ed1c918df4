"""What share of random signed layers each sufficient condition certifies, alone, and all of them together.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py --layers 60 --out benchmarks/results/coverage.json

Layers `tanh(W z) + 1.2 + y` with Gaussian `W` of standard deviation `scale / sqrt(n)` and `y = |N(0, 1)|`, one input
each, in float64. A layer counts as empirically unique when damped iterations and Newton's method from 64 starts all end
in the same fixed point; the shares are of these layers. "best single" is the largest share of one condition, per scale
and size; the engine is never below it, and lies above it where different layers are certified by different conditions.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

import subdeq_plugin as sd
from subdeq_plugin.certificates import CONDITIONS

SIZES = (2, 4, 8, 16, 32, 64)
SCALES = (0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8)
STARTS = 64


def layer(size: int, scale: float, seed: int) -> sd.BoundMap:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator, dtype=torch.float64) * scale / size**0.5
    outer = torch.randn(1, size, generator=generator, dtype=torch.float64).abs()
    return sd.BoundMap.from_spec(
        sd.MapSpec({"weight": weight, "outer": outer}, {"kind": "dense", "activation": "tanh", "shift": 1.2})
    )


def fixed_points(bound: sd.BoundMap, seed: int) -> int:
    """How many different fixed points the search ends in; 0 where some start ends nowhere."""
    generator = torch.Generator().manual_seed(seed)
    weight, outer = bound.tensors
    size = weight.shape[0]
    top = 2.2 + outer
    z = 0.2 + torch.rand(STARTS, size, generator=generator, dtype=torch.float64) * top
    z[0], z[1] = 0.2 + outer[0], top[0]
    eye = torch.eye(size, dtype=torch.float64)

    def image(state: torch.Tensor) -> torch.Tensor:
        return torch.tanh(state @ weight.T) + 1.2 + outer

    for _ in range(300):
        z = 0.5 * z + 0.5 * image(z)
    for _ in range(30):
        slope = 1 - torch.tanh(z @ weight.T) ** 2
        z = z - torch.linalg.solve(eye - slope.unsqueeze(2) * weight, (z - image(z)).unsqueeze(2)).squeeze(2)
    good = (image(z) - z).abs().amax(dim=1) < 1e-10
    if not bool(good.any()):
        return 0
    kept: list[torch.Tensor] = []
    for point in z[good]:
        if all(float((point - other).abs().max()) > 1e-6 for other in kept):
            kept.append(point)
    return len(kept)


def study(size: int, scale: float, layers: int) -> dict[str, Any]:
    certified = dict.fromkeys([*CONDITIONS, "engine"], 0)
    unique = wrong = 0
    for number in range(layers):
        bound = layer(size, scale, seed=seed_of(size, scale, number))
        found = fixed_points(bound, number)
        verdicts = {name: sd.certify(bound, conditions=name).unique for name in CONDITIONS}
        verdicts["engine"] = sd.certify(bound).unique
        wrong += found > 1 and any(verdicts.values())
        if found == 1:
            unique += 1
            for name, verdict in verdicts.items():
                certified[name] += verdict
    return {"size": size, "scale": scale, "layers": layers, "unique": unique, "wrong": wrong, "certified": certified}


def seed_of(size: int, scale: float, number: int) -> int:
    """A seed that depends on the numbers alone."""
    return (size * 1009 + int(100 * scale)) * 100_003 + number


def table(rows: list[dict[str, Any]]) -> str:
    names = [*CONDITIONS, "engine"]
    lines = ["| n | scale | unique | " + " | ".join(names) + " |", "| --- " * (3 + len(names)) + "|"]
    for row in rows:
        shares = [f"{100 * row['certified'][name] / max(row['unique'], 1):.0f}" for name in names]
        lines.append(f"| {row['size']} | {row['scale']} | {row['unique']} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=60, help="layers per size and scale")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    rows = []
    for size in SIZES:
        for scale in SCALES:
            rows.append(study(size, scale, arguments.layers))
            print(f"n={size} scale={scale}: {rows[-1]['unique']} unique, {rows[-1]['certified']}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": f"python benchmarks/coverage.py --layers {arguments.layers}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - begin,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
