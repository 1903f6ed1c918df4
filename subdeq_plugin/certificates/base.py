"""The certificate: what was proven, what was checked, and what follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._shapes import cpu_default
from ..errors import CertificateError
from ..metrics import Contraction, iterations_for
from .gradient import GradientBound, gradient_bound
from .intervals import Box
from .ownmap import OwnMap
from .posterior import BoxMap, error_bound, error_interval, first_step
from .proof import Check, Proof
from .subject import Subject

__all__ = ["Certificate", "Check", "Search"]


@dataclass(frozen=True)
class Search:
    """Which conditions were to be tried, whether only until a proof was found, and which were."""

    names: tuple[str, ...]
    stop: bool
    tried: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """The outcome of `certify`: a proof that the fixed point exists and is unique, or "not proven".

    The proof is about the map in exact arithmetic that the stored weights and the input as given define; the rounding
    of the injection is enclosed. For a `BoundMap` the injection is the tensor that it holds. "Not proven" never means
    that the fixed point is not unique.

    Attributes:
        unique: whether existence and uniqueness are proven, for every sample.
        theorem: name of the strongest sufficient condition that holds, or None; statements in `docs/certificates.md`.
            "A" and "B" are the theorems of subhomogeneous maps.
        mu: the subhomogeneity degree behind the proof, or the one proven but too large for it; None where there is
            none.
        rate: the proven contraction factor of one step, below 1, or None where only uniqueness and error are proven.
        metric: of the rate and of the error bounds: "thompson", "hilbert", "linf" (maximum norm, weighted where the
            condition says so), "l1" or "l2"; None where no sample is proven.
        scope: the inputs and states the proof covers.
        checks: every hypothesis with its value and threshold, in the order tested.
        proven: `(B,)` bool, sample by sample; `(1,)` where no input is known.
        skipped: conditions not tried, because a cheaper one sufficed.
        proofs: everything that was proven, strongest first: the factors, rates and boxes sample by sample.
    """

    unique: bool
    theorem: str | None
    mu: float | None
    rate: float | None
    metric: str | None
    scope: str
    checks: tuple[Check, ...]
    proven: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.bool), compare=False)
    skipped: tuple[str, ...] = ()
    _search: Search | None = field(default=None, repr=False, compare=False)
    _subject: Subject | OwnMap | None = field(default=None, repr=False, compare=False)
    proofs: tuple[Proof, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(
        cls,
        subject: Subject | OwnMap,
        checks: tuple[Check, ...],
        proofs: tuple[Proof, ...],
        search: Search,
        mu: float | None,
    ) -> Certificate:
        """The certificate that a subject's proofs, strongest first, amount to; `mu`: a degree too large for one."""
        proven = torch.zeros(subject.samples, dtype=torch.bool)
        for proof in proofs:
            proven = proven | proof.proven
        unique = bool(proofs) and bool(proven.all())
        needed = _needed(proofs) if unique else ()
        # A degree and a rate are claimed only if one proof covers every sample.
        main = needed[0] if len(needed) == 1 else None
        return cls(
            unique=unique,
            theorem=" or ".join(dict.fromkeys(proof.theorem for proof in needed)) or None,
            mu=main.mu if main is not None else mu if not unique else None,
            rate=None if main is None else main.largest_rate,
            metric=proofs[0].metric if proofs else None,
            scope="; or ".join(dict.fromkeys(proof.scope for proof in needed or proofs[:1])) or subject.scope,
            checks=checks,
            proven=proven,
            skipped=tuple(name for name in search.names if name not in search.tried),
            _search=search,
            _subject=subject,
            proofs=proofs,
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not proven: one sentence per failed check; empty for a proof."""
        if self.unique:
            return ()
        return tuple(check.reason for check in self.checks if not check.passed and check.reason)

    @property
    def contraction(self) -> Contraction | None:
        """The proven contraction of plain iteration, for solvers; None without one."""
        return None if self.rate is None else self.proofs[0].contraction

    @property
    def enclosure(self) -> Box | None:
        """A box per sample that contains every fixed point, proven unique or not; None where none is known.

        For a normalised map, every nonnegative fixed point.
        """
        subject = self._subject
        boxes = subject.boxes if isinstance(subject, Subject) and subject.bound is not None else None
        return None if boxes is None else boxes.box

    def error_bound(self, z: Tensor, x: Any = None) -> Tensor:
        """Guaranteed distance of each sample of `z` to its true fixed point.

        `d(z, z*) <= factor d(f(z), z)`, with `factor = 1 / (1 - rate)` for a contraction (Banach). The residual is
        measured to the farthest point of an outward-rounded enclosure of `f(z)` in float64 on the CPU (elementary
        functions are taken to be accurate to 32 units in the last place, see `docs/certificates.md`).

        Args:
            z: states, of the shape of the layer's state.
            x: the layer's input; may be left out if the certificate was made with it. With `x` the hypotheses are
                checked again, on the layer's present weights.

        Returns:
            `(B,)` float64, in the certificate's metric; infinite for a sample with NaN, and where nothing is proven.
            A value `eps` in Thompson's metric bounds the relative error of every entry of `z` by `exp(eps) - 1`; in
            Hilbert's metric, which does not see the length of `z`, that of every entry of `z` divided by its norm; in
            the others it bounds a norm of the difference.

        Raises:
            CertificateError: no input is known.
            DomainError: an entry of `z` is not positive, for a map of positive states.
        """
        certificate = self._with_input(x, "error_bound(z, x=...)")
        with cpu_default():
            return _error_bound(certificate._function(), certificate.proofs, z)

    def error_interval(self, z: Tensor, x: Any = None) -> tuple[Tensor, Tensor]:
        """Entrywise bounds `lo <= z* <= hi` of the fixed point, from everything that is proven and the state `z`.

        Args:
            z: states, of the shape of the layer's state; the closer to the fixed point, the tighter the bounds.
            x: as in `error_bound`.

        Returns:
            Two float64 tensors of the state's shape on the CPU; infinite (or 0 below, for positive states) where
            nothing is proven.

        Raises:
            CertificateError: no input is known.
            DomainError: an entry of `z` is not positive, for a map of positive states.
        """
        certificate = self._with_input(x, "error_interval(z, x=...)")
        with cpu_default():
            box = error_interval(certificate._function(), certificate.proofs, z)
        return box.lo, box.hi

    def gradient_bound(
        self, z: Tensor, cotangent: Tensor, adjoint: Tensor | None = None, *, x: Any = None
    ) -> GradientBound:
        """Bounds of the exact implicit gradient, given inexact solutions of both equations.

        Args:
            z: an approximate fixed point, of the shape of the layer's state.
            cotangent: the derivative of the loss with respect to the fixed point, of the same shape, taken as exact.
            adjoint: an approximate solution of `l = cotangent + J^T l`; one is computed where it is left out.
            x: as in `error_bound`.

        Returns:
            A `GradientBound`: boxes for the adjoint and for the gradient with respect to `layer.bind(x).tensors`, the
            sum over samples; infinite where no rigorous bound is to be had (`finite` is False then). At a kink the
            boxes hold the gradient for every element of Clarke's Jacobian.

        Raises:
            CertificateError: no input is known.
            ShapeError: a wrong shape.
        """
        certificate = self._with_input(x, "gradient_bound(z, cotangent, x=...)")
        function = certificate._known().interval
        given = []
        for name, value in (("cotangent", cotangent), ("adjoint", adjoint)):
            if value is not None:
                given.append(function.bound.check_state(name, value).detach().to("cpu", torch.float64))
        with torch.no_grad(), cpu_default():
            box = error_interval(function, certificate.proofs, z)
            return gradient_bound(
                function, box, z.detach().to("cpu", torch.float64), given[0], given[1] if len(given) > 1 else None
            )

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
                start must lie on the slice, of norm 1; where the proof holds inside `enclosure`, in that box.

        Raises:
            CertificateError: no rate is proven, or none from ones.
            OptionError: `eps` is not positive, or `first_step` not a finite nonnegative number.
        """
        if self.rate is None:
            why = "; ".join(self.reasons) or f"{self.theorem!r} proves no rate of the plain iteration"
            raise CertificateError(f"no number of iterations is guaranteed: {why}")
        if first_step is None and x is None and isinstance(self._subject, Subject) and self._subject.bound is None:
            if self.proofs[0].confined:
                raise CertificateError("the rate holds among states that the map can output; certify with x.")
            return iterations_for(eps, self.rate, 1 - self.rate)  # rate**k <= eps
        if first_step is None:
            certificate = self._with_input(x, "iterations_for(eps, x=...)")
            if certificate.rate is None:
                raise CertificateError("no number of iterations is guaranteed: " + "; ".join(certificate.reasons))
            subject = certificate._subject
            if isinstance(subject, Subject) and subject.state_shape is None:
                raise CertificateError("this map has no injection that would tell the state's shape; pass first_step.")
            return iterations_for(eps, certificate.rate, _first(certificate))
        return iterations_for(eps, self.rate, first_step)

    def _known(self) -> Subject:
        if self._subject is None:
            raise CertificateError("this certificate was not made by certify: it holds no map.")
        if isinstance(self._subject, OwnMap):
            raise CertificateError("this certificate is of a map of your own; this is known for layers only.")
        return self._subject

    def _function(self) -> BoxMap:
        """The map on boxes."""
        return self._subject if isinstance(self._subject, OwnMap) else self._known().interval

    def _with_input(self, x: Any, call: str) -> Certificate:
        if isinstance(self._subject, OwnMap):
            if x is not None:
                raise CertificateError("this certificate is of a map of your own, which has no further input; omit x.")
            return self
        subject = self._known()
        if x is not None:
            if subject.layer is None:
                raise CertificateError("this certificate is of a bound map, which has its input already; leave out x.")
            from .engine import recertify

            assert self._search is not None
            return recertify(subject.layer, x, self._search.names, stop=self._search.stop)
        if subject.bound is None:
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
            "samples_proven": int(self.proven.sum()),
            "samples": self.proven.numel(),
            "skipped": list(self.skipped),
            "checks": [
                {
                    "condition": check.condition,
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


def _needed(proofs: tuple[Proof, ...]) -> tuple[Proof, ...]:
    """The first proofs that together prove every sample."""
    proven = torch.zeros(1, dtype=torch.bool)
    for count, proof in enumerate(proofs, start=1):
        proven = proven | proof.proven
        if bool(proven.all()):
            return proofs[:count]
    return proofs


def _first(certificate: Certificate) -> float:
    with cpu_default():
        return first_step(certificate._function(), certificate.proofs[0])


def _error_bound(function: BoxMap, proofs: tuple[Proof, ...], z: Tensor) -> Tensor:
    """By the strongest proof; samples that only another one covers are measured in the same metric."""
    if not proofs:
        return error_bound(function, None, z)
    main, *others = proofs
    error = error_bound(function, main, z)
    for proof in others:
        if bool((error.isinf() & proof.proven.to(error.device)).any()):
            error = torch.fmin(error, error_bound(function, proof, z, metric=main))
    return error
