"""Solver keys as configuration strings: `"subdeq:anderson?memory=8&damping=0.9"`.

Options are looked up in the solver's own table of fields and converted by type; nothing is ever evaluated as code.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from urllib.parse import parse_qsl

from ..bridge import SOLVERS as JULIA_SOLVERS
from ..errors import OptionError, unknown_name
from ..solvers import SOLVERS, Solver

__all__ = ["FAMILIES", "canonical_key", "parse_solver"]

# Solver families by the prefix of their keys.
FAMILIES: dict[str, dict[str, type[Solver]]] = {"subdeq": dict(SOLVERS), "julia": dict(JULIA_SOLVERS)}


def _convert(option: str, text: str, kind: type) -> int | float | bool | str:
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise OptionError(f"solver option {option} must be true or false, got {text!r}.")
    try:
        converted: int | float | str = kind(text)
    except ValueError as error:
        raise OptionError(f"solver option {option} must be of type {kind.__name__}, got {text!r}.") from error
    return converted


def parse_solver(key: str) -> Solver:
    """The solver described by a key.

    Args:
        key: `family:name`, optionally followed by `?option=value&option=value`.

    Raises:
        OptionError: unknown family, name or option, a value of the wrong type or out of range; the message names the
            nearest valid one.
    """
    if not isinstance(key, str):
        raise OptionError(f"a solver key must be a string such as 'subdeq:auto', got {key!r}.")
    return _parsed(key)


@lru_cache(maxsize=256)  # solvers are immutable, and a core looks its own up at every call
def _parsed(key: str) -> Solver:
    base, _, query = key.partition("?")
    family, _, name = base.partition(":")
    every = [f"{prefix}:{solver}" for prefix, solvers in FAMILIES.items() for solver in solvers]
    if family not in FAMILIES or name not in FAMILIES[family]:
        raise unknown_name("solver", base, every)
    kind = FAMILIES[family][name]
    table = kind.options()
    given: dict[str, int | float | bool | str] = {}
    try:
        # A plus sign belongs to a number ("1e+20"); in a URL it would be a space.
        text = query.replace("+", "%2B")
        pairs = parse_qsl(text, strict_parsing=True, keep_blank_values=True) if query else []
    except ValueError as error:
        raise OptionError(f"the options of {key!r} must read option=value&option=value.") from error
    for option, text in pairs:
        if option not in table:
            raise unknown_name(f"option of {base}", option, table)
        if option in given:
            raise OptionError(f"option {option!r} is given twice in {key!r}.")
        given[option] = _convert(option, text, table[option])
    return kind(**given)


def canonical_key(key: str) -> str:
    """The key with its options in a fixed order and format, defaults left out."""
    solver = parse_solver(key)
    changed = {
        option.name: getattr(solver, option.name)
        for option in fields(solver)  # type: ignore[arg-type]
        if getattr(solver, option.name) != option.default
    }
    query = "&".join(f"{name}={_text(value)}" for name, value in sorted(changed.items()))
    base = key.partition("?")[0]
    return f"{base}?{query}" if query else base


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
