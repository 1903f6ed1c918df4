"""Reports written and read again, shown and compared, from rows made by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields, replace

import pytest
from rich.console import Console

from subdeq_plugin.bench import Report, Row
from subdeq_plugin.bench.report import SCHEMA
from subdeq_plugin.errors import DataError, OptionError

from .synthetic import bare, report, row

MIXED = report(
    row(
        "b",
        4.0,
        evaluations=7,
        products=3,
        counts="counted",
        memory=2**21,
        reached=3e-7,
        tol=1e-5,
        to_fastest=2.0,
        to_bare=1.25,
    ),
    row("a", 2.0, evaluations=9, counts="reported", repetitions=2),
    row("[bold]c", None, reached=1e-3, failure="ValueError: [x], 5"),
    row("d", None),
    bare(10.0),
)


def shown(thing, width=200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(thing.table())
    return console.export_text()


def test_json_round_trip(tmp_path):
    text = json.dumps(MIXED.to_dict(), allow_nan=False)
    assert Report.from_dict(json.loads(text)) == MIXED
    (tmp_path / "r.json").write_text(text)
    assert Report.read(tmp_path / "r.json") == MIXED


def test_csv_round_trip(tmp_path):
    MIXED.write_csv(tmp_path / "deep" / "r.csv")
    kinds = {"str": str, "bool": lambda text: text == "True", "int": int, "float": float}
    rows = []
    with (tmp_path / "deep" / "r.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            values = {}
            for part in fields(Row):
                text, kind = line[part.name], str(part.type).partition(" ")[0]
                values[part.name] = None if text == "" and kind != "str" else kinds[kind](text)
            rows.append(Row(**values))
    assert tuple(rows) == MIXED.rows
    with pytest.raises(DataError, match="cannot be written"):
        MIXED.write_csv(tmp_path / "deep" / "r.csv" / "x.csv")


def damaged(change):
    content = json.loads(json.dumps(MIXED.to_dict()))
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("schema"), "no report of `subdeq bench`"),
        (lambda c: c.update(schema=SCHEMA + 1), f"has schema {SCHEMA + 1}, this version reads {SCHEMA}"),
        (lambda c: c.update(rows=3), "is damaged: it must have rows"),
        (lambda c: c.pop("settings"), "is damaged: it must have rows"),
        (lambda c: c["rows"][0].pop("error"), "a row must have the fields problem"),
        (lambda c: c["rows"][0].update(colour=1), "a row must have the fields"),
        (lambda c: c["rows"].append("x"), "a row must have the fields"),
        (lambda c: c["rows"][1].update(seconds="fast"), "seconds of a row must be float | None, got 'fast'"),
        (lambda c: c["rows"][1].update(error=None), "error of a row must be float, got None"),
        (lambda c: c["rows"][1].update(entries=True), "entries of a row must be int, got True"),
        (lambda c: c["rows"][1].update(seconds=float("nan")), "seconds of a row must be"),
    ],
)
def test_a_damaged_report(change, message):
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        Report.from_dict(damaged(change))


def test_files_that_are_no_reports(tmp_path):
    (tmp_path / "text.json").write_text("nothing")
    (tmp_path / "list.json").write_text("[1]")
    for name, message in (("text.json", "is not JSON"), ("list.json", "no report"), ("absent.json", "cannot be read")):
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            Report.read(tmp_path / name)


def test_the_table_is_sorted_by_time_with_failures_at_the_end():
    text = shown(MIXED)
    lines = text.splitlines()
    assert lines[0].startswith("p 4x2, forward, float64 on cpu, error 1e-06")
    places = [
        next(k for k, line in enumerate(lines) if name in line)
        for name in ("a ", "b ", "bare products (10)", "[bold]c", "d: it")
    ]
    assert places == sorted(places)
    (b,) = (line.split() for line in lines if line.startswith("b "))
    assert b == ["b", "4", "ms", "±10%", "2", "1.25", "7", "+", "3", "2", "MiB", "3.0e-07"]
    (a,) = (line for line in lines if line.startswith("a "))
    assert "[2 of 5 runs]" in a and "~9" in a and " ? " in a
    assert "not reached: [bold]c (best error 0.001): ValueError: [x], 5" in text
    assert "not reached: d: it did not work" in text


def test_a_table_of_failures_only():
    assert "not reached: a: it did not work" in shown(report(row("a", None)))


def test_cells():
    other = row("a", 1.0, error=1e-3)
    both = report(*MIXED.rows, other)
    assert len(both.cells) == 2 and both.of(both.cells[1]) == (other,) and both.of(both.cells[0]) == MIXED.rows


def test_changes_are_measured_in_bare_products():
    """The new machine is twice as fast: the same time there is a loss."""
    old = report(row("same", 10.0), row("slower", 10.0), row("faster", 10.0), row("near", 10.0), bare(4.0))
    new = report(row("same", 5.0), row("slower", 10.0), row("faster", 2.0), row("near", 5.5), bare(2.0))
    changes = {change.new.backend: change for change in new.compare(old).changes}
    assert {name: change.ratio for name, change in changes.items()} == pytest.approx(
        {"same": 1.0, "slower": 2.0, "faster": 0.4, "near": 1.1}
    )
    assert all(change.machine == pytest.approx(0.5) for change in changes.values())
    # The quartiles of "near" are 4.95 to 6.05, those of the old one 4.5 to 5.5 in the new machine's time.
    assert {name: change.flag for name, change in changes.items()} == {
        "same": "same", "slower": "slower", "faster": "faster", "near": "same"
    }  # fmt: skip
    assert [change.new.backend for change in new.compare(old).losses] == ["slower"]
    assert new.compare(old, slower=2.5).losses == ()


def test_bare_products_are_compared_one_by_one():
    old, new = report(row("a", 10.0), bare(4.0)), report(row("a", 10.0), replace(bare(2.0), evaluations=5))
    assert new.compare(old).changes[0].ratio == pytest.approx(1.0)


def test_a_big_ratio_within_the_spread_is_no_loss():
    wide = {"low": 1e-3, "high": 30e-3}
    old, new = report(row("a", 10.0, **wide), bare(1.0)), report(row("a", 20.0, **wide), bare(1.0))
    (change,) = new.compare(old).changes
    assert (change.flag, change.ratio) == ("same", pytest.approx(2.0)) and new.compare(old).losses == ()


def test_failures_are_compared_too():
    old = report(row("breaks", 1.0), row("heals", None), row("never", None), row("gone", 1.0), bare(1.0))
    new = report(row("breaks", None), row("heals", 1.0), row("never", None), row("fresh", 1.0), bare(1.0))
    comparison = new.compare(old)
    assert {change.new.backend: change.flag for change in comparison.changes} == {
        "breaks": "failed", "heals": "reached", "never": "failed again"
    }  # fmt: skip
    assert [change.new.backend for change in comparison.losses] == ["breaks"]
    assert (comparison.only_old, comparison.only_new) == (1, 1)
    text = shown(comparison)
    assert "1 of 3 became slower by more than 1.5, or fail now" in text
    assert "without counterpart: 1 in the old report, 1 in the new one" in text
    assert json.loads(json.dumps(comparison.to_dict()))[0] == {
        "task": str(new.cells[0]), "backend": "breaks", "machine": 1.0, "ratio": None, "flag": "failed"
    }  # fmt: skip


def test_without_bare_products_nothing_is_compared():
    (change,) = report(row("a", 1.0)).compare(report(row("a", 2.0))).changes
    assert (change.flag, change.ratio) == ("no bare products", None)


def test_only_equal_tasks_are_compared():
    for change in (
        {"error": 1e-5},
        {"size": "5x2"},
        {"dtype": "float32"},
        {"work": "adjoint"},
        {"problem": "q"},
        {"device": "cuda:0"},
    ):
        with pytest.raises(DataError, match="no row in common"):
            report(row("a", 1.0)).compare(report(row("a", 1.0, **change)))


def test_slower_must_be_a_factor():
    for value in (0.5, float("nan")):
        with pytest.raises(OptionError, match="slower must be at least 1"):
            MIXED.compare(MIXED, value)
