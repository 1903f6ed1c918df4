"""`subdeq perron`: Perron pairs of a matrix, graph or hypergraph in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..errors import DataError, OptionError
from ..perron import METHODS, PerronResult, perron
from ..result import Status
from .centrality import KINDS, Labels, problems
from .output import write_json

__all__ = ["perron_command"]

_SHOWN = 5


def perron_command(
    file: Annotated[
        Path,
        typer.Argument(
            help=".npz, .npy, .mtx, .graphml, or an edge list: source, target and, if you like, a weight. Of a "
            "hypergraph the nodes of an edge on each line."
        ),
    ],
    kind: Annotated[str, typer.Option("--as", help=f"What to make of it: {', '.join(KINDS)}.")] = "matrix",
    side: Annotated[str, typer.Option(help="right: A x = lambda x; left: A^T x = lambda x.")] = "right",
    undirected: Annotated[
        bool, typer.Option("--undirected", help="Count every edge of an edge list in both directions.")
    ] = False,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "auto",
    backend: Annotated[str, typer.Option(help="torch, or julia for KrylovKit, LinearSolve, NonlinearSolve.")] = "torch",
    tol: Annotated[float, typer.Option(help="Relative width of the bracket to reach.")] = 1e-12,
    max_iter: Annotated[int, typer.Option(help="Largest number of evaluations of the map.")] = 10_000,
    normalize: Annotated[str, typer.Option(help='Norm of the vectors: a number of at least 1, or "inf".')] = "1",
    out: Annotated[
        Path | None, typer.Option(help="Write the vectors: .npy, or a table of names and entries for any other suffix.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file.")] = None,
) -> None:
    """The spectral radius of a nonnegative matrix with guaranteed bounds, and its nonnegative eigenvector.

    In a graph, entry (i, j) is the edge from i to j; with --side left the vector is the eigenvector centrality, by
    which a node counts as much as those that point to it. With --as hits, hubs and authorities; with --as h-eigen,
    z-eigen or node-edge, the file lists hyperedges, and the vectors are centralities of nodes (and edges).
    Exit code 0: the bounds are as close as asked, or as float64 allows; 1: they are not; 2: the input is wrong.
    """
    if side not in ("right", "left"):
        raise OptionError(f"side must be 'right' or 'left', got {side!r}.")
    console = Console()
    options = {"side": side, "method": method, "backend": backend, "tol": tol, "max_iter": max_iter}
    norm = _norm(normalize)
    results, vectors, summaries = [], [], []
    for problem in problems(kind, file, undirected=undirected):
        _say(console, f"{file}: {problem.size}")
        result = _solve(problem.target, normalize=norm, **options)
        blocks = [label.whole(block) for label, block in zip(problem.labels, result.blocks, strict=True)]
        summary = _summary(file, side, result)
        _show(console, result, summary)
        for label, vector in zip(problem.labels, blocks, strict=True):
            _show_entries(console, label, vector)
            vectors.append((label, vector))
        results.append(result)
        summaries.append(summary)
    if out is not None:
        _write_vectors(out, vectors)
        _say(console, f"vector {out}")
    if json_path is not None:
        write_json(json_path, summaries[0] if len(summaries) == 1 else {"file": str(file), "results": summaries})
    good = all(int(result.status) <= Status.ROUNDING_FLOOR for result in results)
    raise typer.Exit(0 if good else 1)


def _solve(target: object, **options: Any) -> PerronResult:
    """The pair, with the bounds so far on the terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar, torch.no_grad():
        task = bar.add_task("first evaluations")

        def show(evaluations: int, lower: Tensor, upper: Tensor) -> None:
            bar.update(task, description=f"{evaluations} evaluations, {float(lower):.12g} to {float(upper):.12g}")

        return perron(target, progress=show, **options)


def _norm(text: str) -> float | str:
    try:
        return "inf" if text == "inf" else float(text)
    except ValueError:
        raise OptionError(f'normalize must be a number of at least 1 or "inf", got {text!r}.') from None


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _summary(file: Path, side: str, result: PerronResult) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "file": str(file),
        "side": side,
        "eigenvalue": _finite(result.eigenvalue),
        "lower": float(result.lower),
        "upper": _finite(result.upper),
        "relative_width": _finite(result.width),
        "status": Status(int(result.status)).name,
        "products": result.evaluations,
        "method": result.method,
    }
    if result.patterns:
        (pattern,) = result.patterns
        summary |= {"classes": pattern.classes, "irreducible": pattern.irreducible, "period": pattern.period}
        return summary | {"multiplicity": int(result.multiplicity), "index": int(result.index)}
    summary |= {"rate": float(result.rate), "error_bound": _finite(result.error_bound)}
    if result.factor_bounds is not None:
        summary["factors"] = [[_finite(low), _finite(high)] for low, high in result.factor_bounds]
    return summary


def _show(console: Console, result: PerronResult, summary: dict[str, Any]) -> None:
    _say(console, _told_by_zeros(summary) if "classes" in summary else _told_by_rates(summary))
    good = int(result.status) <= Status.ROUNDING_FLOOR
    name = "spectral radius" if "classes" in summary else "eigenvalue"
    text = f"{float(result.lower)!r} <= {name} <= {float(result.upper)!r}"
    _say(console, f"{text}, guaranteed (relative width {float(result.width):.2g})", "bold green" if good else "")
    _say(console, f"{summary['status']}: {result.messages[0]} {summary['products']} products")


def _told_by_zeros(summary: dict[str, Any]) -> str:
    if summary["irreducible"]:
        return "irreducible, primitive" if summary["period"] == 1 else f"irreducible, of period {summary['period']}"
    kind = f"reducible, {summary['classes']} classes: the eigenvector need not be positive or unique"
    if summary["index"] > 1:
        kind += f"; defective, {summary['multiplicity']} classes have this radius, {summary['index']} in a row"
    return kind


def _told_by_rates(summary: dict[str, Any]) -> str:
    if summary["rate"] < 1:
        kind = f"the positive eigenvector is proven to be unique: a step contracts by {summary['rate']:.3g}"
    else:
        kind = "no rate is proven"
    if summary["error_bound"] is None:
        return kind
    return f"{kind}; quotients of entries are right up to a factor exp({summary['error_bound']:.2g}), guaranteed"


def _show_entries(console: Console, label: Labels, vector: Tensor) -> None:
    top = vector.topk(min(_SHOWN, len(vector))).indices.tolist()
    entries = ", ".join(f"{label.name(index)} {float(vector[index]):.6g}" for index in top)
    _say(console, f"largest {label.vector or 'entries'}: {entries}")


def _write_vectors(path: Path, vectors: list[tuple[Labels, Tensor]]) -> None:
    """Write names and entries; before them the vector's name, where there are several.

    Raises:
        DataError: they cannot be written.
    """
    several = len(vectors) > 1
    if path.suffix == ".npy" and several:
        names = " and ".join(label.vector for label, _ in vectors)
        raise DataError(f"{path} would mix {names}: write a table, with another suffix than .npy.")
    separator = "," if path.suffix == ".csv" else "\t"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, vectors[0][1].numpy())
            return
        with path.open("w", encoding="utf-8") as file:
            for label, vector in vectors:
                first = [label.vector] if several else []
                rows = ([*first, label.name(i), repr(value)] for i, value in enumerate(vector.tolist()))
                file.writelines(separator.join(row) + "\n" for row in rows)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}.") from error


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
