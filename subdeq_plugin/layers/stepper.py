"""A map made ready for the inside of a solve: no autograd, no checks, hardly a tensor allocated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._shapes import as_samples
from ..activations import Activation, InPlace

if TYPE_CHECKING:
    from .bound import BoundMap, Linearization

__all__ = ["AdjointStepper", "Stepper"]

_SMALL = 2.0**-10  # a shift from which on a state is not mostly rounding


class _States:
    """The shape in which states are stepped: one leading dimension, in the memory format of the operator."""

    def __init__(self, bound: BoundMap) -> None:
        self._sample_dims = bound.sample_dims
        self._layout = bound.operator.layout

    def enter(self, z: Tensor) -> Tensor:
        """`z (..., *sample)` as `(B, *sample)`, ready to be stepped; a copy only where the format asks for it."""
        return as_samples(z, self._sample_dims).detach().contiguous(memory_format=self._layout)

    def leave(self, z: Tensor, shape: torch.Size) -> Tensor:
        """A stepped state in its own shape, contiguous."""
        z = z.contiguous()
        return z if z.shape == shape else z.reshape(shape)


class Stepper(_States):
    """`z -> f(z)` for one `BoundMap`; `enter` gives the states it takes and `leave` takes them back.

    The constants of the map are folded once: the shift into what is added outside, the activation's own factors into
    the weights. At most one tensor of the size of the state is kept for each injected term.

    Attributes:
        error: a bound of the absolute rounding error of an image, beyond that of the map itself; 0 if they agree,
            infinite where a power or a norm could enlarge it.
    """

    def __init__(self, bound: BoundMap) -> None:
        super().__init__(bound)
        form = _form(bound.activation)
        self._apply = form.apply
        self._product = bound.operator.product(form.stretch)
        dtype = bound.dtype  # autocast may have lowered an injection
        self._inner = None if bound.inner is None else _scaled(self.enter(bound.inner.to(dtype)), form.stretch)
        outer = None if bound.outer is None else self.enter(bound.outer.to(dtype))
        self._finish = _finish(bound.activation, form.scale, form.offset, outer)
        self._normalizer = bound.normalizer
        self.error = form.error * torch.finfo(dtype).eps
        if form.error and (bound.activation.power != 1 or bound.normalizer is not None):
            self.error = math.inf

    def __call__(self, z: Tensor, out: Tensor) -> Tensor:
        """`f(z)`, in `out` where that is faster; `out` has the shape of `z` and does not overlap it."""
        value = self._finish(self._apply(self._product(z, out, self._inner)))
        return value if self._normalizer is None else value.div_(self._normalizer.norm(value))


def _form(activation: Activation) -> InPlace:
    """How the activation is computed: an inexact form only where its errors cannot make up most of a state."""
    form = activation.function.overwriting
    if form.error and not activation.shift >= _SMALL:
        return InPlace(lambda t: t.copy_(activation.function.value(t)))
    return form


def _scaled(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else factor * value


def _finish(activation: Activation, scale: float, offset: float, outer: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What follows `g`, in place: `(scale g + constant) ** power + outer`."""
    constant = offset + activation.shift
    if activation.power == 1 and outer is not None:
        added = outer + constant if constant else outer
        if scale == 1:
            return lambda g: g.add_(added)
        return lambda g: torch.add(added, g, alpha=scale, out=g)

    def finish(g: Tensor) -> Tensor:
        if scale != 1:
            g.mul_(scale)
        if constant:
            g.add_(constant)
        if activation.power != 1:
            g.pow_(activation.power)
        return g if outer is None else g.add_(outer)

    return finish


class AdjointStepper(_States):
    """`u -> g + J^T u` for the Jacobian of a `BoundMap` at one state, on states as in `Stepper`."""

    error = 0.0

    def __init__(self, bound: BoundMap, jacobian: Linearization, g: Tensor) -> None:
        super().__init__(bound)
        self._product = bound.operator.product(transposed=True)
        if g.dim() != bound.sample_dims + 1:
            jacobian = jacobian.rows(slice(None))
        self._norm = jacobian.norm
        self._g = self.enter(g)
        self._slope = self.enter(jacobian.slope)
        self._scratch = torch.empty_like(self._g)

    def __call__(self, u: Tensor, out: Tensor) -> Tensor:
        """`g + J^T u`, in `out` where that is faster; `out` has the shape of `u` and does not overlap it."""
        pulled = u if self._norm is None else self._norm.vjp(u)
        return self._product(torch.mul(pulled, self._slope, out=self._scratch), out, self._g)
