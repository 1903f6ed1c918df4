"""`subdeq certify`: certify the layer of a checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..certificates import certify
from ..data import load
from ..training import build_model, evaluate, guaranteed_error, load_checkpoint
from ..training.checkpoint import load_model_state
from ..training.loop import summarize
from .output import proven_line, show_certificate, write_json

__all__ = ["certify_command"]


def certify_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint written by `subdeq train`.")],
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder with the data set's files: bounds the error on its test images as well."),
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the certificate as JSON to this file."),
    ] = None,
) -> None:
    """Check every hypothesis on the stored weights and print the certificate.

    Exit code 0: proven; 1: not proven; 2: the checkpoint or the data cannot be read.
    """
    stored = load_checkpoint(checkpoint)
    model = build_model(stored.config, stored.image_shape, stored.classes)
    load_model_state(model, stored)
    model.eval()
    certificate = certify(model.deq.layer)
    console = Console()
    show_certificate(console, certificate)
    summary: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        **(summarize(stored.history) if stored.history else {}),
        "certificate": certificate.to_dict(),
    }
    # The digits need no folder, only scikit-learn; other data sets take part if the user names their folder.
    at_hand = stored.config.dataset == "digits" and find_spec("sklearn") is not None
    if certificate.unique and (data_root is not None or at_hand):
        data = load(stored.config.dataset, data_root)
        worst = float(guaranteed_error(model, data.test_x).max())
        accuracy = evaluate(model, data.test_x, data.test_y)
        summary |= {"largest_guaranteed_error": worst, "test_accuracy": accuracy}
        console.print(f"{proven_line(worst)}; test accuracy {100 * accuracy:.2f} %", highlight=False, soft_wrap=True)
    if json_path is not None:
        write_json(json_path, summary)
    raise typer.Exit(0 if certificate.unique else 1)
