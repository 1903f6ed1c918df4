"""Newton's method for eigenpairs in logarithms, and the proof that one is near.

With `u = log z` and `s = log lambda` an eigenpair solves `log F(exp u) - u - s = 0`, where `s` has one entry for every
block, together with `sum_i u_i = const` over each block, which fixes its length. The derivative is bordered:
`[[E - I, -S], [S^T, 0]]` with the elasticities `E = diag(1 / F) J diag(z)` and the indicators `S` of the blocks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..certificates.verified import gamma
from .base import TINY, EigenMap
from .blocks import Blocks

__all__ = ["LARGEST", "nearby", "newton_update"]

LARGEST = 2000  # entries up to which the bordered matrix is formed
_FURTHEST = 2.0  # by which a step changes logarithms, at most


def _bordered(map_: EigenMap, z: Tensor, image: Tensor) -> Tensor:
    """The derivatives `(B, N + d, N + d)`."""
    elasticities = map_.elasticity(z, image)
    borders = _indicators(map_.blocks, z)
    d, batch = len(map_.blocks), z.shape[:1]
    eye = torch.eye(map_.entries, dtype=z.dtype, device=z.device)
    left = torch.cat([elasticities - eye, borders.mT.expand(*batch, -1, -1)], dim=1)
    right = torch.cat([-borders, borders.new_zeros(d, d)], dim=0).expand(*batch, -1, -1)
    return torch.cat([left, right], dim=2)


def _indicators(blocks: Blocks, like: Tensor) -> Tensor:
    """`S (N, d)`."""
    parts = [torch.ones(size, 1, dtype=like.dtype, device=like.device) for size in blocks.sizes]
    return torch.block_diag(*parts)


def newton_update(map_: EigenMap, z: Tensor, image: Tensor) -> Tensor:
    """The next vectors `(B, N)` of Newton's method; NaN where the system is singular."""
    residual = image.log() - z.log()
    right = torch.cat([-residual, residual.new_zeros(z.shape[0], len(map_.blocks))], dim=1)
    step, info = torch.linalg.solve_ex(_bordered(map_, z, image), right)
    step = step[:, : map_.entries]
    largest = step.abs().amax(dim=1, keepdim=True)
    moved = z * (step * (_FURTHEST / largest).clamp(max=1.0)).exp()
    return torch.where((info == 0)[:, None], moved, math.nan)


def nearby(map_: EigenMap, z: Tensor) -> float:
    """A proven Hilbert distance of every block of `z (1, N)` to that of one eigenvector; infinite where none is proven.

    Krawczyk's test in the largest norm (R. Krawczyk, Computing 4, 1969, doi:10.1007/BF02234767): with an approximate
    inverse `C` of the bordered matrix, the residual `h` and a bound `g(r)` on how much the matrix changes where
    logarithms change by at most `r`, `|C h| + (|I - C H| + |C| g(r)) r < r` proves that exactly one solution is in the
    box of radius `r`. All elasticities are nonnegative and change by a factor of at most `exp(curvature r)`. The map
    has one sample.
    """
    n, d = map_.entries, len(map_.blocks)
    curvature, coefficients = map_.curvature, float(map_.smallest)
    if n > LARGEST or map_.roundings is None or not (math.isfinite(curvature) and coefficients * float(z.min()) > TINY):
        return math.inf
    image = map_(z)
    matrix = _bordered(map_, z, image)[0].cpu().numpy()
    ratio = (image / z)[0]
    if not bool((torch.isfinite(ratio) & (ratio > 0)).all()) or not np.isfinite(matrix).all():
        return math.inf
    # Any lengths of the blocks will do, so s may be chosen: the middle of the logarithms of the quotients.
    logs = ratio.log()
    middle = (map_.blocks.largest(logs) + map_.blocks.smallest(logs)) / 2
    # The derivative is evaluated with a few times the operations of the values, all on nonnegative numbers.
    unit = gamma(8 * map_.roundings + n + 200)
    blurred = 2 * gamma(map_.roundings + 8) + 2.0**-46 * float(logs.abs().max() + 1)
    residual = float((logs - map_.blocks.spread(middle)).abs().max()) + blurred
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return math.inf
    size = np.abs(inverse)
    elastic = np.zeros((n + d, n))
    elastic[:n] = np.abs(matrix[:n, :n] + np.eye(n)) + 2.0**-52 * np.eye(n)
    # Elasticities of one row add up to the degrees; what is missing was lost to underflow.
    degrees = map_.blocks.spread(map_.degrees.sum(dim=1)).expand(n).numpy()
    lost = float((size[:, :n] @ np.abs(elastic[:n].sum(axis=1) - degrees)).max())
    changes = float((size @ elastic).sum(axis=1).max()) + lost  # of C times the elasticities
    rounded = gamma(n + d + 4) * float((size @ np.abs(matrix)).sum(axis=1).max()) + unit * changes
    defect = float(np.abs(np.eye(n + d) - inverse @ matrix).sum(axis=1).max()) + 2 * rounded + lost
    first = float(size[:, :n].sum(axis=1).max()) * residual
    changes, first = changes * (1 + 2.0**-20), first * (1 + 2.0**-20)
    for radius in (2 * first, 8 * first, 1e-8, 1e-4):
        growth = math.expm1(min(curvature * radius, 700.0)) * (1 + unit)
        if first + (defect + changes * growth) * radius < radius * (1 - 2.0**-20):
            return 2 * radius * (1 + 2.0**-20)
    return math.inf
