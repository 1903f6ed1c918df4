"""Degrees on the invariant box of a bounded activation, for weights of any sign.

The argument of the activation bounds nothing when signs mix, but a bounded positive activation keeps every state in a
box: `z <= hi`, so `|M| z <= |a'| |A| hi`. With `a' / a <= g` over all real arguments, `F = a + c` has degree
`max_i g (|A| hi)_i sup a / (sup a + c_i)` there, for `|a'| / (a + c) = (|a'| / a) a / (a + c)` and the last factor
grows with `a`. A normalised map has states in `(0, 1]`, and twice that degree as its rate (theorem B).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..degrees import REALS
from .intervals import Box, gamma
from .proof import Check, Outcome, Proof, reciprocal_gap
from .subject import Subject

__all__ = ["bounded_box"]

_NAME = "box"


def _constants(subject: Subject) -> tuple[tuple[Check, ...], float, float, float]:
    low, high = subject.activation.range(REALS)
    growth = subject.activation.log_slope(REALS)
    checks = (
        Check(
            "activation is bounded over all real t",
            high,
            "finite",
            high < math.inf,
            "" if high < math.inf else "an unbounded activation has no invariant box; use a bounded one, or pass x.",
            _NAME,
        ),
        Check(
            "activation is positive over all real t",
            low,
            "> 0",
            low > 0,
            "" if low > 0 else f"it goes down to {low:.6g}; raise shift by more than {-low:.6g}.",
            _NAME,
        ),
        Check(
            "sup |a'| / a over all real t",
            growth,
            "finite",
            growth < math.inf,
            "" if growth < math.inf else "no finite bound is proven; raise shift.",
            _NAME,
        ),
    )
    return checks, low, high, growth


def bounded_box(subject: Subject) -> Outcome:
    """`mu < 1` (twice that, where a norm divides the state) on the box that the activation's range leaves."""
    checks, low, high, growth = _constants(subject)
    if subject.bound is None:
        assert subject.layer is not None
        # Outside, a norm bounds the state, but only a nonnegative injection keeps what is divided by it positive.
        outside = subject.layer.injection_place == "outside"
        known = not outside or (subject.normalizer is not None and subject.layer.injection_map != "identity")
    else:
        known = subject.state_shape is not None
    checks += (
        Check(
            "bounds of the state are known",
            "known" if known else "unknown",
            "known",
            known,
            "" if known else "the injection outside the activation is unbounded over all inputs, or unknown; pass x.",
            _NAME,
        ),
        Check(
            "linear part is known",
            "known" if subject.magnitude is not None else "unknown",
            "known",
            subject.magnitude is not None,
            "" if subject.magnitude is not None else "it depends on the input; pass x.",
            _NAME,
        ),
    )
    if not all(check.passed for check in checks):
        return Outcome(checks)
    ratio, box = _degree(subject, low, high, growth)
    twice = subject.normalizer is not None
    rate = 2 * ratio if twice else ratio
    worst = float(rate.max())
    checks += (
        Check(
            "contraction in Thompson's metric on the box: " + ("2 mu" if twice else "mu"),
            worst,
            "< 1",
            worst < 1,
            ""
            if worst < 1
            else f"the proven factor is {worst:.6g}, not below 1; raise shift, or scale the weights down.",
            _NAME,
        ),
    )
    if not bool((rate < 1).any()):
        return Outcome(checks)
    proof = Proof(
        _NAME,
        "thompson",
        reciprocal_gap(rate),
        rate,
        float(ratio[rate < 1].max()),
        f"{subject.scope}; every positive state that the map can output",
        every_input=subject.bound is None,
        box=box,
        confined=box is None,
    )
    return Outcome(checks, (proof,))


def _degree(subject: Subject, low: float, high: float, growth: float) -> tuple[Tensor, Box | None]:
    """The degree of each sample (one for all, without an input), and the box."""
    assert subject.magnitude is not None
    absolute, shape, _ = subject.magnitude
    slack = 1 + gamma(absolute.terms() + 8)
    if subject.bound is None:
        top = high if subject.normalizer is None else 1.0
        reach = absolute(torch.full(shape, top, dtype=torch.float64))
        return (growth * reach * slack).amax().reshape(1), None
    function = subject.interval
    zero = torch.zeros(function.shape, dtype=torch.float64)
    value = Box(zero + low, zero + high)
    share = torch.ones_like(zero)
    if function.outer is not None:
        value = value + function.outer
        share = high / (high + function.outer.lo.clamp(min=0))
    usable = function.flat(value.lo > 0).all(dim=1)
    if function.outer is not None:
        usable &= function.flat(function.outer.lo >= 0).all(dim=1)
    box = function.normalized(value)
    ratio = function.flat(growth * share * function.absolute(box.hi)).amax(dim=1) * slack
    return torch.where(usable & ~ratio.isnan(), ratio, torch.inf), box
