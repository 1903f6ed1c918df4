"""The `subdeq` command."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import SubdeqError
from .bench import bench_command
from .certify import certify_command
from .certify_map import certify_map_command
from .doctor import doctor_command
from .perron import perron_command
from .train import train_command

__all__ = ["app", "run"]

app = typer.Typer(
    name="subdeq",
    help="Deep equilibrium models whose fixed point is provably unique.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train_command)
app.command("certify")(certify_command)
app.command("certify-map")(certify_map_command)
app.command("perron")(perron_command)
app.command("bench")(bench_command)
app.command("doctor")(doctor_command)


def run() -> None:
    """Entry point: errors of ours become one clear line and exit code 2, everything else stays a traceback."""
    try:
        app()
    except SubdeqError as error:
        message = escape(f"{type(error).__name__}: {error}")
        Console(stderr=True).print(f"[bold red]error:[/] {message}", soft_wrap=True, highlight=False)
        sys.exit(2)
