"""Functions with torchdeq's calling convention: torchdeq's own solvers, and the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...integration.torchdeq import get_deq, registered
from ..tasks import Equation, Training
from .base import Answer, Backend, Solve

__all__ = ["TORCHDEQ", "Own", "Torchdeq"]

TORCHDEQ = ("fixed_point_iter", "anderson", "broyden")

# (func, x0, max_iter=, tol=, stop_mode=, **kw) -> (z, trajectory, info)
Function = Callable[..., Any]


def _state(result: Any) -> Tensor:
    if not (isinstance(result, tuple | list) and len(result) == 3 and isinstance(result[0], Tensor)):
        raise TypeError(
            "a solver must return (z, trajectory, info) as torchdeq's do, with a tensor z; "
            f"got {type(result).__name__}."
        )
    return result[0]


def _call(function: Function, task: Equation, tol: float, limit: int) -> Solve:
    """One call, as torchdeq itself makes it: nothing stands between the solver and the map."""

    def solve() -> Answer:
        return Answer(_state(function(task.function, task.start, max_iter=limit, tol=tol, stop_mode="rel")))

    return solve


@dataclass(frozen=True)
class Torchdeq(Backend):
    """A solver from torchdeq's registry; in training the core that `get_deq(ift=True)` makes with it."""

    @property
    def name(self) -> str:
        """In torchdeq's registry."""
        return self.key.partition(":")[2]

    def equation(self, task: Equation, tol: float, limit: int) -> Solve:
        return _call(registered(self.name), task, tol, limit)

    def training(self, task: Training, tol: float, limit: int) -> Solve:
        sides = {
            f"{side}_{name}": value
            for side in "fb"
            for name, value in (("solver", self.name), ("tol", tol), ("max_iter", limit), ("stop_mode", "rel"))
        }
        deq = get_deq(core="indexing", ift=True, **sides).train()

        def solve() -> Answer:
            states, _ = deq(task.layer.bind(task.x), task.start)
            return Answer(task.gradients(task.loss(states[-1])))

        return solve


@dataclass(frozen=True)
class Own(Backend):
    """A solver of the user's, with torchdeq's calling convention.

    Attributes:
        function: `solver(func, x0, max_iter=, tol=, stop_mode=, **kw) -> (z, trajectory, info)`.
    """

    function: Function

    def equation(self, task: Equation, tol: float, limit: int) -> Solve:
        return _call(self.function, task, tol, limit)
