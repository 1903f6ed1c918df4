"""A-posteriori error: how far a given state can be from the true fixed point.

Banach: `d(z, z*) <= d(z, f(z)) + d(f(z), z*) <= d(z, f(z)) + rate d(z, z*)`. The right-hand side is evaluated in
float64, where all data are nonnegative: sums and products of nonnegative numbers have a small relative error whatever
their size (N. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., SIAM 2002, section 3.1), and a small
relative error is a small distance in Thompson's metric.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shapes import check_floating, check_nonempty, check_positive, check_shape
from ..layers import BoundMap
from ..metrics import Contraction

__all__ = ["error_bound", "first_step"]

_UNIT = 2.0**-53
_FUNCTION_ULPS = 32  # what an elementary function of torch may be wrong by, generously
_OUTWARD = 1 + 2.0**-40  # covers the handful of roundings made in forming the bound itself


def _evaluate(bound: BoundMap, z: Tensor) -> tuple[Tensor, float]:
    """`f(z)` in float64, and a bound on its relative rounding error in every entry."""
    activation = bound.activation
    t = bound.operator(z)
    if bound.inner is not None:
        t = t + bound.inner
    value = activation.reference(t)
    base_error = bound.operator.terms() + 2 + _FUNCTION_ULPS + 1.0
    if activation.shift < 0:
        # s + shift cancels: an error of s is magnified by (s + |shift|) / (s + shift).
        base = value ** (1 / activation.power)
        base_error *= float(((base + 2 * abs(activation.shift)) / base).max())
    error = base_error * max(1.0, abs(activation.power)) + _FUNCTION_ULPS
    if bound.outer is not None:
        value = value + bound.outer
        error += 1
    if bound.normalizer is not None:
        error = 2 * error + bound.normalizer.group_size(value.shape) + 2 * _FUNCTION_ULPS
        value = bound.normalizer(value)
    return value, error * _UNIT * _OUTWARD


def _flat(value: Tensor, sample_dims: int) -> Tensor:
    return value.reshape(-1, value.shape[-sample_dims:].numel())


def error_bound(bound: BoundMap, z: Tensor, contraction: Contraction | None) -> Tensor:
    """Guaranteed distance of each sample of `z` to the fixed point of `bound`: `(B,)` float64, on `z`'s device.

    Infinite where nothing is proven and for samples with NaN. See `Certificate.error_bound`.
    """
    check_floating("z", z)
    check_nonempty("z", z)
    if bound.state_shape is not None:
        check_shape("z", z, tuple(bound.state_shape))
    check_positive("z", z)
    with torch.no_grad():
        state = z.detach().to("cpu", torch.float64)
        samples = _flat(state, bound.sample_dims)
        if contraction is None:
            return torch.full((samples.shape[0],), torch.inf, dtype=torch.float64, device=z.device)
        image, rounding = _evaluate(bound.to("cpu", torch.float64), state)
        # One bound of the rounding serves both metrics: Hilbert's moves by at most twice the largest log error.
        slack = 2 * (rounding + (_FUNCTION_ULPS + 1) * _UNIT)
        residual = contraction.distance(_flat(image, bound.sample_dims), samples)
        error = (residual + slack) * _OUTWARD / ((1 - contraction.rate) * (1 - 2 * _UNIT))
        return torch.where(error.isfinite(), error, torch.full_like(error, torch.inf)).to(z.device)


def first_step(bound: BoundMap, contraction: Contraction) -> float:
    """The largest distance over the samples from the start of ones to its image, with its rounding added."""
    with torch.no_grad():
        exact = bound.to("cpu", torch.float64)
        shape = exact.state_shape if exact.state_shape is not None else torch.Size([exact.operator.terms()])
        start = torch.ones(shape, dtype=torch.float64)
        image, rounding = _evaluate(exact, start)
        step = contraction.largest_distance(_flat(image, bound.sample_dims), _flat(start, bound.sample_dims))
        return (step + 2 * (rounding + (_FUNCTION_ULPS + 1) * _UNIT)) * _OUTWARD
