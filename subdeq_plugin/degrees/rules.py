"""The calculus of strong subhomogeneity degrees.

Each rule takes proven degrees and returns a proven degree; bounds are computed as exact fractions and rounded up.
All maps are positive on the domains that meet. Sources: Sittoni and Tudisco, ICML 2024 (arXiv:2403.00720), sections
3 and 5; Lemmens and Nussbaum 2012, chapter 2. The derivation of each rule is one line: in log coordinates the
Jacobian of `F` is `diag(1/F) M diag(z)`, and its infinity-norm is at most the degree.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction

from ..errors import DegreeError
from .degree import POSITIVE, Degree

__all__ = [
    "add",
    "add_constant",
    "compose",
    "linear",
    "maximum",
    "minimum",
    "multiply",
    "normalized",
    "pnorm",
    "power",
    "round_up",
]


def round_up(value: Fraction) -> float:
    """The smallest float that is not below `value`; infinity beyond the range of a float."""
    try:
        nearest = float(value)
    except OverflowError:
        return math.inf if value > 0 else -sys.float_info.max
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def linear() -> Degree:
    """`A z` with `A >= 0` and no zero row: `|A| z = A z`, degree 1."""
    return Degree(1.0, POSITIVE, ("A z with A >= 0 and no zero row has degree 1",), order_preserving=True)


def pnorm(p: float) -> Degree:
    """The p-norm of a positive vector, `p >= 1`: homogeneous of degree 1 and order-preserving."""
    if not p >= 1:
        raise DegreeError(f"p must be at least 1, got {p!r}.")
    return Degree(1.0, POSITIVE, (f"the {p:g}-norm is homogeneous and order-preserving",), order_preserving=True)


def compose(outer: Degree, inner: Degree) -> Degree:
    """`F o G`: the chain rule multiplies the degrees. `outer` must hold for every positive argument."""
    if POSITIVE not in outer.domain:
        raise DegreeError(f"the outer map of a composition must be proven for t > 0, it is only for {outer.domain}.")
    bound = round_up(Fraction(outer.bound) * Fraction(inner.bound))
    return Degree(
        bound,
        inner.domain,
        (*inner.provenance, *outer.provenance, f"composition: the degrees multiply to {bound:.8g}"),
        outer.order_preserving and inner.order_preserving,
    )


def add_constant(degree: Degree, constant: float, upper: float | None = None) -> Degree:
    """`F + c` with `c >= 0` entrywise: at most the degree of `F`; sharper where `F <= upper` is known.

    `|M| z / (F + c) <= mu F / (F + c)`, and `F / (F + c)` grows with `F`.

    Args:
        degree: the degree of `F`.
        constant: a lower bound of the entries of `c`.
        upper: an upper bound of the entries of `F`, or None.
    """
    if not (constant >= 0 and math.isfinite(constant)):
        raise DegreeError(f"the constant must be finite and nonnegative, got {constant!r}.")
    if upper is None or constant == 0:
        return Degree(
            degree.bound, degree.domain, (*degree.provenance, "adding c >= 0 keeps the degree"), degree.order_preserving
        )
    if not (upper > 0 and math.isfinite(upper)):
        raise DegreeError(f"upper must be finite and positive, got {upper!r}.")
    top = Fraction(upper)
    bound = round_up(Fraction(degree.bound) * top / (top + Fraction(constant)))
    return Degree(
        bound,
        degree.domain,
        (*degree.provenance, f"adding c >= {constant:.8g} to F <= {upper:.8g} lowers the degree to {bound:.8g}"),
        degree.order_preserving,
    )


def _largest(rule: str, first: Degree, second: Degree) -> Degree:
    bound = max(first.bound, second.bound)
    return Degree(
        bound,
        first.domain & second.domain,
        (*first.provenance, *second.provenance, f"{rule}: the larger degree, {bound:.8g}"),
        first.order_preserving and second.order_preserving,
    )


def add(first: Degree, second: Degree) -> Degree:
    """`F + G`: `|M_F| z + |M_G| z <= max(mu_F, mu_G) (F + G)`."""
    return _largest("sum", first, second)


def maximum(first: Degree, second: Degree) -> Degree:
    """Entrywise `max(F, G)`: Clarke's Jacobian is a convex combination where both are active."""
    return _largest("entrywise maximum", first, second)


def minimum(first: Degree, second: Degree) -> Degree:
    """Entrywise `min(F, G)`: Clarke's Jacobian is a convex combination where both are active."""
    return _largest("entrywise minimum", first, second)


def multiply(first: Degree, second: Degree) -> Degree:
    """Entrywise `F * G`: logarithms add, so degrees add."""
    bound = round_up(Fraction(first.bound) + Fraction(second.bound))
    return Degree(
        bound,
        first.domain & second.domain,
        (*first.provenance, *second.provenance, f"entrywise product: the degrees add to {bound:.8g}"),
        first.order_preserving and second.order_preserving,
    )


def power(degree: Degree, exponent: float) -> Degree:
    """Entrywise `F ** p`: `abs(p)` times the degree; a negative power reverses the order."""
    if not math.isfinite(exponent):
        raise DegreeError(f"the exponent must be finite, got {exponent!r}.")
    bound = round_up(abs(Fraction(exponent)) * Fraction(degree.bound))
    return Degree(
        bound,
        degree.domain,
        (*degree.provenance, f"power {exponent:g}: the degree becomes {bound:.8g}"),
        degree.order_preserving and exponent > 0,
    )


def normalized(degree: Degree) -> Degree:
    """`F / phi(F)` in Thompson's metric: twice the degree.

    `phi` is homogeneous and order-preserving, so `|ln phi(u) - ln phi(v)| <= d_T(u, v)`; numerator and denominator
    each move by at most `mu d_T`. The order is lost. (In Hilbert's metric an order-preserving `F` keeps its degree:
    that is a contraction on the slice, not a degree; see `subdeq_plugin.certificates`.)
    """
    bound = round_up(2 * Fraction(degree.bound))
    return Degree(bound, degree.domain, (*degree.provenance, f"normalisation: twice the degree, {bound:.8g}"), False)
