"""The default: let the proof decide how to iterate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..result import Solution
from .anderson import Anderson
from .base import Iteration, Problem, Stop, require
from .gmres import Gmres
from .loop import iterate
from .walk import walk

__all__ = ["Auto"]

_FEWEST = 4  # evaluations below which there is nothing to predict


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
        states_wanted = any(index < stop.max_iter for index in stop.indexing)  # then no step goes untested
        if contraction is None or states_wanted or stop.max_iter < _FEWEST or not stop.tol > 0:
            return iterate(problem, self, z0, stop)
        start = problem.place(problem.flatten(z0))
        plain = walk(problem, contraction, start, stop, patience=self.patience)
        if plain.finished.all():
            solution = plain.solution(problem.shape)
        else:
            sound = torch.where(plain.state.isfinite().all(dim=1, keepdim=True), plain.state, start)
            rest = iterate(problem, self, sound.reshape(problem.shape), stop, evaluations=plain.evaluations)
            solution = plain.merged(rest)
        return solution if not stop.indexing else replace(solution, trajectory=(solution.value,) * len(stop.indexing))

    @staticmethod
    def _accelerated(problem: Problem) -> Iteration:
        return Gmres() if problem.affine else Anderson()
