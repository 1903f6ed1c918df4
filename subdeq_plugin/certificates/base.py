"""The certificate: what was proven, what was checked, and what follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CertificateError
from ..layers import BoundMap, SubhomLayer
from ..metrics import Contraction, iterations_for
from .posterior import error_bound, first_step

__all__ = ["Certificate", "Check"]


@dataclass(frozen=True)
class Check:
    """One hypothesis of the theorem, tested on the actual numbers.

    Attributes:
        name: the hypothesis.
        value: what was found.
        threshold: what it must be.
        passed: whether it holds.
        reason: empty if it does; else why not, and the remedy.
    """

    name: str
    value: str | float
    threshold: str
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Certificate:
    """The outcome of `certify`: a proof that the fixed point exists and is unique, or "not proven".

    The proof is about the map in exact arithmetic that the layer's stored weights define. Where an input is involved,
    the injected term is the tensor that `layer.bind(x)` computed, in its dtype: the rounding of `U x + c` itself is not
    part of any bound. "Not proven" never means that the fixed point is not unique.

    Attributes:
        unique: whether existence and uniqueness are proven.
        theorem: "A" (no normalisation) or "B" (normalised), or None. Statements: `docs/certificates.md`.
        mu: the proven degree of the map before normalisation, or None.
        rate: the proven contraction factor of one step, below 1, or None.
        metric: the metric of the rate: "thompson" or "hilbert", or None.
        scope: the inputs and states the proof covers.
        checks: every hypothesis with its value and threshold, in the order tested.
    """

    unique: bool
    theorem: str | None
    mu: float | None
    rate: float | None
    metric: str | None
    scope: str
    checks: tuple[Check, ...]
    _layer: SubhomLayer | None = field(default=None, repr=False, compare=False)
    _bound: BoundMap | None = field(default=None, repr=False, compare=False)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not proven: one sentence per failed check; empty for a proof."""
        return tuple(check.reason for check in self.checks if not check.passed)

    @property
    def contraction(self) -> Contraction | None:
        """The proven contraction, for solvers; None without a proof."""
        if not self.unique or self.rate is None or self.metric is None:
            return None
        return Contraction.in_metric(self.rate, self.metric)

    def error_bound(self, z: Tensor, x: Any = None) -> Tensor:
        """Guaranteed distance of each sample of `z` to its true fixed point.

        `d(z, z*) <= d(f(z), z) / (1 - rate)` for any `z > 0`, with `f(z)` evaluated in float64 on the CPU, the
        rounding of that evaluation bounded and added (elementary functions are taken to be accurate to 32 units in
        the last place, see `docs/certificates.md`), and the division rounded up.

        Args:
            z: states, of the shape of the layer's state.
            x: the layer's input; may be left out if the certificate was made with it. With `x` the hypotheses are
                checked again, on the layer's present weights.

        Returns:
            `(B,)` float64, in the certificate's metric; infinite for a sample with NaN, and where nothing is proven.
            A value `eps` in Thompson's metric bounds the relative error of every entry of `z` by `exp(eps) - 1`; in
            Hilbert's metric, which does not see the length of `z`, that of every entry of `z` divided by its norm.

        Raises:
            CertificateError: no input is known.
            DomainError: an entry of `z` is not positive.
        """
        certificate = self._with_input(x, "error_bound(z, x=...)")
        bound = certificate._bound
        assert bound is not None
        return error_bound(bound, z, certificate.contraction)

    def iterations_for(self, eps: float, *, x: Any = None, first_step: float | None = None) -> int:
        """How many applications of the map guarantee a distance `<= eps`.

        With an input, from the default start of ones, by Banach's bound: a `k` with
        `rate**k / (1 - rate) * first_step <= eps`. A certificate without one cannot know how far the start is: its
        `eps` is relative, and `k` applications shrink the distance of any start to the fixed point by that factor.

        Args:
            eps: the distance to guarantee, in the certificate's metric; relative to that of the start where no input
                is known.
            x: the input, where the certificate was made without one.
            first_step: the distance from the start to its image, for a start of your own. In Hilbert's metric that
                start must lie on the slice, of norm 1.

        Raises:
            CertificateError: nothing is proven.
            OptionError: `eps` is not positive, or `first_step` not a finite nonnegative number.
        """
        if not self.unique or self.rate is None:
            raise CertificateError("no number of iterations is guaranteed: " + "; ".join(self.reasons))
        if first_step is None and x is None and self._bound is None:
            return iterations_for(eps, self.rate, 1 - self.rate)  # rate**k <= eps
        if first_step is None:
            first_step = self._first_step(x)
        return iterations_for(eps, self.rate, first_step)

    def _first_step(self, x: Any) -> float:
        certificate = self._with_input(x, "iterations_for(eps, x=...)")
        bound, contraction = certificate._bound, certificate.contraction
        assert bound is not None
        if contraction is None:
            raise CertificateError("no number of iterations is guaranteed: " + "; ".join(certificate.reasons))
        return first_step(bound, contraction)

    def _with_input(self, x: Any, call: str) -> Certificate:
        if x is not None:
            if self._layer is None:
                raise CertificateError("this certificate is of a bound map, which has its input already; leave out x.")
            from .structural import certify

            return certify(self._layer, x)
        if self._bound is None:
            raise CertificateError(f"this certificate covers every input and holds none: call {call}.")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON-compatible values."""
        return {
            "unique": self.unique,
            "theorem": self.theorem,
            "mu": self.mu,
            "rate": self.rate,
            "metric": self.metric,
            "scope": self.scope,
            "checks": [
                {
                    "name": check.name,
                    "value": _json_value(check.value),
                    "threshold": check.threshold,
                    "passed": check.passed,
                    "reason": check.reason,
                }
                for check in self.checks
            ],
            "reasons": list(self.reasons),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        from .report import describe

        return describe(self)


def _json_value(value: str | float) -> str | float:
    """JSON has no infinity and no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def snapshot(bound: BoundMap) -> BoundMap:
    """A copy that later training steps cannot change."""
    return bound.with_tensors([part.detach().clone() for part in bound.tensors])


def smallest(parts: tuple[Tensor, ...]) -> float:
    """The smallest entry of several tensors; NaN if any is NaN."""
    return float(torch.stack([part.detach().min().double() for part in parts]).min())
