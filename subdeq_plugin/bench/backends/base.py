"""What a backend is: something that solves equations, and perhaps trains layers, to a tolerance of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..judges import Judge, Verdict
from ..maps import AdjointMap
from ..tasks import Equation, Task, Training

__all__ = ["Answer", "Backend", "Solve"]


@dataclass(frozen=True)
class Answer:
    """What a backend came up with.

    Attributes:
        value: the state, or the gradients of the parameters.
        evaluations: of the map, as the backend reports them; None where it does not.
        products: with the Jacobian, likewise.
        exhausted: the backend says that it used up its evaluations: a smaller tolerance would not change the answer.
    """

    value: Tensor | Sequence[Tensor]
    evaluations: int | None = None
    products: int | None = None
    exhausted: bool = False


# What is timed: everything that could be done before has been done.
Solve = Callable[[], Answer]


@dataclass(frozen=True)
class Backend(ABC):
    """A solver backend.

    Attributes:
        key: its name.
        memory: what sees its memory: "torch", "numpy" (torch and Python's allocator), or None.
        reports: whether its answers say how many evaluations they took. Others are counted at the map.
        counted: whether it uses the map that it is given, so that its evaluations can be counted there.
    """

    key: str
    memory: ClassVar[str | None] = "torch"
    reports: ClassVar[bool] = False
    counted: ClassVar[bool] = True

    def missing(self) -> str:
        """Empty if the backend can be used here; else why not, and the remedy."""
        return ""

    @abstractmethod
    def equation(self, task: Equation, tol: float, limit: int) -> Solve:
        """Prepare to solve an equation.

        Args:
            task: the equation.
            tol: the backend's own tolerance, in whatever it measures.
            limit: the largest number of evaluations.
        """

    def training(self, task: Training, tol: float, limit: int) -> Solve:
        """Prepare to compute gradients; here by the implicit function theorem from two equations."""
        nothing: Judge = lambda value: Verdict(0.0)  # noqa: E731

        def solve() -> Answer:
            bound = task.layer.bind(task.x)
            with torch.no_grad():
                frozen = bound.detach()
                forward = self.equation(Equation(frozen, task.start, None, nothing), tol, limit)()
                z = _only(forward.value)
                adjoint = AdjointMap(task.loss_gradient(z), frozen, z)
                zero = torch.zeros_like(z)
                backward = self.equation(Equation(adjoint, zero, None, nothing), tol, limit)()
            both = (forward.evaluations, backward.evaluations)
            return replace(
                forward,
                value=task.gradients(bound(z), _only(backward.value)),
                products=None if None in both else backward.evaluations,
                exhausted=forward.exhausted or backward.exhausted,
            )

        return solve

    def prepare(self, task: Task, tol: float, limit: int) -> Solve:
        """Prepare either kind of task."""
        if isinstance(task, Training):
            return self.training(task, tol, limit)
        solve = self.equation(task, tol, limit)

        def without_autograd() -> Answer:
            with torch.no_grad():
                return solve()

        return without_autograd


def _only(value: Tensor | Sequence[Tensor]) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a solver of an equation returned {type(value).__name__} instead of a state")
    return value
