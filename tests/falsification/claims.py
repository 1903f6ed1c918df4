"""What a certificate claims, and whether exact arithmetic contradicts it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flint import arb, ctx
from torch import Tensor

from subdeq_plugin.layers import BoundMap

from .exact import BITS, Balls
from .specs import Array

__all__ = ["ADDITIVE", "Claim", "contradictions", "distance", "probes"]

ADDITIVE = ("linf", "l1", "l2")
_EVERY_STATE = "on which the map is defined"


@dataclass(frozen=True)
class Claim:
    """A certificate of one map, by itself or with what it was asked to use.

    Attributes:
        spec: index of the map in its chunk.
        asked: the conditions asked for; empty for the default.
        certificate: as `certify` returned it.
        weights: of the maximum norm that error bounds are measured in, `(B or 1, N)`, or None.
        metric: of the error bounds.
    """

    spec: int
    asked: str
    certificate: Any
    metric: str | None = field(init=False)
    weights: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        # The metric of samples that are proven beside others that are not, and the weights of a norm, are not public.
        proofs = getattr(self.certificate, "_proofs", ())
        object.__setattr__(self, "metric", self.certificate.metric or (proofs[0].metric if proofs else None))
        object.__setattr__(self, "weights", proofs[0].weights if proofs and self.metric == "linf" else None)

    @property
    def label(self) -> str:
        """The theorem, or what stands for it where only some samples are proven."""
        return self.certificate.theorem or "some samples"

    def proves(self, sample: int) -> bool:
        """Whether a sample's fixed point is claimed to be unique."""
        proven = self.certificate.proven
        return bool(proven[sample if len(proven) > 1 else 0])

    def signed(self, bound: BoundMap) -> bool:
        """Whether the claim speaks of all real states rather than of positive ones."""
        everywhere = _EVERY_STATE in self.certificate.scope
        if bound.normalizer is not None:
            # The package computes the other norms of positive states only.
            return everywhere and bound.normalizer.p in (1, 2)
        return self.metric in ADDITIVE or everywhere


def probes(bound: BoundMap, solution: Tensor, rng: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    """States to ask error bounds for: near the solution and far from it, in both precisions."""

    def noise() -> Tensor:
        return torch.from_numpy(rng.standard_normal(tuple(solution.shape)))

    states = {
        "solved": solution,
        "1e-14": solution * (1 + 1e-14 * noise()),
        "1e-9": solution * (1 + 1e-9 * noise()),
        "1e-3": solution * (1 + 1e-3 * noise()),
        "apart": solution * noise().exp(),
        "scaled": solution * float(10.0 ** rng.uniform(-6, 6)),
        "float32": solution.float(),
        "ones": torch.ones_like(solution),
        "image": bound.to("cpu", torch.float64)(solution * (0.1 * noise()).exp()),
    }
    if not bound.positive:
        states["noise"] = solution + noise()
        states["zeros"] = torch.zeros_like(solution)
    for name, state in states.items():
        if bool(state.isfinite().all()) and (not bound.positive or bool((state > 0).all())):
            yield name, state


def distance(metric: str, z: Balls, truth: Balls, weights: list[float] | None = None) -> arb:
    """The distance of `z` to the fixed point in a box, as a ball; the maximum norm may be weighted."""
    with ctx.workprec(BITS):
        if metric in ("thompson", "hilbert"):
            gaps = [(a / b).log() for a, b in zip(z, truth, strict=True)]
            top = bottom = gaps[0]
            for gap in gaps[1:]:
                top, bottom = top.max(gap), bottom.min(gap)
            return top - bottom if metric == "hilbert" else top.max(-bottom)
        if metric not in ADDITIVE:
            raise ValueError(f"unknown metric {metric!r}")
        gaps = [abs(a - b) for a, b in zip(z, truth, strict=True)]
        if metric == "linf":
            scales = weights or [1.0] * len(gaps)
            gaps = [gap / arb(scale) for gap, scale in zip(gaps, scales, strict=True)]
            top = gaps[0]
            for gap in gaps[1:]:
                top = top.max(gap)
            return top
        total = sum((gap if metric == "l1" else gap**2 for gap in gaps), arb(0))
        return total if metric == "l1" else total.sqrt()


def outside(lo: Array, hi: Array, truth: Balls) -> bool:
    """Whether a fixed point certainly lies outside of entrywise bounds, or these are no numbers."""
    for low, high, value in zip(lo.tolist(), hi.tolist(), truth, strict=True):
        if low != low or high != high or value < arb(low) or value > arb(high):
            return True
    return False


def contradictions(
    claim: Claim, bound: BoundMap, state: Tensor, truths: list[Balls | None]
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every `(kind, sample, details)` in which an error bound or interval at one state is wrong.

    Args:
        claim: the claim.
        bound: the map.
        state: where the bounds are asked for.
        truths: the proven fixed point of each sample in the map's order, or None where it is not known.
    """
    certificate, metric = claim.certificate, claim.metric
    errors = certificate.error_bound(state).double().tolist()
    lo, hi = certificate.error_interval(state)
    flat = state.double().reshape(len(truths), -1)
    low, high = (part.double().reshape(len(truths), -1).numpy() for part in (lo, hi))
    for sample, truth in enumerate(truths):
        if truth is None:
            continue
        if outside(low[sample], high[sample], truth):
            points = [ball.str(17, radius=False) for ball in truth]
            yield "interval", sample, {"lo": low[sample].tolist(), "hi": high[sample].tolist(), "truth": points}
        eps = errors[sample]
        if metric is None or eps == float("inf"):
            continue
        weights = None if claim.weights is None else claim.weights[sample if len(claim.weights) > 1 else 0].tolist()
        gap = distance(metric, [arb(value) for value in flat[sample].tolist()], truth, weights)
        if not eps >= 0 or gap > arb(eps):
            yield "error bound", sample, {"bound": eps, "distance": gap.str(12), "metric": metric}
