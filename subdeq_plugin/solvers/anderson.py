"""Anderson acceleration, per sample.

H. Walker, P. Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer. Anal. 49 (2011),
doi:10.1137/10078356X, in the form with differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Iteration, Problem, require

__all__ = ["Anderson"]

# A sample whose residual grew by this factor over its best one forgets its history and takes a plain step.
_RESTART = 10.0


class _History:
    def __init__(self, z: Tensor, memory: int) -> None:
        shape = (z.shape[0], memory, z.shape[1])
        self.dz = torch.zeros(shape, dtype=z.dtype, device=z.device)
        self.dr = torch.zeros_like(self.dz)
        self.z: Tensor | None = None
        self.r: Tensor | None = None
        self.best = torch.full((z.shape[0],), torch.inf, dtype=z.dtype, device=z.device)
        self.count = 0


@dataclass(frozen=True)
class Anderson(Iteration):
    """`z <- z + damping r - (dZ + damping dR) gamma`, where `gamma` minimises `|r - dR gamma|` and `r = f(z) - z`.

    The least-squares problem is regularised relative to its own scale, so that small residuals (gradients, late
    iterations) are treated like large ones.

    Attributes:
        memory: how many past differences are used.
        damping: the mixing factor, in `(0, 1]`.
        regularization: relative Tikhonov term, in units of the rounding error of the dtype.
    """

    name: ClassVar[str] = "anderson"
    memory: int = 6
    damping: float = 1.0
    regularization: float = 10.0

    def check(self) -> None:
        require(self.memory >= 1, "memory", self.memory, "at least 1")
        require(0 < self.damping <= 1, "damping", self.damping, "in (0, 1]")
        require(self.regularization >= 0, "regularization", self.regularization, "nonnegative")

    def start(self, problem: Problem, z: Tensor) -> _History:
        return _History(z, min(self.memory, z.shape[1]))

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: _History) -> Tensor:
        r = fz - z
        if state.z is None or state.r is None:
            state.z, state.r = z, r
            return z + self.damping * r
        slot = state.count % state.dz.shape[1]
        state.count += 1
        state.dz[:, slot], state.dr[:, slot] = z - state.z, r - state.r
        state.z, state.r = z, r
        size = torch.linalg.vector_norm(r, dim=1)
        forget = ~(size <= _RESTART * state.best)
        state.best = torch.fmin(state.best, size)
        if bool(forget.any()):
            keep = ~forget[:, None, None]
            state.dz, state.dr = torch.where(keep, state.dz, 0.0), torch.where(keep, state.dr, 0.0)
        gamma = self._coefficients(state.dr, r)
        correction = torch.einsum("bm,bmn->bn", gamma, state.dz + self.damping * state.dr)
        return z + self.damping * r - correction

    def _coefficients(self, dr: Tensor, r: Tensor) -> Tensor:
        """The regularised least-squares solution `(B, m)`; zero for samples whose data are not finite."""
        gram = dr @ dr.mT
        right = torch.einsum("bmn,bn->bm", dr, r)
        finite = gram.isfinite().flatten(1).all(dim=1) & right.isfinite().all(dim=1)
        scale = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        weight = self.regularization * torch.finfo(dr.dtype).eps * scale
        usable = finite & (scale > 0)
        eye = torch.eye(gram.shape[1], dtype=dr.dtype, device=dr.device)
        safe = torch.where(usable[:, None, None], gram + weight[:, None, None] * eye, eye)
        wide = torch.promote_types(dr.dtype, torch.float32)  # torch solves no systems in half precision
        solution, _ = torch.linalg.solve_ex(safe.to(wide), torch.where(usable[:, None], right, 0.0).to(wide))
        return solution.to(dr.dtype)
