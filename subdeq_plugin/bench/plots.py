"""Pictures of a report: time against size, time against guaranteed error, and performance profiles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, OptionError
from .report import Cell, Report, Row

__all__ = ["draw", "profile"]

_MARKS = "os^Dv<>ph*X"
_LINES = ("-", "--", ":")  # matplotlib has ten colours; further backends have them again with other lines
_SLUG = str.maketrans({" ": "-", ":": "-", "/": "-", "\\": "-"})


def profile(report: Report) -> dict[str, list[float]]:
    """For every backend the ratios of its times to the fastest's, sorted, one for each task that it solved.

    With `n` tasks, the `k`-th ratio is where the profile of the backend rises to `k / n`: the fraction of tasks that it
    solves within this factor of the fastest. What fails is never counted.

    E. Dolan, J. More, *Benchmarking optimization software with performance profiles*, Math. Program. 91 (2002),
    doi:10.1007/s101070100263.
    """
    ratios: dict[str, list[float]] = {}
    for row in _solvers(report):
        ratios.setdefault(row.backend, [])
        if row.to_fastest is not None:
            ratios[row.backend].append(row.to_fastest)
    return {backend: sorted(values) for backend, values in ratios.items()}


def draw(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write the pictures for which the report has data, as PNG files.

    Args:
        report: of any number of tasks; for times against sizes, of several sizes of a problem; for times against
            errors, of several errors.
        folder: created if need be.

    Returns:
        The files: a profile of all tasks, and one picture for each problem with several sizes or errors.

    Raises:
        OptionError: matplotlib is not installed.
        DataError: a file cannot be written, or no backend solved anything.
    """
    if all(row.seconds is None for row in _solvers(report)):
        raise DataError("there is nothing to draw: no backend reached its error.")
    pictures = {"profile": _profile(report)}
    sizes = _groups(report, lambda cell: replace(cell, size=""))
    errors = _groups(report, lambda cell: replace(cell, error=math.nan))
    for (cell, rows), count in sizes:
        if count > 1:
            name = f"size {cell.problem} {cell.work} {cell.dtype} {cell.error:g}"
            title = f"{cell.problem}, {cell.work}, {cell.dtype} on {cell.device}, error {cell.error:g}"
            pictures[name] = _curves(rows, "entries of the state", lambda row: row.entries, title)
    for (cell, rows), count in errors:
        if count > 1:
            title = f"{cell.problem} {cell.size}, {cell.work}, {cell.dtype} on {cell.device}"
            name = f"work-precision {cell.problem} {cell.size} {cell.work} {cell.dtype}"
            pictures[name] = _curves(rows, "guaranteed error", lambda row: row.error, title)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            written.append(folder / f"{name.translate(_SLUG)}.png")
            figure.savefig(written[-1], dpi=120)
    except OSError as error:
        raise DataError(f"{folder} cannot be written to: {error}.") from error
    return tuple(written)


def _solvers(report: Report) -> Iterable[Row]:
    return (row for row in report.rows if not row.baseline)


def _groups(report: Report, key: Callable[[Cell], Cell]) -> list[tuple[tuple[Cell, list[Row]], int]]:
    """The rows of backends by what `key` leaves of their cells, and how many cells there were."""
    cells: dict[str, tuple[Cell, list[Row], set[Cell]]] = {}
    for row in _solvers(report):
        rest = key(row.cell)
        _, rows, seen = cells.setdefault(repr(rest), (rest, [], set()))  # NaN equals nothing, its text does
        rows.append(row)
        seen.add(row.cell)
    return [((rest, rows), len(seen)) for rest, rows, seen in cells.values()]


def _axes(title: str, xlabel: str, ylabel: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("the pictures need matplotlib: pip install 'subdeq-plugin[plot]'.") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    return figure, axes


def _look(number: int) -> dict[str, Any]:
    """Colour, line and mark of the so-manyth backend."""
    return {
        "color": f"C{number % 10}",
        "linestyle": _LINES[number // 10 % len(_LINES)],
        "marker": _MARKS[number % len(_MARKS)],
    }


def _curves(rows: list[Row], xlabel: str, x: Callable[[Row], float], title: str) -> Any:
    """Time with quartiles against `x` for every backend; both axes logarithmic. Failures leave gaps."""
    figure, axes = _axes(title, xlabel, "seconds")
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.seconds is not None:
            lines[row.backend].append(row)
    for number, backend in enumerate(dict.fromkeys(row.backend for row in rows)):
        line = sorted(lines[backend], key=x)
        middle = [row.seconds or math.nan for row in line]
        below = [row.seconds - row.low for row in line if row.seconds is not None and row.low is not None]
        above = [row.high - row.seconds for row in line if row.seconds is not None and row.high is not None]
        axes.errorbar([x(row) for row in line], middle, yerr=[below, above], capsize=2, label=backend, **_look(number))
    axes.set(xscale="log", yscale="log")
    if xlabel == "guaranteed error":
        axes.invert_xaxis()  # more accurate to the right
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _profile(report: Report) -> Any:
    """The fraction of tasks solved within a factor of the fastest; better is higher and further left."""
    ratios, tasks = profile(report), len(report.cells)
    figure, axes = _axes(f"Performance profile of {tasks} tasks", "factor of the fastest", "fraction of tasks solved")
    most = max((values[-1] for values in ratios.values() if values), default=1.0)
    for number, (backend, values) in enumerate(ratios.items()):
        steps = [1.0, *values, 1.05 * most]
        heights = [0.0, *((k + 1) / tasks for k in range(len(values))), len(values) / tasks]
        axes.step(steps, heights, where="post", label=backend, **{**_look(number), "marker": ""})
    axes.set(xscale="log", ylim=(-0.02, 1.02))
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
