"""`subdeq bench`: time solver backends to a guaranteed error, and compare with an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..bench import PROBLEMS, WORKS, Problem, Report, available, backend_keys, make_backend, parse_size, run
from ..bench.backends import Backend, Own, is_builtin
from ..bench.plots import draw
from .output import write_json
from .target import load_function

__all__ = ["bench_command"]

_DEFAULT = ("dense", "dense-hard")


def bench_command(
    context: typer.Context,
    problem: Annotated[
        list[str] | None,
        typer.Option(help='A built-in problem (see --list), "all", or MODULE:FUNCTION of yours; repeatable.'),
    ] = None,
    work: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(WORKS)}, or all; repeatable; default forward.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", "--sizes", help="Of the built-in problems, such as 87x512; several by commas."),
    ] = None,
    error: Annotated[
        list[float] | None, typer.Option(help="Guaranteed error to reach; repeatable; default 1e-6.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help='A key, such as "subdeq:anderson?memory=8" (see --list), "all", or MODULE:FUNCTION of yours with '
            "torchdeq's calling convention; repeatable; default all of subdeq:, torchdeq: and scipy:."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; default what each problem brings.")] = None,
    device: Annotated[str, typer.Option(help="Of torch.")] = "cpu",
    repetitions: Annotated[int, typer.Option(help="Timed runs of each solve.")] = 20,
    max_iter: Annotated[int, typer.Option(help="Largest number of evaluations of a solve.")] = 200,
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
    seed: Annotated[int, typer.Option(help="Of the problems and of the order of the runs.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON to this file.")] = None,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="Write its rows as a table to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write pictures to this folder.")] = None,
    stored: Annotated[
        Path | None, typer.Option("--report", help="Take the report from this JSON file instead of measuring.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="Compare with the report in this JSON file.")] = None,
    slower: Annotated[
        float, typer.Option(help="With --compare, the factor by which a time may grow before it counts as a loss.")
    ] = 1.5,
    list_all: Annotated[bool, typer.Option("--list", help="Show problems and backends, and do nothing else.")] = False,
) -> None:
    """Time solver backends to a guaranteed error.

    Every backend's own tolerance is first chosen such that the error of its answer, guaranteed by the certificate of
    the problem, is at most --error; then all are timed in turns. What fails is listed with the reason.
    Exit code 0: done; 1: with --compare, something became slower by more than --slower, or fails now; 2: the arguments
    are wrong.
    """
    console = Console()
    if list_all:
        console.print(_listing())
        return
    old = None if compare is None else Report.read(compare)
    if stored is not None:
        report = Report.read(stored)
    else:
        report = _measure(
            _problems(problem or _DEFAULT),
            None if backend is None else _backends(backend),
            works=tuple(WORKS) if work == ["all"] else tuple(work or ("forward",)),
            sizes=tuple(parse_size(part) for text in size or () for part in text.split(",")),
            errors=tuple(error or (1e-6,)),
            dtype=dtype,
            device=device,
            repetitions=repetitions,
            max_iter=max_iter,
            threads=threads,
            seed=seed,
            command=_command(context),
        )
    console.print(report.table())
    summary = report.to_dict()
    losses = 0
    if old is not None:
        comparison = report.compare(old, slower)
        console.print(comparison.table())
        losses = len(comparison.losses)
        summary["comparison"] = comparison.to_dict()
    if json_path is not None:
        write_json(json_path, summary)
    if csv_path is not None:
        report.write_csv(csv_path)
    if plot is not None:
        for path in draw(report, plot):
            console.print(f"picture {path}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if losses else 0)


def _measure(problems: Sequence[Any], backends: Sequence[Any] | None, **settings: Any) -> Report:
    """The report, with what is being done on the terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting")
        return run(problems, backends, progress=lambda text: bar.update(task, description=text), **settings)


def _problems(names: Sequence[str]) -> list[str | Problem]:
    if "all" in names:
        names = [*PROBLEMS, *(name for name in names if ":" in name)]
    return [Problem.of(name, load_function(name, "a problem of your own")()) if ":" in name else name for name in names]


def _backends(keys: Sequence[str]) -> list[Backend]:
    if "all" in keys:
        keys = [*backend_keys(), *(key for key in keys if key != "all" and key not in backend_keys())]
    return [
        make_backend(key) if is_builtin(key) else Own(key, load_function(key, "a backend of your own")) for key in keys
    ]


def _command(context: typer.Context) -> str:
    """The command line, with the names of files but not of their folders."""
    parts = ["subdeq bench"]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        for item in value if isinstance(value, list | tuple) else (value,):
            parts.append(f"{parameter.opts[0]} {item.name if isinstance(item, Path) else item}")
    return " ".join(parts)


def _listing() -> Group:
    problems = Table(title="problems", title_justify="left", box=None, pad_edge=False)
    for name in ("name", "what", "size", "default", "dtype"):
        problems.add_column(name, overflow="fold", no_wrap=name != "what")
    for name, recipe in PROBLEMS.items():
        size = "x".join(map(str, recipe.size))
        problems.add_row(name, recipe.about, " x ".join(recipe.layout), size, str(recipe.dtype).removeprefix("torch."))
    backends = Table(title="backends", title_justify="left", box=None, pad_edge=False)
    backends.add_column("key", no_wrap=True)
    backends.add_column("available", overflow="fold")
    for key, missing in available().items():
        backends.add_row(key, escape(missing) if missing else "yes", style="dim" if missing else "")
    usual = ", ".join(sorted({key.partition(":")[0] for key in backend_keys(usual=True)}))
    return Group(problems, Text(f"kinds of work: {', '.join(WORKS)}"), backends, Text(f"by default: all of {usual}"))
