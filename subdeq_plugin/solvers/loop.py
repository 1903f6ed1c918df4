"""The loop around any solver's step: per-sample bookkeeping, and a test after every evaluation.

Every sample is judged by itself. A finished sample is frozen, and left out altogether once it is in the majority; a
sample that turns NaN or infinite goes back to its best state once, by a plain application of the map, and is given up
if it does so again without having improved. All choices between samples are made row by row, so that NaN in one never
reaches another. What is known of a sample is a number in an array of NumPy, which is read far faster than a tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics import METRICS
from ..result import Solution, Status
from .base import FLOOR_UNITS, Iteration, Problem, Stop
from .rows import Mask, Rows, on_host

__all__ = ["iterate"]

_PATIENCE = 6  # steps without progress after which a residual of the size of rounding will not get smaller
_FEW = 0.5  # leave finished samples out once no more than this part is left


def _rows(mask: Mask, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` where `mask`, else `no`, for whole rows; nothing is copied where all rows agree."""
    if mask.all():
        return yes
    if not mask.any():
        return no
    return torch.where(torch.from_numpy(mask).to(yes.device)[:, None], yes, no)


class _Residuals:
    """Residuals of one evaluation, each `(B,)`: two-norm, relative two-norm, and the one the solve stops by."""

    def __init__(self, problem: Problem, z: Tensor, fz: Tensor, mode: str) -> None:
        norms = torch.stack([torch.linalg.vector_norm(fz - z, dim=1), torch.linalg.vector_norm(fz, dim=1)])
        self.absolute, size = on_host(norms)
        with np.errstate(all="ignore"):
            self.relative = self.absolute / np.maximum(size, torch.finfo(fz.dtype).tiny)
        contraction = problem.contraction
        if mode in METRICS:
            self.tested = on_host(METRICS[mode](fz, z))
        elif mode == "certified" and contraction is not None:
            with np.errstate(all="ignore"):  # an infinite distance times a rate of zero
                self.tested = contraction.of_image * on_host(contraction.distance(fz, z))
        else:
            self.tested = self.absolute if mode == "abs" else self.relative


class _Ledger:
    """What is known of every sample, and the best iterate of those that are still carried."""

    def __init__(self, problem: Problem, z: Tensor, mode: str) -> None:
        count = problem.samples
        self.carried = np.arange(count)
        self.z = self.fz = z
        self.absolute, self.relative, self.tested = (np.full(count, np.inf) for _ in range(3))
        self.iteration, self.stalled = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.status = np.full(count, int(Status.MAX_ITERATIONS))
        self._image = mode == "certified"
        self._answers: Tensor | None = None
        self._shape, self._flatten = problem.shape, problem.flatten

    def improve(self, better: Mask, z: Tensor, fz: Tensor, new: _Residuals, iteration: int) -> None:
        """Take in the carried samples whose residual became smaller."""
        self.z, self.fz = _rows(better, z, self.z), _rows(better, fz, self.fz)
        rows = self.carried[better]
        self.absolute[rows], self.relative[rows] = new.absolute[better], new.relative[better]
        self.tested[rows], self.iteration[rows] = new.tested[better], iteration
        self.stalled[self.carried] += 1
        self.stalled[rows] = 0

    def drop(self, kept: Mask) -> Tensor:
        """Carry on with some of the carried samples; their index among those carried before."""
        if self._answers is None:
            self._answers = torch.empty_like(self.fz if self._image else self.z)
            rows = torch.arange(len(self.carried))
        else:
            rows = torch.from_numpy(self.carried)
        self._answers[rows.to(self.z.device)] = self.fz if self._image else self.z
        index = torch.from_numpy(np.flatnonzero(kept)).to(self.z.device)
        self.carried, self.z, self.fz = self.carried[kept], self.z[index], self.fz[index]
        return index

    def value(self) -> Tensor:
        """The best iterate of every sample, in the state's own shape."""
        best = self.fz if self._image else self.z
        if self._answers is not None:
            best = self._answers.index_copy(0, torch.from_numpy(self.carried).to(best.device), best)
        return best.reshape(self._shape)


def iterate(problem: Problem, solver: Iteration, z0: Tensor, stop: Stop, *, evaluations: int = 0) -> Solution:
    """Run `solver` on `problem` from `z0`.

    Args:
        problem: the map.
        solver: its `step` proposes each next iterate.
        z0: the start, in the state's own shape.
        stop: tolerance, limit, residual and what to record.
        evaluations: how many evaluations were spent before this call; they count towards the limit.

    Returns:
        For every sample the iterate with the smallest residual, which is the residual reported; with the test
        "certified" its image, to which the proof applies.
    """
    whole, unit = problem, problem.rounding_unit(z0)
    z = problem.place(problem.flatten(z0))
    state = solver.start(problem, z)
    ledger = _Ledger(problem, z, stop.mode)
    active = np.ones(problem.samples, dtype=bool)
    retried = np.zeros(problem.samples, dtype=bool)
    separable = problem.separable(stop.mode)
    trace: list[tuple[Rows, Rows]] = []
    recorded: list[Tensor] = []
    iteration = evaluations
    while iteration < max(int(stop.max_iter), evaluations + 1):
        iteration += 1
        fz = problem(z)
        new = _Residuals(problem, z, fz, stop.mode)
        rows = ledger.carried
        finite = np.isfinite(new.tested) & np.isfinite(new.absolute)
        better = active & finite & (new.tested < ledger.tested[rows])
        ledger.improve(better, z, fz, new, iteration)

        done = active & finite & (new.tested <= stop.tol)
        floor = active & ~done & (ledger.stalled[rows] >= _PATIENCE) & (ledger.relative[rows] <= FLOOR_UNITS * unit)
        seen = np.isfinite(ledger.tested[rows])
        broken = active & ~finite
        retried &= ~better
        given_up = broken & (retried | ~seen)
        ledger.status[rows[done]] = int(Status.CONVERGED)
        ledger.status[rows[floor]] = int(Status.ROUNDING_FLOOR)
        ledger.status[rows[given_up]] = np.where(seen[given_up], int(Status.DIVERGED), int(Status.NONFINITE))
        active = active & ~done & ~floor & ~given_up
        trace.append((ledger.absolute.copy(), ledger.relative.copy()))
        if iteration in stop.indexing:
            recorded.append(ledger.value())
        if not active.any() or iteration >= stop.max_iter:
            break

        if separable and active.sum() <= _FEW * len(active):
            index = ledger.drop(active)
            problem = problem.rows(index)
            z, fz, broken, retried = z[index], fz[index], broken[active], retried[active]
            active = active[active]
            if state is not None:
                state.keep(index)
        back = broken & active
        retried |= back
        z, fz = _rows(back, ledger.z, z), _rows(back, ledger.fz, fz)
        proposal = solver.step(problem, z, fz, state)
        if proposal is not fz:
            usable = problem.admissible(proposal).cpu().numpy()
            proposal = _rows(usable & ~back, proposal, fz)
        z = _rows(active, problem.place(proposal), ledger.z)

    return _solution(whole, ledger, iteration, state, trace, recorded, stop)


def _solution(
    problem: Problem,
    ledger: _Ledger,
    evaluations: int,
    state: Any,
    trace: list[tuple[Rows, Rows]],
    recorded: list[Tensor],
    stop: Stop,
) -> Solution:
    value = ledger.value()
    # torchdeq pairs recorded states with gradient functions, the last of which must see the final state.
    recorded += [value] * (len(stop.indexing) - len(recorded))
    if stop.indexing:
        recorded[-1] = value

    def tensor(rows: Any) -> Tensor:
        return torch.from_numpy(rows).to(value.device, value.dtype)

    traces = tensor(np.array(trace))
    return Solution(
        value=value,
        status=torch.from_numpy(ledger.status).to(value.device),
        abs_residual=tensor(ledger.absolute),
        rel_residual=tensor(ledger.relative),
        iterations=torch.from_numpy(ledger.iteration).to(value.device),
        evaluations=evaluations,
        linear_evaluations=0 if state is None else state.products,
        abs_trace=traces[:, 0].t(),
        rel_trace=traces[:, 1].t(),
        trajectory=tuple(recorded),
    )
