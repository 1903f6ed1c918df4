"""The picture beside a checkpoint: convergence against the certified rate, and accuracy over the epochs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..certificates import certify
from ..errors import OptionError
from ..metrics import thompson
from .config import ImageClassifier
from .loop import EpochRecord

__all__ = ["convergence", "draw"]

_STEPS = 40
_SAMPLES = 64


def convergence(model: ImageClassifier, images: Tensor) -> tuple[list[float], float | None, str]:
    """Distances of successive plain iterates from the start of ones (normalised, if the map is), in float64.

    Args:
        model: the trained model.
        images: a few images.

    Returns:
        The largest distance over the samples for each step, down to the rounding error; the certified rate, or None;
        and the metric's name.
    """
    inputs = model.layer_input(images[:_SAMPLES].to(next(model.parameters()).device))
    with torch.no_grad():
        bound = model.deq.layer.bind(inputs).to("cpu", torch.float64)
        certificate = certify(bound)
        contraction = certificate.contraction
        if contraction is not None:
            name, distance = contraction.metric, contraction.distance
        else:  # ratios mean nothing where states may be negative
            name, distance = ("thompson", thompson) if bound.positive else ("linf", _largest_difference)
        z = bound.project(bound.start())  # Hilbert's rate holds on the slice
        steps: list[float] = []
        for _ in range(_STEPS):
            image = bound(z)
            steps.append(float(distance(image.flatten(1), z.flatten(1)).max()))
            z = image
            if not 1e-14 < steps[-1] < float("inf"):
                break
    return steps, certificate.rate, name


def _largest_difference(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().amax(dim=1)


def draw(path: Path, model: ImageClassifier, images: Tensor, history: list[EpochRecord]) -> None:
    """Write the picture as a PNG file.

    Args:
        path: of the file.
        model: the trained model.
        images: a few images for the convergence panel.
        history: the records of the epochs.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("the picture needs matplotlib: pip install 'subdeq-plugin[plot]'.") from error
    steps, rate, name = convergence(model, images)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = range(len(steps))
    left.semilogy(numbers, [max(step, 1e-17) for step in steps], "o-", label="measured, largest over samples")
    if rate is not None:
        left.semilogy(numbers, [steps[0] * rate**k for k in numbers], "--", label=f"certified: factor {rate:.3f}")
    left.set(
        xlabel="application of the map", ylabel=f"{name} distance of successive states", title="Convergence (float64)"
    )
    left.legend()
    epochs = range(1, len(history) + 1)
    for part in ("train", "test"):
        # A logarithmic axis has no zero: an error of none is drawn at a hundredth of a percent.
        right.plot(epochs, [max(100 * (1 - record[f"{part}_accuracy"]), 0.01) for record in history], label=part)
    right.set(xlabel="epoch", ylabel="error (%)", yscale="log", title="Classification error")
    right.legend()
    figure.savefig(path, dpi=120)
