"""Certified radii of a trained classifier against projected gradient attacks.

    OMP_NUM_THREADS=2 python benchmarks/robustness.py --out benchmarks/results/robustness.json

Trains the default digits model (held-out fifth of scikit-learn's digits), certifies an l-infinity and an l2 radius for
its test images, and attacks every image by PGD through exact implicit gradients: at the certified radius, where no
attack may succeed, and at growing multiples of it. Radii are in pixel units, where a pixel lies between 0 and 1.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.data import load
from subdeq_plugin.training import ImageClassifier, TrainConfig, train

MULTIPLES = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
STEPS, RESTARTS = 40, 3


def project(step: Tensor, radius: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return torch.maximum(torch.minimum(step, radius), -radius)
    length = step.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return step * torch.minimum(torch.ones_like(length), radius / length)


def attack(model: ImageClassifier, x: Tensor, label: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Whether some input within the radius is put into another class, for each sample."""
    fooled = torch.zeros(len(x), dtype=torch.bool)
    radius = radius.unsqueeze(1).to(x.dtype)
    for restart in range(RESTARTS):
        torch.manual_seed(restart)
        step = project(torch.randn_like(x).sign() * radius, radius, norm)
        for _ in range(STEPS):
            step = step.detach().requires_grad_()
            logits = model.head(model.deq(x + step))
            fooled |= logits.argmax(dim=1) != label
            margin = F.cross_entropy(logits, label, reduction="sum")
            (slope,) = torch.autograd.grad(margin, step)
            direction = slope.sign() if norm == "linf" else slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-30)
            step = project(step.detach() + 0.1 * radius * direction, radius, norm)
        with torch.no_grad():
            fooled |= model.head(model.deq(x + step)).argmax(dim=1) != label
    return fooled


def study(model: ImageClassifier, images: Tensor, norm: str) -> dict[str, Any]:
    x = model.layer_input(images)
    with torch.no_grad():
        z = model.deq(x)
    found = sd.robust_radius(model.deq.layer, x, z, model.head, norm, solver_error=1e-4)
    radius = found.radius * (1 - 1e-5)
    rates = {}
    for multiple in MULTIPLES:
        rates[str(multiple)] = float(attack(model, x, found.predicted, multiple * radius, norm).double().mean())
    pixels = (found.radius * float(model.std)).sort().values
    return {
        "norm": norm,
        "images": len(x),
        "certified": int((found.radius > 0).sum()),
        "median radius": float(pixels[len(pixels) // 2]),
        "largest radius": float(pixels[-1]),
        "lipschitz bound": sd.lipschitz_bound(model.deq.layer, norm),
        "attacks": rates,  # share of images fooled, by multiple of the certified radius
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = load("digits", None)
    with tempfile.TemporaryDirectory() as folder:
        result = train(TrainConfig(), data, Path(folder))
    model = result.model.eval()
    rows = [study(model, data.test_x[: arguments.images], norm) for norm in ("linf", "l2")]
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "test_accuracy": result.history[-1]["test_accuracy"],
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
    if any(row["attacks"]["1.0"] > 0 for row in rows):
        raise SystemExit("an attack inside a certified radius succeeded")


if __name__ == "__main__":
    main()
