"""The one loop of the methods that go from positive vector to positive vector; a method is a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..certificates.verified import gamma
from ..errors import DomainError
from ..result import Status
from .base import EigenMap, choose

__all__ = ["Found", "Goal", "Step", "iterate"]

_TINIEST = 2.0**-1074
_PATIENCE = 6  # steps without progress after which a bracket of the width of rounding will not get narrower


class Step(ABC):
    """A method: how a vector becomes the next. Private to one solve, since it may keep a history."""

    @abstractmethod
    def __call__(self, map_: EigenMap, z: Tensor, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The next vectors `(B, N)` from `z`, `F(z)` and their brackets; the loop normalises them."""


@dataclass(frozen=True)
class Goal:
    """When a vector is good enough.

    Attributes:
        tol: the relative width of its bracket.
        max_iter: the largest number of evaluations.
        progress: told the evaluations of the running method, and the bounds `(B,)`, after each of them.
    """

    tol: float
    max_iter: int
    progress: Callable[[int, Tensor, Tensor], None] | None = None

    def after(self, evaluations: int) -> Goal:
        """What is left of it."""
        return replace(self, max_iter=max(self.max_iter - evaluations, 0))


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        z: `(B, N)`, of every sample the vector with the narrowest bracket.
        lower, upper: `(B,)` bounds on the eigenvalues.
        width: `(B,)`, relative, of the bracket that `z` itself gives.
        status: `(B,)` int64, values of `Status`.
        iterations: `(B,)` int64, at which `z` was found.
        evaluations: of the map, on the whole batch.
        history: brackets after every evaluation, `(K, B, 2)`.
    """

    z: Tensor
    lower: Tensor
    upper: Tensor
    width: Tensor
    status: Tensor
    iterations: Tensor
    evaluations: int
    history: list[Tensor] = field(default_factory=list)

    def rows(self, which: Tensor) -> Found:
        """Of the samples with the indices `which (K,)`."""
        return Found(
            self.z[which],
            self.lower[which],
            self.upper[which],
            self.width[which],
            self.status[which],
            self.iterations[which],
            self.evaluations,
            [bounds[which] for bounds in self.history],
        )


def iterate(
    map_: EigenMap, step: Step, start: Tensor, goal: Goal, *, max_iter: int | None = None, only: Tensor | None = None
) -> Found:
    """Let `step` go on from `start (B, N)` until a vector's bracket is as narrow as the goal; for `max_iter` steps.

    Where only some samples matter, `only (B,)` is true for them; the others stay as they start.

    Raises:
        DomainError: a lower bound exceeds an upper one, so the map is not what an `EigenMap` promises.
    """
    z = best = map_.normalised(start)
    samples, device = z.shape[0], z.device
    # What is known of samples is kept in NumPy's arrays: on a few numbers it is several times as fast as torch.
    lower, upper, width = np.zeros(samples), np.full(samples, np.inf), np.full(samples, np.inf)
    status = np.full(samples, int(Status.MAX_ITERATIONS))
    iterations, stalled = np.zeros_like(status), np.zeros_like(status)
    active = np.ones(samples, dtype=bool) if only is None else only.cpu().numpy()
    floor = 8 * gamma((map_.roundings or 0) + 8) * map_.epsilon * 2.0**52
    narrowest = 8 * gamma(map_.outward_roundings) if map_.roundings is not None else 0.0
    history = []
    evaluations = 0
    while evaluations < (goal.max_iter if max_iter is None else min(max_iter, goal.max_iter)):
        evaluations += 1
        image = map_(z)
        bounds = map_.bracket(z, image)
        low, high = (bound.cpu().numpy() for bound in bounds)
        low, high = np.where(np.isfinite(low), low, 0.0), np.where(np.isnan(high), np.inf, high)
        if map_.bracketed:
            lower = np.where(active, np.maximum(lower, low), lower)
            upper = np.where(active, np.minimum(upper, high), upper)
        _require_order(lower, upper, map_)
        history.append(torch.from_numpy(np.stack([lower, upper], axis=1)).to(device))
        if goal.progress is not None:
            goal.progress(evaluations, history[-1][:, 0], history[-1][:, 1])
        now = np.where(high > 0, 1 - low / np.maximum(high, _TINIEST), 0.0)
        better = active & (now < width)
        best, width = choose(better, z, best), np.where(better, now, width)
        iterations[better] = evaluations
        stalled = np.where(better, 0, stalled + 1)
        # Bounds from different vectors may meet before either vector is an eigenvector.
        done = active & (width <= goal.tol)
        settled = active & ~done & (width <= floor) & ((stalled >= _PATIENCE) | (width <= narrowest))
        broken = active & ~np.isfinite(high)
        for event, outcome in ((done, Status.CONVERGED), (settled, Status.ROUNDING_FLOOR), (broken, Status.NONFINITE)):
            status[event] = int(outcome)
        active = active & ~(done | settled | broken)
        if not active.any():
            break
        following = map_.normalised(step(map_, z, image, *bounds))
        # Positive, unless there is a NaN among them.
        z = choose(active & np.isfinite(following.sum(dim=1).cpu().numpy()), following, z)
    known = {"lower": lower, "upper": upper, "width": width, "status": status, "iterations": iterations}
    tensors = {name: torch.from_numpy(part).to(device) for name, part in known.items()}
    return Found(z=best, evaluations=evaluations, history=history, **tensors)


def _require_order(lower: np.ndarray, upper: np.ndarray, map_: EigenMap) -> None:
    # Without a bound on the rounding errors, equality may be missed by a few units.
    slack = 1.0 if map_.roundings is not None else 1 + 1e4 * map_.epsilon
    if (lower > upper * slack).any():
        raise DomainError(
            "the map is not order-preserving and subhomogeneous: two positive vectors give brackets of its eigenvalue "
            f"that exclude each other, {float(lower.max())!r} from below and {float(upper.min())!r} from above."
        )
