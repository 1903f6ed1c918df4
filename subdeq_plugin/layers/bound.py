"""`BoundMap`: a layer with its input fixed, that is, the map `z -> f(z)` whose fixed point is sought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .._shapes import as_samples, check_floating, check_shape
from ..activations import Activation
from ..degrees import REALS
from ..errors import DomainError, OptionError, ShapeError, unknown_name
from ..metrics import METRICS, Contraction
from .normalize import Normalizer, parse_norm
from .operators import OPERATORS, Operator
from .stepper import AdjointStepper, Stepper

__all__ = ["BoundMap", "Linearization", "MapSpec", "make_normalizer"]


class _Stop(Protocol):
    """What of a solver's test the kernel needs to know."""

    @property
    def mode(self) -> str: ...

    @property
    def tol(self) -> float: ...


_SPEC_OPTIONS = ("kind", "activation", "shift", "power", "normalize", "normalize_over")


@dataclass(frozen=True)
class MapSpec:
    """A `BoundMap` as data: named arrays and plain options, nothing to execute.

    Attributes:
        arrays: tensors by name (`weight`, or `crow_indices`, `col_indices`, `values`; `inner`; `outer`).
        options: JSON-compatible values: `kind`, `activation`, `shift`, `power`, `normalize`, `normalize_over`, and
            those of the operator.
    """

    arrays: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)


def _positive(operator: Operator, activation: Activation) -> bool:
    """Whether the map sends the positive orthant into itself, as far as signs alone can tell."""
    if all(bool((part >= 0).all()) for part in operator.coefficients()):
        return True
    try:
        activation.require_positive(REALS)
    except DomainError:
        return False
    return True


@dataclass(frozen=True)
class BoundMap:
    """`f(z) = N(a(A z + inner) + outer)` with everything but `z` fixed.

    `A` is the operator, `a` the activation `(s + shift) ** power`, `N` the optional normalisation. Calls do no
    checking: this is the inner loop of every solver. Shapes: `z`, and the tangents and cotangents of `jvp` and `vjp`,
    are `(..., n)` for a dense map, `(B, C, H, W)` for a convolution, `(..., n, d)` for a graph; `inner` and `outer`
    have the state's shape.

    Attributes:
        operator: the linear part.
        activation: the activation.
        inner: injected inside the activation, or None.
        outer: injected outside the activation, or None.
        normalizer: the normalisation, or None.
        positive: whether states live on the open positive orthant (solvers keep their iterates there).
    """

    operator: Operator
    activation: Activation
    inner: Tensor | None = None
    outer: Tensor | None = None
    normalizer: Normalizer | None = None
    positive: bool = True

    def __call__(self, z: Tensor) -> Tensor:
        """One application of the map; the result has the dtype of `z`."""
        value = self._unnormalized(self._argument(z))
        if self.normalizer is not None:
            value = self.normalizer(value)
        return value.to(z.dtype)

    def _argument(self, z: Tensor) -> Tensor:
        t = self.operator(z)
        return t if self.inner is None else t + self.inner

    def _unnormalized(self, t: Tensor) -> Tensor:
        value = self.activation(t)
        return value if self.outer is None else value + self.outer

    def project(self, z: Tensor) -> Tensor:
        """`z` divided by its norms, where the map is normalised: its fixed points lie there, and so does the proof.

        In Hilbert's metric the contraction holds on the slice `phi = 1` only; a state off it may look like a solution.
        """
        return z if self.normalizer is None else self.normalizer(z)

    def linearize(self, z: Tensor) -> Linearization:
        """The Jacobian at `z`, as exact products with tangents and cotangents."""
        return Linearization(self, z)

    def stepper(self) -> Stepper:
        """The map made ready for the inside of a solve."""
        return Stepper(self)

    def coarse_stepper(self, dtype: torch.dtype) -> Stepper:
        """The same in a shorter dtype; its states have that dtype."""
        return Stepper(self.to(self.operator.coefficients()[0].device, dtype))

    def whole_walk(
        self, start: Tensor, contraction: Contraction, stop: _Stop, max_steps: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Plain steps in one kernel until the proof is satisfied: the last state, its image, and the steps `(B,)`.

        None where the test is another, or the kernel does not take this map; see `layers.fused`.
        """
        from . import fused  # importing Triton takes a while

        if stop.mode != "certified" or contraction.metric not in METRICS or fused.available(self):
            return None
        done = fused.fused_walk(
            self, start, rate=contraction.rate, metric=contraction.metric, tol=stop.tol, max_steps=max_steps
        )
        return done.z, done.image, done.steps

    def rows(self, index: Tensor | slice) -> BoundMap:
        """The map of the samples in `index`, `(b,)` or a slice; its states are `(b, *sample)`."""

        def pick(part: Tensor | None) -> Tensor | None:
            return None if part is None else as_samples(part, self.sample_dims)[index]

        return replace(self, inner=pick(self.inner), outer=pick(self.outer))

    def jvp(self, z: Tensor, v: Tensor) -> Tensor:
        """`J_f(z) v`; at kinks, with an element of Clarke's Jacobian."""
        return self.linearize(z).jvp(v)

    def vjp(self, z: Tensor, u: Tensor) -> Tensor:
        """`J_f(z)^T u`; at kinks, with the same element as `jvp`."""
        return self.linearize(z).vjp(u)

    @property
    def sample_dims(self) -> int:
        """How many trailing dimensions of a state form one sample; samples do not influence each other."""
        return self.operator.sample_dims

    @property
    def state_shape(self) -> torch.Size | None:
        """The shape of the state, where an injection determines it."""
        given = self.inner if self.inner is not None else self.outer
        return None if given is None else given.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of states: that of the operator, whatever autocast made of the injection."""
        return self.operator.coefficients()[0].dtype

    def start(self) -> Tensor:
        """The default start of a solve: all ones.

        Raises:
            ShapeError: no injection tells the state's shape.
        """
        if self.state_shape is None:
            raise ShapeError("this map has no injection that would tell the state's shape; pass a start of your own.")
        return torch.ones(self.state_shape, dtype=self.dtype, device=self.operator.coefficients()[0].device)

    def check_state(self, name: str, z: object) -> Tensor:
        """`z` as a floating-point tensor of the state's shape.

        Raises:
            ShapeError: it is none.
        """
        state = check_floating(name, z)
        if self.state_shape is not None:
            check_shape(name, state, tuple(self.state_shape))
        return state

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors a gradient can flow to: the operator's, then `inner`, then `outer`."""
        return (*self.operator.tensors, *(part for part in (self.inner, self.outer) if part is not None))

    def with_tensors(self, tensors: Sequence[Tensor]) -> BoundMap:
        """The same map on other tensors, in the order of `tensors`."""
        rest = list(tensors)
        operator = self.operator.with_tensors(tuple(rest[: len(self.operator.tensors)]))
        rest = rest[len(self.operator.tensors) :]
        inner = rest.pop(0) if self.inner is not None else None
        outer = rest.pop(0) if self.outer is not None else None
        return replace(self, operator=operator, inner=inner, outer=outer)

    def detach(self) -> BoundMap:
        """The same map cut off from autograd."""
        return self.with_tensors([tensor.detach() for tensor in self.tensors])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> BoundMap:
        """The same map on another device and dtype; to float64 the conversion is exact."""
        device = torch.device(device)
        return replace(
            self,
            operator=self.operator.to(device, dtype),
            inner=None if self.inner is None else self.inner.to(device, dtype),
            outer=None if self.outer is None else self.outer.to(device, dtype),
        )

    @property
    def spec(self) -> MapSpec:
        """The map as arrays and names; `BoundMap.from_spec` restores it."""
        arrays = self.operator.arrays()
        if self.inner is not None:
            arrays["inner"] = self.inner
        if self.outer is not None:
            arrays["outer"] = self.outer
        norm = self.normalizer
        return MapSpec(
            {name: array.detach() for name, array in arrays.items()},
            {
                "kind": self.operator.kind,
                "activation": self.activation.name,
                "shift": self.activation.shift,
                "power": self.activation.power,
                "normalize": None if norm is None else ("inf" if math.isinf(norm.p) else norm.p),
                "normalize_over": None if norm is None else norm.over,
                **self.operator.options(),
            },
        )

    @classmethod
    def from_spec(cls, spec: MapSpec) -> BoundMap:
        """The map described by `spec`.

        Raises:
            OptionError: an unknown kind, activation, grouping or option, or a missing one.
            ShapeError: the arrays do not make a map of a state space to itself.
        """
        options = spec.options
        kind = options.get("kind")
        if kind not in OPERATORS:
            raise unknown_name("kind of map", kind, OPERATORS)
        try:
            operator: Operator = OPERATORS[str(kind)].restore(spec.arrays, options)
            activation = Activation(options["activation"], options.get("shift", 0.0), options.get("power", 1.0))
        except KeyError as error:
            raise OptionError(f"the spec of a {kind!r} map lacks {error.args[0]!r}.") from error
        for name in options:
            if name not in (*_SPEC_OPTIONS, *operator.options()):
                raise unknown_name("option of a map's spec", name, (*_SPEC_OPTIONS, *operator.options()))
        _check_spec(operator, spec.arrays.get("inner"), spec.arrays.get("outer"))
        return cls(
            operator,
            activation,
            spec.arrays.get("inner"),
            spec.arrays.get("outer"),
            make_normalizer(operator.groups, options.get("normalize"), options.get("normalize_over") or "state"),
            _positive(operator, activation),
        )


def _check_spec(operator: Operator, inner: Tensor | None, outer: Tensor | None) -> None:
    if inner is not None and outer is not None and inner.shape != outer.shape:
        raise ShapeError(f"inner {tuple(inner.shape)} and outer {tuple(outer.shape)} must have the same shape.")
    given = inner if inner is not None else outer
    defect = operator.defect(None if given is None else given.shape)
    if defect:
        raise ShapeError(f"the spec describes no map of a state space to itself: {defect}.")


def make_normalizer(groups: dict[str, tuple[int, ...]], normalize: object, over: str) -> Normalizer | None:
    """The normaliser for a layer's keywords, or None.

    Raises:
        OptionError: an exponent below 1, or a grouping this kind of layer does not have.
    """
    p = parse_norm(normalize)
    if over not in groups:
        raise unknown_name("normalize_over", over, groups)
    return None if p is None else Normalizer(p, over, groups[over])


class Linearization:
    """The Jacobian of a `BoundMap` at one state: `jvp` and `vjp` are exact products with tangents and cotangents.

    Attributes:
        slope: the derivative of the activation, of the state's shape.
        norm: the normalisation at this state, or None.
    """

    def __init__(self, bound: BoundMap, z: Tensor) -> None:
        self._bound, self._state = bound, z
        self._argument = bound._argument(z)
        self.slope = bound.activation.derivative(self._argument)
        normalizer = bound.normalizer
        self.norm = None if normalizer is None else normalizer.linearize(bound._unnormalized(self._argument))

    @property
    def value(self) -> Tensor:
        """`f(z)`."""
        value = self._bound._unnormalized(self._argument) if self.norm is None else self.norm.value
        return value.to(self._state.dtype)

    def jvp(self, v: Tensor) -> Tensor:
        """`J v` for a tangent `v` of the state's shape."""
        tangent = self.slope * self._bound.operator(v)
        return (tangent if self.norm is None else self.norm.jvp(tangent)).to(v.dtype)

    def vjp(self, u: Tensor) -> Tensor:
        """`J^T u` for a cotangent `u` of the state's shape."""
        cotangent = u if self.norm is None else self.norm.vjp(u)
        return self._bound.operator.transpose(self.slope * cotangent).to(u.dtype)

    def rows(self, index: Tensor | slice) -> Linearization:
        """The Jacobian of the samples in `index`, without computing anything anew."""

        def pick(tensor: Tensor) -> Tensor:
            return as_samples(tensor, self._bound.sample_dims)[index]

        part = copy(self)
        part._bound = BoundMap.rows(self._bound, index)  # also of a map that hides its own
        part._state, part._argument, part.slope = pick(self._state), pick(self._argument), pick(self.slope)
        part.norm = None if self.norm is None else self.norm.rows(pick)
        return part

    def adjoint_stepper(self, g: Tensor) -> AdjointStepper:
        """`u -> g + J^T u` made ready for the inside of a solve."""
        return AdjointStepper(self._bound, self, g)

    def whole_walk(self, g: Tensor, stop: _Stop, max_steps: int) -> tuple[Tensor, Tensor] | None:
        """`u -> g + J^T u` in one kernel until the relative residual is small: the last `u`, and the steps `(B,)`.

        None where the test is another, or the kernel does not take this map; see `layers.fused`.
        """
        from . import fused

        if stop.mode != "rel" or fused.available(self._bound):
            return None
        done = fused.fused_adjoint(self._bound, self._state, g, tol=stop.tol, max_steps=max_steps)
        return done.u, done.steps

    def pullback(self, u: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `<u, f(z)>` with respect to `tensors` of the map, in their order; without autograd."""
        outer = u if self.norm is None else self.norm.vjp(u)
        inner = self.slope * outer
        bound = self._bound
        given = [(bound.inner, inner), (bound.outer, outer)]
        gradients = (*bound.operator.gradients(self._state, inner), *(c for part, c in given if part is not None))
        return tuple(c.to(part.dtype) for part, c in zip(bound.tensors, gradients, strict=True))
