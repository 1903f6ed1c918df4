"""Reports as tables on the terminal."""

from __future__ import annotations

import math

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .report import BARE, Cell, Report, Row

__all__ = ["tables"]

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def _seconds(value: float) -> str:
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if value >= scale), _UNITS[-1])
    return f"{value / scale:.3g} {unit}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "?"
    scale, unit = next(((scale, unit) for scale, unit in _SIZES if value >= scale), (1, "B"))
    return f"{value / scale:.3g} {unit}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _uses(row: Row) -> str:
    """Evaluations, and products after a plus sign; a tilde where they are only reported."""
    if row.evaluations is None:
        return "?"
    products = f" + {row.products}" if row.products else ""
    return f"{'~' if row.counts == 'reported' else ''}{row.evaluations}{products}"


def _spread(row: Row) -> str:
    """Half the distance of the quartiles, in percent of the median."""
    if not row.seconds or row.low is None or row.high is None:
        return ""
    return f"±{50 * (row.high - row.low) / row.seconds:.0f}%"


def _line(row: Row, most: int) -> list[str]:
    name = f"{row.backend} ({row.evaluations})" if row.backend == BARE else row.backend
    if row.repetitions < most:  # it was too slow for the budget
        name += f" [{row.repetitions} of {most} runs]"
    times = [name, _seconds(row.seconds or 0.0), _spread(row)]
    if row.baseline:
        return [*times, "", "", "", "", ""]
    reached = "" if row.reached is None else f"{row.reached:.1e}"
    return [*times, _ratio(row.to_fastest), _ratio(row.to_bare), _uses(row), _bytes(row.memory), reached]


def _table(cell: Cell, rows: tuple[Row, ...]) -> Table:
    table = Table(title=escape(str(cell)), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("backend", overflow="fold")
    for name in ("median", "spread", "/best", "/bare", "uses", "memory", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    timed = sorted((row for row in rows if row.seconds is not None), key=lambda row: row.seconds or math.inf)
    most = max((row.repetitions for row in timed), default=0)
    for row in timed:
        table.add_row(*map(escape, _line(row, most)), style="dim" if row.baseline else "")
    return table


def _failures(rows: tuple[Row, ...]) -> list[Text]:
    lost = [row for row in rows if row.seconds is None]
    lines = []
    for row in sorted(lost, key=lambda row: row.reached if row.reached is not None else math.inf):
        best = "" if row.reached is None else f" (best error {row.reached:.2g})"
        lines.append(Text(f"  not reached: {row.backend}{best}: {row.failure}", style="red"))
    return lines


def tables(report: Report) -> Group:
    """A table for every cell, sorted by time, its failures below."""
    parts: list[Table | Text] = []
    for cell in report.cells:
        rows = report.of(cell)
        parts += [_table(cell, rows), *_failures(rows), Text("")]
    return Group(*parts)
