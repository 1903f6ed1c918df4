"""What a solve returns: a status, the solution and the statistics of every sample."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Solution", "Status"]


class Status(enum.IntEnum):
    """Outcome of one sample. The value is what `Solution.status` holds; `message` tells the user what to do."""

    CONVERGED = 0
    ROUNDING_FLOOR = 1
    MAX_ITERATIONS = 2
    DIVERGED = 3
    NONFINITE = 4
    STALLED = 5

    @property
    def message(self) -> str:
        """One sentence: what happened, and the remedy."""
        return _MESSAGES[self]

    @property
    def failed(self) -> bool:
        """Whether the sample has no usable answer. At the rounding floor the answer is as good as the dtype allows."""
        return self not in (Status.CONVERGED, Status.ROUNDING_FLOOR)


_MESSAGES = {
    Status.CONVERGED: "The stopping test was met.",
    Status.ROUNDING_FLOOR: (
        "The residual reached the rounding error of this dtype before the tolerance; raise tol or compute in float64."
    ),
    Status.MAX_ITERATIONS: (
        "The stopping test was not met within max_iter evaluations; raise max_iter or tol, or try subdeq:newton_krylov."
    ),
    Status.DIVERGED: (
        "The iterates left the range of floating-point numbers; the map is no contraction here: certify the layer, "
        "or try subdeq:newton_krylov from another start."
    ),
    Status.STALLED: ("The method makes no more progress; try another one, such as subdeq:anderson, or another start."),
    Status.NONFINITE: "The map returned NaN or infinity at the start; check this sample's input for NaN or infinity.",
}


@dataclass(frozen=True)
class Solution:
    """Result of one batched solve of `z = f(z)`.

    Attributes:
        value: the state in the shape it was given; for every sample the iterate with the smallest residual, or, where
            the test is "certified", its image, which is what the proof speaks of.
        status: `(B,)` int64, values of `Status`.
        abs_residual: `(B,)` two-norm of `f(z) - z` at the iterate with the smallest residual.
        rel_residual: `(B,)` the same divided by the two-norm of `f(z)`.
        iterations: `(B,)` int64, the evaluation of `f` at which that iterate was tested.
        evaluations: how often `f` was evaluated on the whole batch.
        linear_evaluations: how often a Jacobian product was taken on the whole batch.
        abs_trace: `(B, T)` residuals at the tested iterates; a finished sample keeps its last value.
        rel_trace: `(B, T)`, the same, relative.
        trajectory: the states at the evaluations the caller asked for.
        error_bound: `(B,)` float64, the guaranteed distance to the true fixed point; None where none was asked for.
    """

    value: Tensor
    status: Tensor
    abs_residual: Tensor
    rel_residual: Tensor
    iterations: Tensor
    evaluations: int
    linear_evaluations: int = 0
    abs_trace: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    rel_trace: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    trajectory: tuple[Tensor, ...] = ()
    error_bound: Tensor | None = None

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The status of every sample."""
        return tuple(Status(code) for code in self.status.tolist())

    @property
    def converged(self) -> bool:
        """Whether every sample met the stopping test."""
        return bool((self.status == Status.CONVERGED).all())

    @property
    def failed(self) -> Tensor:
        """`(B,)` bool: the samples without a usable answer."""
        return self.status > Status.ROUNDING_FLOOR

    def describe_failures(self) -> str:
        """Empty when nothing failed; else how many samples failed, how, and the remedy."""
        failed = [status for status in self.statuses if status.failed]
        if not failed:
            return ""
        parts = [f"{failed.count(status)} x {status.name}: {status.message}" for status in sorted(set(failed))]
        return f"{len(failed)} of {len(self.statuses)} samples failed. " + " ".join(parts)
