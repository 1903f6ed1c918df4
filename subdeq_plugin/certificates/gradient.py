"""How wrong an implicit gradient can be when both solves are inexact.

At the fixed point `z*` with Jacobian `J`, a cotangent `g` leads to the adjoint `l = g + J^T l`, and every gradient is a
bilinear expression of `l`, the slopes and `z*`. Given an approximate adjoint `m` and a box that holds `z*`, the
residual `r = m - g - J^T m` is enclosed over all Jacobians on the box. The error `e = m - l` satisfies
`e = J^T e + r`, so:

- `|e| <= K^T |e| + |r|` with `K >= |J|`. If `K v <= q v`, `v > 0`, `q < 1`, the Neumann sum `sum_k (K^T)^k |r|` bounds
  `|e|`; what is left after `k` terms has a `v`-weighted one-norm of at most `<v, (K^T)^k |r|> / (1 - q)`.
- Where absolute values contract nowhere, the preconditioned Jacobian of `newton` gives
  `|e| <= |C^T| (I - |E|^T)^-1 |r|`.

The derivation in full: `docs/gradients.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Normalizer
from ..layers.operators import DenseOperator, GraphOperator, Operator
from .intervals import ELEMENTARY_UNITS, UNIT, Box, IntervalMap, LinearMap, gamma, norm_bounds
from .local import Local
from .newton import LARGEST, precondition
from .spectral import perron_bound

__all__ = ["GradientBound", "gradient_bound"]

_NEUMANN = 200
_TINY = 2.0**-60


@dataclass(frozen=True)
class GradientBound:
    """Bounds of the exact implicit gradient, whatever solves it is compared with.

    Attributes:
        adjoint: of the solution of the adjoint equation at the true fixed point, in the state's shape.
        tensors: of the gradient with respect to each of `BoundMap.tensors`: the operator's weight, then the injections.
    """

    adjoint: Box
    tensors: tuple[Box, ...]

    def error(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The largest difference each entry of computed gradients can have from the exact ones: float64, on the CPU.

        Args:
            gradients: in the order and the shapes of `tensors`, for instance from `torch.autograd.grad`.
        """
        found = []
        for box, gradient in zip(self.tensors, gradients, strict=True):
            value = gradient.detach().to("cpu", torch.float64)
            found.append(torch.maximum((value - box.lo).abs(), (value - box.hi).abs()) * (1 + 2 * UNIT))
        return tuple(found)

    @property
    def finite(self) -> bool:
        """Whether a rigorous bound was found for every sample."""
        return bool(self.adjoint.lo.isfinite().all() and self.adjoint.hi.isfinite().all())


def _product(first: Box, second: Box) -> Box:
    """Entrywise products of two boxes."""
    ends = [first.lo * second.lo, first.lo * second.hi, first.hi * second.lo, first.hi * second.hi]
    stacked = torch.stack(ends)
    return Box.outward(stacked.amin(dim=0), stacked.amax(dim=0))


def _terms_transposed(operator: Operator) -> int:
    """How many products an entry of the transposed product sums, at most."""
    if isinstance(operator, GraphOperator):
        counts = torch.bincount(operator.propagation.matrix.col_indices(), minlength=1)
        return int(counts.max()) + (0 if operator.weight is None else operator.weight.shape[0])
    return operator.weight.shape[0] if isinstance(operator, DenseOperator) else operator.terms()


class _Adjoint:
    """Products with the transposed Jacobian over a box: an enclosure for intervals, a majorant for absolute values."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self.function: IntervalMap = local.function
        operator = self.function.bound.operator
        self.linear = LinearMap.transposed(operator, self.function.absolute, _terms_transposed(operator))
        normalizer = self.function.bound.normalizer
        self.terms = self.linear.terms + (
            0 if normalizer is None else 2 * normalizer.group_size(local.value.lo.shape) + 200
        )

    def outer(self, u: Box) -> Box:
        """The cotangent of the unnormalised map: `(u - w <G, u>) / phi`."""
        normalizer = self.function.bound.normalizer
        if normalizer is None:
            return u
        dims, weights, image = normalizer.dims, self._norm_weights(normalizer), self.local.image
        inner = _product(image, u)
        slack = gamma(normalizer.group_size(image.lo.shape)) * torch.maximum(inner.lo.abs(), inner.hi.abs())
        total = Box.outward((inner.lo - slack).sum(dims, keepdim=True), (inner.hi + slack).sum(dims, keepdim=True))
        total = Box(total.lo.expand_as(u.lo), total.hi.expand_as(u.hi))
        taken = _product(weights, total)
        rest = Box.outward(u.lo - taken.hi, u.hi - taken.lo)
        return _product(rest, self._inverse_norm(normalizer))

    def _norm_weights(self, normalizer: Normalizer) -> Box:
        """`w = G^(p-1)`, or anything on the simplex over the entries that can be the largest."""
        image = self.local.image
        if math.isinf(normalizer.p):
            value = self.local.value
            able = value.hi >= value.lo.amax(dim=normalizer.dims, keepdim=True)
            alone = able & (able.sum(dim=normalizer.dims, keepdim=True) == 1)
            return Box(alone.to(image.lo.dtype), able.to(image.lo.dtype))
        slack = (ELEMENTARY_UNITS + 4) * UNIT
        power = normalizer.p - 1
        return Box(image.lo**power * (1 - slack), image.hi**power * (1 + slack))

    def _inverse_norm(self, normalizer: Normalizer) -> Box:
        value = self.local.value
        phi = norm_bounds(normalizer, value)
        return Box.outward((1 / phi.hi).expand_as(value.lo), (1 / phi.lo).expand_as(value.lo))

    def inner(self, u: Box) -> Box:
        """The cotangent of the activation's argument."""
        return _product(self.local.slopes, self.outer(u))

    def enclose(self, u: Box) -> Box:
        """`J^T u` for every Jacobian on the box and every `u` of a box."""
        return self.linear.image(self.inner(u))

    def majorant(self, u: Tensor) -> Tensor:
        """`|J|^T u` at most, for `u (B, N) >= 0`; in floating point."""
        shape, normalizer = self.local.box.lo.shape, self.function.bound.normalizer
        value = u.reshape(shape)
        if normalizer is not None:
            total = (self.local.image.hi * value).sum(dim=normalizer.dims, keepdim=True)
            value = (value + self._norm_weights(normalizer).hi * total) * self._inverse_norm(normalizer).hi
        return self.function.flat(self.linear.absolute(self.local.slopes.magnitude * value))


def _neumann(adjoint: _Adjoint, residual: Tensor) -> Tensor:
    """A bound of `sum_k (K^T)^k r` for `r (B, N) >= 0`; infinite for samples where no contraction is proven."""
    local = adjoint.local
    ones = torch.ones_like(residual)
    rate, vector = perron_bound(local.majorant, ones, local.terms, 40)
    slack = 1 + gamma(adjoint.terms + 8)
    total, term = residual.clone(), residual
    for _ in range(_NEUMANN):
        term = adjoint.majorant(term) * slack
        total = total + term
        if bool((term.amax(dim=1) <= _TINY * total.amax(dim=1)).all()):
            break
    # Everything after the last term: its weighted one-norm shrinks by the rate with every application.
    left = (vector * adjoint.majorant(term)).sum(dim=1, keepdim=True) * slack * (1 + gamma(term.shape[1]))
    rest = left / ((1 - rate.unsqueeze(1)) * (1 - 4 * UNIT)) / vector
    bound = (total * (1 + gamma(_NEUMANN)) + rest) * (1 + 2.0**-40)
    return torch.where((rate < 1).unsqueeze(1) & ~bound.isnan(), bound, torch.inf)


def _preconditioned(local: Local, residual: Tensor) -> Tensor:
    """The bound by a preconditioned Jacobian, for small maps without normalisation; else infinite."""
    function = local.function
    if function.bound.normalizer is not None or residual.shape[1] > LARGEST:
        return torch.full_like(residual, torch.inf)
    known = precondition(local, function.bound.operator.matrix(function.shape))
    size = residual.shape[1]
    slack = 1 + gamma(size + 8)
    rate, vector = perron_bound(known.spread, torch.ones_like(residual), size + 4, 40)
    total, term = residual.clone(), residual
    transposed = known.defect.transpose(1, 2)
    for _ in range(8):
        term = (transposed @ term.unsqueeze(2)).squeeze(2) * slack
        total = total + term
    left = (vector * (transposed @ term.unsqueeze(2)).squeeze(2)).sum(dim=1, keepdim=True) * slack * slack
    rest = left / ((1 - rate.unsqueeze(1)) * (1 - 4 * UNIT)) / vector
    inside = (total + rest).unsqueeze(2) * slack
    bound = (known.inverse.transpose(1, 2).abs() @ inside).squeeze(2) * slack
    return torch.where((rate < 1).unsqueeze(1) & ~bound.isnan(), bound, torch.inf)


def _solve_adjoint(function: IntervalMap, z: Tensor, cotangent: Tensor) -> Tensor:
    """An approximate adjoint in float64, by Neumann iteration or a dense solve; what it lacks is in the bound."""
    jacobian = function.bound.linearize(z)
    value = cotangent
    for _ in range(_NEUMANN):
        fresh = cotangent + jacobian.vjp(value)
        if not bool((fresh - value).abs().max() > 1e-15 * fresh.abs().max()):
            return fresh if bool(fresh.isfinite().all()) else cotangent
        value = fresh
    right = function.flat(cotangent)
    size = right.shape[1]
    if size > LARGEST:
        return value if bool(value.isfinite().all()) else cotangent
    units = torch.eye(size, dtype=torch.float64)
    # J^T applied to every unit vector: the columns of J^T, sample by sample.
    columns = [function.flat(jacobian.vjp(unit.expand_as(right).reshape(z.shape))) for unit in units]
    solved, failed = torch.linalg.solve_ex(units - torch.stack(columns, dim=2), right.unsqueeze(2))
    usable = (failed == 0) & solved.squeeze(2).isfinite().all(dim=1)
    return torch.where(usable.unsqueeze(1), solved.squeeze(2), right).reshape(z.shape)


def gradient_bound(
    function: IntervalMap, box: Box, z: Tensor, cotangent: Tensor, adjoint: Tensor | None
) -> GradientBound:
    """Bounds of the adjoint and of the gradients; see `Certificate.gradient_bound`.

    Args:
        function: the map.
        box: it holds the fixed point of every sample.
        z: the approximate fixed point, float64 on the CPU.
        cotangent: of the fixed point, in the state's shape.
        adjoint: an approximate solution of the adjoint equation, or None to compute one.
    """
    guess = _solve_adjoint(function, z, cotangent) if adjoint is None else adjoint
    local = Local.at(function, box)
    products = _Adjoint(local)
    image = products.enclose(Box.point(guess))
    difference = guess - cotangent
    slack = 4 * UNIT * (guess.abs() + cotangent.abs())
    lo, hi = difference - image.hi - slack, difference - image.lo + slack
    residual = function.flat(torch.maximum(lo.abs(), hi.abs()) * (1 + 4 * UNIT))
    residual = torch.where(residual.isnan(), torch.inf, residual)
    error = _neumann(products, residual)
    if bool(error.isinf().any()):
        error = torch.minimum(error, _preconditioned(local, residual))
    error = error.reshape(guess.shape)
    exact = Box.outward(guess - error, guess + error)
    outer = products.outer(exact)
    inner = _product(local.slopes, outer)
    tensors = [*_weights(function, inner, box)]
    if function.inner is not None:
        tensors.append(inner)
    if function.outer is not None:
        tensors.append(outer)
    return GradientBound(exact, tuple(tensors))


def _weights(function: IntervalMap, u: Box, z: Box) -> list[Box]:
    """The gradient with respect to the operator's tensors: a sum of products of `u` and `z`."""
    operator = function.bound.operator
    if not operator.tensors:
        return []

    def summed(part: Operator) -> Callable[[Tensor, Tensor], list[Tensor]]:
        def gradient(left: Tensor, right: Tensor) -> list[Tensor]:
            # Clones taken outside inference mode are ordinary tensors, even of inference tensors.
            with torch.inference_mode(False), torch.enable_grad():
                leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in part.tensors)
                product = part.with_tensors(leaves)(right.clone()) * left.clone()
                return list(torch.autograd.grad(product.sum(), leaves))

        return gradient

    exact, absolute = summed(operator), summed(function.absolute)
    u_middle, z_middle = u.lo / 2 + u.hi / 2, z.lo / 2 + z.hi / 2
    u_radius = torch.maximum(u.hi - u_middle, u_middle - u.lo) * (1 + 2 * UNIT)
    z_radius = torch.maximum(z.hi - z_middle, z_middle - z.lo) * (1 + 2 * UNIT)
    # Every product of the sum over samples (and pixels, or edges) is rounded, and so is the sum.
    slack = gamma(u.lo.numel() + operator.terms() + 4)
    centre = exact(u_middle, z_middle)
    spread = absolute(u_radius + slack * u_middle.abs(), z_middle.abs() + z_radius)
    beside = absolute(u_middle.abs(), z_radius)
    return [
        Box.outward(middle - (one + two) * (1 + 2 * slack), middle + (one + two) * (1 + 2 * slack))
        for middle, one, two in zip(centre, spread, beside, strict=True)
    ]
