"""A solve in stages: what one method has finished, and what the next one made of the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..result import Solution

__all__ = ["merged"]


def merged(settled: Tensor, first: Solution, then: Solution) -> Solution:
    """The result of a solve that went on from `first.value`.

    Args:
        settled: `(B,)` bool, the samples whose result of the first stage stands.
        first, then: the stages; the second counts evaluations from the beginning, and its value has the state's shape.

    Returns:
        The second, with the settled samples as they were.
    """
    if not bool(settled.any()):
        return then

    def choose(mine: Tensor, other: Tensor) -> Tensor:
        return torch.where(settled.reshape(-1, *[1] * (other.dim() - 1)), mine, other)

    rows = len(settled)
    value = choose(first.value.reshape(rows, -1), then.value.reshape(rows, -1))
    return replace(
        then,
        value=value.reshape(then.value.shape),
        status=choose(first.status, then.status),
        abs_residual=choose(first.abs_residual, then.abs_residual),
        rel_residual=choose(first.rel_residual, then.rel_residual),
        iterations=choose(first.iterations, then.iterations),
        abs_trace=choose(first.abs_residual[:, None], then.abs_trace),
        rel_trace=choose(first.rel_residual[:, None], then.rel_trace),
    )
