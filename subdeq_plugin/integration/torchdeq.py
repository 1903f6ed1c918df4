"""Everything this package puts into torchdeq's registries; the only file that imports torchdeq.

torchdeq: Z. Geng, J. Kolter, *TorchDEQ: A Library for Deep Equilibrium Models*, 2023 (arXiv:2310.18605).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torchdeq.solver as _torchdeq_solver
from torch import Tensor, nn
from torchdeq import core as _torchdeq_core
from torchdeq.norm import base_norm as _torchdeq_norm
from torchdeq.solver.stat import SolverStat
from torchdeq.utils.layer_utils import DEQWrapper, deq_decorator

from ..certificates import certify, contraction_of
from ..errors import OptionError, unknown_name
from ..layers import BoundMap, make_nonneg, undo_nonneg
from ..result import Solution, Status
from ..solvers import Iteration, Problem, Solver, Stop
from .spec import FAMILIES, canonical_key, parse_solver

__all__ = [
    "DEQBase",
    "NonnegNorm",
    "find_solver",
    "get_deq",
    "register_core",
    "register_norm",
    "register_solvers",
    "registered",
    "solver",
    "statistics",
    "wrap_states",
]


def statistics(solution: Solution) -> SolverStat:
    """A `Solution` as torchdeq's `SolverStat`, with two entries of our own: `status (B,)` and `evaluations`."""
    return SolverStat(
        abs_lowest=solution.abs_residual,
        rel_lowest=solution.rel_residual,
        abs_trace=solution.abs_trace,
        rel_trace=solution.rel_trace,
        nstep=solution.iterations.to(solution.abs_residual.dtype),
        status=solution.status,
        evaluations=solution.evaluations,
    )


def _unwrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The user's `BoundMap` inside torchdeq's wrapper, or the function as it is."""
    # Exactly this wrapper: its subclass and its sibling pass lists of states.
    inner = getattr(function, "func", None) if type(function) is DEQWrapper else None
    return inner if isinstance(inner, BoundMap) else function


class _Registered:
    """One of our solvers with torchdeq's calling convention."""

    def __init__(self, settings: Solver) -> None:
        self.settings = settings

    def __call__(
        self,
        func: Callable[..., Tensor],
        x0: Tensor,
        max_iter: int = 50,
        tol: float = 1e-3,
        stop_mode: str = "abs",
        indexing: list[int] | None = None,
        **options: Any,
    ) -> tuple[Tensor, list[Tensor], SolverStat]:
        """Solve `func(z) = z` from `x0`.

        Returns:
            The solution; the states at the evaluations in `indexing`, one each, the last of them final; statistics.

        Raises:
            OptionError: an option the solver does not have.
        """
        table = self.settings.options()
        for name in options:
            if name not in table:
                raise unknown_name(f"option of solver {self.settings.name}", name, table)
        settings = replace(self.settings, **options) if options else self.settings  # type: ignore[type-var]
        function = _unwrap(func)
        contraction = None
        if isinstance(function, BoundMap):
            # Theorems A and B cost next to nothing; the other conditions have their price at every solve.
            contraction = contraction_of(function) or certify(function, conditions="subhomogeneous").contraction
        stop = Stop(tol, int(max_iter), stop_mode, tuple(int(index) for index in indexing or ()))
        solution = settings.solve(Problem.of(function, x0, contraction), x0, stop)
        return solution.value, list(solution.trajectory), statistics(solution)


@dataclass(frozen=True)
class _Foreign(Iteration):
    """A solver of torchdeq, or of the user, behind our interface; its result is measured anew."""

    name: ClassVar[str] = "foreign"
    function: Callable[..., Any]

    @classmethod
    def options(cls) -> dict[str, type]:
        return {}

    def start(self, problem: Problem, z: Tensor) -> None:
        return None

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: None) -> Tensor:
        return fz

    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        calls = 0

        def counted(z: Tensor, tau: float = 1.0) -> Tensor:
            nonlocal calls
            calls += 1
            image = problem.evaluate(z)
            return image if tau == 1.0 else tau * image + (1 - tau) * z

        mode = stop.mode if stop.mode in ("abs", "rel") else "rel"
        tol = Solver._understood(self, problem, stop).tol
        value = self.function(counted, z0, max_iter=stop.max_iter, tol=tol, stop_mode=mode)[0]
        # What the solver says of itself is not taken on trust: its result is tested anew, and where that fails the
        # evaluations left are plain steps (torchdeq's solvers know neither Thompson's metric nor Hilbert's).
        measured = super()._run(problem, value, replace(stop, max_iter=max(1, int(stop.max_iter) - calls)))
        return replace(
            measured,
            iterations=calls + measured.iterations,
            evaluations=calls + measured.evaluations,
            status=torch.where(measured.status == Status.NONFINITE, int(Status.DIVERGED), measured.status),
        )


def find_solver(key: str) -> Solver:
    """The solver registered with torchdeq under `key`; one of our keys may carry options.

    Raises:
        OptionError: there is none; the message names the nearest key.
    """
    if isinstance(key, str) and key.partition(":")[0] in FAMILIES:
        return parse_solver(key)
    registry = _torchdeq_solver._solvers
    if key not in registry:
        raise unknown_name("solver", key, registry)
    found = registry[key]
    return found.settings if isinstance(found, _Registered) else _Foreign(found)


def registered(key: str) -> Callable[..., Any]:
    """The function that torchdeq calls for `key`, as it is: `(func, x0, max_iter, tol, ...) -> (z, trajectory, info)`.

    Raises:
        OptionError: there is none; the message names the nearest key.
    """
    registry: dict[str, Callable[..., Any]] = _torchdeq_solver._solvers
    if key not in registry:
        raise unknown_name("solver registered with torchdeq", key, registry)
    return registry[key]


def solver(key: str) -> str:
    """Register a solver variant with torchdeq and return its key.

    Args:
        key: for instance `"subdeq:anderson?memory=8&damping=0.9"`; the options of each solver are the fields of its
            class in `subdeq_plugin.solvers`.

    Returns:
        The canonical key, to be used as `f_solver` or `b_solver` of any torchdeq model.

    Raises:
        OptionError: an unknown name or option, or a value out of range.
    """
    name = canonical_key(key)
    _put_solver(name, parse_solver(key))
    return name


def _put_solver(key: str, settings: Solver) -> None:
    present = _torchdeq_solver._solvers.get(key)
    if present is not None and not isinstance(present, _Registered):
        raise OptionError(f"torchdeq already has a solver {key!r} that is not ours; it is left alone.")
    if present is None:
        _torchdeq_solver.register_solver(key, _Registered(settings))


class NonnegNorm:
    """torchdeq's norm type "nonneg": nonnegative weights, by parametrization, for an existing model.

    `apply_norm(model, "nonneg", how="abs")` replaces every weight of the modules below by its absolute value and
    keeps it nonnegative from then on; `remove_norm(model)` frees the weights again.
    """

    _target_modules: ClassVar[dict[type[nn.Module], tuple[str, int]]] = {
        nn.Linear: ("weight", 0),
        nn.Conv1d: ("weight", 0),
        nn.Conv2d: ("weight", 0),
        nn.Conv3d: ("weight", 0),
        nn.ConvTranspose1d: ("weight", 1),
        nn.ConvTranspose2d: ("weight", 1),
        nn.ConvTranspose3d: ("weight", 1),
    }

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    @classmethod
    def apply(
        cls, module: nn.Module, deq_args: Any = None, names: Any = None, how: str = "abs", **unknown: Any
    ) -> NonnegNorm:
        """Called by `apply_norm` for each module.

        Raises:
            OptionError: an unknown keyword or parametrization.
        """
        for name in unknown:
            raise unknown_name("keyword of norm type 'nonneg'", name, ("how", "names"))
        if names is None:
            names = cls._target_modules[type(module)][0]
        parameters = (names,) if isinstance(names, str) else tuple(names)
        for parameter in parameters:
            if parameter not in module._parameters:
                raise unknown_name(f"parameter of {type(module).__name__}", parameter, module._parameters)
        for parameter in parameters:
            make_nonneg(module, parameter, how)
        return cls(parameters)

    def __call__(self, module: nn.Module) -> None:
        """Called by `reset_norm`; the parametrization recomputes the weight by itself."""

    def remove(self, module: nn.Module) -> None:
        """Called by `remove_norm`."""
        for parameter in self._names:
            undo_nonneg(module, parameter)


def register_core(key: str, core: type[nn.Module]) -> None:
    """Register a core with torchdeq; a core of that name that is not ours is left alone."""
    present = _torchdeq_core._core.get(key)
    if present is not None and present is not core:
        raise OptionError(f"torchdeq already has a core {key!r} that is not ours; it is left alone.")
    _torchdeq_core.register_deq(key, core)


def register_solvers() -> tuple[str, ...]:
    """Register every solver of every family under its plain key; returns the keys."""
    keys = tuple(f"{family}:{name}" for family, solvers in FAMILIES.items() for name in solvers)
    for key in keys:
        _put_solver(key, parse_solver(key))
    return keys


def register_norm() -> None:
    """Register the norm type "nonneg"; a norm of that name that is not ours is left alone."""
    present = _torchdeq_norm._norm_class.get("nonneg")
    if present is not None and present is not NonnegNorm:
        raise OptionError("torchdeq already has a norm type 'nonneg' that is not ours; it is left alone.")
    _torchdeq_norm.register_norm("nonneg", NonnegNorm)


DEQBase = _torchdeq_core.DEQBase
get_deq = _torchdeq_core.get_deq
wrap_states = deq_decorator
