"""What is proven image by image: a certificate for each, and the guaranteed error of the model's own equilibrium."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..certificates import Advice, Certificate, Check, advise, certify
from ..errors import ConvergenceWarning
from .config import ImageClassifier

__all__ = ["QUANTILES", "Survey", "certify_images", "quantiles"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BATCH = 256
_ADVISED = 32  # unproven images for which advice is sought
_NOTHING = "not proven"


@dataclass(frozen=True)
class Survey:
    """The certificates of a number of images, each by itself.

    Attributes:
        conditions: for each image the sufficient condition that proves it, or "not proven".
        metrics: for each image the metric of its bound, "" without one.
        errors: `(n,)` float64, guaranteed distances of the model's equilibria to the true ones; infinite without one.
        rates: `(n,)` float64, proven factors of a plain step; NaN where none is.
        checks: every hypothesis tested, with the worst value over the images.
        advice: what would prove the first few images that are not proven.
    """

    conditions: tuple[str, ...]
    metrics: tuple[str, ...]
    errors: Tensor
    rates: Tensor
    checks: tuple[Check, ...]
    advice: tuple[Advice, ...] = ()

    @property
    def total(self) -> int:
        """The number of images."""
        return len(self.conditions)

    @property
    def proven(self) -> int:
        """How many are proven."""
        return self.total - self.conditions.count(_NOTHING)

    @property
    def counts(self) -> dict[str, int]:
        """The number of images by condition, most frequent first, "not proven" last."""
        found = Counter(self.conditions)
        return dict(sorted(found.items(), key=lambda item: (item[0] == _NOTHING, -item[1], item[0])))

    def errors_in(self, metric: str) -> Tensor:
        """The finite bounds in one metric."""
        chosen = torch.tensor([name == metric for name in self.metrics], dtype=torch.bool)
        return self.errors[chosen & self.errors.isfinite()]

    @property
    def measures(self) -> tuple[str, ...]:
        """The metrics that occur, in the order of their first image."""
        return tuple(dict.fromkeys(name for name in self.metrics if name))

    def to_dict(self) -> dict[str, Any]:
        """The survey as JSON-compatible values."""
        rates = self.rates[~self.rates.isnan()]
        return {
            "samples": self.total,
            "samples_proven": self.proven,
            "conditions": self.counts,
            "errors": {metric: quantiles(self.errors_in(metric)) for metric in self.measures},
            "without_bound": int((~self.errors.isfinite()).sum()),
            "rates": quantiles(rates),
        }


def quantiles(values: Tensor) -> dict[str, float]:
    """The `QUANTILES` of finite values, each one that occurs; empty without values. The last is the largest."""
    if not len(values):
        return {}
    ordered = values.double().sort().values
    # Upwards: a quantile of upper bounds must not be smaller than the bound that it stands for.
    places = [min(len(ordered) - 1, -int(-(part * (len(ordered) - 1)) // 1)) for part in QUANTILES]
    return {f"{part:g}": float(ordered[place]) for part, place in zip(QUANTILES, places, strict=True)}


def certify_images(model: ImageClassifier, images: Tensor, *, conditions: str | Sequence[str] | None = None) -> Survey:
    """Certify the model's layer for each image, and bound the error of the equilibrium that the model computes for it.

    Args:
        model: the model.
        images: `(n, channels, height, width)`.
        conditions: as in `certify`.

    Raises:
        OptionError: an unknown condition.
        ShapeError: the images do not fit the model.
    """
    device = next(model.parameters()).device
    names: list[str] = []
    metrics: list[str] = []
    errors: list[Tensor] = []
    rates: list[Tensor] = []
    checks: dict[tuple[str, str], Check] = {}
    unproven: list[Tensor] = []
    for batch in images.split(_BATCH):
        with torch.no_grad():
            inputs = model.layer_input(batch.to(device))
            certificate = certify(model.deq.layer, inputs, conditions=conditions)
            error = _errors(model, certificate, inputs)
        found, rate = _by_sample(certificate, len(batch))
        names += found
        main = certificate.proofs[0].metric if certificate.proofs else ""
        metrics += [main if finite else "" for finite in error.isfinite().tolist()]
        errors.append(error)
        rates.append(rate)
        unproven.append(batch[torch.tensor([name == _NOTHING for name in found], dtype=torch.bool)])
        for check in certificate.checks:
            key = check.condition, check.name
            checks[key] = check if key not in checks else _worse(checks[key], check)
    rest = torch.cat(unproven)[:_ADVISED]
    advice: tuple[Advice, ...] = ()
    if len(rest):
        with torch.no_grad():
            advice = advise(certify(model.deq.layer, model.layer_input(rest.to(device)), conditions=conditions))
    ordered = sorted(
        checks.values(), key=lambda check: [known.condition for known in checks.values()].index(check.condition)
    )
    return Survey(tuple(names), tuple(metrics), torch.cat(errors), torch.cat(rates), tuple(ordered), advice)


def _errors(model: ImageClassifier, certificate: Certificate, inputs: Tensor) -> Tensor:
    """The guaranteed errors `(B,)` of the model's equilibria, on the CPU; a solve that fails has a large one."""
    if not certificate.proofs:
        return torch.full((len(inputs),), torch.inf, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        state = model.deq(inputs)
    return certificate.error_bound(state).cpu()


def _by_sample(certificate: Certificate, count: int) -> tuple[list[str], Tensor]:
    """The condition that proves each sample, the strongest proof first, and its rate."""
    names = [_NOTHING] * count
    rates = torch.full((count,), torch.nan, dtype=torch.float64)
    for proof in certificate.proofs:
        proven = proof.proven.expand(count).tolist()
        rate = None if proof.rate is None else proof.rate.expand(count)
        for place in range(count):
            if proven[place] and names[place] == _NOTHING:
                names[place] = proof.theorem
                if rate is not None:
                    rates[place] = rate[place]
    return names, rates


def _worse(one: Check, other: Check) -> Check:
    """The same hypothesis on two batches: the worse value, failed if it fails on either."""
    shares = [re.fullmatch(r"(\d+) of (\d+)", str(check.value)) for check in (one, other)]
    failed = one if not one.passed else other
    if shares[0] and shares[1]:
        done, total = (int(shares[0][part]) + int(shares[1][part]) for part in (1, 2))
        return replace(failed, value=f"{done} of {total}")
    if one.passed != other.passed:
        return failed
    if isinstance(one.value, float) and isinstance(other.value, float):
        larger = (one.value >= other.value) == (not one.threshold.startswith(">"))
        return one if larger else other
    return one
