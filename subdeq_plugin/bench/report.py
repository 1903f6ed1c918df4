"""What a benchmark found: rows, where it was run, and how; written to JSON and CSV, read back, shown, compared."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from ..errors import DataError

if TYPE_CHECKING:
    from .compare import Comparison

__all__ = ["BARE", "SCHEMA", "Cell", "Report", "Row"]

SCHEMA = 1  # of the JSON; raised when a field changes its meaning
BARE = "bare products"


@dataclass(frozen=True)
class Cell:
    """What the rows of one table have in common.

    Attributes:
        problem, size, work, dtype, device: the task; `dtype` without "torch.".
        error: the guaranteed error asked for.
    """

    problem: str
    size: str
    work: str
    dtype: str
    device: str
    error: float

    def __str__(self) -> str:
        return f"{self.problem} {self.size}, {self.work}, {self.dtype} on {self.device}, error {self.error:g}"


@dataclass(frozen=True)
class Row:
    """One backend on one task, or a baseline.

    Attributes:
        problem, size, work, dtype, device, error: see `Cell`.
        backend: its key, or the name of the baseline.
        baseline: whether this is no solver, but a cost to compare with.
        entries: numbers in the state, all samples together.
        tol: the tolerance at which the backend reaches the error; None if it does not.
        reached: the guaranteed error of its answer, or the best it came to; None if that is infinite.
        failure: why the error was not reached; empty if it was.
        seconds: median of the repetitions; None for a failure.
        low, high: their quartiles.
        repetitions: how many were timed.
        evaluations: of the map in one solve, on the whole batch; for the bare products their number. None if unknown.
        products: with the Jacobian or its transpose.
        counts: "counted" at the map, or "reported" by the backend.
        memory: bytes held at the peak beyond the inputs; None where that cannot be seen.
        to_fastest: `seconds` over those of the fastest backend of the cell.
        to_bare: `seconds` over those of as many applications of the linear part as there were evaluations and products.
    """

    problem: str
    size: str
    work: str
    dtype: str
    device: str
    error: float
    backend: str
    baseline: bool = False
    entries: int = 0
    tol: float | None = None
    reached: float | None = None
    failure: str = ""
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    repetitions: int = 0
    evaluations: int | None = None
    products: int | None = None
    counts: str = ""
    memory: int | None = None
    to_fastest: float | None = None
    to_bare: float | None = None

    @property
    def cell(self) -> Cell:
        """What it shares with the rows that it can be compared with."""
        return Cell(self.problem, self.size, self.work, self.dtype, self.device, self.error)


_NAMES = tuple(part.name for part in fields(Row))
_OPTIONAL = tuple(part.name for part in fields(Row) if "None" in str(part.type))
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The outcome of `run`.

    Attributes:
        rows: in the order of the tasks; in each cell the backends in the order given, then the baselines.
        environment: see `describe_environment`.
        settings: what `run` was asked for.
    """

    rows: tuple[Row, ...]
    environment: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """In the order of the tasks."""
        return tuple(dict.fromkeys(row.cell for row in self.rows))

    def of(self, cell: Cell) -> tuple[Row, ...]:
        """The rows of a cell."""
        return tuple(row for row in self.rows if row.cell == cell)

    def table(self) -> Group:
        """For `rich`: a table for every cell, sorted by time, failures at the end."""
        from .table import tables

        return tables(self)

    def compare(self, old: Report, slower: float = 1.5) -> Comparison:
        """How times have changed since `old`, machines put aside; see `bench.compare.compare`."""
        from .compare import compare

        return compare(self, old, slower)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-compatible values."""
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "settings": self.settings,
            "rows": [{name: getattr(row, name) for name in _NAMES} for row in self.rows],
        }

    @classmethod
    def from_dict(cls, content: Any) -> Report:
        """The report that `to_dict` was made of.

        Raises:
            DataError: of another schema, or damaged.
        """
        if not isinstance(content, dict) or "schema" not in content:
            raise DataError("this is no report of `subdeq bench`: it has no schema; write one with --json.")
        if content["schema"] != SCHEMA:
            raise DataError(
                f"the report has schema {content['schema']!r}, this version reads {SCHEMA}: make it anew with --json."
            )
        rows, parts = content.get("rows"), (content.get("environment"), content.get("settings"))
        if not isinstance(rows, list) or not all(isinstance(part, dict) for part in parts):
            raise DataError("the report is damaged: it must have rows, an environment and settings; make it anew.")
        return cls(tuple(_row(row) for row in rows), *parts)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Report:
        """A report from the JSON file that `--json` wrote.

        Raises:
            DataError: it cannot be read, or is no such file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}.") from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}.") from error
        try:
            return cls.from_dict(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def write_csv(self, path: Path) -> None:
        """Write the rows as a table, one column for each attribute of `Row`; an empty field is None.

        Raises:
            DataError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(_NAMES)
                writer.writerows([getattr(row, name) for name in _NAMES] for row in self.rows)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}.") from error


def _row(content: Any) -> Row:
    """A row, with the type of every field checked: comparisons and tables compute with them."""
    if not isinstance(content, dict) or set(content) != set(_NAMES):
        raise DataError(f"the report is damaged: a row must have the fields {', '.join(_NAMES)}; make it anew.")
    for part in fields(Row):
        value = content[part.name]
        kinds = _KINDS[str(part.type).partition(" ")[0]]
        fine = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if fine and isinstance(value, float):
            fine = math.isfinite(value)
        if not fine and not (value is None and part.name in _OPTIONAL):
            raise DataError(f"the report is damaged: {part.name} of a row must be {part.type}, got {value!r}.")
    return Row(**content)
