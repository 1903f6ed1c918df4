"""Inexact Newton with matrix-free GMRES and backtracking, per sample.

R. Dembo, S. Eisenstat, T. Steihaug, *Inexact Newton methods*, SIAM J. Numer. Anal. 19 (1982), doi:10.1137/0719025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Iteration, Memory, Problem, require
from .krylov import gmres

__all__ = ["NewtonKrylov"]


class _Search(Memory):
    """Where each sample last stood, in which direction it went, and how far."""

    def __init__(self, z: Tensor) -> None:
        self.z = self.fz = self.direction = torch.zeros_like(z)
        self.residual = torch.full((z.shape[0],), torch.inf, dtype=z.dtype, device=z.device)
        self.length = torch.ones_like(self.residual)


@dataclass(frozen=True)
class NewtonKrylov(Iteration):
    """`z <- z + length * d` with `(I - J) d = f(z) - z` solved roughly by GMRES.

    `J v` is the map's own exact product where it brings one, else a difference quotient. A sample whose residual did
    not decrease goes back and halves its step; after `backtracks` halvings it takes a plain step instead.

    Attributes:
        linear_rtol: relative residual of the linear solves, in `(0, 1)`.
        krylov_dim: largest Krylov dimension.
        backtracks: how often a step is halved.
    """

    name: ClassVar[str] = "newton_krylov"
    linear_rtol: float = 1e-2
    krylov_dim: int = 30
    backtracks: int = 3

    def check(self) -> None:
        require(0 < self.linear_rtol < 1, "linear_rtol", self.linear_rtol, "in (0, 1)")
        require(self.krylov_dim >= 1, "krylov_dim", self.krylov_dim, "at least 1")
        require(self.backtracks >= 0, "backtracks", self.backtracks, "nonnegative")

    def start(self, problem: Problem, z: Tensor) -> _Search:
        return _Search(z)

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: _Search) -> Tensor:
        residual = torch.linalg.vector_norm(fz - z, dim=1)
        worse = ~(residual < state.residual) & state.residual.isfinite()
        exhausted = worse & (state.length <= 0.5**self.backtracks)
        halve = worse & ~exhausted
        fresh = ~worse
        direction, used = gmres(problem.jacobian_at(z, fz), fz - z, rtol=self.linear_rtol, krylov_dim=self.krylov_dim)
        state.products += used
        state.direction = torch.where(fresh[:, None], direction, state.direction)
        state.length = torch.where(halve, state.length / 2, torch.ones_like(state.length))
        base = torch.where(fresh[:, None], z, state.z)
        plain = state.fz  # f at the place the exhausted sample came from
        state.z, state.fz = base, torch.where(fresh[:, None], fz, state.fz)
        state.residual = torch.where(fresh, residual, state.residual)
        # After a plain step any residual counts as progress: the map may have to climb before it contracts.
        state.residual = torch.where(exhausted, torch.inf, state.residual)
        proposal = base + state.length[:, None] * state.direction
        return torch.where(exhausted[:, None], plain, proposal)
