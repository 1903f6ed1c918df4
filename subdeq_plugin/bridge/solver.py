"""Julia's methods as solvers. A new one is a dataclass here and an entry in `julia/SubDEQ/src/solvers.jl`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BridgeError, ConvergenceError, ConvergenceWarning, unknown_name
from ..result import Solution, Status
from ..solvers import FLOOR_UNITS, Picard, Problem, Solver, Stop, require
from ..solvers import SOLVERS as TORCH_SOLVERS
from .callback import NoTransposedProduct, solve_callback
from .native import is_native, solve_native
from .runtime import get_runtime, start_julia
from .tensors import Method, StagingPool

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

_POOL = StagingPool(get_runtime())
_EASY = 0.5  # a proven rate up to which plain iteration in torch beats Newton's method in Julia
_LARGEST_MATRICES = 2**32  # bytes, the factors included
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
    def method(self) -> Method:
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

    def refuse_matrices(self, problem: Problem, z0: Tensor) -> None:
        """Refuse a problem for which a dense matrix per sample would not fit.

        Raises:
            BridgeError: with the memory they would take.
        """
        entries = z0.numel() // problem.samples
        size = 2 * problem.samples * entries**2 * z0.element_size()
        if not problem.affine and size > _LARGEST_MATRICES:
            raise BridgeError(
                f"julia:{self.name} would need {size / 2**30:.1f} GiB for {problem.samples} matrices of {entries} x "
                f"{entries} and their factors; use julia:newton_krylov, which forms none."
            )

    def _solve(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        states_wanted = any(index < stop.max_iter for index in stop.indexing)
        native = self.native and not states_wanted and is_native(problem, z0)
        normalised = getattr(problem.function, "normalizer", None) is not None
        if native or normalised:
            return self._tested(problem, z0, stop, native)
        return solve_callback(get_runtime(), _POOL, self.method, problem, z0, stop)

    def _tested(self, problem: Problem, z0: Tensor, stop: Stop, native: bool) -> Solution:
        """Solve, and have torch test the result where fixed points lie.

        Julia's elementary functions differ from torch's in the last digits, and a normalised map moves the state to
        norm 1; where that spoils the residual of a sample, the solve goes on with a smaller tolerance.
        """
        if stop.max_iter < 2:
            return _test(problem, z0, stop)
        state, tol, spent, products = z0, stop.tol, 0, 0
        recorded: tuple[Tensor, ...] = ()
        while True:
            room = replace(stop, tol=tol, max_iter=int(stop.max_iter) - spent - 1)
            if native:
                found = solve_native(get_runtime(), self.method, problem, state, replace(room, indexing=()))
            else:
                found = solve_callback(get_runtime(), _POOL, self.method, problem, state, room)
            tested = _test(problem, found.value, stop)
            recorded = recorded or found.trajectory
            iterations = spent + found.iterations
            spent += found.evaluations + 1
            products += found.linear_evaluations
            state, tol, status = tested.value, 0.3 * tol, _judged(problem, found, tested)
            missed = (found.status == Status.CONVERGED) & (status == Status.MAX_ITERATIONS)
            if not bool(missed.any()) or spent + 2 > stop.max_iter:
                break
        wanted = len(stop.indexing)
        trajectory = (*recorded[: wanted - 1], *[state] * (wanted - len(recorded[: wanted - 1]))) if wanted else ()
        return replace(
            tested,
            status=status,
            iterations=iterations,
            evaluations=spent,
            linear_evaluations=products,
            trajectory=trajectory,
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


def _test(problem: Problem, state: Tensor, stop: Stop) -> Solution:
    """One evaluation of torch's map at `state`: its residuals and whether they meet the stopping test."""
    return Picard().solve(problem, state, replace(stop, max_iter=1, indexing=()))


def _judged(problem: Problem, found: Solution, tested: Solution) -> Tensor:
    """The status of every sample: what torch's test says, and where it says no, why Julia stopped."""
    tiny = tested.rel_residual <= FLOOR_UNITS * problem.rounding_unit(tested.value)
    missed = torch.where(tiny, int(Status.ROUNDING_FLOOR), int(Status.MAX_ITERATIONS))
    status = torch.where(found.status == Status.CONVERGED, missed, found.status)
    return torch.where(tested.status == Status.CONVERGED, int(Status.CONVERGED), status)


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
        self.refuse_matrices(problem, z0)


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

    def prepare(self, problem: Problem, z0: Tensor) -> None:
        if self.rule in ("good", "bad"):
            self.refuse_matrices(problem, z0)


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
    """What the benchmarks favour: Newton's method with GMRES, except where plain iteration is proven to be quick.

    A map with a proven rate of at most 0.5 is iterated by `subdeq:auto` in torch, which is faster there.
    """

    name: ClassVar[str] = "auto"

    @property
    def method(self) -> Method:
        return NewtonKrylov().method

    def _solve(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        if problem.contraction is None or problem.contraction.rate > _EASY:
            return super()._solve(problem, z0, stop)
        start_julia()  # a missing Julia is no secret that depends on the weights
        return TORCH_SOLVERS["auto"]().solve(problem, z0, stop)


SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver
    for solver in (NewtonKrylov, NewtonRaphson, TrustRegion, PseudoTransient, Broyden, DFSane, JuliaAuto)
}
