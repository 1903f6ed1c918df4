"""Derivatives of Perron pairs, of any order, by the implicit function theorem for the normalised map.

The eigenvector of norm 1 is the fixed point of `G(z) = F(z) / |F(z)|`. With the gradient `w` of the norm, at a simple
eigenvalue `lambda` the matrix `I - J_G` with `J_G = (J - x w^T J) / lambda` is invertible, and its system is the
bordered one of J. Magnus (Econometric Theory 1, 1985, doi:10.1017/S0266466600011129) with the border eliminated.
"""

from __future__ import annotations

import math
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

__all__ = ["Parametrised", "attach", "attach_function", "size"]

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
    """`G(z) = F(z) / |F(z)|` with a p-norm."""

    map_: Parametrised
    p: float
    sample_dims: ClassVar[int] = 1

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.map_.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> _Normalised:
        return _Normalised(self.map_.with_tensors(tensors), self.p)

    def __call__(self, z: Tensor) -> Tensor:
        image = self.map_(z)
        return image / size(image, self.p)

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`G(z)`, the norm of `F(z)` and the gradient of the norm there."""
        image = self.map_(z)
        norm = size(image, self.p)
        value = image / norm
        if math.isfinite(self.p):
            weight = value ** (self.p - 1)
        else:
            weight = torch.nn.functional.one_hot(value.argmax(dim=-1), value.shape[-1]).to(value.dtype)
        return value, norm, weight

    def linearize(self, z: Tensor) -> Jacobian:
        value, norm, weight = self._parts(z)
        inner = self.map_.linearize(z)

        def jvp(v: Tensor) -> Tensor:
            tangent = inner.jvp(v)
            return (tangent - value * (weight * tangent).sum(dim=-1, keepdim=True)) / norm

        def vjp(u: Tensor) -> Tensor:
            return inner.vjp((u - weight * (value * u).sum(dim=-1, keepdim=True)) / norm)

        return Jacobian(jvp, vjp)

    def jacobian(self, z: Tensor) -> Tensor:
        value, norm, weight = self._parts(z)
        inner = self.map_.jacobian(z)
        return (inner - value[..., :, None] * (weight[..., None, :] @ inner)) / norm[..., None]


def size(z: Tensor, p: float) -> Tensor:
    """The p-norm of every vector of `(..., N)`, `(..., 1)`."""
    return torch.linalg.vector_norm(z, ord=p, dim=-1, keepdim=True)


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


def attach(map_: Parametrised, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The eigenvalue `(...)` and the eigenvector `x (..., N)`, of p-norm 1, connected to the tensors of `map_`.

    Gradients are those of a simple eigenvalue.

    Raises (in the backward pass):
        ConvergenceError: the adjoint equation could not be solved, as where the eigenvalue is not simple.
    """
    solver: Solver = _Direct() if x.shape[-1] <= _DENSE else Gmres(linear_rtol=1e-10, krylov_dim=60)
    adjoint = Adjoint(solver, Stop(tol=1e-10, max_iter=200), report=_require_solved)
    vector = fixed_point(_Normalised(map_, p), x, adjoint)
    return size(map_(vector), p)[..., 0], vector


def attach_function(function: Callable[[Tensor], Tensor], x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """As `attach`, for a callable on `(B, ...)` whose tensors are not known: first derivatives only."""

    def normalised(z: Tensor) -> Tensor:
        image = function(z)
        return image / size(image.flatten(1), p).reshape(-1, *[1] * (z.dim() - 1))

    solver = Gmres(linear_rtol=1e-2 * torch.finfo(x.dtype).eps ** 0.5, krylov_dim=60)
    adjoint = Adjoint(solver, Stop(tol=torch.finfo(x.dtype).eps ** 0.6, max_iter=200), report=_require_solved)
    vector = attach_fixed_point(normalised, x, adjoint)
    return size(function(vector).flatten(1), p)[:, 0], vector


def _require_solved(solution: Solution) -> None:
    if bool(solution.failed.any()):
        raise ConvergenceError(
            "the derivative of a Perron pair could not be computed: its eigenvalue may not be simple, and then it has "
            f"none. {solution.describe_failures()}"
        )
