"""`subdeq perron`: the Perron pair of a matrix or graph in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..data import NamedMatrix, read_matrix
from ..errors import DataError, OptionError
from ..perron import METHODS, PerronResult, perron
from ..result import Status
from .output import write_json

__all__ = ["perron_command"]

_SHOWN = 5


def perron_command(
    file: Annotated[Path, typer.Argument(help=".npz, .npy, .mtx, .graphml, or an edge list: source target [weight].")],
    side: Annotated[str, typer.Option(help="right: A x = lambda x; left: A^T x = lambda x.")] = "right",
    undirected: Annotated[
        bool, typer.Option("--undirected", help="Count every edge of an edge list in both directions.")
    ] = False,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "auto",
    backend: Annotated[str, typer.Option(help="torch, or julia for KrylovKit, LinearSolve, NonlinearSolve.")] = "torch",
    tol: Annotated[float, typer.Option(help="Relative width of the bracket to reach.")] = 1e-12,
    max_iter: Annotated[int, typer.Option(help="Largest number of products with the matrix.")] = 10_000,
    normalize: Annotated[str, typer.Option(help='Norm of the vector: a number of at least 1, or "inf".')] = "1",
    out: Annotated[
        Path | None, typer.Option(help="Write the vector: .npy, or a table of name and entry for any other suffix.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file.")] = None,
) -> None:
    """The spectral radius of a nonnegative matrix with guaranteed bounds, and its nonnegative eigenvector.

    In a graph, entry (i, j) is the edge from i to j; with --side left the vector is the eigenvector centrality, by
    which a node counts as much as those that point to it.
    Exit code 0: the bounds are as close as asked, or as float64 allows; 1: they are not; 2: the input is wrong.
    """
    if side not in ("right", "left"):
        raise OptionError(f"side must be 'right' or 'left', got {side!r}.")
    console = Console()
    named = read_matrix(file, undirected=undirected)
    _say(console, f"{file}: {named.matrix.shape[0]} rows, {named.matrix.nnz} entries")
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("first products")

        def show(evaluations: int, lower: Tensor, upper: Tensor) -> None:
            bar.update(task, description=f"{evaluations} products, {float(lower):.12g} to {float(upper):.12g}")

        with torch.no_grad():
            result = perron(
                named.matrix,
                side=side,
                method=method,
                backend=backend,
                tol=tol,
                max_iter=max_iter,
                normalize=_norm(normalize),
                progress=show,
            )
    summary = _summary(file, side, result)
    _show(console, result, summary, named)
    if out is not None:
        _write_vector(out, named, result.eigenvector)
        _say(console, f"vector {out}")
    if json_path is not None:
        write_json(json_path, summary)
    raise typer.Exit(0 if int(result.status) <= Status.ROUNDING_FLOOR else 1)


def _norm(text: str) -> float | str:
    try:
        return "inf" if text == "inf" else float(text)
    except ValueError:
        raise OptionError(f'normalize must be a number of at least 1 or "inf", got {text!r}.') from None


def _summary(file: Path, side: str, result: PerronResult) -> dict[str, Any]:
    (pattern,) = result.patterns
    return {
        "file": str(file),
        "side": side,
        "eigenvalue": float(result.eigenvalue) if bool(result.eigenvalue.isfinite()) else None,
        "lower": float(result.lower),
        "upper": float(result.upper) if bool(result.upper.isfinite()) else None,
        "relative_width": float(result.width) if bool(result.width.isfinite()) else None,
        "status": Status(int(result.status)).name,
        "products": result.evaluations,
        "method": result.method,
        "classes": pattern.classes,
        "irreducible": pattern.irreducible,
        "period": pattern.period,
        "multiplicity": int(result.multiplicity),
        "index": int(result.index),
    }


def _show(console: Console, result: PerronResult, summary: dict[str, Any], named: NamedMatrix) -> None:
    if not summary["irreducible"]:
        kind = f"reducible, {summary['classes']} classes: the eigenvector need not be positive or unique"
        if summary["index"] > 1:
            kind += f"; defective, {summary['multiplicity']} classes have this radius, {summary['index']} in a row"
    else:
        kind = "irreducible, primitive" if summary["period"] == 1 else f"irreducible, of period {summary['period']}"
    _say(console, kind)
    good = int(result.status) <= Status.ROUNDING_FLOOR
    text = f"{float(result.lower)!r} <= spectral radius <= {float(result.upper)!r}"
    _say(console, f"{text}, guaranteed (relative width {float(result.width):.2g})", "bold green" if good else "")
    _say(console, f"{summary['status']}: {result.messages[0]} {summary['products']} products")
    x = result.eigenvector
    top = x.topk(min(_SHOWN, len(x))).indices.tolist()
    entries = ", ".join(f"{_name(named, index)} {float(x[index]):.6g}" for index in top)
    _say(console, f"largest entries: {entries}")


def _name(named: NamedMatrix, index: int) -> str:
    return str(index if named.names is None else named.names[index])


def _write_vector(path: Path, named: NamedMatrix, vector: Tensor) -> None:
    """Write the vector.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, vector.numpy())
            return
        separator = "," if path.suffix == ".csv" else "\t"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{_name(named, i)}{separator}{value!r}\n" for i, value in enumerate(vector.tolist()))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}.") from error


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
