"""Uniqueness on a box by a preconditioned Jacobian, where the entries' signs cancel and absolute values prove nothing.

Two fixed points `z`, `w` of a box satisfy `(I - D A)(z - w) = 0` for a diagonal `D` of slopes found on it. With `C`
close to the inverse of the midpoint `I - D_c A`, every `E = I - C (I - D A)` has `|E| <= |I - C (I - D_c A)| + |C| D_r
|A|`; if the spectral radius of that matrix is below 1, each `I - D A` is regular and the fixed point is unique. The
same identity gives `z - z* = C r + E (z - z*)` with `r = z - f(z)`: an error bound, and a smaller box (R. Krawczyk,
Computing 4, 1969, doi:10.1007/BF02234767; A. Neumaier, *Interval Methods for Systems of Equations*, CUP 1990, section
5.1, doi:10.1017/CBO9780511526473).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .intervals import Box, IntervalMap, gamma
from .local import Local
from .proof import Proof, reciprocal_gap, scaled
from .spectral import perron_bound

__all__ = ["LARGEST", "Inverse", "precondition", "regular_boxes"]

LARGEST = 400  # entries of a sample: the work grows with their cube
_ROUNDS = 12
_STALL = 0.99
_LARGEST_SLOPE = 1e100  # beyond it, and where nothing is known, there is no proof
_CHUNK = 2**24  # entries of the matrices held at a time


@dataclass(frozen=True)
class Inverse:
    """`C` and the bound of `|E|`, both `(B, N, N)`; infinite where there is none."""

    inverse: Tensor
    defect: Tensor

    def spread(self, v: Tensor) -> Tensor:
        """The bound of `|E|` times `v (B, N)`."""
        return (self.defect @ v.unsqueeze(2)).squeeze(2)


def precondition(local: Local, matrix: Tensor) -> Inverse:
    """Precondition `I - D A` for the slopes `D` found on a box, with `matrix (N, N)` for `A`."""
    size = matrix.shape[0]
    found = Box(local.function.flat(local.slopes.lo), local.function.flat(local.slopes.hi))
    usable = (found.magnitude <= _LARGEST_SLOPE).all(dim=1)[:, None, None]
    slopes = Box(found.lo.clamp(-_LARGEST_SLOPE, _LARGEST_SLOPE), found.hi.clamp(-_LARGEST_SLOPE, _LARGEST_SLOPE))
    middle = slopes.lo / 2 + slopes.hi / 2
    radius = torch.maximum(slopes.hi - middle, middle - slopes.lo)
    slack = gamma(2 * size + 8)
    identity = torch.eye(size, dtype=torch.float64)
    system = identity - middle.unsqueeze(2) * matrix
    inverse, failed = torch.linalg.inv_ex(system)
    inverse = torch.where((failed == 0)[:, None, None] & inverse.isfinite(), inverse, 0.0)
    # What the rounding of the system, of the products and of a graph's own coefficients may amount to is in the second
    # term, whose magnitudes bound all of theirs.
    spread = radius.unsqueeze(2) * matrix.abs() * (1 + slack) + slack * (system.abs() + identity)
    spread = spread + slack * middle.abs().unsqueeze(2) * matrix.abs()
    defect = (identity - inverse @ system).abs() + inverse.abs() @ spread * (1 + slack) + slack * identity
    return Inverse(inverse, torch.where(usable & ~defect.isnan(), defect * (1 + slack), torch.inf))


def _shrink(local: Local, pre: Inverse) -> Box:
    """The part of the box that can hold fixed points: `|z* - m| <= |C r(m)| + |E| rad`."""
    function = local.function
    lo, hi = function.flat(local.box.lo), function.flat(local.box.hi)
    middle = (lo / 2 + hi / 2).clamp(lo, hi)
    radius = torch.maximum(hi - middle, middle - lo)
    image = function.image(Box.point(middle.reshape(local.box.lo.shape)))
    low, high = function.flat(image.lo), function.flat(image.hi)
    slack = gamma(2 * middle.shape[1] + 8)
    residual = (low / 2 + high / 2 - middle).unsqueeze(2)
    doubt = ((high - low) * (1 + slack) + slack * (low.abs() + high.abs() + middle.abs())).unsqueeze(2)
    step = (pre.inverse @ residual).abs() + pre.inverse.abs() @ (doubt + slack * residual.abs())
    reach = (step + pre.defect @ radius.unsqueeze(2)).squeeze(2) * (1 + slack)
    reach = torch.where(reach.isnan(), torch.inf, reach)
    found = Box.outward(middle - reach, middle + reach)
    shape = local.box.lo.shape
    return Box(found.lo.reshape(shape), found.hi.reshape(shape)) & local.box


def regular_boxes(function: IntervalMap, box: Box, scope: str) -> Proof | None:
    """Try to prove the fixed point of each sample unique on its box; None if no sample is proven.

    Args:
        function: a map without normalisation, at most `LARGEST` entries to a sample.
        box: a box per sample that holds its own image and every fixed point.
        scope: for the proof.
    """
    matrix = function.bound.operator.matrix(function.shape)
    count, size = function.flat(box.lo).shape
    dims = function.bound.sample_dims
    parts = [
        _regular(function.rows(rows), box.rows(rows, dims), matrix)
        for rows in torch.arange(count).split(max(1, _CHUNK // (size * size)))
    ]
    boxes = [part[0] for part in parts]
    rho, weights, inverse = (torch.cat([part[index] for part in parts]) for index in (1, 2, 3))  # type: ignore[misc]
    if not bool((rho < 1).any()):
        return None
    shape = box.lo.shape
    whole = Box(
        torch.cat([part.lo for part in boxes]).reshape(shape), torch.cat([part.hi for part in boxes]).reshape(shape)
    )
    return Proof(
        "interval newton",
        "linf",
        reciprocal_gap(rho),
        None,
        None,
        scope,
        box=whole,
        weights=scaled(weights),
        preconditioner=inverse,
    )


def _regular(function: IntervalMap, box: Box, matrix: Tensor) -> tuple[Box, Tensor, Tensor, Tensor]:
    """Boxes, spectral bounds, weights and preconditioners after alternating shrinking and testing."""
    count, size = function.flat(box.lo).shape
    ones = torch.ones(count, size, dtype=torch.float64)
    for _ in range(_ROUNDS):
        local = Local.at(function, box)
        pre = precondition(local, matrix)
        rho, weights = perron_bound(pre.spread, ones, size + 4, balanced=True)
        fresh = _shrink(local, pre) & local.image
        before, after = box.hi - box.lo, fresh.hi - fresh.lo
        shrunk = function.flat(torch.where(before > 0, after / before, 1.0)).amin(dim=1)
        empty = function.flat(fresh.lo > fresh.hi).any(dim=1)
        done = (rho < 1) | ~(shrunk < _STALL) | empty
        if bool(done.all()):
            break
        box = Box(torch.where(_wide(empty, box), box.lo, fresh.lo), torch.where(_wide(empty, box), box.hi, fresh.hi))
    return local.box, torch.where(empty, torch.inf, rho), weights, pre.inverse


def _wide(rows: Tensor, box: Box) -> Tensor:
    return rows.reshape(-1, *[1] * (box.lo.dim() - 1))
