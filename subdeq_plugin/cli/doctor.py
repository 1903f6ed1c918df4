"""`subdeq doctor`: which Julia is used, whether it can be, and what to do if not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console

from ..bridge.config import config_file, forget_choice, save_choice
from ..bridge.inspect import Report, inspect
from ..errors import OptionError

__all__ = ["doctor_command"]


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    use_julia: Annotated[
        str | None, typer.Option(metavar="EXE", help="From now on use this Julia; needs --project.")
    ] = None,
    project: Annotated[
        str | None, typer.Option(metavar="DIR", help="The Julia project to use it with; needs --use-julia.")
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Forget what --use-julia saved.")] = False,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Whether to start Julia if all else is well.")
    ] = True,
) -> None:
    """Say which Julia the solvers `julia:*` use, what it has and what it lacks. Nothing is downloaded.

    Exit code 0: Julia can be used, or will be downloaded at first use; 1: it cannot; 2: the arguments are wrong.
    """
    console = Console(stderr=as_json)
    _choose(console, use_julia, project, forget)
    with _only_on_stderr(as_json):
        report = inspect(start=start, starter=_start)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _show(console, report)
    raise typer.Exit(0 if report.ok else 1)


def _choose(console: Console, use_julia: str | None, project: str | None, forget: bool) -> None:
    """Save or forget a choice.

    Raises:
        OptionError: the options contradict each other, or one is missing.
        BridgeError: the choice cannot be used or saved.
    """
    if (use_julia is None) != (project is None):
        given, lacking = ("--project", "--use-julia") if use_julia is None else ("--use-julia", "--project")
        raise OptionError(f"{given} needs {lacking}: give --use-julia EXE --project DIR.")
    if use_julia is not None and project is not None:
        if forget:
            raise OptionError("--forget and --use-julia contradict each other: give one of them.")
        save_choice(use_julia, project)
        _say(console, f"saved in {config_file()}")
    elif forget:
        _say(console, f"forgotten in {config_file()}" if forget_choice() else f"nothing is saved in {config_file()}")


def _start() -> dict[str, Any]:
    # The only command that needs it: the others must not pay for it.
    from ..bridge.runtime import probe

    return probe()


@contextmanager
def _only_on_stderr(active: bool) -> Iterator[None]:
    """Send to standard error what juliapkg prints on standard output and Julia below Python's."""
    if not active:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _show(console: Console, report: Report) -> None:
    """One line for each finding, aligned, with its remedy below."""
    width = max(len(finding.name) for finding in report.findings)
    for finding in report.findings:
        mark = "[ok]" if finding.ok else "[NO]"
        _say(console, f"{mark} {finding.name:<{width}}  {finding.value}", style="" if finding.ok else "bold red")
        if finding.remedy:
            _say(console, f"     {'':<{width}}  remedy: {finding.remedy}")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
