"""Mixed-monotone enclosure: boxes that contain every fixed point, for weights of any sign.

With `A = P - N`, `P, N >= 0`, and `f(x, y) = a(P x - N y + b) + c`, the map is `f(z, z)`, and interval evaluation is
the decomposition's `[f(lo, hi), f(hi, lo)]` (rounded outwards). From a box that holds its own image, the step
`box <- box & f(box)` keeps every fixed point, and keeps mapping into itself; so each box holds a fixed point (Brouwer).
A normalised map is enclosed in the same way: `F_i / phi(F)` grows with `F_i` and shrinks with every other entry.

A box proves uniqueness where the map contracts on it: in Thompson's metric, if its degree on the box is below 1
(theorem A; 1/2 under the conditions of theorem B), or in a weighted maximum norm, if the comparison matrix of
`I - diag(a') A` is an M-matrix for every slope found on the box (A. Berman, R. Plemmons, *Nonnegative Matrices in the
Mathematical Sciences*, SIAM 1994, chapter 6, doi:10.1137/1.9781611971262).

Mixed monotonicity: S. Coogan, *Mixed monotonicity for reachability and safety in dynamical systems*, CDC 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .intervals import Box, IntervalMap, gamma
from .local import Local
from .proof import Proof, reciprocal_gap, scaled
from .spectral import perron_bound

__all__ = ["Enclosure", "enclose", "invariant_box"]

_MAX_STEPS = 100
_STALL = 0.99  # a step that shrinks no side of the box by more than this is the last
_ENOUGH = 0.7  # a rate that is not worth another step
_POWER_STEPS = 12


@dataclass(frozen=True)
class Enclosure:
    """Boxes that contain every fixed point, with what is proven on them.

    Attributes:
        box: one box per sample.
        ratio: the contraction factor of theorem A or B on it, `(B,)`, infinite where there is none.
        weighted: the factor in the weighted maximum norm, `(B,)`.
        weights: its weights, `(B, N)`.
        lead: what the residual is multiplied by in that norm: the diagonal's share.
        picard: the factor of one plain step in that norm, `(B,)`.
        degree: the largest degree on the box, `(B,)`.
    """

    box: Box
    ratio: Tensor
    weighted: Tensor
    weights: Tensor
    lead: Tensor
    picard: Tensor
    degree: Tensor

    def proofs(self, function: IntervalMap, scope: str) -> tuple[Proof, ...]:
        """The proofs on the boxes, the one in a metric of ratios first."""
        found = []
        if bool((self.ratio < 1).any()):
            good = self.ratio < 1
            found.append(
                Proof(
                    "enclosure",
                    function.ratio_metric,
                    reciprocal_gap(self.ratio),
                    self.ratio,
                    float(self.degree[good].max()),
                    scope,
                    box=self.box,
                )
            )
        if bool((self.weighted < 1).any()):
            plain = self.picard if bool((self.picard[self.weighted < 1] < 1).all()) else None
            factor = self.lead * reciprocal_gap(self.weighted) * (1 + 2.0**-50)
            found.append(
                Proof("enclosure", "linf", factor, plain, None, scope, box=self.box, weights=scaled(self.weights))
            )
        return tuple(found)


def invariant_box(function: IntervalMap) -> Box | None:
    """A box that holds every fixed point and its own image, or None where none was found.

    A bounded activation brings its range. An unbounded one with slopes of at most `L` brings
    `|z| <= (I - L |A|)^-1 (|a(b)| + |c|)`, if the spectral radius of `L |A|` is below 1. A normalised state
    has entries of at most 1.
    """
    activation, shape = function.bound.activation, function.shape
    if function.bound.normalizer is not None:
        zero, one = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
        # Divided by a norm no entry exceeds 1. States stay nonnegative where the map is, on nonnegative states.
        value = function.activated(function.argument(Box(zero, one)))
        kept = function.flat(value.lo >= 0).all(dim=1, keepdim=True)
        return Box(torch.where(kept, 0.0, -function.flat(one)).reshape(shape), one)
    low, high = activation.range()
    zero = torch.zeros(shape, dtype=torch.float64)
    ranged = Box(zero + low, zero + high)
    if function.outer is not None:
        ranged = ranged + function.outer
    if low > -torch.inf and high < torch.inf:
        return ranged
    bottom, top = activation.slope()
    slope = max(abs(bottom), abs(top))
    if not slope < torch.inf:
        return None
    terms = function.bound.operator.terms()
    count, size = function.flat(zero).shape
    rho, vector = perron_bound(
        lambda v: slope * function.spread(v), torch.ones(count, size, dtype=torch.float64), terms + 2
    )
    if not bool((rho < 1).all()):
        return None
    # With L |A| w <= rho w, the vector w max(d / w) / (1 - rho) is above the solution of v = L |A| v + d.
    rest = function.activated(function.inner if function.inner is not None else Box.point(zero))
    need = function.flat(rest.magnitude)
    scale = (need / vector).amax(dim=1) * reciprocal_gap(rho) * (1 + gamma(8))
    radius = (vector * scale.unsqueeze(1) * (1 + gamma(8)) + 2.0**-1000).reshape(shape)
    return ranged & Box(-radius, radius)


def enclose(function: IntervalMap, start: Box, *, max_steps: int = _MAX_STEPS) -> Enclosure:
    """Shrink boxes until each proves uniqueness or stops shrinking.

    Args:
        function: the map.
        start: a box per sample that holds its own image and the fixed points of interest.
        max_steps: the largest number of interval evaluations.
    """
    lead_shape, dims = function.shape, function.bound.sample_dims
    every = torch.arange(function.samples)
    current, box, alive = function.rows(every), start.rows(every, dims), every
    kept = _Results(function.flat(start.lo), function.flat(start.hi))
    previous = torch.full((function.samples,), torch.inf, dtype=torch.float64)
    next_test = 2  # the first box is that of the range, and rarely proves anything
    for step in range(1, max_steps + 1):
        local = Local.at(current, box)
        fresh = local.image & box
        moved = _shrinkage(current, box, fresh)
        box = fresh
        last = step == max_steps
        stalled = moved > _STALL
        if step < next_test and not last and not bool(stalled.any()):
            continue
        next_test = step + max(1, step // 2)
        kept.put(alive, local, current, fresh, thorough=False)
        rate = kept.ratio[alive]
        settled = (rate < _ENOUGH) | ((rate < 1) & (rate > 0.9 * previous[alive]))
        previous[alive] = rate
        done = stalled | settled
        if bool(done.any()) or last:
            failing = (rate >= 1) & (done | last)
            if bool(failing.any()):
                rows = failing.nonzero().flatten()
                part = current.rows(rows)
                sub = box.rows(rows, dims)
                kept.put(alive[rows], Local.at(part, sub), part, sub, thorough=True)
            left = (~done).nonzero().flatten()
            alive, current, box = alive[left], current.rows(left), box.rows(left, dims)
        if not len(alive):
            break
    return kept.enclosure(lead_shape)


def _shrinkage(function: IntervalMap, old: Box, new: Box) -> Tensor:
    """The smallest ratio of new to old width over the entries of each sample: 1 where the box stands still."""
    before, after = old.hi - old.lo, new.hi - new.lo
    floor = 2.0**-48 * torch.maximum(new.magnitude, torch.full_like(before, 2.0**-1000))
    ratio = torch.where(before > floor, after / before, 1.0)
    return function.flat(torch.where(ratio.isnan(), 1.0, ratio)).amin(dim=1)


class _Results:
    """The state of all samples while boxes shrink, flat."""

    def __init__(self, lo: Tensor, hi: Tensor) -> None:
        self.lo, self.hi = lo.clone(), hi.clone()
        count = lo.shape[0]
        unknown = torch.full((count,), torch.inf, dtype=torch.float64)
        self.ratio, self.weighted, self.picard = unknown, unknown.clone(), unknown.clone()
        self.degree, self.lead = unknown.clone(), torch.ones_like(unknown)
        self.weights = torch.ones_like(lo)

    def put(self, rows: Tensor, local: Local, function: IntervalMap, box: Box, *, thorough: bool) -> None:
        """Record the box of some samples and what is proven on it; `local` is taken on it or on a larger one."""
        self.lo[rows], self.hi[rows] = function.flat(box.lo), function.flat(box.hi)
        empty = (self.lo[rows] > self.hi[rows]).any(dim=1)
        self.ratio[rows] = torch.where(empty, torch.inf, local.rates)
        self.degree[rows] = local.degree
        if thorough:
            weighted, weights, lead = _comparison(local)
            self.weighted[rows] = torch.where(empty, torch.inf, weighted)
            self.weights[rows], self.lead[rows] = weights, lead
            product = local.majorant(weights) * (1 + gamma(local.terms))
            plain = (product / weights).amax(dim=1) * (1 + gamma(4))
            self.picard[rows] = torch.where(plain.isnan(), torch.inf, plain)

    def enclosure(self, shape: torch.Size) -> Enclosure:
        """The results in the state's shape."""
        box = Box(self.lo.reshape(shape), self.hi.reshape(shape))
        return Enclosure(box, self.ratio, self.weighted, self.weights, self.lead, self.picard, self.degree)


def _comparison(local: Local) -> tuple[Tensor, Tensor, Tensor]:
    """Bound of the spectral radius of the comparison matrix's splitting, its vector, and the diagonal's share.

    `(I - D A) e = r` gives `|e_i| <= (|r_i| + d_i sum_{j != i} |A_ij| |e_j|) / (1 - d_i A_ii)` for every slope `d_i`
    found on the box, if `1 - d_i A_ii > 0`. A normalised map is majorised as a whole, with a diagonal of zero.
    """
    function = local.function
    count, size = function.flat(local.box.lo).shape
    ones = torch.ones(count, size, dtype=torch.float64)
    slack = gamma(local.terms)
    if function.bound.normalizer is not None:
        rho, vector = perron_bound(local.majorant, ones, local.terms, _POWER_STEPS, balanced=True)
        return rho, vector, torch.ones_like(rho)
    diagonal = function.bound.operator.diagonal(function.shape) * torch.ones_like(local.box.lo)
    slopes = local.slopes
    # Where a slope may be negative the diagonal is only known to help in absolute value.
    rising = slopes.lo >= 0
    product_lo, product_hi = slopes.lo * diagonal, slopes.hi * diagonal
    at_top = torch.where(rising, product_hi, slopes.magnitude * diagonal.abs())
    worst = torch.where(rising, torch.maximum(product_lo, product_hi), at_top)
    # One minus a product rounded up, rounded down.
    pivot, scale = (function.flat((1 - part * (1 + slack * part.sign())) * (1 - slack)) for part in (worst, at_top))
    reach = function.flat(slopes.magnitude)
    own = function.flat(diagonal.abs())

    def off_diagonal(v: Tensor) -> Tensor:
        # The diagonal's part is taken off a sum that contains it: what rounding leaves is added back.
        total = function.spread(v)
        return reach * ((total - own * v).clamp(min=0) + slack * total) / scale

    usable = (pivot > 0).all(dim=1) & (scale > 0).all(dim=1)
    rho, vector = perron_bound(off_diagonal, ones, local.terms, _POWER_STEPS, balanced=True)
    rho = torch.where(usable, rho, torch.inf)
    lead = (1 / pivot).amax(dim=1) * (1 + slack)
    return rho, vector, torch.where(usable, lead, 1.0)
