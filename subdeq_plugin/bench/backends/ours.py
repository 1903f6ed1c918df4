"""The solvers of this package, in torch and in Julia."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...bridge.config import find_route
from ...errors import BridgeError
from ...integration import SubDEQ, parse_solver
from ...integration.spec import FAMILIES
from ...result import Solution, Status
from ...solvers import solve
from ..maps import AdjointMap
from ..tasks import Equation, Training
from .base import Answer, Backend, Solve

__all__ = ["Julia", "Subdeq", "julia_keys", "subdeq_keys"]


def subdeq_keys() -> tuple[str, ...]:
    """Of the solvers in torch."""
    return tuple(f"subdeq:{name}" for name in FAMILIES["subdeq"])


def julia_keys() -> tuple[str, ...]:
    """Of the solvers in Julia."""
    return tuple(f"julia:{name}" for name in FAMILIES["julia"])


def _exhausted(solution: Solution) -> bool:
    return bool((solution.status == Status.MAX_ITERATIONS).any())


@dataclass(frozen=True)
class Subdeq(Backend):
    """A solver of this package, as `SubDEQ` uses it: ended by what is proven of the map, else by the residual."""

    reports: ClassVar[bool] = True

    def equation(self, task: Equation, tol: float, limit: int) -> Solve:
        solver, proven = parse_solver(self.key), task.contraction
        # The test of an adjoint solve is its residual, in `SubDEQ` as well.
        mode = "rel" if proven is None or isinstance(task.function, AdjointMap) else "certified"

        def run() -> Answer:
            solution = solve(
                task.function, task.start, solver, tol=tol, max_iter=limit, stop_mode=mode, contraction=proven
            )
            counts = solution.evaluations, solution.linear_evaluations
            return Answer(solution.value, *counts, _exhausted(solution))

        return run

    def training(self, task: Training, tol: float, limit: int) -> Solve:
        model = SubDEQ(
            task.layer,
            f_solver=self.key,
            b_solver=self.key,
            f_tol=tol,
            b_tol=tol,
            f_max_iter=limit,
            b_max_iter=limit,
            on_failure="ignore",
        )

        def run() -> Answer:
            value = task.gradients(task.loss(model(task.x)))
            forward, backward = model.stats.forward, model.stats.backward
            assert forward is not None and backward is not None, "both have just happened"
            products = forward.linear_evaluations + backward.evaluations + backward.linear_evaluations
            return Answer(value, forward.evaluations, products, _exhausted(forward) or _exhausted(backward))

        return run


@dataclass(frozen=True)
class Julia(Subdeq):
    """A solver in Julia. Where it solves a layer by itself, torch sees neither its evaluations nor its memory."""

    memory: ClassVar[str | None] = None
    counted: ClassVar[bool] = False

    def missing(self) -> str:
        try:
            route = find_route()
        except BridgeError as error:
            return str(error).splitlines()[0]
        if not route.offline:
            return "no Julia was chosen: subdeq doctor --use-julia EXE --project DIR"
        return ""
