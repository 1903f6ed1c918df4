"""What a solver is given, what it must provide, and when it stops.

A problem works on flattened states `(B, N)`: one row per sample, and rows do not influence each other. Solvers are
frozen dataclasses whose fields are their options; whatever changes during a solve lives in a state object of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from .._shapes import autocast_dtype, autocast_off, check_floating, check_nonempty, check_positive
from ..errors import OptionError, unknown_name
from ..metrics import METRICS, Contraction
from ..result import Solution

__all__ = [
    "FLOOR_UNITS",
    "STOP_MODES",
    "AdjointMap",
    "FixedPointMap",
    "Iteration",
    "Memory",
    "Problem",
    "Solver",
    "Stepper",
    "Stop",
    "require",
]

STOP_MODES = ("abs", "rel", *METRICS, "certified")

FLOOR_UNITS = 16  # a relative residual of so many rounding units is as small as they get

JacobianProduct = Callable[[Tensor], Tensor]


class _Linearization(Protocol):
    def jvp(self, v: Tensor) -> Tensor: ...

    def vjp(self, u: Tensor) -> Tensor: ...


class Stepper(Protocol):
    """A map made ready for the inside of a solve: no autograd, no checks, nothing allocated that can be avoided."""

    @property
    def error(self) -> float:
        """A bound of the absolute rounding error of an image beyond that of the map itself; 0 if they agree."""
        ...

    def enter(self, z: Tensor) -> Tensor:
        """A state of the problem's shape as the states that are stepped: one leading dimension for the samples."""
        ...

    def leave(self, z: Tensor, shape: torch.Size) -> Tensor:
        """A stepped state in the problem's shape."""
        ...

    def __call__(self, z: Tensor, out: Tensor, /) -> Tensor:
        """`f(z)`, in `out` where that is faster; `out` has the shape of `z` and does not overlap it."""
        ...


@runtime_checkable
class FixedPointMap(Protocol):
    """A map that tells more about itself than a plain callable does; `BoundMap` is one."""

    @property
    def sample_dims(self) -> int:
        """How many trailing dimensions form one sample."""
        ...

    @property
    def positive(self) -> bool:
        """Whether states live on the open positive orthant."""
        ...

    def __call__(self, z: Tensor) -> Tensor: ...

    def linearize(self, z: Tensor) -> _Linearization:
        """The Jacobian at `z` as products with tangents and cotangents."""
        ...


@runtime_checkable
class AdjointMap(Protocol):
    """`u -> g + J^T u` for the Jacobian `J` of `primal` at `state`: the adjoint equation of a fixed point."""

    @property
    def g(self) -> Tensor: ...

    @property
    def primal(self) -> object: ...

    @property
    def state(self) -> Tensor: ...


@dataclass(frozen=True)
class Problem:
    """Find `z = f(z)` on flattened states.

    Attributes:
        function: the map on states of shape `shape`.
        shape: of a state, samples included.
        samples: `B`.
        positive: keep every iterate strictly positive.
        contraction: a proven contraction of the map, if there is one.
        jacobian: `z -> (v -> J v)` on states of shape `shape`, where the map brings it.
        projection: moves a state of shape `shape` to where fixed points lie, where the map brings such a thing.
        prepare: makes the map ready for the inside of a solve, where it knows how.
        coarse: the same in a shorter dtype.
        whole: `(start, contraction, stop, max_steps) -> (z, f(z), steps) or None`: plain steps to the end of `stop` in
            one kernel, where the map brings it and the device can do that; `steps` counts evaluations, `(B,)`.
        part: `index -> map` of some of the samples, where the map brings it.
        affine: the map is known to be affine.
        lowered: the dtype autocast lowers the map to, or None. Only the map runs under autocast, not the solver.
    """

    function: Callable[[Tensor], Tensor]
    shape: torch.Size
    samples: int
    positive: bool = False
    contraction: Contraction | None = None
    jacobian: Callable[[Tensor], JacobianProduct] | None = None
    projection: Callable[[Tensor], Tensor] | None = None
    prepare: Callable[[], Stepper] | None = None
    coarse: Callable[[torch.dtype], Stepper] | None = None
    whole: Callable[[Tensor, Contraction, Stop, int], tuple[Tensor, Tensor, Tensor] | None] | None = None
    part: Callable[[Tensor | slice], FixedPointMap] | None = None
    affine: bool = False
    lowered: torch.dtype | None = None

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor], start: Tensor, contraction: Contraction | None = None) -> Problem:
        """The problem of `function` from `start`.

        For a plain callable the first dimension counts the samples (a vector is one number per sample, torchdeq's
        convention). A map that describes itself says how many trailing dimensions form a sample.

        Raises:
            ShapeError: `start` is empty or not floating-point.
            DomainError: the map lives on the positive orthant and `start` does not.
        """
        check_floating("z0", start)
        check_nonempty("z0", start)
        lowered = autocast_dtype(start.device)
        if not hasattr(function, "linearize"):  # a `FixedPointMap` has; asking for the protocol itself takes longer
            samples = start.shape[0] if start.dim() else 1
            return cls(function, start.shape, samples, contraction=contraction, lowered=lowered)
        described = cast(FixedPointMap, function)
        if described.positive:
            check_positive("z0", start)
        return cls._described(described, start.shape, contraction, lowered)

    @classmethod
    def _described(
        cls,
        function: FixedPointMap,
        shape: torch.Size,
        contraction: Contraction | None,
        lowered: torch.dtype | None,
    ) -> Problem:
        def jacobian(z: Tensor) -> JacobianProduct:
            return function.linearize(z).jvp

        return cls(
            function,
            shape,
            math.prod(shape[: len(shape) - function.sample_dims]),
            function.positive,
            contraction,
            jacobian,
            getattr(function, "project", None),
            getattr(function, "stepper", None) if lowered is None else None,
            getattr(function, "coarse_stepper", None),
            getattr(function, "whole_walk", None) if lowered is None else None,
            getattr(function, "rows", None),
            getattr(function, "affine", False),
            lowered,
        )

    def rows(self, index: Tensor | slice) -> Problem:
        """The problem of some of the samples, for a map that has `part`; states are `(b, *sample)`.

        The contraction is passed on as it is: its distance must be one that knows nothing of single samples.
        """
        if self.part is None:
            raise TypeError("this problem cannot be split: its map does not say what its samples are.")
        function = self.part(index)
        count = len(range(self.samples)[index]) if isinstance(index, slice) else len(index)
        shape = torch.Size([count, *self.shape[len(self.shape) - function.sample_dims :]])
        return self._described(function, shape, self.contraction, self.lowered)

    def separable(self, mode: str) -> bool:
        """Whether samples can be solved apart under a test of this mode."""
        # A contraction in a metric with weights may have some for every sample.
        alike = self.contraction is None or self.contraction.metric in METRICS
        return self.part is not None and (mode != "certified" or alike)

    def stepper(self) -> Stepper:
        """The map made ready for the inside of a solve."""
        return _Evaluations(self) if self.prepare is None else self.prepare()

    def coarse_stepper(self, dtype: torch.dtype) -> Stepper | None:
        """The same in a shorter dtype, or None where the map cannot do that."""
        return self.coarse(dtype) if self.coarse is not None and self.lowered is None else None

    def evaluate(self, z: Tensor) -> Tensor:
        """`f` on a state in its own shape, in the dtype of `z`."""
        if self.lowered is None:
            return self.function(z)
        with torch.autocast(z.device.type, dtype=self.lowered):
            return self.function(z).to(z.dtype)

    def __call__(self, z: Tensor) -> Tensor:
        """`f` on a flattened state `(B, N)`."""
        return self.evaluate(z.reshape(self.shape)).reshape(self.samples, -1)

    def flatten(self, z: Tensor) -> Tensor:
        """A state as `(B, N)`."""
        return z.reshape(self.samples, -1)

    def placed(self, z: Tensor) -> Tensor:
        """A state in its own shape moved to where fixed points lie; itself where the map says nothing of it."""
        return z if self.projection is None else self.projection(z)

    def place(self, z: Tensor) -> Tensor:
        """The same for a flattened state."""
        return z if self.projection is None else self.flatten(self.projection(z.reshape(self.shape)))

    def admissible(self, z: Tensor) -> Tensor:
        """`(B,)` bool: finite with a finite two-norm, and positive where the problem asks for it."""
        fine = torch.linalg.vector_norm(z, dim=1).isfinite()
        return fine & (z.amin(dim=1) > 0) if self.positive else fine

    def jacobian_at(self, z: Tensor, fz: Tensor) -> JacobianProduct:
        """`v -> J v` at `z`, on `(B, N)`: the map's own product, or a difference quotient of `f`.

        The quotient steps by the size of the residual, `f(z + h v) - f(z)` with `h |v| = |f(z) - z|`: exact for affine
        maps, and ever closer to the derivative as the residual shrinks, as in Steffensen's method. A floor of the
        square root of the rounding unit keeps cancellation in bounds (D. Knoll, D. Keyes, J. Comput. Phys. 193, 2004,
        doi:10.1016/j.jcp.2003.08.010).
        """
        if self.jacobian is not None:
            product = self.jacobian(z.reshape(self.shape))
            return lambda v: product(v.reshape(self.shape)).reshape(self.samples, -1)
        root = math.sqrt(self.rounding_unit(z))
        residual = torch.linalg.vector_norm(fz - z, dim=1, keepdim=True)
        step = torch.maximum(residual, root * torch.linalg.vector_norm(z, dim=1, keepdim=True)).clamp(min=1e-30)

        def quotient(v: Tensor) -> Tensor:
            size = torch.linalg.vector_norm(v, dim=1, keepdim=True)
            h = step / torch.where(size > 0, size, torch.ones_like(size))
            return (self(z + h * v) - fz) / h

        return quotient

    def rounding_unit(self, z: Tensor) -> float:
        """Machine epsilon of the arithmetic in which the map acts on `z`."""
        return float(torch.finfo(self.lowered or z.dtype).eps)


@dataclass(frozen=True)
class _Evaluations:
    """A map that knows no better than to be called."""

    problem: Problem
    error: float = 0.0

    def enter(self, z: Tensor) -> Tensor:
        return self.problem.flatten(z)

    def leave(self, z: Tensor, shape: torch.Size) -> Tensor:
        return z.reshape(shape)

    def __call__(self, z: Tensor, out: Tensor, /) -> Tensor:
        return self.problem(z)


@dataclass(frozen=True)
class Stop:
    """When a solve ends and what it records.

    Attributes:
        tol: a sample is done when its residual in `mode` is at most this.
        max_iter: the largest number of evaluations of the map.
        mode: "abs" for `|f(z) - z|`, "rel" for `|f(z) - z| / |f(z)|` (two-norms per sample), or the distance from `z`
            to `f(z)` in "thompson" or "hilbert". "certified" is for problems with a proven contraction: the answer is
            then an image `f(z)`, and a sample is done when the proof puts that within `tol` of the fixed point, in the
            metric of the contraction and up to rounding.
        indexing: evaluations (counted from 1) at which the state is to be recorded.

    Raises:
        OptionError: a value out of range.
    """

    tol: float = 1e-4
    max_iter: int = 50
    mode: str = "rel"
    indexing: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.tol, bool) or not isinstance(self.tol, int | float) or not self.tol >= 0:
            raise OptionError(f"tol must be a nonnegative number, got {self.tol!r}.")
        if not isinstance(self.max_iter, int | float) or self.max_iter % 1 != 0 or self.max_iter < 1:
            raise OptionError(f"max_iter must be a positive integer, got {self.max_iter!r}.")
        if self.mode not in STOP_MODES:
            raise unknown_name("stop_mode", self.mode, STOP_MODES)


class Memory:
    """Base of what an iteration remembers: its tensors have a row for every sample."""

    products: int = 0  # Jacobian products taken on the whole batch

    def keep(self, index: Tensor) -> None:
        """Forget all samples but those in `index (b,)`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[index])


class Solver(ABC):
    """Base of the solvers. A subclass is a frozen dataclass whose fields are its options."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for option, kind in self.options().items():
            value = getattr(self, option)
            allowed = (int, float) if kind is float else kind
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise OptionError(
                    f"option {option} of solver {self.name} must be of type {kind.__name__}, got {value!r}."
                )
        self.check()

    def check(self) -> None:  # noqa: B027  (a solver without options has nothing to check)
        """Refuse options out of range; their types have been checked.

        Raises:
            OptionError: naming the option, its value and its range.
        """

    def solve(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        """Solve from `z0`, a state in its own shape, without autograd and in the dtype of `z0`.

        Raises:
            OptionError: the test is "certified", and the problem has no proven contraction.
        """
        if stop.mode == "certified" and problem.contraction is None:
            raise OptionError(
                "stop_mode='certified' needs a proven contraction; pass contraction=certificate.contraction, or choose "
                f"one of {', '.join(repr(mode) for mode in STOP_MODES if mode != 'certified')}."
            )
        known = self._understood(problem, stop)
        with torch.no_grad(), autocast_off(z0.device):
            solution = self._run(problem, z0.detach(), known)
            return solution if known.mode != "abs" or stop.mode == "abs" else _confirmed(problem, solution, stop)

    def _understood(self, problem: Problem, stop: Stop) -> Stop:
        """A test that this solver knows: for "certified" a residual in the metric of the contraction, which implies it.

        In other metrics than those of the cone it is the two-norm, which need not.
        """
        contraction = problem.contraction
        if stop.mode != "certified" or contraction is None:
            return stop
        # d(z, z*) <= d(f(z), z) / (1 - rate)
        mode = contraction.metric if contraction.metric in METRICS else "abs"
        return replace(stop, tol=stop.tol * (1 - contraction.rate), mode=mode)

    @abstractmethod
    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        """What `solve` does, already without autograd and without autocast."""

    @classmethod
    def options(cls) -> dict[str, type]:
        """The options and their types, for checking and for documentation."""
        kinds: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
        # `from __future__ import annotations` makes the annotation of a field its source text.
        return {option.name: kinds[str(option.type)] for option in fields(cls)}  # type: ignore[arg-type]


def _confirmed(problem: Problem, solution: Solution, stop: Stop) -> Solution:
    """The solution tested anew by `stop`; where it fails, plain steps follow."""
    from .loop import iterate
    from .picard import Picard

    tested = iterate(problem, Picard(), solution.value, stop, evaluations=solution.evaluations)
    return replace(tested, linear_evaluations=solution.linear_evaluations)


class Iteration(Solver):
    """Base of the solvers that are a step; the loop around it is `iterate`."""

    def _understood(self, problem: Problem, stop: Stop) -> Stop:
        return stop

    @abstractmethod
    def start(self, problem: Problem, z: Tensor) -> Any:
        """A fresh state for one solve from `z (B, N)`: a `Memory`, or None where nothing is remembered."""

    @abstractmethod
    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: Any) -> Tensor:
        """Propose the next iterate `(B, N)` from `z` and `f(z)`; `state` may be changed in place.

        Rows with NaN may come in and must stay rows with NaN. The loop replaces a proposal that is not admissible by
        `fz`, and never shows a step a pair `(z, fz)` in which `fz` is not `f(z)`.
        """

    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        from .loop import iterate

        return iterate(problem, self, z0, stop)


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """`OptionError` unless `condition`."""
    if not condition:
        raise OptionError(f"{name} must be {rule}, got {value!r}.")
