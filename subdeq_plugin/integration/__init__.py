"""The plugin's seat in torchdeq: registries, the core "subdeq", and the `SubDEQ` module."""

from .core import CertifiedDEQ, deq_settings
from .model import SolveStats, SubDEQ
from .solve import solve
from .spec import parse_solver
from .torchdeq import register_core, register_norm, register_solvers, solver

__all__ = ["CertifiedDEQ", "SolveStats", "SubDEQ", "deq_settings", "parse_solver", "register", "solve", "solver"]


def register() -> tuple[str, ...]:
    """Put our solvers, the core "subdeq" and the norm type "nonneg" into torchdeq's registries.

    Done when the package is imported; safe to repeat.

    Returns:
        The keys of the solvers.

    Raises:
        OptionError: one of our keys was taken by something else.
    """
    keys = register_solvers()
    register_core("subdeq", CertifiedDEQ)
    register_norm()
    return keys
