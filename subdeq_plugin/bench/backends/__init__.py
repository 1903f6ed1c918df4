"""Solver backends by key. A new family is one file, and one entry in `_FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import OptionError, unknown_name
from ...integration import parse_solver
from .base import Answer, Backend, Solve
from .optimistix import JAX, Optimistix
from .ours import Julia, Subdeq, julia_keys, subdeq_keys
from .registered import TORCHDEQ, Own, Torchdeq
from .scipy_optimize import SCIPY, SciPy

__all__ = ["Answer", "Backend", "Own", "Solve", "available", "backend_keys", "is_builtin", "make_backend"]


@dataclass(frozen=True)
class _Family:
    """Backends whose keys share a prefix.

    Attributes:
        kind: of the backends.
        listed: the keys of all of them.
        usual: whether they take part where the user names no backend.
        options: whether keys may carry options.
    """

    kind: Callable[[str], Backend]
    listed: Callable[[], tuple[str, ...]]
    usual: bool = True
    options: bool = False


_FAMILIES: dict[str, _Family] = {
    "subdeq": _Family(Subdeq, subdeq_keys, options=True),
    "torchdeq": _Family(Torchdeq, lambda: tuple(f"torchdeq:{name}" for name in TORCHDEQ)),
    "scipy": _Family(SciPy, lambda: tuple(f"scipy:{name}" for name in SCIPY)),
    "julia": _Family(Julia, julia_keys, usual=False, options=True),
    "jax": _Family(Optimistix, lambda: tuple(f"jax:{name}" for name in JAX), usual=False),
}


def backend_keys(*, usual: bool = False) -> tuple[str, ...]:
    """Of all built-in backends, or of those that take part where none is named."""
    return tuple(key for family in _FAMILIES.values() if family.usual or not usual for key in family.listed())


def is_builtin(key: str) -> bool:
    """Whether a key names a family of backends; anything else may be MODULE:FUNCTION."""
    return ":" not in key or key.partition(":")[0] in _FAMILIES


def available() -> dict[str, str]:
    """Every built-in backend, with the reason why it cannot be used here, or nothing."""
    return {key: make_backend(key).missing() for key in backend_keys()}


def make_backend(target: str | Callable[..., Any] | Backend) -> Backend:
    """A backend.

    Args:
        target: a key, where those of `subdeq:` and `julia:` may carry options ("subdeq:anderson?memory=8"); a solver
            of your own, `solver(func, x0, max_iter=, tol=, stop_mode=, **kw) -> (z, trajectory, info)`; or a `Backend`.

    Raises:
        OptionError: an unknown key or option; the message names the nearest key.
    """
    if isinstance(target, Backend):
        return target
    if callable(target):
        return Own(getattr(target, "__name__", type(target).__name__), target)
    if not isinstance(target, str):
        raise OptionError(f"a backend must be a key, a solver or a Backend, got {target!r}.")
    base, _, query = target.partition("?")
    family = _FAMILIES.get(base.partition(":")[0])
    if family is None or base not in family.listed():
        raise unknown_name("backend", base, backend_keys())
    if query and not family.options:
        raise OptionError(f"backend {base!r} takes no options, got {query!r}; only subdeq: and julia: solvers do.")
    if family.options:
        parse_solver(target)
    return family.kind(target)
