"""`certify`: every known sufficient condition, cheapest first, until one proves all samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._shapes import cpu_default
from ..errors import OptionError, unknown_name
from ..layers import BoundMap, SubhomLayer
from ..layers.operators import GraphOperator
from .base import Certificate, Search
from .box import bounded_box
from .composed import Map, certify_map, is_own_map
from .concave import concave
from .conditions import matrix_measure, monotone, norm, spectral_radius
from .intervals import Box
from .newton import LARGEST, regular_boxes
from .proof import Check, Outcome, Proof
from .structural import definition, subhomogeneous
from .subject import Subject

__all__ = ["CONDITIONS", "certify", "recertify", "snapshot"]


def _enclosure(subject: Subject) -> Outcome:
    """A contraction on a box that holds every fixed point, sample by sample."""
    name = "enclosure"
    if subject.bound is None or subject.state_shape is None:
        return Outcome(
            (Check("input is known", "no", "yes", False, "the boxes depend on the injection; pass x.", name),)
        )
    boxes = subject.boxes
    if boxes is None:
        reason = "no bounded set is known to hold every fixed point: the activation is unbounded and the weights large."
        return Outcome((Check("a box holds every fixed point", "none", "a box", False, reason, name),))
    states = "every state on which the map is defined" if subject.normalizer is None else "every nonnegative state"
    proofs = boxes.proofs(subject.interval, f"the bound input; {states}")
    proven = torch.zeros(subject.interval.samples, dtype=torch.bool)
    for proof in proofs:
        proven |= proof.proven
    worst = float(torch.minimum(boxes.ratio, boxes.weighted).max())
    reason = (
        "" if bool(proven.all()) else "the boxes stop shrinking before the map contracts on them; " + _remedy(subject)
    )
    title = "contraction on the box, largest over the samples"
    checks = (
        Check(title, worst, "< 1", bool(proven.all()), reason, name),
        Check("samples proven", f"{int(proven.sum())} of {len(proven)}", "all", bool(proven.all()), "", name),
    )
    return Outcome(checks, proofs)


def _remedy(subject: Subject) -> str:
    return "scale the weights down" + ("" if subject.normalizer is not None else ", or raise shift") + "."


def _interval_newton(subject: Subject) -> Outcome:
    """Regularity of the preconditioned Jacobian on the boxes."""
    name = "interval newton"
    boxes = subject.boxes
    size = 0 if subject.sample_shape is None else subject.sample_shape.numel()
    checks: tuple[Check, ...] = (
        Check("no normalisation", "yes" if subject.normalizer else "none", "none", not subject.normalizer,
              "the Jacobian of a normalised map is not of the form D A." if subject.normalizer else "", name),
        Check("a box holds every fixed point", "none" if boxes is None else "a box", "a box", boxes is not None,
              "" if boxes is not None else "no bounded set is known; see the enclosure.", name),
        Check("entries of a sample", float(size), f"<= {LARGEST}", size <= LARGEST,
              "" if size <= LARGEST else "the work grows with the cube of that number.", name),
    )  # fmt: skip
    if boxes is None or not all(check.passed for check in checks):
        return Outcome(checks)
    proof = regular_boxes(subject.interval, boxes.box, "the bound input; every state on which the map is defined")
    count = 0 if proof is None else int(proof.proven.sum())
    total = subject.interval.samples
    reason = "" if count == total else "I - D A may be singular for slopes D on the boxes; " + _remedy(subject)
    checks += (Check("samples proven", f"{count} of {total}", "all", count == total, reason, name),)
    return Outcome(checks, () if proof is None else (proof,))


Condition = Callable[[Subject], Outcome]

# Cheapest first. A new condition is one function in its own file and one entry here.
CONDITIONS: dict[str, Condition] = {
    "subhomogeneous": subhomogeneous,
    "box": bounded_box,
    "norm": norm,
    "spectral radius": spectral_radius,
    "matrix measure": matrix_measure,
    "concave": concave,
    "enclosure": _enclosure,
    "monotone": monotone,
    "interval newton": _interval_newton,
}


def certify(
    target: nn.Module | BoundMap | Map, x: Any = None, *, conditions: str | Sequence[str] | None = None
) -> Certificate:
    """Prove that the fixed point of a layer exists and is unique, or say what is missing.

    Args:
        target: a subhomogeneous layer, a module that contains exactly one, or a `BoundMap`; or a map of your own
            that contains none, an `nn.Sequential` of known pieces (see `docs/any-map.md`) or any callable `z -> f(z)`.
            Nothing is proven of a callable that is no such sequence: it is searched for a second fixed point.
        x: the layer's input. Without it the certificate covers every input; with it, the certificate is about these
            samples, each by itself, with the injection's exact value enclosed. For a map of your own, an example state
            `z (B, ...)`: it tells the shape and dtype, and is the first start of a search.
        conditions: names of the sufficient conditions to try (`CONDITIONS`), "all" for every one of them, or None for
            the cheapest first until every sample is proven.

    Returns:
        A `Certificate`; `unique` is True only if every hypothesis of some theorem was verified on the actual weights.

    Raises:
        OptionError: the target contains no subhomogeneous layer, or several; an input was given for a `BoundMap`; or a
            condition is unknown.
        ShapeError: `x` does not fit the layer.
    """
    names = _names(conditions)
    if isinstance(target, BoundMap):
        if x is not None:
            raise OptionError("x was given, but a BoundMap has its input already; leave x out.")
        with torch.no_grad(), cpu_default():
            subject, stop = Subject(None, snapshot(target)), conditions is None
            return _run(subject, names, stop=stop)
    if x is not None and is_own_map(target):
        return certify_map(target, x, names)
    layer = _only_layer(target)
    return recertify(layer, x, names, stop=conditions is None)


def recertify(layer: SubhomLayer, x: Any, names: tuple[str, ...], *, stop: bool) -> Certificate:
    """Try the named conditions on the layer's present weights; `stop`: only until every sample is proven."""
    with torch.no_grad(), cpu_default():
        if x is None:
            return _run(Subject(layer, None), names, stop=stop)
        # Both are taken now: later training steps, or changes of x in place, must not reach the certificate.
        bound, injected = snapshot(layer.bind(x)), Box(*layer.injection_interval(x))
        return _run(Subject(layer, bound, injected, x), names, stop=stop)


def snapshot(bound: BoundMap) -> BoundMap:
    """A copy that later training steps cannot change."""
    copy = bound.with_tensors([part.detach().clone() for part in bound.tensors])
    operator = copy.operator
    if isinstance(operator, GraphOperator):
        copy = replace(copy, operator=replace(operator, propagation=operator.propagation.clone()))
    return copy


def _names(conditions: str | Sequence[str] | None) -> tuple[str, ...]:
    if conditions is None or conditions == "all":
        return tuple(CONDITIONS)
    names = (conditions,) if isinstance(conditions, str) else tuple(conditions)
    for name in names:
        if name not in CONDITIONS:
            raise unknown_name("condition", name, CONDITIONS)
    return tuple(name for name in CONDITIONS if name in names)


def _only_layer(target: object) -> SubhomLayer:
    if not isinstance(target, nn.Module):
        raise OptionError(
            f"target must be a layer, a module with one, or a BoundMap, got {type(target).__name__}; "
            "certify a map of your own with an example state: certify(map, z)."
        )
    layers = [module for module in target.modules() if isinstance(module, SubhomLayer)]
    if len(layers) != 1:
        raise OptionError(
            f"target must contain exactly one subhomogeneous layer, {type(target).__name__} contains {len(layers)} "
            f"({', '.join(type(layer).__name__ for layer in layers) or 'none'}); certify each layer by itself, "
            "and a map of your own with an example state: certify(map, z)."
        )
    return layers[0]


def _run(subject: Subject, names: tuple[str, ...], *, stop: bool) -> Certificate:
    checks: list[Check] = []
    proofs: list[Proof] = []
    tried: list[str] = []
    mu: float | None = None
    faults = definition(subject)
    if faults:  # weights that are no numbers, or shapes that do not fit: nothing can be computed
        return Certificate.of(subject, faults, (), Search(names, stop, ()), None)
    finite = _finite_samples(subject)
    for name in names:
        outcome = CONDITIONS[name](subject)
        mu = outcome.mu if mu is None else mu
        tried.append(name)
        checks += [replace(check, condition=check.condition or name) for check in outcome.checks]
        proofs += [_without(proof, finite) for proof in outcome.proofs]
        if stop and proofs and bool(_proven(proofs).all()):
            break
    ranked = _ranked([proof for proof in proofs if bool(proof.proven.any())])
    return Certificate.of(subject, tuple(checks), ranked, Search(names, stop, tuple(tried)), mu)


def _finite_samples(subject: Subject) -> Tensor | None:
    """`(B,)` bool: the samples whose injection is finite; None where all are, or none is known."""
    bound = subject.bound
    if bound is None:
        return None
    dims = bound.operator.sample_dims
    finite = None
    for part in (bound.inner, bound.outer):
        if part is not None and part.dim() >= dims:
            rows = part.isfinite().reshape(-1, part.shape[part.dim() - dims :].numel()).all(dim=1).cpu()
            finite = rows if finite is None else finite & rows
    return None if finite is None or bool(finite.all()) else finite


def _without(proof: Proof, finite: Tensor | None) -> Proof:
    """The proof without the samples that have no finite injection: those define no map."""
    return proof if finite is None else replace(proof, factor=torch.where(finite, proof.factor, torch.inf))


def _proven(proofs: Sequence[Proof]) -> Tensor:
    proven = proofs[0].proven
    for proof in proofs[1:]:
        proven = proven | proof.proven
    return proven


def _ranked(proofs: Sequence[Proof]) -> tuple[Proof, ...]:
    """Strongest first: all samples, then all states, then theorems A and B, then the smallest factor."""

    def rank(proof: Proof) -> tuple[bool, float, bool, bool, float]:
        proven = proof.proven
        return (
            not bool(proven.all()),
            -float(proven.double().mean()),
            proof.confined or proof.box is not None,
            proof.theorem not in ("A", "B"),
            float(proof.factor[proven].max()),
        )

    return tuple(sorted(proofs, key=rank))
