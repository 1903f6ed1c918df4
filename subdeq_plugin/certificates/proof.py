"""What a condition leaves behind: the checks it made, and a proof if all of them passed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import METRICS, Contraction
from .intervals import Box

__all__ = ["ADDITIVE", "Check", "Outcome", "Proof", "reciprocal_gap", "scaled"]

# Metrics of differences rather than of ratios: the norms of exponent infinity (weighted), 1 and 2.
ADDITIVE = ("linf", "l1", "l2")


@dataclass(frozen=True)
class Check:
    """One hypothesis of a theorem, tested on the actual numbers.

    Attributes:
        name: the hypothesis.
        value: what was found.
        threshold: what it must be.
        passed: whether it holds.
        reason: empty if it does; else why not, and the remedy.
        condition: the sufficient condition that asked for it.
    """

    name: str
    value: str | float
    threshold: str
    passed: bool
    reason: str = ""
    condition: str = ""


@dataclass(frozen=True)
class Proof:
    """Exactly one fixed point `z*`, and `d(z, z*) <= factor d(f(z), z)` for every `z` of a domain.

    Attributes:
        theorem: name of the sufficient condition; statements in `docs/certificates.md`.
        metric: of `d`: "thompson", "hilbert" (on the slice `phi = 1`), "linf", "l1" or "l2".
        factor: `(B,)`, or `(1,)` where it is the same for every sample; infinite for samples that are not proven.
        rate: `(B,)` or `(1,)`, the proven contraction of one plain step, or None where that is not proven.
        mu: the degree behind the proof, the largest over its samples, or None.
        scope: the inputs and states covered.
        every_input: whether it holds whatever the input.
        box: the domain where that is a box; every fixed point lies in it. None: all states the map is defined on.
        confined: the domain is a box, but one that only an input determines.
        reach: the largest argument of the activation for which the proof holds.
        weights: `(B, N)` or `(1, N)`: "linf" means `max |x_i - y_i| / weights_i`; at most 1, None for ones.
        preconditioner: `(B, N, N)`: the residual is multiplied by it before it is measured; None for the identity.
    """

    theorem: str
    metric: str
    factor: Tensor
    rate: Tensor | None
    mu: float | None
    scope: str
    every_input: bool = False
    box: Box | None = None
    confined: bool = False
    reach: float = math.inf
    weights: Tensor | None = None
    preconditioner: Tensor | None = None

    @property
    def proven(self) -> Tensor:
        """`(B,)` or `(1,)` bool."""
        return self.factor.isfinite()

    @property
    def largest_rate(self) -> float | None:
        """The rate of the slowest proven sample."""
        if self.rate is None or not bool(self.proven.any()):
            return None
        return float(self.rate[self.proven].max())

    @property
    def contraction(self) -> Contraction | None:
        """The proven contraction in the form that solvers use."""
        rate = self.largest_rate
        if rate is None:
            return None
        if self.metric in METRICS:
            return Contraction.in_metric(rate, self.metric)
        weights, metric = self.weights, self.metric

        def distance(x: Tensor, y: Tensor) -> Tensor:
            gap = (x - y).abs()
            if metric == "linf":
                if weights is None:
                    return gap.amax(dim=1)
                # Where no image size was known the weights are those of the channels.
                return (gap / weights.to(gap).repeat_interleave(gap.shape[1] // weights.shape[1], dim=1)).amax(dim=1)
            return torch.linalg.vector_norm(gap, ord=1 if metric == "l1" else 2, dim=1)

        return Contraction(rate, metric, distance)


@dataclass(frozen=True)
class Outcome:
    """The result of trying one sufficient condition.

    Attributes:
        checks: what was tested.
        proofs: what follows, for some of the samples or all.
        mu: a degree that was proven although it is too large for a proof.
    """

    checks: tuple[Check, ...]
    proofs: tuple[Proof, ...] = ()
    mu: float | None = None


def reciprocal_gap(rate: Tensor) -> Tensor:
    """`1 / (1 - rate)`, rounded up; infinite where the rate is not below 1."""
    factor = 1 / ((1 - rate) * (1 - 2.0**-52)) * (1 + 2.0**-50)
    return torch.where((rate >= 0) & (rate < 1), factor, torch.inf)


def scaled(weights: Tensor) -> Tensor:
    """Weights `(B, N)` times a power of two, so that the largest of each sample is between 1/2 and 1."""
    _, exponent = torch.frexp(weights.amax(dim=1, keepdim=True))
    return torch.ldexp(weights, -exponent)
