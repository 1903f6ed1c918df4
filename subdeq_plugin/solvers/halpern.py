"""Halpern's iteration with restarts: for maps that are merely non-expansive.

B. Halpern, *Fixed points of nonexpanding maps*, Bull. AMS 73 (1967), doi:10.1090/S0002-9904-1967-11864-0; the rate
`O(1/k)` of the residual in any normed space: S. Sabach, S. Shtern, SIAM J. Optim. 27 (2017), doi:10.1137/16M105592X.
On the positive orthant the averages are taken of logarithms, in which Thompson's metric is the maximum norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Iteration, Memory, Problem, require

__all__ = ["Halpern"]


class _Anchor(Memory):
    def __init__(self, z: Tensor) -> None:
        self.z = z
        self.residual = torch.full((z.shape[0],), torch.inf, dtype=z.dtype, device=z.device)
        self.age = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)


@dataclass(frozen=True)
class Halpern(Iteration):
    """`z <- w anchor + (1 - w) f(z)` with `w = 1 / (k + 2)`, `k` counted from the anchor.

    Attributes:
        restart: move a sample's anchor to its present iterate, and count anew, once its residual has shrunk by this
            factor since the anchor; this makes convergence linear on contractions. 0 never restarts.
    """

    name: ClassVar[str] = "halpern"
    restart: float = 0.5

    def check(self) -> None:
        require(0 <= self.restart < 1, "restart", self.restart, "in [0, 1)")

    def start(self, problem: Problem, z: Tensor) -> _Anchor:
        return _Anchor(z)

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: _Anchor) -> Tensor:
        residual = torch.linalg.vector_norm(fz - z, dim=1)
        first = state.residual.isinf()
        moved = first | (residual <= self.restart * state.residual)
        state.z = torch.where(moved[:, None], z, state.z)
        state.residual = torch.where(moved, residual, state.residual)
        state.age = torch.where(moved, 0.0, state.age + 1)
        weight = (1 / (state.age + 2))[:, None]
        if problem.positive:
            return torch.exp(weight * state.z.log() + (1 - weight) * fz.log())
        return weight * state.z + (1 - weight) * fz
