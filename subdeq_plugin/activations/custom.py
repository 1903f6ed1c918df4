"""Activations brought by the user: one expression that computes on tensors and proves on intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from flint import arb, ctx
from torch import Tensor

from ..degrees import Piece
from ..degrees.jets import Jet
from ..errors import DegreeError
from .base import ScalarFunction, store

__all__ = ["register_activation"]

Expression = Callable[[Any], Any]
_AGREEMENT = 1e-9


def register_activation(
    name: str, expression: Expression | None = None, *, pieces: Sequence[tuple[float, float, Expression]] = ()
) -> ScalarFunction:
    """Register a scalar function `s` so that any layer can use it by name, with its degree proven.

    The expression is written once, with arithmetic and the methods that tensors and `Jet`s share (`exp`, `expm1`,
    `log`, `log1p`, `sqrt`, `square`, `reciprocal`, `sin`, `cos`, `tanh`, `sigmoid`, `atan`, `erf`):

        >>> import subdeq_plugin as sd
        >>> _ = sd.register_activation("swish", lambda t: t * t.sigmoid())
        >>> sd.Activation("swish", shift=0.5, power=0.5).degree().bound < 1
        True

    On a tensor it computes; on intervals it proves. Degrees of a registered function hold for arguments in the range
    of a double; a certificate checks that the layer cannot leave that range.

    Args:
        name: an identifier that is not taken.
        expression: the function for all real `t`; or else
        pieces: `(lo, hi, expression)` in increasing order, meeting end to end, infinite ends allowed. Continuity at
            the joints is checked: a jump has no Clarke Jacobian and voids the theory.

    Returns:
        The registered function. Ask `Activation(name, shift, power).degree(domain)` for its proven degree: that call
        returns the degree or raises `DegreeError` with the place where the proof breaks.

    Raises:
        OptionError: the name is taken or not an identifier.
        DegreeError: the pieces do not fit together, an operation has no interval rule, or the expression gives
            different numbers on tensors and on intervals.
    """
    if (expression is None) == (not pieces):
        raise DegreeError("give either expression or pieces, not both.")
    if expression is not None:
        pieces = [(-math.inf, math.inf, expression)]
    parts = tuple(Piece(float(lo), float(hi), part) for lo, hi, part in pieces)
    formulas = tuple(formula for _, _, formula in pieces)
    _check_joints(name, parts)

    def value(t: Tensor) -> Tensor:
        result: Tensor = formulas[-1](_inside(t, parts[-1]))
        for part, formula in zip(reversed(parts[:-1]), reversed(formulas[:-1]), strict=True):
            result = torch.where(t <= part.hi, formula(_inside(t, part)), result)
        return result

    def derivative(t: Tensor) -> Tensor:
        differentiable = t.requires_grad and torch.is_grad_enabled()
        # A clone taken outside inference mode is an ordinary tensor, even of an inference tensor.
        with torch.inference_mode(False), torch.enable_grad():
            at = t if differentiable else t.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(value(at).sum(), at, create_graph=differentiable)
        return slope

    function = ScalarFunction(name, value, derivative, parts, accurate=False)
    _check_agreement(function)
    return store(function)


def _inside(t: Tensor, part: Piece) -> Tensor:
    # Elsewhere the other branch of `where` is taken; clamping keeps its gradient free of NaN.
    if math.isinf(part.lo) and math.isinf(part.hi):
        return t
    return t.clamp(min=None if math.isinf(part.lo) else part.lo, max=None if math.isinf(part.hi) else part.hi)


def _enclose(name: str, part: Piece, at: float) -> Jet:
    try:
        with ctx.workprec(96):
            result = part.expression(Jet.variable(arb(at)))
            if not isinstance(result, Jet):
                raise TypeError(f"it returns {type(result).__name__}, whatever its argument; write 0 * t + constant")
            return result
    except (AttributeError, TypeError) as error:
        raise DegreeError(
            f"activation {name!r} uses an operation without an interval rule: {error}. Use the methods listed in "
            "register_activation, or give the function in pieces."
        ) from error


def _check_joints(name: str, parts: tuple[Piece, ...]) -> None:
    if parts[0].lo != -math.inf or parts[-1].hi != math.inf:
        raise DegreeError(
            f"the pieces of {name!r} must cover the real line; they cover {parts[0].lo} to {parts[-1].hi}."
        )
    for part in parts:
        if not part.lo < part.hi:
            raise DegreeError(f"a piece of {name!r} goes from {part.lo} to {part.hi}; give them in increasing order.")
    for left, right in itertools.pairwise(parts):
        if left.hi != right.lo:
            raise DegreeError(f"the pieces of {name!r} leave a gap or overlap: {left.hi} against {right.lo}.")
        jump = _enclose(name, left, left.hi).value - _enclose(name, right, left.hi).value
        if not jump.is_finite():
            raise DegreeError(f"a piece of {name!r} has no finite value at its end t = {left.hi:g}.")
        if not jump.contains(0):
            raise DegreeError(
                f"activation {name!r} jumps by {float(jump):.6g} at t = {left.hi:g}; it must be continuous."
            )


def _check_agreement(function: ScalarFunction) -> None:
    """The tensor function must be the one that the intervals enclose, in value and slope, at points of every piece."""
    for part in function.pieces:
        lo, hi = max(part.lo, -8.0), min(part.hi, 8.0)
        points = torch.linspace(lo, hi, 35, dtype=torch.float64)[1:-1] if lo < hi else torch.empty(0)
        try:
            values, slopes = function.value(points), function.derivative(points)
        except (AttributeError, TypeError) as error:
            raise DegreeError(
                f"activation {function.name!r} cannot be computed on tensors: {error}. Use the methods listed in "
                "register_activation."
            ) from error
        for at, value, slope in zip(points.tolist(), values.tolist(), slopes.tolist(), strict=True):
            enclosure = _enclose(function.name, part, at)
            for what, got, ball in (("value", value, enclosure.value), ("slope", slope, enclosure.first)):
                expected = float(ball.mid()) if ball.is_finite() else math.nan
                if not abs(got - expected) <= _AGREEMENT * max(1.0, abs(expected)):
                    raise DegreeError(
                        f"activation {function.name!r}: at t = {at:.6g} its {what} is {got:.12g} on tensors but "
                        f"{expected:.12g} on intervals."
                    )
