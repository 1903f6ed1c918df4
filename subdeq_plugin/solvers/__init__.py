"""Torch solvers. A new one is one file with a frozen dataclass, one entry here, and one contract test."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import OptionError
from ..metrics import Contraction
from ..result import Solution
from .anderson import Anderson
from .auto import Auto
from .base import (
    FLOOR_UNITS,
    STOP_MODES,
    AdjointMap,
    FixedPointMap,
    Iteration,
    Memory,
    Problem,
    Solver,
    Stepper,
    Stop,
    require,
)
from .gmres import Gmres
from .halpern import Halpern
from .newton_krylov import NewtonKrylov
from .picard import Picard

__all__ = [
    "FLOOR_UNITS",
    "SOLVERS",
    "STOP_MODES",
    "AdjointMap",
    "Anderson",
    "Auto",
    "FixedPointMap",
    "Gmres",
    "Halpern",
    "Iteration",
    "Memory",
    "NewtonKrylov",
    "Picard",
    "Problem",
    "Solver",
    "Stepper",
    "Stop",
    "require",
    "solve",
]

SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver for solver in (Picard, Anderson, NewtonKrylov, Halpern, Gmres, Auto)
}


def solve(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    solver: Solver | None = None,
    *,
    tol: float = 1e-4,
    max_iter: int = 50,
    stop_mode: str = "rel",
    indexing: tuple[int, ...] = (),
    contraction: Contraction | None = None,
) -> Solution:
    """Solve `z = function(z)` for a batch, without autograd.

    Args:
        function: the map; a `BoundMap`, or any callable on `(B, ...)` whose rows do not influence each other.
        start: `(B, ...)`; strictly positive where the map asks for it.
        solver: a solver with its options; `Auto()` if left out.
        tol, max_iter, stop_mode, indexing: see `Stop`.
        contraction: a proven contraction, `certificate.contraction`; `Auto` makes use of it.

    Returns:
        A `Solution` with a status for every sample; failure is reported there, never raised.

    Raises:
        OptionError: an option out of range.
        ShapeError, DomainError: an unusable start.
    """
    if solver is not None and not isinstance(solver, Solver):
        raise OptionError(f"solver must be a Solver such as parse_solver('subdeq:picard'), got {solver!r}.")
    problem = Problem.of(function, start, contraction)
    return (solver or Auto()).solve(problem, start, Stop(tol, max_iter, stop_mode, tuple(indexing)))
