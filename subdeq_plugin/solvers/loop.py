"""The only iteration loop of the package: per-sample bookkeeping around any solver's step.

Every sample is judged by itself. A finished sample is frozen; a sample that turns NaN or infinite goes back to its
best state once, by a plain application of the map, and is given up if it does so again without having improved. All
choices between samples are `torch.where`, so that NaN in one row never reaches another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import METRICS
from ..result import Solution, Status
from .base import FLOOR_UNITS, Iteration, Problem, Stop

__all__ = ["advance", "iterate"]

_PATIENCE = 6  # steps without progress after which a residual of the size of rounding will not get smaller


@dataclass
class _Residual:
    """Residuals of one evaluation, each `(B,)`: two-norm, relative two-norm, and the one the solve stops by."""

    absolute: Tensor
    relative: Tensor
    tested: Tensor


def _measure(z: Tensor, fz: Tensor, mode: str) -> _Residual:
    absolute = torch.linalg.vector_norm(fz - z, dim=1)
    relative = absolute / torch.linalg.vector_norm(fz, dim=1).clamp(min=torch.finfo(fz.dtype).tiny)
    if mode in METRICS:
        return _Residual(absolute, relative, METRICS[mode](fz, z))
    return _Residual(absolute, relative, absolute if mode == "abs" else relative)


def _rows(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask[:, None], yes, no)


class _Best:
    """The best iterate of every sample so far."""

    def __init__(self, z: Tensor) -> None:
        infinite = torch.full((z.shape[0],), torch.inf, dtype=z.dtype, device=z.device)
        self.z, self.fz = z, z
        self.residual = _Residual(infinite, infinite, infinite)
        self.iteration = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
        self.stalled = torch.zeros_like(self.iteration)

    def update(self, better: Tensor, z: Tensor, fz: Tensor, residual: _Residual, iteration: int) -> None:
        old = self.residual
        self.z, self.fz = _rows(better, z, self.z), _rows(better, fz, self.fz)
        self.residual = _Residual(
            torch.where(better, residual.absolute, old.absolute),
            torch.where(better, residual.relative, old.relative),
            torch.where(better, residual.tested, old.tested),
        )
        self.iteration = torch.where(better, iteration, self.iteration)
        self.stalled = torch.where(better, 0, self.stalled + 1)


def iterate(problem: Problem, solver: Iteration, z0: Tensor, stop: Stop, *, evaluations: int = 0) -> Solution:
    """Run `solver` on `problem` from `z0`.

    Args:
        problem: the map.
        solver: its `step` proposes each next iterate.
        z0: the start, in the state's own shape.
        stop: tolerance, limit, residual and what to record.
        evaluations: how many evaluations were spent before this call; they count towards the limit.

    Returns:
        For every sample the iterate with the smallest residual, which is the residual reported.
    """
    z = problem.place(problem.flatten(z0))
    state = solver.start(problem, z)
    best = _Best(z)
    unit = problem.rounding_unit(z)
    status = torch.full((problem.samples,), int(Status.MAX_ITERATIONS), dtype=torch.int64, device=z.device)
    active = torch.ones_like(status, dtype=torch.bool)
    retried = torch.zeros_like(active)
    absolute, relative, recorded = [], [], []
    iteration = evaluations
    while iteration < max(int(stop.max_iter), evaluations + 1):
        iteration += 1
        fz = problem(z)
        residual = _measure(z, fz, stop.mode)
        finite = residual.tested.isfinite() & residual.absolute.isfinite()
        better = active & finite & (residual.tested < best.residual.tested)
        best.update(better, z, fz, residual, iteration)

        done = active & finite & (residual.tested <= stop.tol)
        floor = active & ~done & (best.stalled >= _PATIENCE) & (best.residual.relative <= FLOOR_UNITS * unit)
        seen = best.residual.tested.isfinite()
        broken = active & ~finite
        retried = retried & ~better
        given_up = broken & (retried | ~seen)
        status = torch.where(done, int(Status.CONVERGED), status)
        status = torch.where(floor, int(Status.ROUNDING_FLOOR), status)
        status = torch.where(given_up, torch.where(seen, int(Status.DIVERGED), int(Status.NONFINITE)), status)
        active = active & ~done & ~floor & ~given_up
        absolute.append(best.residual.absolute)
        relative.append(best.residual.relative)
        if iteration in stop.indexing:
            recorded.append(best.z.reshape(problem.shape))
        if not bool(active.any()) or iteration >= stop.max_iter:
            break

        back = broken & active
        retried = retried | back
        z, fz = _rows(back, best.z, z), _rows(back, best.fz, fz)
        proposal = solver.step(problem, z, fz, state)
        usable = problem.admissible(proposal) & ~back
        z = _rows(active, problem.place(_rows(usable, proposal, fz)), best.z)

    value = best.z.reshape(problem.shape)
    # torchdeq pairs recorded states with gradient functions, the last of which must see the final state.
    recorded += [value] * (len(stop.indexing) - len(recorded))
    if stop.indexing:
        recorded[-1] = value
    return Solution(
        value=value,
        status=status,
        abs_residual=best.residual.absolute,
        rel_residual=best.residual.relative,
        iterations=best.iteration,
        evaluations=iteration,
        linear_evaluations=getattr(state, "products", 0),
        abs_trace=torch.stack(absolute, dim=1),
        rel_trace=torch.stack(relative, dim=1),
        trajectory=tuple(recorded),
    )


def advance(problem: Problem, z: Tensor, steps: int | Tensor) -> Tensor:
    """Plain applications of the map to `z (B, N)` without any test: `steps` of them, or `(B,)`, each sample its own."""
    if isinstance(steps, int):
        for _ in range(steps):
            z = problem(z)
        return z
    fewest, most = int(steps.min()), int(steps.max())
    z = advance(problem, z, fewest)
    for taken in range(fewest, most):
        z = _rows(steps > taken, problem(z), z)
    return z
