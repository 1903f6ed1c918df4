"""Gradients of fixed points by the implicit function theorem, to any order.

For `z = f(z, theta)` and a cotangent `g` of `z`, the adjoint `u = g + (df/dz)^T u` gives the gradient
`(df/dtheta)^T u`. The adjoint equation is itself a fixed-point equation in `u` with parameters `(g, z, theta)`, so its
solution is differentiated by the same rule: that is how second derivatives are exact here.

S. Bai, J. Kolter, V. Koltun, *Deep Equilibrium Models*, NeurIPS 2019 (arXiv:1909.01377), theorem 1; E. Haber,
L. Ruthotto, *Inverse Problems* 34 (2018), doi:10.1088/1361-6420/aa9a90, for the adjoint view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from .._shapes import as_samples
from ..errors import SubdeqError
from ..metrics import Contraction
from ..result import Solution
from ..solvers import Problem, Solver, Stepper, Stop

__all__ = ["Adjoint", "ImplicitMap", "attach", "fixed_point"]


class _Jacobian(Protocol):
    @property
    def jvp(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def vjp(self) -> Callable[[Tensor], Tensor]: ...


@runtime_checkable
class _Pulling(Protocol):
    """A Jacobian that also knows the derivative with respect to the tensors of its map."""

    def pullback(self, u: Tensor, /) -> tuple[Tensor, ...]: ...


class ImplicitMap(Protocol):
    """A map that shows the tensors it depends on; `BoundMap` is one."""

    @property
    def sample_dims(self) -> int: ...

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> ImplicitMap: ...

    def __call__(self, z: Tensor, /) -> Tensor: ...

    def linearize(self, z: Tensor, /) -> _Jacobian: ...


@dataclass(frozen=True)
class Adjoint:
    """How adjoint equations are solved.

    Attributes:
        solver: used for the linear fixed-point equation.
        stop: its tolerance and limit.
        rate: a proven factor by which the map contracts Thompson's metric, or None. At the fixed point the adjoint
            map then contracts the one-norm weighted by the state by the same factor: in log coordinates the Jacobian
            has infinity-norm at most `rate`, and its transpose one-norm at most `rate`.
        report: called with the solution of every adjoint solve.
    """

    solver: Solver
    stop: Stop
    rate: float | None = None
    report: Callable[[Solution], None] | None = None

    def solve(self, equation: _AdjointEquation, g: Tensor, weight: Tensor | None) -> Tensor:
        """The solution `u` of `u = g + J^T u`, of the shape of `g`."""
        problem = Problem.of(equation, torch.zeros_like(g))
        if self.rate is not None and weight is not None:
            contraction = _weighted(self.rate, problem.flatten(weight), problem.flatten(g))
            problem = replace(problem, contraction=contraction)
        solution = self.solver.solve(problem, torch.zeros_like(g), self.stop)
        if self.report is not None:
            self.report(solution)
        return solution.value


def _weighted(rate: float, weight: Tensor, g: Tensor) -> Contraction:
    """The contraction of the adjoint map, in units of the size of `g`, so that a tolerance is a relative one."""
    scale = (weight * g).abs().sum(dim=1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))

    def distance(u: Tensor, v: Tensor) -> Tensor:
        return (weight * (u - v)).abs().sum(dim=1) / scale

    return Contraction(rate, "one-norm weighted by the state", distance)


@dataclass(frozen=True)
class _AdjointEquation:
    """`u -> g + J^T u` with its Jacobian, for the solvers."""

    g: Tensor
    transposed: Callable[[Tensor], Tensor]
    sample_dims: int
    primal: object  # the map whose Jacobian this is, and where; None for a callable
    state: Tensor
    positive: bool = False
    jacobian: object = None  # where it can do more than multiply
    affine: bool = True

    def __call__(self, u: Tensor) -> Tensor:
        return self.g + self.transposed(u)

    @property
    def rows(self) -> Callable[[Tensor | slice], _AdjointEquation] | None:
        return self._rows if getattr(self.jacobian, "rows", None) is not None else None

    def _rows(self, index: Tensor | slice) -> _AdjointEquation:
        part = cast(Any, self.jacobian).rows(index)
        g, state = (as_samples(whole, self.sample_dims)[index] for whole in (self.g, self.state))
        return replace(self, g=g, transposed=part.vjp, primal=None, state=state, jacobian=part)

    @property
    def stepper(self) -> Callable[[], Stepper] | None:
        prepare = getattr(self.jacobian, "adjoint_stepper", None)
        return None if prepare is None else partial(prepare, self.g)

    def linearize(self, u: Tensor) -> _Products:
        return _Products(self.transposed, self.transposed)

    @property
    def whole_walk(self) -> Callable[[Tensor, Contraction, Stop, int], tuple[Tensor, Tensor, Tensor] | None] | None:
        return self._whole if hasattr(self.jacobian, "whole_walk") else None

    def _whole(
        self, start: Tensor, contraction: Contraction, stop: Stop, max_steps: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        found = cast(Any, self.jacobian).whole_walk(self.g, stop, max_steps)
        return None if found is None else (found[0], self(found[0]), found[1])


@dataclass(frozen=True)
class _Products:
    """A Jacobian given by its two products."""

    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]


class _AdjointMap:
    """`h(u) = g + (df/dz)^T u` as a map with tensors `(g, z, *theta)`, differentiable in all of them."""

    def __init__(self, primal: ImplicitMap, tensors: Sequence[Tensor]) -> None:
        self._g, self._z, *theta = tensors
        self._primal = primal.with_tensors(theta)
        self.tensors = tuple(tensors)

    @property
    def sample_dims(self) -> int:
        return self._primal.sample_dims

    def with_tensors(self, tensors: Sequence[Tensor]) -> _AdjointMap:
        return _AdjointMap(self._primal, tensors)

    def __call__(self, u: Tensor) -> Tensor:
        with torch.enable_grad():
            z = self._z.view_as(self._z) if self._z.requires_grad else self._z.detach().requires_grad_()
            (pulled,) = torch.autograd.grad(self._primal(z), z, u, create_graph=True)
        return self._g + pulled

    def linearize(self, u: Tensor) -> _Products:
        jacobian = self._primal.linearize(self._z)
        return _Products(jacobian.vjp, jacobian.jvp)


class _Implicit(torch.autograd.Function):
    """Gives a solved state its derivative with respect to the tensors of its map."""

    @staticmethod
    def forward(ctx: Any, equation: ImplicitMap, adjoint: Adjoint, solution: Tensor, *tensors: Tensor) -> Tensor:
        ctx.equation, ctx.adjoint = equation, adjoint
        result = solution.clone()
        ctx.save_for_backward(result, *tensors)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        z, *theta = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        higher = torch.is_grad_enabled()
        with torch.no_grad():
            frozen = ctx.equation.with_tensors([tensor.detach() for tensor in theta])
            jacobian = frozen.linearize(z.detach())
            equation = _AdjointEquation(
                g.detach(), jacobian.vjp, frozen.sample_dims, frozen, z.detach(), jacobian=jacobian
            )
            u = ctx.adjoint.solve(equation, g.detach(), z.detach())
            if not higher and isinstance(jacobian, _Pulling):
                pulled = jacobian.pullback(u)
                return (None, None, None, *(part if need else None for part, need in zip(pulled, wanted, strict=True)))
        if higher:
            primal = ctx.equation.with_tensors(theta)
            adjoint_map = _AdjointMap(primal, (g, z, *theta))
            u = fixed_point(adjoint_map, u, replace(ctx.adjoint, rate=None))
        with torch.enable_grad():
            # Aliases: `z` depends on `theta` as well, and that path is the adjoint's business, not this product's.
            alias = [
                tensor.view_as(tensor) if higher and tensor.requires_grad else tensor.detach().requires_grad_(need)
                for tensor, need in zip(theta, wanted, strict=True)
            ]
            image = ctx.equation.with_tensors(alias)(z if higher else z.detach())
            targets = [tensor for tensor, need in zip(alias, wanted, strict=True) if need]
            products = iter(torch.autograd.grad(image, targets, u, create_graph=higher, allow_unused=True))
        return (None, None, None, *(next(products) if need else None for need in wanted))


def fixed_point(equation: ImplicitMap, solution: Tensor, adjoint: Adjoint) -> Tensor:
    """Make `solution`, a fixed point of `equation`, differentiable in the tensors of `equation`.

    Args:
        equation: the map; gradients flow to `equation.tensors`, of any order.
        solution: its fixed point, detached, of the state's shape.
        adjoint: how the backward equations are solved.

    Returns:
        The same values, connected to the graph.
    """
    result: Tensor = _Implicit.apply(equation, adjoint, solution, *equation.tensors)
    return result


class _Attached(torch.autograd.Function):
    """Replaces the gradient of `f(z)` by that of the fixed point, for a map whose tensors are not known."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, function: Callable[[Tensor], Tensor], solution: Tensor, adjoint: Adjoint
    ) -> Tensor:
        ctx.function, ctx.adjoint = function, adjoint
        ctx.save_for_backward(solution)
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        if torch.is_grad_enabled():
            raise SubdeqError(
                "second derivatives through a plain callable are not available, because the tensors it depends on are "
                "not known; pass layer.bind(x) (a BoundMap) as the map, or call backward without create_graph=True."
            )
        (z,) = ctx.saved_tensors
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            image = ctx.function(at).to(z.dtype)

        def transposed(u: Tensor) -> Tensor:
            return torch.autograd.grad(image, at, u, retain_graph=True, materialize_grads=True)[0]

        equation = _AdjointEquation(g, transposed, max(z.dim() - 1, 0), None, z)
        return ctx.adjoint.solve(equation, g, None), None, None, None


def attach(function: Callable[[Tensor], Tensor], solution: Tensor, adjoint: Adjoint) -> Tensor:
    """Make the fixed point of a plain callable differentiable in whatever the callable depends on.

    Args:
        function: the map on `(B, ...)`; its rows do not influence each other.
        solution: its fixed point, detached.
        adjoint: how the backward equation is solved.

    Returns:
        `function(solution)` in the dtype of `solution` (autocast may lower the map, but not the adjoint solve), with
        the gradient of the fixed point. First derivatives only.
    """
    with torch.enable_grad():
        image = function(solution).to(solution.dtype)
    result: Tensor = _Attached.apply(image, function, solution, adjoint)
    return result
