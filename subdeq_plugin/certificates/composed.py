"""Certificates of maps of your own: degrees composed over an `nn.Sequential` of known pieces.

For pieces `F_1, ..., F_k` that send positive vectors to positive vectors, with strong degrees `mu_1, ..., mu_k`, the
chain rule for Clarke's Jacobian gives `|M| z <= mu_1 ... mu_k F(z)` for `F = F_k o ... o F_1`: theorems A and B apply
to it as they do to a layer (see `structural.py`). Any other callable can only be searched for a second fixed point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .._shapes import autocast_off, check_floating, check_nonempty, cpu_default
from ..degrees import POSITIVE, Degree
from ..errors import DegreeError, OptionError, ShapeError
from ..layers import BoundMap, Normalizer, SubhomLayer
from .base import Certificate, Search
from .falsify import Evidence, falsify
from .intervals import Box
from .ownmap import OwnMap, StateSpace
from .proof import Check, Proof, reciprocal_gap
from .reading import Reading, is_piece, read
from .steps import NormStep, PointStep, Progress, ReshapeStep, Step

__all__ = ["Map", "certify_map", "is_own_map"]

Map = Callable[[Tensor], Tensor]

_CONDITION = "subhomogeneous"
_LARGEST_EXPONENT = 1000
_AGREEMENT = 1e-2  # far more than rounding, far less than a forgotten piece


def is_own_map(target: object) -> TypeGuard[Map]:
    """Whether the target is a map `z -> f(z)` of the user's own, with no subhomogeneous layer in it."""
    if isinstance(target, nn.Module):
        return not any(isinstance(module, SubhomLayer) for module in target.modules())
    return callable(target) and not isinstance(target, BoundMap)


def certify_map(target: Map, z: Any, names: tuple[str, ...]) -> Certificate:
    """The certificate of a map of one's own; see `certify`.

    Args:
        target: an `nn.Sequential` of known pieces, one piece, or any callable.
        z: an example state `(B, ...)`; of a sequence of pieces only its shape, dtype and device matter.
        names: the conditions wanted.

    Raises:
        OptionError: none of the conditions applies to such maps.
        ShapeError: `z` is no state, or the map does not accept it.
    """
    state = check_floating("x", z).detach()
    check_nonempty("x", state)
    if state.dim() < 2:
        raise ShapeError(f"x must be an example state (B, ...) with at least 2 dimensions, got {tuple(state.shape)}.")
    if _CONDITION not in names:
        raise OptionError(
            f"conditions={names!r} do not apply to a map of your own, only {_CONDITION!r} does; leave conditions out."
        )
    with torch.no_grad(), cpu_default(), autocast_off(torch.device("cpu")):
        if isinstance(target, nn.Module) and is_piece(target):
            return _certify_pieces(target, state)
    return _certify_opaque(target, state)


def _search() -> Search:
    return Search((_CONDITION,), True, (_CONDITION,))


def _certify_opaque(target: Map, state: Tensor) -> Certificate:
    evidence = falsify(target, state)
    space = StateSpace(state.shape, None, positive=False)
    scope = f"nothing: {type(target).__name__} is opaque"
    return Certificate.of(OwnMap(space, (), scope), _evidence_checks(target, evidence), (), _search(), None)


def _evidence_checks(target: Map, evidence: Evidence) -> tuple[Check, ...]:
    structure = (
        "an opaque callable can be falsified, never proven; write it as an nn.Sequential of known pieces (see "
        "docs/any-map.md)."
    )
    found = evidence.message
    return (
        Check("the map is an nn.Sequential of known pieces", type(target).__name__, "yes", False, structure, "opaque"),
        Check(
            f"no second fixed point among {evidence.starts} starts",
            found,
            "evidence at most",
            not evidence.refuted,
            found if evidence.refuted else "",
            "opaque",
        ),
    )


def _certify_pieces(target: nn.Module, state: Tensor) -> Certificate:
    reading = read(target, state.shape, state.dtype)
    checks, steps = list(reading.checks), tuple(reading.steps)
    if reading.readable:
        checks.append(_shape_check(reading, state.shape))
    sound = all(check.passed for check in checks)
    if sound:
        checks.append(_agreement(target, steps, state))
        sound = checks[-1].passed
    head, norm = _split(steps, state.shape)
    theorem = "A" if norm is None else "B"
    scope = f"the map as given, state of shape {tuple(state.shape)}; every state z > 0"
    mu, proof = None, None
    if sound:
        limit = _limit(steps, state.shape)
        scope += "" if limit == math.inf else f" up to {limit:.6g}"
        found, proof = _conclude(head, norm, state.shape, limit, scope)
        checks += found.checks
        mu = found.mu
    hilbert = proof is not None and proof.metric == "hilbert"
    own = OwnMap(StateSpace(state.shape, norm if hilbert else None, positive=True), steps, scope)
    labelled = tuple(replace(check, condition=theorem) for check in checks)
    return Certificate.of(own, labelled, () if proof is None else (proof,), _search(), mu)


def _shape_check(reading: Reading, shape: torch.Size) -> Check:
    fits = reading.shape == shape
    value, wanted = str(tuple(reading.shape)), str(tuple(shape))
    reason = "" if fits else f"the pieces send {wanted} to {value}; a fixed point needs a map of states to states."
    return Check("the map sends states to states", value, wanted, fits, reason)


def _agreement(target: nn.Module, steps: tuple[Step, ...], state: Tensor) -> Check:
    """A net under the reading: on one positive state the module must compute, up to rounding, what the steps do."""
    probe = torch.logspace(-1, 1, state.numel(), dtype=torch.float64).reshape(state.shape).to(state)
    try:
        with autocast_off(state.device):
            value = target(probe.clone())  # a copy, as the first piece may work in place
    except (RuntimeError, ValueError, TypeError) as error:
        raise ShapeError(f"x: the map does not take {state.dtype} states {tuple(state.shape)}: {error}") from error
    box = OwnMap(StateSpace(state.shape, None, positive=True), steps, "").image(Box.point(probe.cpu().double()))
    limits = torch.finfo(state.dtype)
    known = (box.lo > 1024 * limits.tiny) & (box.hi < limits.max / 1024)  # elsewhere its dtype may not hold the value
    value = value.cpu().double() if isinstance(value, Tensor) and value.shape == state.shape else box.lo * torch.nan
    off = torch.maximum((value / box.lo).log().abs(), (value / box.hi).log().abs())
    gap = torch.where(known, off, 0.0).max()
    tolerance = max(_AGREEMENT, 64 * limits.eps)
    fits = bool(gap <= tolerance)
    reason = "" if fits else "the module computes something else than its pieces say; is a method of it replaced?"
    return Check("the module computes what its pieces say", float(gap), f"<= {tolerance:.3g}", fits, reason)


def _split(steps: tuple[Step, ...], shape: torch.Size) -> tuple[tuple[Step, ...], Normalizer | None]:
    """The steps before a final normalisation, and that one as it acts on a state; reshapes may follow it."""
    last = len(steps) - 1
    while last >= 0 and isinstance(steps[last], ReshapeStep):
        last -= 1
    step = steps[last] if last >= 0 else None
    if not isinstance(step, NormStep):
        return steps, None
    normalizer = step.normalizer
    if normalizer.whole_state:
        normalizer = replace(normalizer, dims=tuple(range(1 - len(shape), 0)))
    return steps[:last], normalizer


def _limit(steps: tuple[Step, ...], shape: torch.Size) -> float:
    """A `T` such that `0 < z <= T` is mapped into itself and every activation is applied where its degree is proven.

    That set is log-convex and complete in Thompson's metric. Infinite where all degrees hold for every `t > 0`, and
    NaN where no such `T` was found.
    """
    try:
        limited = any(isinstance(step, PointStep) and step.reach < math.inf for step in steps)
    except DegreeError:
        return math.inf  # reported with the degree
    if not limited:
        return math.inf
    for exponent in range(_LARGEST_EXPONENT, 0, -20):
        box = Box(torch.zeros(shape, dtype=torch.float64), torch.full(shape, 2.0**exponent, dtype=torch.float64))
        within = True
        for step in steps:
            within = within and not (isinstance(step, PointStep) and not bool((box.hi <= step.reach).all()))
            box = step.image(box)
        if within and bool((box.hi <= 2.0**exponent).all()):
            return 2.0**exponent
    return math.nan


@dataclass(frozen=True)
class _Found:
    """What the degrees come to: the checks, and the degree where it is proven."""

    checks: tuple[Check, ...]
    mu: float | None


def _conclude(
    head: tuple[Step, ...], norm: Normalizer | None, shape: torch.Size, limit: float, scope: str
) -> tuple[_Found, Proof | None]:
    """Compose the degrees and draw the conclusion."""
    if math.isnan(limit):
        reason = (
            "a registered activation is proven in the range of a double only, and no bounded set of states was found "
            "that stays there; scale the weights down, or use an activation of the catalogue."
        )
        check = Check("arguments of the activations stay where their degrees are proven", "no", "yes", False, reason)
        return _Found((check,), None), None
    progress = Progress.start(shape, limit)
    title = "the composition has a proven degree"
    for step in head:
        try:
            progress = step.extend(progress)
        except DegreeError as error:
            return _Found((Check(title, "none", "finite", False, str(error)),), None), None
    degree = progress.degree
    rate, metric, name = _contraction(degree, norm)
    remedy = "end with a bounded activation and a larger shift, lower its power, or inject more"
    reason = "" if rate < 1 else f"the proven factor is {rate:.6g}, not below 1; {remedy}."
    checks = (Check(title, degree.bound, "finite", True), Check(name, rate, "< 1", rate < 1, reason))
    if rate >= 1:
        return _Found(checks, degree.bound), None
    exact = torch.tensor([rate], dtype=torch.float64)
    theorem = "A" if norm is None else "B"
    proof = Proof(theorem, metric, reciprocal_gap(exact), exact, degree.bound, scope, reach=limit)
    return _Found(checks, degree.bound), proof


def _contraction(degree: Degree, norm: Normalizer | None) -> tuple[float, str, str]:
    """The factor of one step, its metric, and the name of the check."""
    assert degree.domain == POSITIVE
    if norm is None:
        return degree.bound, "thompson", "contraction in Thompson's metric: mu"
    if norm.whole_state and degree.order_preserving:
        return degree.bound, "hilbert", "contraction in Hilbert's metric on the slice: mu"
    why = "not order-preserving" if norm.whole_state else "norm per group"
    return 2 * degree.bound, "thompson", f"contraction in Thompson's metric ({why}): 2 mu"
