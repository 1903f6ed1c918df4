"""`subdeq train`: train a classifier with a certified equilibrium layer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data import DATASETS, load
from ..errors import DataError, OptionError, unknown_name
from ..training import TrainConfig, draw, guaranteed_error, load_checkpoint, train
from ..training.loop import EpochRecord
from .output import proven_line, show_certificate, write_json

__all__ = ["train_command"]

_Text = str | None
_Whole = int | None
_Number = float | None
_File = Path | None


def _parse_normalize(text: str | None) -> float | str | None:
    if text is None or text == "inf":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f'--normalize must be "none", "inf" or a number p >= 1, got {text!r}.') from error


def train_command(
    dataset: Annotated[str, typer.Argument(help=f"One of: {', '.join(DATASETS)}.")],
    data_root: Annotated[_File, typer.Option(help="Folder with the data set's files (not needed for digits).")] = None,
    out: Annotated[_File, typer.Option(help="Folder for checkpoint and picture; default runs/DATASET.")] = None,
    json_path: Annotated[_File, typer.Option("--json", help="Write the result as JSON to this file.")] = None,
    resume: Annotated[_File, typer.Option(help="Go on from this checkpoint, with its settings.")] = None,
    kind: Annotated[_Text, typer.Option(help="dense or conv.")] = None,
    units: Annotated[_Whole, typer.Option(help="State features, or channels.")] = None,
    activation: Annotated[_Text, typer.Option(help="Activation of the layer.")] = None,
    shift: Annotated[_Number, typer.Option(help="Added to the activation.")] = None,
    power: Annotated[_Number, typer.Option(help="Exponent of the shifted activation.")] = None,
    normalize: Annotated[_Text, typer.Option(help='"none", "inf" or the exponent of a p-norm.')] = None,
    weight: Annotated[_Text, typer.Option(help="nonneg or signed.")] = None,
    nonneg: Annotated[_Text, typer.Option(help="abs, softplus, square or exp.")] = None,
    injection: Annotated[_Text, typer.Option(help="outside or inside.")] = None,
    f_solver: Annotated[_Text, typer.Option(help="Key of the forward solver.")] = None,
    b_solver: Annotated[_Text, typer.Option(help="Key of the backward solver.")] = None,
    f_tol: Annotated[_Number, typer.Option(help="Forward tolerance.")] = None,
    b_tol: Annotated[_Number, typer.Option(help="Backward tolerance.")] = None,
    warm_start: Annotated[_Text, typer.Option(help="Start solves from earlier equilibria: mean or sample.")] = None,
    epochs: Annotated[_Whole, typer.Option(help="Number of epochs.")] = None,
    batch_size: Annotated[_Whole, typer.Option(help="Images per step, over all devices.")] = None,
    lr: Annotated[_Number, typer.Option(help="Initial learning rate.")] = None,
    weight_decay: Annotated[_Number, typer.Option(help="Of AdamW.")] = None,
    seed: Annotated[_Whole, typer.Option(help="Seed of initialisation and order.")] = None,
    devices: Annotated[str, typer.Option(help="Number of devices, or auto.")] = "1",
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    strategy: Annotated[str, typer.Option(help="auto, ddp, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, 64-true, bf16-mixed, ...")] = "32-true",
) -> None:
    """Train an equilibrium classifier and print its certificate.

    The checkpoint, written after every epoch, and a picture of the convergence land in --out.
    """
    if dataset not in DATASETS:
        raise unknown_name("data set", dataset, DATASETS)
    given: dict[str, Any] = {
        "kind": kind,
        "units": units,
        "activation": activation,
        "shift": shift,
        "power": power,
        "weight": weight,
        "nonneg": nonneg,
        "injection": injection,
        "f_solver": f_solver,
        "b_solver": b_solver,
        "warm_start": warm_start,
        "f_tol": f_tol,
        "b_tol": b_tol,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if normalize is not None:
        given["normalize"] = _parse_normalize(None if normalize == "none" else normalize)
    config = _config(dataset, given, resume)
    data = load(dataset, data_root)
    folder = out or Path("runs") / dataset
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {folder} cannot be created: {error}.") from error
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    ]
    # Among several processes, which the launcher numbers by LOCAL_RANK, one shows the progress.
    with Progress(*columns, console=console, disable=os.environ.get("LOCAL_RANK", "0") != "0") as progress:
        task = progress.add_task(dataset, total=config.epochs, status="")

        def show(epoch: int, record: EpochRecord) -> None:
            progress.update(task, completed=epoch, status=_status(record))

        result = train(
            config,
            data,
            folder,
            resume=resume,
            devices=devices if devices == "auto" else _count(devices),
            accelerator=accelerator,
            strategy=strategy,
            precision=precision,
            on_epoch=show,
        )
    if not result.is_main:
        return
    report = Console()
    last = result.history[-1]
    report.print(
        f"test accuracy {100 * last['test_accuracy']:.2f} % after {config.epochs} epochs; forward "
        f"{last['forward_iterations']:.1f}, backward {last['backward_iterations']:.1f} iterations a step",
        highlight=False,
        soft_wrap=True,
    )
    show_certificate(report, result.certificate)
    summary = result.to_dict()
    if result.certificate.unique:
        worst = float(guaranteed_error(result.model, data.test_x).max())
        summary["largest_guaranteed_error"] = worst
        report.print(proven_line(worst), highlight=False, soft_wrap=True)
    if json_path is not None:
        write_json(json_path, summary)
    report.print(escape(f"checkpoint {result.checkpoint}"), highlight=False, soft_wrap=True)
    picture = folder / "picture.png"
    try:
        draw(picture, result.model, data.test_x, result.history)
    except OptionError as error:  # matplotlib is an extra: its absence must not cost the result
        report.print(escape(f"no picture: {error}"), highlight=False, soft_wrap=True)
    else:
        report.print(escape(f"picture {picture}"), highlight=False, soft_wrap=True)


def _config(dataset: str, given: dict[str, Any], resume: Path | None) -> TrainConfig:
    if resume is None:
        return TrainConfig.for_dataset(dataset, **given)
    stored = load_checkpoint(resume).config
    if stored.dataset != dataset:
        raise OptionError(f"the checkpoint was trained on {stored.dataset!r}, not on {dataset!r}.")
    return TrainConfig.from_dict({**stored.to_dict(), **given})


def _count(devices: str) -> int:
    if not devices.isdigit() or int(devices) < 1:
        raise OptionError(f'--devices must be a positive integer or "auto", got {devices!r}.')
    return int(devices)


def _status(record: EpochRecord) -> str:
    mu = "unproven" if record["mu"] is None else f"{record['mu']:.3f}"
    return (
        f"loss {record['loss']:.3f} test {100 * record['test_accuracy']:.2f} % "
        f"iterations {record['forward_iterations']:.0f}+{record['backward_iterations']:.0f} mu {mu}"
    )
