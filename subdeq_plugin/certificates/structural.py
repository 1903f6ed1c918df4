"""The structural certificate: theorems A and B, with every hypothesis checked on the actual weights.

A. `F` maps the open positive orthant into itself with strong degree `mu < 1`: it is a `mu`-contraction in Thompson's
   metric, in which the orthant is complete.
B. `G = F / phi(F)` with a p-norm `phi`. With one norm over the whole state and `F` order-preserving, `G` is a
   `mu`-contraction in Hilbert's metric on the slice `phi = 1`, which is complete in it; `mu < 1` suffices. Otherwise
   `G` is a `2 mu`-contraction in Thompson's metric, and `mu < 1/2` is needed.

Sources: Sittoni and Tudisco, ICML 2024 (arXiv:2403.00720), theorem 4.1; Lemmens and Nussbaum 2012, section 2.
For `W >= 0` and `b >= 0` the argument of the activation is `t >= (W z)_i > 0`, so its degree over `t > 0` counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..activations import Activation
from ..degrees import POSITIVE, Degree
from ..degrees.rules import compose, linear
from ..errors import DegreeError
from ..layers import BoundMap, Normalizer, Structure, SubhomLayer
from ..metrics import Contraction
from .intervals import Box
from .proof import Check, Outcome, Proof, reciprocal_gap
from .subject import Subject

__all__ = ["contraction_of", "definition", "subhomogeneous"]

# Without an input, a layer whose activation is proven only in the range of a double is certified for injections up to:
_ASSUMED_INJECTION = 1e300


def subhomogeneous(subject: Subject) -> Outcome:
    """Theorem A, or theorem B where the state is divided by a norm."""
    if subject.bound is not None:
        return _certify_bound(subject, subject.bound)
    assert subject.layer is not None
    return _certify_layer(subject.layer)


def contraction_of(bound: BoundMap) -> Contraction | None:
    """The contraction that theorem A or B proves of a map, without a report: for every step of a training.

    Returns:
        The same as `certify(bound, conditions="subhomogeneous").contraction`, or None where that has to be asked: a
        weight is zero, an activation is proven in the range of a double only, or some hypothesis fails.
    """
    if not bound.activation.function.accurate or not _shape_check(bound).passed:
        return None
    with torch.no_grad():
        for part, positive in (
            *((part, True) for part in bound.operator.coefficients()),
            *((part, False) for part in (bound.inner, bound.outer) if part is not None),
        ):
            if part.numel() == 0:
                return None
            least, most = (float(end) for end in torch.aminmax(part))
            # Comparisons with NaN are false. Where no weight is zero, no row is, if it has any.
            if not ((least > 0 if positive else least >= 0) and most < math.inf):
                return None
        if not bound.operator.rows_stored:
            return None
    try:
        degree = compose(_extended(bound.activation.degree(POSITIVE)), linear())
    except DegreeError:
        return None
    rate, metric, _ = _contraction(degree, bound.normalizer)
    return Contraction.in_metric(rate, metric) if rate < 1 else None


def definition(subject: Subject) -> tuple[Check, ...]:
    """What is wrong with the numbers that define the map; empty where they define one, whatever can be proven of it."""
    if subject.bound is None:
        assert subject.layer is not None
        structure = subject.layer.structure()
        checks = [*_weight_checks(structure), *_injection_checks_unseen(subject.layer)]
    else:
        shapes = _shape_check(subject.bound)
        checks = [shapes, *_weight_checks(Structure(subject.bound.operator.coefficients(), "", None))]
    needed = ("the map sends states to states", "weights are finite", "injection's parameters are finite")
    return tuple(replace(check, condition="map") for check in checks if check.name in needed and not check.passed)


def _certify_layer(layer: SubhomLayer) -> Outcome:
    structure = layer.structure()
    checks = [*_weight_checks(structure), *_injection_checks_unseen(layer)]
    tailless = not layer.activation.function.accurate
    inputs = f"whose injection stays below {_ASSUMED_INJECTION:g}" if tailless else "with a finite injection"
    scope = f"every input x {inputs}; {_states(layer.activation)}"
    return _conclude(
        checks, layer.activation, layer.normalizer, structure.row_sum, _ASSUMED_INJECTION, scope, every_input=True
    )


def _states(activation: Activation) -> str:
    """The states a certificate covers; a registered activation is proven in the range of a double only."""
    return "every state z > 0" + ("" if activation.function.accurate else " in the range of a double")


def _certify_bound(subject: Subject, bound: BoundMap) -> Outcome:
    operator = bound.operator
    shape_check = _shape_check(bound)
    zero_row = operator.zero_row(bound.state_shape) if shape_check.passed else "unknown, as the shapes do not fit"
    structure = Structure(operator.coefficients(), zero_row, operator.row_sum)
    checks = [shape_check, *_weight_checks(structure)]
    largest = 0.0
    for place, injected in _injections(subject, bound).items():
        checks.append(_injection_check(place, injected))
        largest = max(largest, float(injected.magnitude.max()))
    shape = None if bound.state_shape is None else tuple(bound.state_shape)
    scope = "the bound input" + (f", state of shape {shape}" if shape else "") + f"; {_states(bound.activation)}"
    return _conclude(checks, bound.activation, bound.normalizer, structure.row_sum, largest, scope, every_input=False)


def _injections(subject: Subject, bound: BoundMap) -> dict[str, Box]:
    """Where the injections lie: nonnegative by construction for most layers, else by their exact bounds."""
    layer = subject.layer
    exact = layer is not None and layer.injection_map == "identity"
    source = {"inside": bound.inner, "outside": bound.outer}
    if exact:
        boxes = {"inside": subject.interval.inner, "outside": subject.interval.outer}
        return {place: box for place, box in boxes.items() if box is not None}
    return {place: Box.point(part) for place, part in source.items() if part is not None}


def _shape_check(bound: BoundMap) -> Check:
    """A map built by hand may not be one of a state space to itself; a layer's always is."""
    defects = [bound.operator.defect(part.shape) for part in (bound.inner, bound.outer) if part is not None]
    shapes = {tuple(part.shape) for part in (bound.inner, bound.outer) if part is not None}
    if len(shapes) == 2:
        defects.append(f"the injections have different shapes, {shapes}")
    if any(math.prod(shape) == 0 for shape in shapes):
        defects.append(f"the batch is empty: the injection has shape {next(iter(shapes))}")
    defect = next((text for text in (bound.operator.defect(None), *defects) if text), "")
    return Check(
        "the map sends states to states",
        defect or "shapes fit",
        "shapes fit",
        not defect,
        f"{defect}; build the map from a layer, or by BoundMap.from_spec." if defect else "",
    )


def _weight_checks(structure: Structure) -> list[Check]:
    parts = tuple(part for part in structure.coefficients if part.numel())
    checks = []
    if parts:
        bad = sum(int((~part.isfinite()).sum()) for part in parts)
        checks.append(
            Check(
                "weights are finite",
                float(bad),
                "0 entries with NaN or infinity",
                bad == 0,
                "" if bad == 0 else f"{bad} weights are NaN or infinite; the layer defines no map.",
            )
        )
        least = _smallest(parts)
        checks.append(
            Check(
                "weights are nonnegative",
                least,
                ">= 0",
                least >= 0 or bad > 0,
                ""
                if least >= 0 or bad > 0  # NaN has been reported above, once
                else f"the smallest weight is {least:.6g}: for signed weights |W| z is not bounded by |W z|, and the "
                'degree of the activation proves nothing; use weight="nonneg".',
            )
        )
    checks.append(
        Check(
            "no row of the linear part is zero",
            structure.zero_row or "none",
            "none",
            not structure.zero_row,
            f"zero row: {structure.zero_row}; the linear part does not map the open cone into itself."
            if structure.zero_row
            else "",
        )
    )
    return checks


def _smallest(parts: tuple[Tensor, ...]) -> float:
    """The smallest entry of several tensors; NaN if any is NaN."""
    return float(torch.stack([part.detach().min().double() for part in parts]).min())


def _injection_check(place: str, box: Box) -> Check:
    injected = box.lo.detach()
    least = float(injected.min())
    broken = ~(injected.isfinite() & box.hi.isfinite())
    finite = not bool(broken.any())
    passed = finite and least >= 0
    if not finite:
        rows = broken.reshape(injected.shape[0], -1).any(dim=1).nonzero().flatten().tolist()
        reason = f"the injection {place} the activation is NaN or infinite for samples {rows[:10]}; clean the input."
    elif least < 0:
        reason = (
            f"the injection {place} the activation goes down to {least:.6g}; a negative one can create several fixed "
            'points. Use injection_map="relu", or make the injected term nonnegative.'
        )
    else:
        reason = ""
    return Check(f"injection {place} the activation is finite and nonnegative", least, ">= 0", passed, reason)


def _injection_checks_unseen(layer: SubhomLayer) -> list[Check]:
    place, kind = layer.injection_place, layer.injection_map
    by_construction = kind != "identity"
    bad = sum(int((~parameter.isfinite()).sum()) for parameter in layer.injection_parameters())
    return [
        Check(
            f"injection {place} the activation is nonnegative",
            f"injection_map={kind!r}",
            "nonnegative by construction",
            by_construction,
            ""
            if by_construction
            else f"injection_map={kind!r} may inject negative numbers {place} the activation; pass x to check the "
            'actual ones, or use injection_map="relu".',
        ),
        Check(
            "injection's parameters are finite",
            float(bad),
            "0 entries with NaN or infinity",
            bad == 0,
            "" if bad == 0 else f"{bad} parameters of the injection are NaN or infinite.",
        ),
    ]


def _conclude(
    checks: list[Check],
    activation: Activation,
    normalizer: Normalizer | None,
    row_sum: Callable[[], float] | None,
    injection: float,
    scope: str,
    *,
    every_input: bool,
) -> Outcome:
    """Add the degree and the contraction to the checks, and draw the conclusion."""
    theorem = "A" if normalizer is None else "B"
    hypotheses = all(check.passed for check in checks)
    try:
        degree = compose(_extended(activation.degree(POSITIVE)), linear())
    except DegreeError as error:
        checks.append(Check("activation has a proven degree for t > 0", "none", "finite", False, str(error)))
        return Outcome(_labelled(checks, theorem))
    checks.append(Check("activation has a proven degree for t > 0", degree.bound, "finite", True))
    rate, metric, name = _contraction(degree, normalizer)
    remedy = "raise shift, or lower power"
    reason = "" if rate < 1 else f"the proven factor is {rate:.6g}, not below 1; {remedy}."
    checks.append(Check(name, rate, "< 1", rate < 1, reason))
    reach = activation.degree(POSITIVE).domain.hi
    if reach < POSITIVE.hi:
        checks.append(_range_check(activation, row_sum, injection, reach))
    if not all(check.passed for check in checks):
        return Outcome(_labelled(checks, theorem), mu=degree.bound if hypotheses else None)
    exact = torch.tensor([rate], dtype=torch.float64)
    proof = Proof(
        theorem, metric, reciprocal_gap(exact), exact, degree.bound, scope, every_input=every_input, reach=reach
    )
    return Outcome(_labelled(checks, theorem), (proof,))


def _labelled(checks: list[Check], theorem: str) -> tuple[Check, ...]:
    return tuple(replace(check, condition=theorem) for check in checks)


def _extended(degree: Degree) -> Degree:
    """A degree proven up to the range of a double, taken as one for all `t > 0`: `_range_check` justifies it."""
    return Degree(degree.bound, POSITIVE, degree.provenance, degree.order_preserving)


def _contraction(degree: Degree, normalizer: Normalizer | None) -> tuple[float, str, str]:
    """The factor of one step, its metric, and the name of the check."""
    if normalizer is None:
        return degree.bound, "thompson", "contraction in Thompson's metric: mu"
    if normalizer.whole_state and degree.order_preserving:
        return degree.bound, "hilbert", "contraction in Hilbert's metric on the slice: mu"
    why = "norm per group" if not normalizer.whole_state else "not order-preserving"
    return 2 * degree.bound, "thompson", f"contraction in Thompson's metric ({why}): 2 mu"


def _range_check(activation: Activation, row_sum: Callable[[], float] | None, injection: float, reach: float) -> Check:
    """`{z > 0 : W z + b <= reach}` is log-convex; it must be invariant when the degree ends at `reach`.

    The normalised state has entries of at most 1, hence the maximum with 1.
    """
    if row_sum is None:
        top = float("inf")
    else:
        image = max(1.0, activation.supremum(reach) + injection)
        top = (row_sum() * image + injection) * (1 + 1e-9)
    passed = top <= reach
    return Check(
        "arguments of the activation stay where its degree is proven",
        top,
        f"<= {reach:.6g}",
        passed,
        "" if passed else "the arguments may leave the range of a double; scale the weights down, or certify with x.",
    )
