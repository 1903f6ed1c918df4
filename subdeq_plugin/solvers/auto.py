"""The default: let the proof decide how to iterate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..metrics import Contraction
from ..result import Solution
from .anderson import Anderson
from .base import Iteration, Problem, Stop, require
from .gmres import Gmres
from .loop import advance, iterate

__all__ = ["Auto"]

_PROBE = 2  # plain steps after which the observed rate predicts the rest


@dataclass(frozen=True)
class Auto(Iteration):
    """Plain iteration for as many steps as a proven contraction needs, without a test in between; else acceleration.

    With a proven rate `q`, the distance of successive iterates shrinks at least like `q**k`, so the number of steps is
    known after the first; two steps later the observed rate, never worse, predicts it more sharply. The solver runs
    that many steps untested, tests once, and goes on if the test fails. Where more than `patience` steps are
    predicted, or nothing is proven, Anderson acceleration takes over (GMRES for an affine map). All of this is decided
    for each sample by itself.

    Attributes:
        patience: the largest number of plain steps taken on trust.
    """

    name: ClassVar[str] = "auto"
    patience: int = 24

    def check(self) -> None:
        require(self.patience >= 1, "patience", self.patience, "at least 1")

    def start(self, problem: Problem, z: Tensor) -> Any:
        return self._accelerated(problem).start(problem, z)

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: Any) -> Tensor:
        return self._accelerated(problem).step(problem, z, fz, state)

    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        contraction = problem.contraction
        if contraction is None or any(index < stop.max_iter for index in stop.indexing):
            return iterate(problem, self, z0, stop)  # where intermediate states are wanted, no step goes untested
        start = problem.place(problem.flatten(z0))
        room = int(stop.max_iter) - 1  # the last evaluation tests
        if room < 1 + _PROBE:
            return iterate(problem, self, z0, stop)
        first = problem(start)
        z = advance(problem, first, _PROBE - 1)
        last = problem(z)
        steps = self._predict(contraction, stop, (start, first), (z, last))
        taken = 1 + _PROBE
        # Every sample takes the number of steps it would take alone; where plain steps do not pay it takes none.
        steps = torch.where(steps <= self.patience, steps, 0).clamp(max=room - taken)
        z = advance(problem, last, steps)
        taken += int(steps.max())
        z = torch.where(z.isfinite().all(dim=1, keepdim=True), z, start)
        return iterate(problem, self, z.reshape(problem.shape), stop, evaluations=taken)

    @staticmethod
    def _accelerated(problem: Problem) -> Iteration:
        return Gmres() if problem.affine else Anderson()

    @staticmethod
    def _predict(
        contraction: Contraction, stop: Stop, begin: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]
    ) -> Tensor:
        """How many more steps bring the distance of successive iterates below the tolerance: `(B,)` int64."""
        first, now = contraction.distance(*begin), contraction.distance(*end)
        goal = torch.full_like(now, stop.tol)
        if stop.mode == "abs":
            goal = goal / torch.linalg.vector_norm(end[1], dim=1).clamp(min=1.0)
        goal = torch.maximum(goal, torch.finfo(now.dtype).eps * now)
        # In exact arithmetic the observed rate cannot exceed the proven one; near the rounding error it can.
        rate = ((now / first) ** (1 / _PROBE)).clamp(min=1e-6, max=max(contraction.rate, 1e-6))
        steps = torch.ceil(torch.log(goal / now) / torch.log(rate))
        # Done already, or nothing to predict from: NaN, or a first step that shows no distance.
        steps = torch.where((now > goal) & steps.isfinite(), steps, 0.0)
        return steps.to(torch.float64).clamp(min=0.0, max=1e6).to(torch.int64)
