"""Two reports of the same tasks: what became slower and what faster, whatever the machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import DataError, OptionError
from .report import BARE, Cell, Report, Row

__all__ = ["Change", "Comparison", "compare"]


@dataclass(frozen=True)
class Change:
    """One backend on one task, then and now.

    Attributes:
        old, new: its rows.
        machine: the time of one bare product in the new report over that in the old one.
        ratio: new time over old, divided by `machine`; None if one of them failed.
        flag: "slower" or "faster" where the quartiles, so divided, do not overlap; else "same". "failed" if only the
            new one failed, "reached" if only the old one did, "failed again" if both.
    """

    old: Row
    new: Row
    machine: float | None
    ratio: float | None
    flag: str


@dataclass(frozen=True)
class Comparison:
    """The changes of all rows that both reports have.

    Attributes:
        changes: in the order of the new report.
        slower: the ratio from which on a backend that is flagged "slower" counts as a loss.
        only_old, only_new: how many rows have no counterpart.
    """

    changes: tuple[Change, ...]
    slower: float
    only_old: int
    only_new: int

    @property
    def losses(self) -> tuple[Change, ...]:
        """What became slower by more than allowed, or fails now."""
        return tuple(
            change
            for change in self.changes
            if change.flag == "failed"
            or (change.flag == "slower" and change.ratio is not None and change.ratio > self.slower)
        )

    def table(self) -> Group:
        """For `rich`."""
        tables: dict[Cell, Table] = {}
        for change in self.changes:
            if change.new.cell not in tables:
                tables[change.new.cell] = _table(change)
            style = {"slower": "red", "failed": "red", "faster": "green", "reached": "green"}.get(change.flag, "")
            ratio = "" if change.ratio is None else f"{change.ratio:.3g}"
            tables[change.new.cell].add_row(escape(change.new.backend), ratio, change.flag, style=style)
        count = len(self.losses)
        lines = [f"{count} of {len(self.changes)} became slower by more than {self.slower:g}, or fail now"]
        if self.only_old or self.only_new:
            lines.append(f"without counterpart: {self.only_old} in the old report, {self.only_new} in the new one")
        return Group(*tables.values(), *(Text(line, style="bold red" if count else "") for line in lines))

    def to_dict(self) -> list[dict[str, Any]]:
        """As JSON-compatible values."""
        return [
            {
                "task": str(change.new.cell),
                "backend": change.new.backend,
                "machine": change.machine,
                "ratio": change.ratio,
                "flag": change.flag,
            }
            for change in self.changes
        ]


def _table(first: Change) -> Table:
    """An empty table for the changes of a cell."""
    machine = "" if first.machine is None else f" (a bare product took {first.machine:.3g} times as long)"
    title = f"{first.new.cell}: new / old in units of bare products{machine}"
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("backend", overflow="fold")
    table.add_column("new / old", justify="right")
    table.add_column("")
    return table


def _product(report: Report) -> dict[Any, float]:
    """Seconds of one bare product in every cell."""
    found = {}
    for row in report.rows:
        if row.baseline and row.backend == BARE and row.seconds and row.evaluations:
            found[row.cell] = row.seconds / row.evaluations
    return found


def _change(old: Row, new: Row, machine: float | None) -> Change:
    if old.seconds is None or new.seconds is None or machine is None:
        now, then = new.seconds is not None, old.seconds is not None
        if now and then:
            return Change(old, new, None, None, "no bare products")
        flag = "reached" if now else "failed" if then else "failed again"
        return Change(old, new, machine, None, flag)
    bounds = (old.low, old.high, new.low, new.high)
    low, high, now_low, now_high = (0.0 if value is None else value for value in bounds)
    flag = "slower" if now_low > high * machine else "faster" if now_high < low * machine else "same"
    return Change(old, new, machine, new.seconds / (old.seconds * machine), flag)


def compare(new: Report, old: Report, slower: float = 1.5) -> Comparison:
    """How the times of `new` stand to those of `old`.

    Rows match by problem, size, work, dtype, device, error and backend. Every ratio is divided by that of the times of
    one bare product of the same task, so that a faster machine does not look like a faster solver.

    Raises:
        OptionError: `slower` is below 1.
        DataError: the reports have no row in common.
    """
    if not slower >= 1:
        raise OptionError(f"slower must be at least 1, got {slower!r}.")
    before = {(row.cell, row.backend): row for row in old.rows if not row.baseline}
    after = {(row.cell, row.backend): row for row in new.rows if not row.baseline}
    products, earlier = _product(new), _product(old)
    changes = []
    for key in after:
        if key in before:
            cell = key[0]
            machine = products[cell] / earlier[cell] if cell in products and cell in earlier else None
            changes.append(_change(before[key], after[key], machine))
    if not changes:
        raise DataError("the reports have no row in common: run the problems, sizes, errors and dtypes of the old one.")
    return Comparison(tuple(changes), slower, len(before) - len(changes), len(after) - len(changes))
