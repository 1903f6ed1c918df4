"""GMRES on the map itself: for affine maps, such as the adjoint equation of a backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Iteration, Memory, Problem, require
from .krylov import gmres

__all__ = ["Gmres"]


@dataclass(frozen=True)
class Gmres(Iteration):
    """`z <- z + d` with `(I - A) d = f(z) - z`, where `A v` is a difference of `f`, or the map's own product.

    For `f(z) = A z + c` one step solves the problem to `linear_rtol`, and further ones refine it. For other maps the
    differences are secants over the size of the residual, which makes this a Steffensen-Krylov method: it converges
    near a solution, but unlike `newton_krylov` it never backtracks.

    Attributes:
        linear_rtol: relative residual of a linear solve, in `(0, 1)`.
        krylov_dim: largest Krylov dimension of a step.
    """

    name: ClassVar[str] = "gmres"
    linear_rtol: float = 3e-5
    krylov_dim: int = 40

    def check(self) -> None:
        require(0 < self.linear_rtol < 1, "linear_rtol", self.linear_rtol, "in (0, 1)")
        require(self.krylov_dim >= 1, "krylov_dim", self.krylov_dim, "at least 1")

    def start(self, problem: Problem, z: Tensor) -> Memory:
        return Memory()

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: Memory) -> Tensor:
        product = problem.jacobian_at(z, fz)
        direction, used = gmres(product, fz - z, rtol=self.linear_rtol, krylov_dim=self.krylov_dim)
        state.products += used
        return z + direction
