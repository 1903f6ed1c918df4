"""A-posteriori error: how far a given state can be from the true fixed point.

Banach: `d(z, z*) <= d(z, f(z)) + d(f(z), z*) <= d(z, f(z)) + rate d(z, z*)`. The right-hand side is evaluated in
float64, where all data are nonnegative: sums and products of nonnegative numbers have a small relative error whatever
their size (N. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., SIAM 2002, section 3.1), and a small
relative error is a small distance in Thompson's metric.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._shapes import check_nonempty, check_positive
from ..activations.base import TINY
from ..errors import CertificateError
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
    # Underflow is the one rounding that is not relatively small, and beyond `reach` no degree is proven: such samples
    # get no bound.
    reach = activation.degree().domain.hi
    value = torch.where((t >= TINY) & (t <= reach) & (value >= TINY), value, torch.nan)
    base_error = bound.operator.terms() + 2 + _FUNCTION_ULPS + 1.0
    if activation.function.accurate and activation.shift < 0:
        # s + shift cancels: an error of s is magnified by (s + |shift|) / (s + shift).
        base = value ** (1 / activation.power)
        magnified = (base + 2 * abs(activation.shift)) / base
        base_error *= float(torch.where(magnified.isfinite(), magnified, 1.0).max())
    error = base_error * max(1.0, abs(activation.power)) + _FUNCTION_ULPS
    if bound.outer is not None:
        value = value + bound.outer
        error += 1
    if bound.normalizer is not None:
        error = 2 * error + bound.normalizer.group_size(value.shape) + 2 * _FUNCTION_ULPS + 2
        # The largest entry becomes 1 first: the quotient is the same, and no power over- or underflows in the norm.
        value = bound.normalizer(value / value.amax(dim=bound.normalizer.dims, keepdim=True))
        value = torch.where(value >= TINY, value, torch.nan)
    return value, error * _UNIT * _OUTWARD


def _flat(value: Tensor, sample_dims: int) -> Tensor:
    return value.reshape(-1, value.shape[-sample_dims:].numel())


def _on_slice(bound: BoundMap, z: Tensor, contraction: Contraction) -> Tensor:
    """`z` itself; where the contraction holds on the slice `phi = 1` only, `z / phi(z)`, the same ray."""
    if contraction.metric != "hilbert" or bound.normalizer is None:
        return z
    placed = bound.normalizer(z / z.amax(dim=bound.normalizer.dims, keepdim=True))
    return torch.where(placed >= TINY, placed, torch.nan)


def _slice_rounding(bound: BoundMap, z: Tensor, contraction: Contraction) -> float:
    """How far, relatively, rounding leaves `_on_slice` from the slice and from the ray of `z`."""
    if contraction.metric != "hilbert" or bound.normalizer is None:
        return 0.0
    return (bound.normalizer.group_size(z.shape) + 2 * _FUNCTION_ULPS + 2) * _UNIT * _OUTWARD


def error_bound(bound: BoundMap, z: Tensor, contraction: Contraction | None) -> Tensor:
    """Guaranteed distance of each sample of `z` to the fixed point of `bound`: `(B,)` float64, on `z`'s device.

    Infinite where nothing is proven and for samples with NaN. See `Certificate.error_bound`.
    """
    bound.check_state("z", z)
    check_nonempty("z", z)
    check_positive("z", z)
    with torch.no_grad():
        state = z.detach().to("cpu", torch.float64)
        samples = _flat(state, bound.sample_dims)
        if contraction is None:
            return torch.full((samples.shape[0],), torch.inf, dtype=torch.float64, device=z.device)
        exact = bound.to("cpu", torch.float64)
        start = _on_slice(exact, state, contraction)
        samples = _flat(start, bound.sample_dims)
        image, rounding = _evaluate(exact, start)
        rounding += _slice_rounding(exact, state, contraction)
        # One bound of the rounding serves both metrics: Hilbert's moves by at most twice the largest log error.
        slack = 2 * (rounding + (_FUNCTION_ULPS + 1) * _UNIT)
        residual = contraction.distance(_flat(image, bound.sample_dims), samples)
        error = (residual + slack) * _OUTWARD / ((1 - contraction.rate) * (1 - 2 * _UNIT))
        return torch.where(error.isfinite(), error, torch.full_like(error, torch.inf)).to(z.device)


def first_step(bound: BoundMap, contraction: Contraction) -> float:
    """The `d` for which `rate**k / (1 - rate) * d` bounds the distance after `k` steps from the start of ones.

    That is the largest distance over the samples from the start to its image, with its rounding added. In Hilbert's
    metric the ones are first moved to `e = ones / phi(ones)` on the slice. The first step is really taken from the
    ones, which costs `d(f(ones), f(e)) <= rate |ln phi(ones)|` and is made up for by `(1 - rate) |ln phi(ones)|`.

    Raises:
        CertificateError: the first step overflows or underflows, so that nothing can be said.
    """
    with torch.no_grad():
        exact = bound.to("cpu", torch.float64)
        if exact.state_shape is None:
            raise CertificateError("this map has no injection that would tell the state's shape; pass first_step.")
        start = exact.start()
        placed = _on_slice(exact, start, contraction)
        image, rounding = _evaluate(exact, placed)
        rounding += _slice_rounding(exact, start, contraction)
        step = float(contraction.distance(_flat(image, bound.sample_dims), _flat(placed, bound.sample_dims)).max())
        if not math.isfinite(step):
            raise CertificateError("the first step from ones leaves the range of a double; pass first_step.")
        if placed is not start:
            step += (1 - contraction.rate) * float((start / placed).log().abs().max())
        return (step + 2 * (rounding + (_FUNCTION_ULPS + 1) * _UNIT)) * _OUTWARD
