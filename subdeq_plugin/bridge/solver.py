"""Julia's methods as solvers. A new one is a dataclass here and an entry in `julia/SubDEQ/src/solvers.jl`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import BridgeError, ConvergenceError, ConvergenceWarning, unknown_name
from ..result import Solution, Status
from ..solvers import SOLVERS as TORCH_SOLVERS
from ..solvers import Picard, Problem, Solver, Stop, require
from .callback import NoTransposedProduct, solve_callback
from .native import is_native, solve_native
from .runtime import runtime
from .tensors import StagingPool

__all__ = [
    "SOLVERS",
    "Broyden",
    "DFSane",
    "JuliaAuto",
    "JuliaSolver",
    "NewtonKrylov",
    "NewtonRaphson",
    "PseudoTransient",
    "TrustRegion",
]

_POOL = StagingPool(runtime())
_CHECKS = 3  # how often a native solve is continued with a smaller tolerance after torch found its residual too large
_FLOOR_UNITS = 16
_LARGEST_JACOBIAN = 2**31  # bytes
_RULES = ("auto", "good", "bad", "diagonal")
_REACTIONS = ("report", "warn", "raise")


@dataclass(frozen=True)
class JuliaSolver(Solver):
    """Base of the solvers in Julia.

    A layer bound to its input is solved inside Julia; any other map is evaluated by torch whenever Julia asks for it.
    An affine map, such as the adjoint equation of a backward pass, is solved by GMRES of Krylov.jl.

    Attributes:
        native: whether a `BoundMap` may be solved inside Julia.
        on_failure: when samples fail: "report" (in the status), "warn", "raise", or the name of a torch solver that
            is then tried on them, such as "anderson".
    """

    native: bool = True
    on_failure: str = "report"

    def check(self) -> None:
        if self.on_failure not in _REACTIONS and self.on_failure not in TORCH_SOLVERS:
            raise unknown_name("on_failure", self.on_failure, (*_REACTIONS, *TORCH_SOLVERS))
        self.check_options()

    def check_options(self) -> None:
        """Refuse options of the method out of range.

        Raises:
            OptionError: naming the option, its value and its range.
        """

    @property
    def method(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """The name and the options of the method in Julia's table."""
        own = {name for name in self.options() if name not in ("native", "on_failure")}
        return self.name, tuple((name, getattr(self, name)) for name in sorted(own))

    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        self.prepare(problem, z0)
        # Dynamo must not trace into the bridge. It is asked for only where it is at work: importing it takes seconds.
        solve = torch.compiler.disable(self._solve) if torch.compiler.is_compiling() else self._solve
        solution = solve(problem, z0, stop)
        return self._react(solution, problem, z0, stop)

    def prepare(self, problem: Problem, z0: Tensor) -> None:
        """Refuse a problem the method cannot take.

        Raises:
            BridgeError: naming the reason and the remedy.
        """

    def _solve(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        states_wanted = any(index < stop.max_iter for index in stop.indexing)
        if not (self.native and is_native(problem, z0)) or states_wanted or stop.max_iter < 2:
            return self._placed(solve_callback(runtime(), _POOL, self.method, problem, z0, stop), problem, stop)
        return self._natively(problem, z0, stop)

    def _natively(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        """Solve inside Julia, and test the result with torch's own map."""
        tol, state, spent, products = stop.tol, z0, 0, 0
        for _ in range(_CHECKS):
            room = max(1, int(stop.max_iter) - 1 - spent)
            found = solve_native(runtime(), self.method, problem, state, replace(stop, tol=tol, max_iter=room))
            spent, products = spent + found.evaluations, products + found.linear_evaluations
            tested = _tested(problem, found, stop)
            spent += 1
            state = tested.value
            claimed = (found.status == Status.CONVERGED) & (tested.status != Status.CONVERGED)
            if not bool(claimed.any()) or spent >= stop.max_iter:
                break
            # Julia's elementary functions differ from torch's in the last digits.
            tol = 0.3 * tol
        tiny = tested.rel_residual <= _FLOOR_UNITS * problem.rounding_unit(state)
        missed = torch.where(tiny, int(Status.ROUNDING_FLOOR), int(Status.MAX_ITERATIONS))
        status = torch.where(claimed, missed, found.status)
        status = torch.where(tested.status == Status.CONVERGED, int(Status.CONVERGED), status)
        return replace(
            tested,
            status=status,
            iterations=found.iterations,
            evaluations=spent,
            linear_evaluations=products,
            trajectory=(state,) * len(stop.indexing),
        )

    @staticmethod
    def _placed(solution: Solution, problem: Problem, stop: Stop) -> Solution:
        """The solution where fixed points lie; only a normalised map moves it, and has it tested there."""
        if problem.projection is None or getattr(problem.function, "normalizer", None) is None:
            return solution
        tested = _tested(problem, solution, stop)
        status = torch.where(tested.status == Status.CONVERGED, int(Status.CONVERGED), solution.status)
        missed = (solution.status == Status.CONVERGED) & (tested.status != Status.CONVERGED)
        return replace(
            tested,
            status=torch.where(missed, int(Status.MAX_ITERATIONS), status),
            iterations=solution.iterations,
            evaluations=solution.evaluations + 1,
            linear_evaluations=solution.linear_evaluations,
            trajectory=(*solution.trajectory[:-1], tested.value) if solution.trajectory else (),
        )

    def _react(self, solution: Solution, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        failed = solution.failed
        if self.on_failure == "report" or not bool(failed.any()):
            return solution
        message = f"julia:{self.name}: {solution.describe_failures()}"
        if self.on_failure == "raise":
            raise ConvergenceError(message)
        if self.on_failure == "warn":
            warnings.warn(message, ConvergenceWarning, stacklevel=5)
            return solution
        return _merge(solution, TORCH_SOLVERS[self.on_failure]().solve(problem, z0, stop), failed, problem)


def _tested(problem: Problem, found: Solution, stop: Stop) -> Solution:
    """One evaluation of torch's map at the solution: its residuals and whether they meet the stopping test."""
    return Picard().solve(problem, found.value, replace(stop, max_iter=1, indexing=()))


def _merge(first: Solution, second: Solution, failed: Tensor, problem: Problem) -> Solution:
    """The first solution, with the samples that failed taken from the second."""
    rows = failed[:, None]
    value = torch.where(rows, problem.flatten(second.value), problem.flatten(first.value)).reshape(problem.shape)

    def pick(name: str) -> Tensor:
        return torch.where(failed, getattr(second, name), getattr(first, name))

    absolute, relative = pick("abs_residual"), pick("rel_residual")
    return replace(
        first,
        value=value,
        status=pick("status"),
        abs_residual=absolute,
        rel_residual=relative,
        iterations=torch.where(failed, first.evaluations + second.iterations, first.iterations),
        evaluations=first.evaluations + second.evaluations,
        linear_evaluations=first.linear_evaluations + second.linear_evaluations,
        abs_trace=absolute[:, None],
        rel_trace=relative[:, None],
        trajectory=(*first.trajectory[:-1], value) if first.trajectory else (),
    )


@dataclass(frozen=True)
class _Krylov(JuliaSolver):
    """What the matrix-free methods share.

    Attributes:
        linear_rtol: relative residual of the linear solves, in `(0, 1)`.
        krylov_dim: largest Krylov dimension.
    """

    linear_rtol: float = 1e-2
    krylov_dim: int = 30

    def check_options(self) -> None:
        require(0 < self.linear_rtol < 1, "linear_rtol", self.linear_rtol, "in (0, 1)")
        require(self.krylov_dim >= 1, "krylov_dim", self.krylov_dim, "at least 1")


@dataclass(frozen=True)
class NewtonKrylov(_Krylov):
    """Newton's method with matrix-free GMRES."""

    name: ClassVar[str] = "newton_krylov"


@dataclass(frozen=True)
class NewtonRaphson(JuliaSolver):
    """Newton's method with the Jacobian of every sample as a dense matrix and its LU factorization."""

    name: ClassVar[str] = "newton_raphson"

    def prepare(self, problem: Problem, z0: Tensor) -> None:
        entries = z0.numel() // problem.samples
        size = problem.samples * entries**2 * z0.element_size()
        if not problem.affine and size > _LARGEST_JACOBIAN:
            raise BridgeError(
                f"julia:newton_raphson would need {size / 2**30:.1f} GiB for {problem.samples} Jacobians of "
                f"{entries} x {entries}; use julia:newton_krylov, which forms none."
            )


@dataclass(frozen=True)
class TrustRegion(_Krylov):
    """Dogleg trust region with matrix-free GMRES.

    It needs products with the transposed Jacobian. Where autograd cannot give them, as for the backward equation of
    torchdeq's own cores, Newton's method takes its place: on an affine map the two take the same steps.
    """

    name: ClassVar[str] = "trust_region"

    def _solve(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        try:
            return super()._solve(problem, z0, stop)
        except NoTransposedProduct:
            other = NewtonKrylov(self.native, self.on_failure, self.linear_rtol, self.krylov_dim)
            return other._solve(problem, z0, stop)


@dataclass(frozen=True)
class PseudoTransient(_Krylov):
    """Pseudo-transient continuation with matrix-free GMRES.

    Attributes:
        alpha: the first pseudo-time step.
    """

    name: ClassVar[str] = "pseudo_transient"
    alpha: float = 10.0

    def check_options(self) -> None:
        super().check_options()
        require(self.alpha > 0, "alpha", self.alpha, "positive")


@dataclass(frozen=True)
class Broyden(JuliaSolver):
    """Broyden's method.

    Attributes:
        rule: "good" and "bad" keep a dense matrix for every sample, "diagonal" only its diagonal; "auto" is "good" for
            samples of up to 512 entries and "diagonal" beyond.
        alpha: the first approximation of the Jacobian is `alpha` times the identity.
    """

    name: ClassVar[str] = "broyden"
    rule: str = "auto"
    alpha: float = 1.0

    def check_options(self) -> None:
        if self.rule not in _RULES:
            raise unknown_name("rule", self.rule, _RULES)
        require(self.alpha > 0, "alpha", self.alpha, "positive")


@dataclass(frozen=True)
class DFSane(JuliaSolver):
    """The spectral residual method DF-SANE (W. La Cruz, J. Martinez, M. Raydan, Math. Comp. 75, 2006).

    Attributes:
        memory: over how many steps the residual may grow.
    """

    name: ClassVar[str] = "dfsane"
    memory: int = 10

    def check_options(self) -> None:
        require(self.memory >= 1, "memory", self.memory, "at least 1")


@dataclass(frozen=True)
class JuliaAuto(JuliaSolver):
    """Newton's method with GMRES, which the benchmarks favour."""

    name: ClassVar[str] = "auto"

    @property
    def method(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        return NewtonKrylov().method


SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver
    for solver in (NewtonKrylov, NewtonRaphson, TrustRegion, PseudoTransient, Broyden, DFSane, JuliaAuto)
}
