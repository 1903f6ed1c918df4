"""Derivatives of Perron pairs, of any order, by the implicit function theorem for the normalised map.

The eigenvector of norm 1 is the fixed point of `G(z) = F(z) / |F(z)|`. With the gradient `w` of the norm, at a simple
eigenvalue `lambda` the matrix `I - J_G` with `J_G = (J - x w^T J) / lambda` is invertible, and its system is the
bordered one of J. Magnus (Econometric Theory 1, 1985, doi:10.1017/S0266466600011129) with the border eliminated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..autograd import Adjoint, fixed_point
from ..autograd import attach as attach_fixed_point
from ..errors import ConvergenceError
from ..result import Solution, Status
from ..solvers import AdjointMap, FixedPointMap, Gmres, Problem, Solver, Stop
from .base import Jacobian, columns
from .blocks import Blocks
from .blocks import norm as vector_norm

__all__ = ["Parametrised", "attach", "attach_function"]

_DENSE = 2000  # entries up to which the adjoint equation is solved as a dense system
_ACCURATE = 1e-6  # relative residual of a solution
_LARGEST = 1e10  # growth of a solution beyond which fewer than six digits are right


class Parametrised(Protocol):
    """A positive map that shows the tensors it depends on, on `(..., N)`."""

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> Parametrised: ...

    def __call__(self, z: Tensor, /) -> Tensor: ...

    def linearize(self, z: Tensor, /) -> Jacobian: ...

    def jacobian(self, z: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class _Normalised:
    """`G(z) = F(z) / |F(z)|` with a p-norm, block by block."""

    map_: Parametrised
    p: float
    blocks: Blocks
    sample_dims: ClassVar[int] = 1

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.map_.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> _Normalised:
        return _Normalised(self.map_.with_tensors(tensors), self.p, self.blocks)

    def __call__(self, z: Tensor) -> Tensor:
        image = self.map_(z)
        return image / self.blocks.spread(self.blocks.norms(image, self.p))

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`G(z)`, the norms of `F(z)` and their gradients there, for every entry those of its block."""
        image = self.map_(z)
        norm = self.blocks.spread(self.blocks.norms(image, self.p))
        value = image / norm
        return value, norm, self.blocks.gradient(value, self.p)

    def linearize(self, z: Tensor) -> Jacobian:
        value, norm, weight = self._parts(z)
        inner = self.map_.linearize(z)

        def total(terms: Tensor) -> Tensor:
            return self.blocks.spread(self.blocks.sums(terms))

        def jvp(v: Tensor) -> Tensor:
            tangent = inner.jvp(v)
            return (tangent - value * total(weight * tangent)) / norm

        def vjp(u: Tensor) -> Tensor:
            return inner.vjp((u - weight * total(value * u)) / norm)

        return Jacobian(jvp, vjp)

    def jacobian(self, z: Tensor) -> Tensor:
        value, norm, weight = self._parts(z)
        inner = self.map_.jacobian(z)
        totals = self.blocks.spread(self.blocks.sums((weight[..., :, None] * inner).mT)).mT
        return (inner - value[..., :, None] * totals) / norm[..., None]


@dataclass(frozen=True)
class _Direct(Solver):
    """The adjoint equation `u = g + J^T u` as a dense linear system."""

    name: ClassVar[str] = "direct"

    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        equation = problem.function
        assert isinstance(equation, AdjointMap) and isinstance(equation, FixedPointMap)
        matrix = _transposed_jacobian(equation)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        value, info = torch.linalg.solve_ex(eye - matrix, equation.g)
        residual, size, right = (
            torch.linalg.vector_norm(problem.flatten(part), dim=1)
            for part in (equation(value) - value, value, equation.g)
        )
        relative = residual / right.clamp(min=torch.finfo(right.dtype).tiny)
        # A singular system has a huge "solution" that leaves no digit of the right-hand side.
        fine = (info.reshape(-1) == 0) & (relative <= _ACCURATE) & (size <= _LARGEST * right)
        status = torch.where(fine, int(Status.CONVERGED), int(Status.STALLED))
        return Solution(value, status, residual, relative, torch.ones_like(status), 1)


def _transposed_jacobian(equation: AdjointMap) -> Tensor:
    """`J^T (..., N, N)` of an adjoint equation `u -> g + J^T u`."""
    if isinstance(equation.primal, _Normalised):
        return equation.primal.jacobian(equation.state).mT
    # The adjoint equation of an adjoint equation, for second derivatives.
    assert isinstance(equation, FixedPointMap)
    return columns(equation.linearize(equation.g).jvp, equation.g)


def attach(map_: Parametrised, x: Tensor, p: float, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """The eigenvalues `(..., d)` and the vector `x (..., N)`, of p-norm 1 per block, connected to the map's tensors.

    Gradients are those of a simple eigenvalue.

    Raises (in the backward pass):
        ConvergenceError: the adjoint equation could not be solved, as where the eigenvalue is not simple.
    """
    solver: Solver = _Direct() if x.shape[-1] <= _DENSE else Gmres(linear_rtol=1e-10, krylov_dim=60)
    adjoint = Adjoint(solver, Stop(tol=1e-10, max_iter=200), report=_require_solved)
    vector = fixed_point(_Normalised(map_, p, blocks), x, adjoint)
    return blocks.norms(map_(vector), p), vector


def attach_function(function: Callable[[Tensor], Tensor], x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """As `attach`, with one block, for a callable on `(B, ...)` whose tensors are not known: first derivatives only."""

    def normalised(z: Tensor) -> Tensor:
        image = function(z)
        return image / norm(image).reshape(-1, *[1] * (z.dim() - 1))

    def norm(image: Tensor) -> Tensor:
        return vector_norm(image.flatten(1), p)[:, None]

    solver = Gmres(linear_rtol=1e-2 * torch.finfo(x.dtype).eps ** 0.5, krylov_dim=60)
    adjoint = Adjoint(solver, Stop(tol=torch.finfo(x.dtype).eps ** 0.6, max_iter=200), report=_require_solved)
    vector = attach_fixed_point(normalised, x, adjoint)
    return norm(function(vector)), vector


def _require_solved(solution: Solution) -> None:
    if bool(solution.failed.any()):
        raise ConvergenceError(
            "the derivative of a Perron pair could not be computed: its eigenvalue may not be simple, and then it has "
            f"none. {solution.describe_failures()}"
        )
