"""Verified linear algebra: definiteness, largest eigenvalues, and spectral radii of nonnegative maps.

Everything is computed in float64 on the CPU, in rounding to nearest, and rounded outwards. Sums may be evaluated in any
order and with fused multiply-adds: `gamma_k = k u / (1 - k u)`, `u = 2**-53`, bounds the relative rounding error of a
chain of `k` operations in all of them (N. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., SIAM 2002,
section 3.1). What underflow adds, with or without subnormal numbers, is covered by absolute terms; for that to cost
nothing the entries should be of moderate size, which the callers see to by powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = [
    "UNDERFLOW",
    "UNIT",
    "gamma",
    "largest_eigenvalue",
    "perron_bound",
    "positive_definite",
    "scaled_by_power",
    "up",
]

UNDERFLOW = 2.0**-1000  # times a number of operations on entries of moderate size: what underflow adds to their result
UNIT = 2.0**-53
_MIXING = 2.0**-50  # of the largest entry, added to every entry of a power iterate
_SMALLEST = 2.0**-100  # of the largest entry, what entries of a start are raised to
_LOST = 2.0**-600  # underflow in a nonnegative map, with intermediate results multiplied by up to 2**400


def gamma(operations: int) -> float:
    """Upper bound on the relative error of a chain of roundings; infinite where there are too many for a bound."""
    small = operations * UNIT
    return small / (1 - small) * (1 + 2.0**-50) if small < 0.25 else math.inf


def up(value: float) -> float:
    """The next larger double."""
    return math.nextafter(value, math.inf)


def scaled_by_power(values: Tensor, exponent: int) -> Tensor:
    """`values * 2**exponent`, for `|exponent| <= 2000`; exact up to underflow and overflow."""
    half = exponent // 2
    return values * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def positive_definite(matrix: Tensor) -> bool:
    """Whether a symmetric matrix is verified to be positive definite; False means "not verified".

    If the floating-point Cholesky factorisation of `B = M - s I` runs to its end, its factor satisfies
    `R^T R = B + E` with `|E_ij| <= g / (1 - g) sqrt(B_ii B_jj)`, `g = gamma_{n+1}`, whatever the order of the sums;
    hence `||E||_2 <= g / (1 - g) trace(B)`, and with an `s` of at least that `M` is positive definite.
    (S. M. Rump, Verification of positive definiteness, BIT 46 (2006), 433-452, doi:10.1007/s10543-006-0056-1.)

    Args:
        matrix: `(n, n)` float64, exactly symmetric.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        return False
    with torch.no_grad():
        block = matrix.detach().to("cpu", torch.float64)
        return bool(torch.equal(block, block.t()) and _definite(block[None]).all())


def _definite(blocks: Tensor) -> Tensor:
    """`positive_definite` of each of the exactly symmetric blocks `(M, n, n)`: `(M,)` bool."""
    size = blocks.shape[-1]
    # Two more than Rump's n + 1, for pivots whose reciprocals are multiplied with; twice, for the rounding of s itself.
    g = 2 * gamma(size + 3)
    diagonal = blocks.diagonal(dim1=-2, dim2=-1)
    finite = blocks.isfinite().flatten(1).all(dim=1)
    good = finite & (diagonal > 0).all(dim=1)
    if size == 0 or not bool(good.any()) or g >= 0.25:
        return good if size == 0 else torch.zeros_like(good)
    exponent = math.frexp(float(diagonal[good].max()))[1]
    scaled = scaled_by_power(torch.where(good[:, None, None], blocks, 0.0), -exponent)
    diagonal = scaled.diagonal(dim1=-2, dim2=-1)
    shift = diagonal.sum(dim=1) * (g / (1 - g)) + size * size * UNDERFLOW
    lowered = (diagonal - shift[:, None]).nextafter(diagonal.new_tensor(-math.inf))
    scaled.diagonal(dim1=-2, dim2=-1).copy_(lowered)
    factor, info = torch.linalg.cholesky_ex(scaled)
    return good & (info == 0) & factor.isfinite().flatten(1).all(dim=1)


def _below(blocks: Tensor, bound: float) -> Tensor:
    """Which of the symmetric blocks `(M, n, n)` are verified to have all eigenvalues below the bound: `(M,)`."""
    gap = -blocks
    diagonal = gap.diagonal(dim1=-2, dim2=-1)
    diagonal.copy_((bound + diagonal).nextafter(diagonal.new_tensor(-math.inf)))
    return _definite(gap)


def _top(blocks: Tensor) -> float:
    """Upper bound on the eigenvalues of the symmetric blocks `(M, n, n)`, or infinity."""
    if not bool(blocks.isfinite().all()):
        return math.inf
    try:
        guess = float(torch.linalg.eigvalsh(blocks).max())
    except RuntimeError:  # LinAlgError: the iteration did not converge
        return math.inf
    size = blocks.shape[-1]
    reach = abs(guess) + float(blocks.diagonal(dim1=-2, dim2=-1).abs().max())
    margin = 4 * size * gamma(size + 3) * reach + 2 * size * size * UNDERFLOW
    for _ in range(12):
        if bool(_below(blocks, guess + margin).all()):
            return guess + margin
        margin *= 8
    return math.inf


def largest_eigenvalue(chunks: Iterable[Tensor]) -> float:
    """Upper bound on the largest eigenvalue of many symmetric matrices; infinite where nothing was verified.

    Each bound is that of an approximate eigenvalue with a margin, verified by `positive_definite` of `bound I - M`. A
    matrix that the bound so far already covers costs one Cholesky factorisation and no eigenvalues.

    Args:
        chunks: batches `(M, n, n)` float64 of exactly symmetric matrices with entries of moderate size.
    """
    bound = -math.inf
    for blocks in chunks:
        open_ones = blocks if math.isinf(bound) else blocks[~_below(blocks, bound)]
        if open_ones.numel():
            bound = max(bound, _top(open_ones))
        if bound == math.inf:
            break
    return bound


def perron_bound(
    product: Callable[[Tensor], Tensor], start: Tensor, terms: int, steps: int = 30, *, balanced: bool = False
) -> tuple[Tensor, Tensor]:
    """Verified upper bounds on the spectral radii of nonnegative linear maps `K`, one in each row of a batch.

    Collatz and Wielandt: `rho(K) <= max_i (K u)_i / u_i` for every `u > 0` (L. Collatz, Math. Z. 48 (1942), 221-226,
    doi:10.1007/BF01180013; R. Horn and C. Johnson, *Matrix Analysis*, 2nd ed., 2013, theorem 8.1.26). The `u` come from
    a power iteration, to which `2**-50` of the largest entry is added, so that they stay positive for every `K`; where
    it does not settle, as for periodic maps, the next `u` is the mean of the last two.

    Args:
        product: `(B, N) -> (B, N)` float64, row by row `u -> K u`. No coefficient may be negative, and where the map is
            evaluated in stages, what multiplies an intermediate result must not exceed `2**400`.
        start: `(B, N)`, positive; any positive vectors will do, good ones save steps.
        terms: of which every entry of a product is the sum (for a map in stages, added up over the stages).
        steps: products to spend.
        balanced: among bounds below 1, prefer one whose vector serves as the weights of a norm: the smallest bound may
            belong to a vector with entries of `2**-50`, which magnify every rounding error.

    Returns:
        The bounds `(B,)`, infinite for rows with NaN, overflow, or a start that is not positive; and the `(B, N)`
        vectors with largest entry 1 that the bounds belong to.
    """
    with torch.no_grad():
        u = start.detach().to("cpu", torch.float64)
        valid = ((u > 0) & u.isfinite()).all(dim=1)
        bound = torch.full((u.shape[0],), math.inf, dtype=torch.float64, device="cpu")
        if u.shape[1] == 0:
            return torch.zeros_like(bound), u
        u = _normalised(torch.where(valid[:, None], u, 1.0)).clamp_min(_SMALLEST)
        best, spread, lazy, score = u, bound, torch.zeros_like(valid), bound
        for _ in range(max(1, steps)):
            image = product(u).to("cpu", torch.float64)
            ratio = (image + (terms + 1) * _LOST) / u
            high = ratio.amax(dim=1)
            valid &= (image >= 0).all(dim=1) & image.isfinite().all(dim=1) & high.isfinite()
            now = high
            if balanced:
                now = torch.where(high < 1, (high - 1) * u.amin(dim=1) ** 0.25, high)
            better = valid & (now < score)
            score = torch.where(better, now, score)
            bound, best = torch.where(better, high, bound), torch.where(better[:, None], u, best)
            # Where the quotients stay as far apart as they were, the iteration oscillates, or is slow either way.
            last, spread = spread, 1 - ratio.amin(dim=1) / high
            lazy = (spread > 0.95 * last) & ~lazy
            following = image / high[:, None]
            following = torch.where(lazy[:, None], (following + u) / 2, following)
            following = _normalised(torch.where(valid[:, None], following, 1.0)) + _MIXING
            u = _normalised(following)
        outward = 1 + 2 * gamma(terms + 8)
        return torch.where(valid, bound * outward, math.inf), best


def _normalised(u: Tensor) -> Tensor:
    """Rows with largest entry 1; a row of zeros stays one."""
    largest = u.amax(dim=1, keepdim=True)
    return torch.where(largest > 0, u / largest, u)
