"""The default: let the proof decide how to iterate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..metrics import Contraction
from ..result import Solution, Status
from .anderson import Anderson
from .base import Iteration, Problem, Stop, require
from .gmres import Gmres
from .loop import iterate
from .newton_krylov import NewtonKrylov
from .stages import merged
from .walk import walk

__all__ = ["Auto"]

_FEWEST = 4  # evaluations below which there is nothing to predict
_TRIAL = 12  # evaluations after which Anderson acceleration has shown what it can do


@dataclass(frozen=True)
class Auto(Iteration):
    """Plain iteration for as many steps as a proven contraction needs, with hardly a test; else acceleration.

    With a proven rate `q`, the distance of successive iterates shrinks at least like `q**k`; after a few steps the
    observed rate, never worse, predicts more sharply when the test will be met. The batch walks there together without
    a test in between, is tested, and goes on for those that failed. Where more than `patience` steps are predicted,
    Anderson acceleration takes over (GMRES for an affine map), and after twelve evaluations, for a map that brings its
    Jacobian, Newton's method with GMRES. Where nothing is proven it is Anderson acceleration from the start.

    Attributes:
        patience: the largest number of plain steps taken on trust.
        bfloat16: how many plain steps are taken in bfloat16 before those in the state's dtype. Pays where products
            dominate and are faster in it; the test, and so what is guaranteed, is that of the state's dtype.
        fused: on a GPU with Triton, take all plain steps of a dense map with at most 256 entries in one kernel, forward
            and backward. Checked by Triton's interpreter only; no GPU has run it yet.
    """

    name: ClassVar[str] = "auto"
    patience: int = 24
    bfloat16: int = 0
    fused: bool = False

    def check(self) -> None:
        require(self.patience >= 1, "patience", self.patience, "at least 1")
        require(self.bfloat16 >= 0, "bfloat16", self.bfloat16, "nonnegative")

    def start(self, problem: Problem, z: Tensor) -> Any:
        return self._accelerated(problem).start(problem, z)

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: Any) -> Tensor:
        return self._accelerated(problem).step(problem, z, fz, state)

    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        contraction = problem.contraction
        states_wanted = any(index < stop.max_iter for index in stop.indexing)  # then no step goes untested
        if contraction is None or states_wanted or stop.max_iter < _FEWEST or not stop.tol > 0:
            return iterate(problem, self, z0, stop)
        solution = self._staged(problem, contraction, z0, replace(stop, indexing=()))
        return solution if not stop.indexing else replace(solution, trajectory=(solution.value,) * len(stop.indexing))

    def _staged(self, problem: Problem, contraction: Contraction, z0: Tensor, stop: Stop) -> Solution:
        """Plain steps, then acceleration, then Newton's method; each for the samples the one before left over."""
        start = problem.place(problem.flatten(z0))
        # On a GPU a test waits for everything before it, and plain steps are cheap: trust the proof alone there.
        plain = walk(
            problem,
            contraction,
            start,
            stop,
            patience=self.patience,
            tested=not start.is_cuda,
            coarse=self.bfloat16,
            fused=self.fused,
        )
        done = plain.solution(problem.shape)
        if plain.finished.all():
            return done
        sound = torch.where(plain.state.isfinite().all(dim=1, keepdim=True), plain.state, start)
        trial = stop
        if problem.jacobian is not None and not problem.affine:
            trial = replace(stop, max_iter=min(int(stop.max_iter), plain.evaluations + _TRIAL))
        solution = iterate(problem, self, sound.reshape(problem.shape), trial, evaluations=plain.evaluations)
        solution = merged(torch.from_numpy(plain.finished).to(z0.device), done, solution)
        unsettled = solution.status == Status.MAX_ITERATIONS
        if solution.evaluations < stop.max_iter and bool(unsettled.any()):
            newton = iterate(problem, NewtonKrylov(), solution.value, stop, evaluations=solution.evaluations)
            solution = merged(~unsettled, solution, newton)
        return solution

    @staticmethod
    def _accelerated(problem: Problem) -> Iteration:
        return Gmres() if problem.affine else Anderson()
