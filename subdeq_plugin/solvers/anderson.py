"""Anderson acceleration, per sample.

H. Walker, P. Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer. Anal. 49 (2011),
doi:10.1137/10078356X, in the form with differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Iteration, Memory, Problem, require

__all__ = ["Anderson"]

# A sample whose residual grew by this factor over its best one forgets its history and takes a plain step.
_RESTART = 10.0


class _History(Memory):
    """The last differences of residuals, those of damped images, and the Gram matrix of the former."""

    def __init__(self, z: Tensor, memory: int) -> None:
        shape = (z.shape[0], memory, z.shape[1])
        self.dr = torch.zeros(shape, dtype=z.dtype, device=z.device)
        self.dg = torch.zeros_like(self.dr)
        self.gram = torch.zeros(z.shape[0], memory, memory, dtype=z.dtype, device=z.device)
        self.r: Tensor | None = None
        self.g: Tensor | None = None
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
        g = fz if self.damping == 1 else torch.add(z, r, alpha=self.damping)
        if state.r is None or state.g is None:
            state.r, state.g = r, g
            return g
        slot = state.count % state.dr.shape[1]
        state.count += 1
        used = min(state.count, state.dr.shape[1])
        torch.sub(r, state.r, out=state.dr[:, slot])
        torch.sub(g, state.g, out=state.dg[:, slot])
        state.r, state.g = r, g
        # The newest row of the Gram matrix and the right-hand side, in one product.
        pair = torch.stack([state.dr[:, slot], r], dim=2)
        products = torch.bmm(state.dr[:, :used], pair)
        state.gram[:, slot, :used] = state.gram[:, :used, slot] = products[:, :, 0]
        size = torch.linalg.vector_norm(r, dim=1)
        forget = ~(size <= _RESTART * state.best)
        state.best = torch.fmin(state.best, size)
        if bool(forget.any()):
            state.dr[forget], state.dg[forget], state.gram[forget] = 0.0, 0.0, 0.0
            products[forget] = 0.0
        gamma = self._coefficients(state.gram[:, :used, :used], products[:, :, 1])
        return torch.baddbmm(g[:, None], gamma[:, None], state.dg[:, :used], alpha=-1)[:, 0]

    def _coefficients(self, gram: Tensor, right: Tensor) -> Tensor:
        """The regularised least-squares solution `(B, m)`; zero for samples whose data are not finite."""
        scale = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        usable = (scale > 0) & (scale + gram.sum(dim=(1, 2)) + right.sum(dim=1)).isfinite()
        weight = self.regularization * torch.finfo(gram.dtype).eps * scale
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        safe = torch.where(usable[:, None, None], gram + weight[:, None, None] * eye, eye)
        wide = torch.promote_types(gram.dtype, torch.float32)  # torch solves no systems in half precision
        solution, _ = torch.linalg.solve_ex(safe.to(wide), torch.where(usable[:, None], right, 0.0).to(wide))
        return solution.to(gram.dtype)
