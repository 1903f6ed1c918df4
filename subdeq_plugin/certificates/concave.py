"""Positive concave maps: a degree below 1 from the distance to zero, where the activation alone has degree 1.

For `A >= 0`, `b >= 0` and `a` concave and nondecreasing on `t >= 0`, the map is concave and order-preserving on the
nonnegative states. Concavity gives `M z <= F(z) - F(0)`, hence the degree `1 - min_i F_i(0) / F_i(top)` on the box from
`F(0)` to any `top >= F(top)`, which holds every nonnegative fixed point: theorem A applies there. (Uniqueness: M. A.
Krasnosel'skii, *Positive Solutions of Operator Equations*, 1964; for deep equilibrium models: M. Gabor et al.,
*Positive concave deep equilibrium models*, ICML 2024, arXiv:2402.04029.)
"""

from __future__ import annotations

import torch

from .enclosure import invariant_box
from .intervals import Box
from .proof import Check, Outcome, Proof, reciprocal_gap
from .subject import Subject

__all__ = ["concave"]

_NAME = "concave"


def _check(name: str, value: float | str, threshold: str, passed: bool, reason: str) -> Check:
    return Check(name, value, threshold, passed, "" if passed else reason, _NAME)


def _hypotheses(subject: Subject) -> tuple[Check, ...]:
    normalizer, operator = subject.normalizer, subject.operator
    return (
        _check(
            "activation is concave, nonnegative and nondecreasing on t >= 0",
            "yes" if subject.activation.concave else "no",
            "yes",
            subject.activation.concave,
            "use for instance tanh, with shift >= 0 and power <= 1.",
        ),
        _check(
            "no normalisation",
            "none" if normalizer is None else f"{normalizer.p:g}-norm over {normalizer.over}",
            "none",
            normalizer is None,
            "a quotient is not concave.",
        ),
        _check(
            "weights are nonnegative",
            "yes" if operator is not None and operator.nonnegative else "no",
            "yes",
            operator is not None and operator.nonnegative,
            'a negative weight makes the map neither concave nor order-preserving; use weight="nonneg".',
        ),
        _check(
            "states are nonnegative",
            "yes" if subject.bound is None or subject.bound.positive else "no",
            "yes",
            subject.bound is None or subject.bound.positive,
            "the layer allows states of any sign, and only nonnegative ones are covered; raise shift.",
        ),
        _check(
            "input is known",
            "no" if subject.bound is None else "yes",
            "yes",
            subject.bound is not None and subject.state_shape is not None,
            "the degree depends on the injection; pass x.",
        ),
    )


def concave(subject: Subject) -> Outcome:
    """`1 - min_i F_i(0) / F_i(top) < 1`, with the injection's actual values."""
    checks = _hypotheses(subject)
    if not all(check.passed for check in checks):
        return Outcome(checks)
    function = subject.interval
    zero = Box.point(torch.zeros(function.shape, dtype=torch.float64))
    inner = 0.0 if function.inner is None else float(function.inner.lo.min())
    at_zero = function.image(zero)
    least = float(at_zero.lo.min())
    start = invariant_box(function)
    checks += (
        _check("injection inside the activation", inner, ">= 0", inner >= 0, "concavity is proven for t >= 0 only."),
        _check(
            "F(0)", least, "> 0", least > 0, "F(0) has an entry that is not positive; raise shift or the injection."
        ),
        _check(
            "nonnegative states are bounded",
            "unknown" if start is None else "bounded",
            "bounded",
            start is not None,
            "no upper bound was found: the activation is unbounded and the spectral radius of A is not below 1.",
        ),
    )
    if start is None or not all(check.passed for check in checks):
        return Outcome(checks)
    # Order-preserving: one step from a bound of all fixed points is a bound again, never worse than the bound itself.
    top = torch.minimum(function.image(Box.point(start.hi.clamp(min=0))).hi, start.hi)
    rate = function.flat(1 - at_zero.lo / top * (1 - 2.0**-50)).amax(dim=1) * (1 + 2.0**-50) + 2.0**-52
    worst = float(rate.max())
    checks += (
        _check(
            "contraction in Thompson's metric on the box: 1 - min F(0) / F(top)",
            worst,
            "< 1",
            worst < 1,
            f"the proven factor is {worst:.6g}, not below 1; raise shift or the injection.",
        ),
    )
    if not bool((rate < 1).any()):
        return Outcome(checks)
    proof = Proof(
        _NAME,
        "thompson",
        reciprocal_gap(rate),
        rate,
        float(rate[rate < 1].max()),
        f"{subject.scope}; every nonnegative state",
        box=Box(at_zero.lo, top),
    )
    return Outcome(checks, (proof,))
