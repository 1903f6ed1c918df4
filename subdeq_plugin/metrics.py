"""The two metrics of nonlinear Perron-Frobenius theory, and a proven contraction in one of them.

Source: B. Lemmens, R. Nussbaum, *Nonlinear Perron-Frobenius Theory*, Cambridge University Press 2012, chapter 2
(doi:10.1017/CBO9781139026079).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import OptionError, unknown_name

__all__ = ["METRICS", "Contraction", "hilbert", "iterations_for", "metric_function", "ratio_range", "thompson"]

_INWARD = 1 - 2.0**-50  # covers the roundings of the comparison

Distance = Callable[[Tensor, Tensor], Tensor]


def _log_ratio(x: Tensor, y: Tensor) -> Tensor:
    # A quotient rather than a difference of logarithms: exact to one rounding when x and y are close.
    return (x / y).log().flatten(start_dim=1)


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # the integers as wide as a floating-point number, in bytes


def ratio_range(x: Tensor, y: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest `x_i / y_i` of each sample, for positive `x` and `y (B, ...)`; `out` is overwritten.

    Returns:
        Two tensors `(B,)`. Where an entry of a sample is zero, NaN, or negative in one of the two, the smallest is
        zero, negative or NaN, or the largest is infinite or NaN.
    """
    ratio = torch.div(x, y, out=out)
    # Positive floating-point numbers are ordered as their bits are, with NaN on top, and torch reduces rows of integers
    # several times faster.
    bits = ratio.view(_BITS[ratio.element_size()])
    dims = 1 if ratio.dim() == 2 else tuple(range(1, ratio.dim()))
    return bits.amin(dim=dims).view(ratio.dtype), bits.amax(dim=dims).view(ratio.dtype)


def thompson(x: Tensor, y: Tensor) -> Tensor:
    """Thompson's part metric `d_T(x, y) = max_i |ln x_i - ln y_i|` of each sample.

    Args:
        x: `(B, ...)`, strictly positive.
        y: the same shape.

    Returns:
        `(B,)`; NaN where a sample has a non-positive or NaN entry. A value `eps` means that every entry of `x` is
        within a relative error of `exp(eps) - 1` of `y`.
    """
    return _log_ratio(x, y).abs().amax(dim=1)


def hilbert(x: Tensor, y: Tensor) -> Tensor:
    """Hilbert's projective metric `d_H(x, y) = max_i ln(x_i/y_i) - min_i ln(x_i/y_i)` of each sample.

    Args:
        x: `(B, ...)`, strictly positive.
        y: the same shape.

    Returns:
        `(B,)`; zero exactly when the samples lie on one ray. On a slice `phi = 1` it is a metric, and
        `d_T <= d_H <= 2 d_T` there.
    """
    ratio = _log_ratio(x, y)
    return ratio.amax(dim=1) - ratio.amin(dim=1)


METRICS: dict[str, Distance] = {"thompson": thompson, "hilbert": hilbert}


def metric_function(name: str) -> Distance:
    """The metric called `name`.

    Raises:
        OptionError: there is no metric of that name.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def iterations_for(eps: float, rate: float, first_step: float) -> int:
    """A number `k` of steps with `rate**k / (1 - rate) * first_step <= eps` (Banach's a-priori bound), rounded up.

    Args:
        eps: the distance to the fixed point to guarantee, in the metric of the contraction.
        rate: the contraction's factor, `0 <= rate < 1`.
        first_step: the distance from the start to its image, in the same metric.

    Raises:
        OptionError: `eps` is not positive, `rate` not in `[0, 1)`, or `first_step` negative or not finite.
    """
    if not eps > 0:
        raise OptionError(f"eps must be positive, got {eps!r}.")
    if not 0 <= rate < 1:
        raise OptionError(f"rate must be in [0, 1), got {rate!r}.")
    if not (first_step >= 0 and math.isfinite(first_step)):
        raise OptionError(f"first_step must be finite and nonnegative, got {first_step!r}.")
    if first_step <= eps * (1 - rate) * _INWARD:
        return 0
    if rate == 0:
        return 1
    # Logarithms one by one: the product eps * (1 - rate) may underflow.
    steps = (math.log(eps) + math.log1p(-rate) - math.log(first_step)) / math.log(rate)
    return max(1, math.ceil(steps + 1e-12 * (1 + abs(steps))))


@dataclass(frozen=True)
class Contraction:
    """A proven statement: one step of the map shrinks `distance` by at least the factor `rate`.

    Attributes:
        rate: the factor, `0 <= rate < 1`.
        metric: name of the metric, for people.
        distance: `(B, N), (B, N) -> (B,)`.
    """

    rate: float
    metric: str
    distance: Distance

    @property
    def of_image(self) -> float:
        """`q / (1 - q)`: times `d(z, f(z))` it bounds the distance of the image `f(z)` to the fixed point (Banach)."""
        return self.rate / (1 - self.rate)

    @classmethod
    def in_metric(cls, rate: float, metric: str) -> Contraction:
        """A contraction in Thompson's or Hilbert's metric."""
        return cls(rate, metric, metric_function(metric))
