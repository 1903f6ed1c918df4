"""The default: let the proof decide how to iterate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..metrics import Contraction
from ..result import Solution
from .anderson import Anderson
from .base import Problem, Solver, Stop, require
from .gmres import Gmres
from .loop import advance, iterate

__all__ = ["Auto"]

_PROBE = 2  # plain steps after which the observed rate predicts the rest


@dataclass(frozen=True)
class Auto(Solver):
    """Plain iteration for as many steps as a proven contraction needs, without a test in between; else acceleration.

    With a proven rate `q`, the distance of successive iterates shrinks at least like `q**k`, so the number of steps is
    known after the first; two steps later the observed rate, never worse, predicts it more sharply. The solver runs
    that many steps untested, tests once, and goes on if the test fails. When more than `patience` steps are
    predicted, or nothing is proven, Anderson acceleration takes over (GMRES for an affine map).

    Attributes:
        patience: the largest number of plain steps taken on trust.
    """

    name: ClassVar[str] = "auto"
    patience: int = 24

    def __post_init__(self) -> None:
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
        z = last
        if steps <= self.patience:
            steps = min(steps, room - taken)
            z = advance(problem, z, steps)
            taken += steps
        z = torch.where(z.isfinite().all(dim=1, keepdim=True), z, start)
        return iterate(problem, self, z.reshape(problem.shape), stop, evaluations=taken)

    @staticmethod
    def _accelerated(problem: Problem) -> Solver:
        return Gmres() if problem.affine else Anderson()

    @staticmethod
    def _predict(contraction: Contraction, stop: Stop, begin: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> int:
        """How many more steps bring the distance of successive iterates below the tolerance."""
        first, now = contraction.largest_distance(*begin), contraction.largest_distance(*end)
        goal = stop.tol
        if stop.mode == "abs":
            norm = torch.linalg.vector_norm(end[1], dim=1)
            goal /= max(1.0, float(torch.where(norm.isfinite(), norm, 0.0).max()))
        if now <= goal or first == 0:  # a first step that shows no distance predicts nothing
            return 0
        # In exact arithmetic the observed rate cannot exceed the proven one; near the rounding error it can.
        rate = min(contraction.rate, max((now / first) ** (1 / _PROBE), 1e-6))
        goal = max(goal, torch.finfo(end[1].dtype).eps * now)
        return math.ceil(math.log(goal / now) / math.log(rate)) if rate > 0 else 1
