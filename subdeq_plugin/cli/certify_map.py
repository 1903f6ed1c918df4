"""`subdeq certify-map`: certify a map of the user's own, named by module and function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..certificates import Certificate, certify, falsify
from ..certificates.composed import is_own_map
from ..errors import OptionError
from .output import show_certificate, write_json
from .target import load_function

__all__ = ["certify_map_command"]


def certify_map_command(
    target: Annotated[
        str, typer.Argument(help="MODULE:FUNCTION; the function returns (map, example state) or (layer, input).")
    ],
    starts: Annotated[int, typer.Option(help="Starts of the search for a second fixed point; 0: no search.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    conditions: Annotated[
        str | None, typer.Option(help='Conditions to try, separated by commas, or "all"; default until one suffices.')
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the certificate as JSON to this file.")
    ] = None,
) -> None:
    """Certify a map written in Python; where it is not proven, search for a second fixed point.

    The module is imported from the current folder or the environment, and the function called without arguments.
    Exit code 0: proven; 1: not proven; 2: there is no such function, or it returns something else.
    """
    function, argument = _load(target)
    names = (
        conditions if conditions is None or conditions == "all" else [part.strip() for part in conditions.split(",")]
    )
    certificate: Certificate = certify(function, argument, conditions=names)
    console = Console()
    show_certificate(console, certificate)
    summary: dict[str, Any] = {"target": target, "certificate": certificate.to_dict()}
    if starts > 0 and not certificate.unique and is_own_map(function):
        evidence = falsify(function, argument, starts=starts, seed=seed)
        summary["search"] = {
            "starts": evidence.starts,
            "solutions": evidence.solutions.tolist(),
            "residuals": evidence.residuals.tolist(),
            "refuted": evidence.refuted,
        }
        console.print(evidence.message, markup=False, highlight=False, soft_wrap=True)
    if json_path is not None:
        write_json(json_path, summary)
    raise typer.Exit(0 if certificate.unique else 1)


def _load(target: str) -> tuple[Any, Any]:
    """The pair that the named function returns.

    Raises:
        OptionError: it cannot be found, or returns no pair.
    """
    pair = load_function(target, "the map")()
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise OptionError(f"{target} must return a pair (map, example state), got {type(pair).__name__}.")
    return pair[0], pair[1]
