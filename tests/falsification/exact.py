"""Fixed points with proof: Newton's and Krawczyk's methods in ball arithmetic (Arb), from the stored numbers alone.

R. Krawczyk, *Newton-Algorithmen zur Bestimmung von Nullstellen mit Fehlerschranken*, Computing 4, 1969; for Lipschitz
maps with Clarke's Jacobian in place of the derivative. If `K(X)` lies in the interior of the box `X`, the box contains
exactly one zero of `z - f(z)`, and it is in `K(X)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flint import arb, arb_mat, ctx

from .scalars import SCALARS
from .specs import Array, Flat

__all__ = ["BITS", "Balls", "ExactMap", "distinct", "enclose"]

BITS = 320
Balls = list[arb]


def _column(values: Balls) -> arb_mat:
    return arb_mat(len(values), 1, values)


def _power(base: arb, exponent: float) -> arb:
    if exponent == int(exponent) and abs(exponent) < 2**20:
        return base ** int(exponent)  # also for a negative base
    return base ** arb(exponent)


@dataclass
class ExactMap:
    """`f` of one sample on balls, with an enclosure of its Jacobian.

    Attributes:
        flat: the sample.
        injected: `inner` and `outer` as balls, where they are not the stored numbers.
    """

    flat: Flat
    injected: tuple[Balls, Balls] | None = None

    def __post_init__(self) -> None:
        with ctx.workprec(BITS):
            pairs = zip(self.flat.first.flatten().tolist(), self.flat.second.flatten().tolist(), strict=True)
            size = self.flat.size
            self.matrix = arb_mat(size, size, [arb(a) * arb(b) for a, b in pairs])
        stored = [[arb(value) for value in part.tolist()] for part in (self.flat.inner, self.flat.outer)]
        self.inner, self.outer = self.injected or (stored[0], stored[1])

    def __call__(self, z: Balls) -> Balls:
        """`f(z)`."""
        values = self._unnormalised(z)[0]
        return values if self.flat.p is None else [v / phi for v, phi in zip(values, self._norms(values), strict=True)]

    def _unnormalised(self, z: Balls) -> tuple[Balls, Balls]:
        """`F(z)` and the slopes of the activation."""
        flat, scalar = self.flat, SCALARS[self.flat.activation]
        shift, exponent = arb(flat.shift), flat.power
        arguments = (self.matrix * _column(z)).entries()
        values, slopes = [], []
        for argument, inner, outer in zip(arguments, self.inner, self.outer, strict=True):
            base, slope = scalar.enclose(argument + inner)
            base = base + shift
            if exponent != 1:
                slope = slope * arb(exponent) * _power(base, exponent - 1)
                base = _power(base, exponent)
            values.append(base + outer)
            slopes.append(slope)
        return values, slopes

    def _members(self) -> list[range]:
        step = self.flat.size // self.flat.groups
        return [range(first, first + step) for first in range(0, self.flat.size, step)]

    def _norms(self, values: Balls) -> Balls:
        """The norm of its group, for each entry."""
        norms: Balls = []
        for members in self._members():
            part = [values[i] for i in members]
            norms += [self._norm(part)] * len(part)
        return norms

    def _norm(self, part: Balls) -> arb:
        p = self.flat.p
        assert p is not None
        sizes = [abs(value) for value in part]
        if math.isinf(p):
            top = sizes[0]
            for size in sizes[1:]:
                top = top.max(size)
            return top
        total = arb(0)
        for size in sizes:
            total += _power(size, p)
        return total ** (1 / arb(p))

    def linearise(self, z: Balls) -> tuple[Balls, arb_mat]:
        """`f(z)` and an enclosure of Clarke's Jacobian, for a positive `F(z)` where it is normalised."""
        values, slopes = self._unnormalised(z)
        size = self.flat.size
        rows = [[slopes[i] * self.matrix[i, j] for j in range(size)] for i in range(size)]
        if self.flat.p is None:
            return values, arb_mat(rows)
        for members in self._members():
            part = [values[i] for i in members]
            phi, weights = self._norm(part), self._norm_gradient(part)
            radial = [sum((weights[k] * rows[i][j] for k, i in enumerate(members)), arb(0)) for j in range(size)]
            for i in members:
                values[i] = values[i] / phi
                rows[i] = [(rows[i][j] - values[i] * radial[j]) / phi for j in range(size)]
        return values, arb_mat(rows)

    def _norm_gradient(self, part: Balls) -> Balls:
        p = self.flat.p
        assert p is not None
        phi = self._norm(part)
        if not math.isinf(p):
            return [value.sgn() * _power(abs(value) / phi, p - 1) for value in part]
        active = [not value < phi for value in part]
        if sum(active) == 1:
            return [arb(1) if here else arb(0) for here in active]
        return [arb(0.5, 0.5) if here else arb(0) for here in active]


def _scales(center: Balls, positive: bool) -> Balls:
    """A length for each entry, so that ill-scaled states do not spoil the box."""
    sizes = [abs(value) for value in center]
    top = max(sizes, key=float) if all(math.isfinite(float(size)) for size in sizes) else arb(1)
    floor = arb(0) if positive else top * arb(2) ** -40
    return [size if size > floor else (floor if floor > 0 else arb(1)) for size in sizes]


def _newton_matrix(jacobian: arb_mat, scales: Balls) -> arb_mat:
    """`I - D^-1 J D`."""
    size = len(scales)
    return arb_mat(
        [[(1 if i == j else 0) - jacobian[i, j] * scales[j] / scales[i] for j in range(size)] for i in range(size)]
    )


def _magnitude(values: Balls) -> arb:
    top = arb(0)
    for value in values:
        top = top.max(abs(value).upper())
    return top


def _finite(values: Balls) -> bool:
    return all(value.is_finite() for value in values)


def _step(exact: ExactMap, center: Balls, scales: Balls) -> tuple[Balls, arb_mat] | None:
    """Newton's step in units of `scales`, and the approximate inverse it used."""
    value, jacobian = exact.linearise(center)
    residual = [(f - z) / scale for f, z, scale in zip(value, center, scales, strict=True)]
    if not _finite(residual):
        return None
    try:
        inverse = _newton_matrix(jacobian, scales).mid().inv()
    except ZeroDivisionError:
        return None
    inverse = inverse.mid()
    step = (inverse * _column(residual)).entries()
    return (step, inverse) if _finite(step) else None


def enclose(exact: ExactMap, approx: Array, *, positive: bool, steps: int = 40) -> Balls | None:
    """A box, proven to contain exactly one fixed point, found from `approx` by Newton's method; or None.

    With `positive` the box lies in the open positive orthant.
    """
    with ctx.workprec(BITS):
        center = [arb(value) for value in approx.tolist()]
        if not _finite(center) or (positive and not all(value > 0 for value in center)):
            return None
        best = arb.pos_inf()
        for _ in range(steps):
            scales = _scales(center, positive)
            found = _step(exact, center, scales)
            if found is None:
                return None
            size = _magnitude(found[0])
            moved = [(z + scale * d).mid() for z, scale, d in zip(center, scales, found[0], strict=True)]
            if positive:  # no entry shrinks to less than a quarter in one step
                moved = [new if new > z / 4 else z / 4 for new, z in zip(moved, center, strict=True)]
            settled = size < arb(2) ** (24 - BITS) or not size < best
            if settled and size < arb(2) ** -80:
                break
            best, center = size, moved
        for bits in (BITS // 2, BITS // 4, 40, 20):
            box = _krawczyk(exact, center, arb(2) ** -bits, positive)
            if box is not None:
                return box
        return None


def _krawczyk(exact: ExactMap, center: Balls, radius: arb, positive: bool) -> Balls | None:
    scales = _scales(center, positive)
    found = _step(exact, center, scales)
    if found is None:
        return None
    step, inverse = found
    unit = arb(0, 1)
    box = [z + scale * radius * unit for z, scale in zip(center, scales, strict=True)]
    if positive and not all(ball > 0 for ball in box):
        return None
    _, jacobian = exact.linearise(box)
    size = len(center)
    identity = arb_mat([[1 if i == j else 0 for j in range(size)] for i in range(size)])
    remainder = identity - inverse * _newton_matrix(jacobian, scales)
    image = [
        d + radius * unit * sum((abs(remainder[i, j]).upper() for j in range(size)), arb(0)) for i, d in enumerate(step)
    ]
    if not all(abs(d).upper() < radius.lower() for d in image):  # False where not finite
        return None
    return [z + scale * d for z, scale, d in zip(center, scales, image, strict=True)]


def distinct(first: Balls, second: Balls) -> bool:
    """Whether two boxes are disjoint, so that their fixed points differ."""
    return any(not a.overlaps(b) for a, b in zip(first, second, strict=True))
