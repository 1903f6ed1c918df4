"""`subdeq certify`: certify the layer of a checkpoint, for every input and image by image."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..certificates import advise, certify
from ..data import DATASETS, ImageData, load
from ..errors import OptionError
from ..training import (
    Checkpoint,
    Report,
    build_model,
    certify_images,
    convergence,
    evaluate,
    facts,
    gradient_errors,
    load_checkpoint,
    quantiles,
    robust_radii,
    verify_certificate,
    write_page,
)
from ..training.checkpoint import load_model_state
from ..training.loop import summarize
from .output import show_advice, show_certificate, show_gradients, show_radii, show_stored, show_survey, write_json

__all__ = ["certify_command"]


def certify_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint written by `subdeq train`.")],
    dataset: Annotated[
        str | None,
        typer.Option("--data", help=f"Data set to certify image by image: {', '.join(DATASETS)}; default its own."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with the data set's files.")] = None,
    limit: Annotated[int | None, typer.Option(help="Look at the first so many test images only.")] = None,
    conditions: Annotated[
        str | None, typer.Option(help='Conditions to try, separated by commas, or "all"; default until one suffices.')
    ] = None,
    robust: Annotated[
        str | None, typer.Option(help="Certify for each image a radius, linf or l2, within which no class changes.")
    ] = None,
    gradients: Annotated[
        int, typer.Option(help="Bound the error of the model's gradients over the first so many test images.")
    ] = 0,
    report: Annotated[Path | None, typer.Option(help="Write the certificate as one HTML page to this file.")] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the certificate as JSON to this file."),
    ] = None,
) -> None:
    """Check every hypothesis on the stored weights and print the certificate, for every input and image by image.

    Exit code 0: proven, for all inputs or for every image looked at; 1: not proven; 2: the checkpoint or the data
    cannot be read.
    """
    stored = load_checkpoint(checkpoint)
    data = _data(stored, dataset, data_root, limit)
    model = build_model(stored.config, stored.image_shape, stored.classes)
    load_model_state(model, stored)
    model.eval()
    names = None if conditions is None else conditions if conditions == "all" else _names(conditions)
    verdict = verify_certificate(model, stored)
    certificate = verdict.certificate if names is None else certify(model.deq.layer, conditions=names)
    advice = advise(certificate)
    summary: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        **(summarize(stored.history) if stored.history else {}),
        "certificate": certificate.to_dict(),
        "stored_certificate": {"void": verdict.void, "message": verdict.message},
        "advice": [{"text": item.text, "purpose": item.purpose, **item.settings} for item in advice],
    }
    console = Console()
    show_stored(console, verdict)
    show_certificate(console, certificate)
    seen = None
    if data is not None:
        seen = certify_images(model, data.test_x, conditions=names)
        accuracy = evaluate(model, data.test_x, data.test_y)
        summary |= {"survey": seen.to_dict(), "test_accuracy": accuracy}
        if bool(seen.errors.isfinite().all()) and len(seen.measures) == 1:
            summary["largest_guaranteed_error"] = float(seen.errors.max())
        show_survey(console, seen, accuracy)
        if robust is not None:
            radii = robust_radii(model, data.test_x, robust)
            right = radii.predicted == data.test_y
            summary["robustness"] = {
                "norm": robust,
                "unit": "pixel value",
                "certified": int((radii.radius > 0).sum()),
                "radii": quantiles(radii.radius),
                "certified_and_right": int(((radii.radius > 0) & right).sum()),
            }
            show_radii(console, robust, summary["robustness"], len(data.test_x))
        if gradients > 0:
            found = gradient_errors(model, data.test_x[:gradients], data.test_y[:gradients])
            summary["gradients"] = [
                {"tensor": item.tensor, "error": _finite(item.error), "largest": item.largest} for item in found
            ]
            show_gradients(console, found, min(gradients, len(data.test_x)))
    elif robust is not None or gradients > 0:
        raise OptionError(
            "--robust and --gradients need images: give --data, and --data-root where the data set has files."
        )
    elif not certificate.unique:
        console.print("single images may be provable: give --data-root (or --data digits)", highlight=False)
    show_advice(console, advice, seen)
    page = Report("/".join(checkpoint.parts[-2:]), certificate, facts(stored), verdict, seen, advice)
    summary["proven"] = page.proven
    if report is not None:
        if data is not None:
            page = replace(page, convergence=convergence(model, data.test_x))
        write_page(report, page)
        console.print(f"report {report}", markup=False, highlight=False, soft_wrap=True)
    if json_path is not None:
        write_json(json_path, summary)
    raise typer.Exit(0 if page.proven else 1)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _data(stored: Checkpoint, dataset: str | None, root: Path | None, limit: int | None) -> ImageData | None:
    """The test images to look at, or None where no data are at hand."""
    if limit is not None and limit < 1:
        raise OptionError(f"--limit must be at least 1, got {limit}.")
    name = dataset or stored.config.dataset
    # The digits need no folder, only scikit-learn; other data sets take part if the user names their folder.
    if dataset is None and root is None and not (name == "digits" and find_spec("sklearn") is not None):
        return None
    data = load(name, root)
    shape = tuple(data.test_x.shape[1:])
    if shape != stored.image_shape:
        raise OptionError(
            f"--data {name} has images of shape {shape}, the checkpoint is of a model for {stored.image_shape}; "
            f"name the data set it was trained on, {stored.config.dataset!r}."
        )
    return replace(data, test_x=data.test_x[:limit], test_y=data.test_y[:limit])
