"""Multi-homogeneous maps: several vectors at once, each with an eigenvalue of its own.

A map of blocks `x_1, ..., x_d` is multi-homogeneous with matrix `M` if `F_i(..., c x_j, ...) = c ** M_ij F_i(x)`. Its
eigenvectors satisfy `F_i(x) = lambda_i x_i` with blocks of norm 1. If it preserves the order and `rho(M) < 1`, there is
exactly one positive eigenvector; if `rho(M) = 1`, products of the eigenvalues are still bracketed (A. Gautier,
F. Tudisco, M. Hein, SIAM J. Matrix Anal. Appl. 40, 2019, doi:10.1137/18M1165037).

Two bounds are used here. With weights `b > 0` such that `M^T b <= b`, the smallest and the largest entries of the
quotients `F_i(z) / z_i` of any positive `z` with blocks of norm 1 bracket the product: with `low_i` and `high_i`,
`prod_i low_i ** b_i <= prod_i lambda_i ** b_i <= prod_i high_i ** b_i`. For with the largest quotients `c_i >= 1` of
`z_i` and `x_i` every `low_i` is at most `lambda_i prod_k c_k ** M_ik / c_i`, and the powers of each `c_k` in the
product add up to `(M^T b - b)_k <= 0`. And if Hilbert distances of blocks grow by a matrix `L` at most, those of `z` to
an eigenvector satisfy `delta <= d(F(z), z) + L delta`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from operator import mul

import numpy as np
import torch
from torch import Tensor

from ..certificates.verified import gamma
from ..errors import DomainError, ShapeError
from .blocks import Blocks
from .chain import EXACT, ComposedMap, Composition
from .local import nearby

__all__ = ["MultiMap", "Multihomogeneous", "proven_distances"]

_OUTWARD = 2.0**-40
_NEAR = 1e-6  # a spectral radius of M this close to 1 is taken for 1
_STEPS = 60
_SIMPLE = 1000  # largest denominator


@dataclass(frozen=True)
class Multihomogeneous(Composition):
    """A composition of pieces as a map of `d` positive vectors, written one after another: `(..., N)` to themselves.

    Attributes:
        pieces: the first one applied first; each works on all blocks, or on the only one.
        sizes: of the blocks, `N` in all.

    Raises:
        DomainError: a piece is no map of positive vectors, or it reverses the order.
        ShapeError: a piece is made for another number of blocks.
    """

    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tensors:
            raise ShapeError("pieces must have at least one with a tensor; powers alone have any vector for one.")
        for piece in self.pieces:
            if len(piece.degrees) != len(self.sizes):
                raise ShapeError(
                    f"{type(piece).__name__} works on {len(piece.degrees)} blocks, but sizes has {len(self.sizes)}."
                )
            if piece.sizes not in ((), self.sizes):
                raise ShapeError(f"{type(piece).__name__} has blocks of sizes {piece.sizes}, not {self.sizes}.")
            if piece.reverses:
                raise DomainError(f"{type(piece).__name__} reverses the order; the theory needs it preserved.")


@dataclass(frozen=True)
class MultiMap(ComposedMap):
    """A multi-homogeneous map with its tensors fixed, as an eigenproblem of one sample.

    Attributes:
        function: in float64.
        weights: `b (d,)`, with sum 1.
        bracketed: whether `M^T b <= b`, so that quotients bracket the product of the eigenvalues.
    """

    function: Multihomogeneous
    weights: Tensor
    entries: int
    smallest: Tensor
    roundings: int
    norm: float
    bracketed: bool
    floor: float
    curvature: float
    samples: int = 1

    @classmethod
    def of(cls, function: Multihomogeneous, norm: float) -> MultiMap:
        """With blocks of that norm."""
        fixed = function.with_tensors([tensor.detach().to(torch.float64) for tensor in function.tensors])
        device = fixed.tensors[0].device
        weights, excess = _weights(fixed)
        steepest = max(1.0, *(float(row) for row in fixed.homogeneity.sum(dim=1)))
        bracketed = excess <= EXACT
        # What the excess makes of vectors up to 2**600 apart.
        uneven = math.ceil(excess * 2.0**53 * 420) if bracketed else 0
        return cls(
            function=fixed,
            weights=torch.from_numpy(weights).to(device),
            entries=sum(fixed.sizes),
            smallest=torch.full((1,), math.inf, dtype=torch.float64, device=device),
            roundings=fixed.roundings() + uneven,
            norm=norm,
            bracketed=bracketed,
            floor=2.0 ** -math.floor(600 / steepest),
            curvature=fixed.curvature,
        )

    @property
    def blocks(self) -> Blocks:
        return Blocks(self.function.sizes)

    def normalised(self, z: Tensor) -> Tensor:
        blocks = self.blocks
        raised = (z / blocks.spread(blocks.largest(z))).clamp_(min=self.floor)
        return raised / blocks.spread(blocks.norms(raised, self.norm))

    def quotients(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of every block the smallest and the largest of `F_i(z) / z_i`, `(B, d)`, rounded outwards."""
        outward = 1 + 2 * gamma(self.outward_roundings)
        quotient = image / z
        return self.blocks.smallest(quotient) / outward, self.blocks.largest(quotient) * outward

    def combined(self, factors: Tensor) -> tuple[Tensor, Tensor]:
        """`prod_i factors_i ** b_i` of `(..., d)`, and how much it is off, relatively, at most."""
        logs = factors.log() * self.weights
        return logs.sum(dim=-1).exp(), (logs.abs().sum(dim=-1) + 1) * 2.0**-46

    def bracket(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.quotients(z, image)
        return self.between(low, high)

    def between(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the product of eigenvalues from bounds `(..., d)` on them."""
        (lower, below), (upper, above) = self.combined(low), self.combined(high)
        lower, upper = lower * (1 - below), upper * (1 + above)
        return torch.where(lower.isfinite(), lower, 0.0), torch.where(upper.isnan(), math.inf, upper)

    def rate(self) -> Tensor:
        """A bound on `rho(L)`: Hilbert distances, weighted, contract by it."""
        return torch.full_like(self.smallest, min(_radius(self.function.contraction.numpy()), 1.0))

    def distances(self, z: Tensor) -> Tensor:
        """Proven Hilbert distances `(d,)` of the blocks of `z (1, N)` to those of the eigenvector; or infinite.

        Finite where Hilbert distances contract, so that there is no other eigenvector.
        """
        low, high = self.quotients(z, self(z))
        moved = ((high / low).log()[0] * (1 + _OUTWARD) + _OUTWARD * 2.0**-10).cpu().numpy()
        growth = self.function.contraction.numpy() * (1 + _OUTWARD)
        nothing = torch.full((len(moved),), math.inf, dtype=torch.float64, device=z.device)
        try:
            delta = np.linalg.solve(np.eye(len(moved)) - growth, moved) * (1 + _OUTWARD)
        except np.linalg.LinAlgError:
            return nothing
        # Whatever the solver did: positive delta with delta >= moved + L delta bounds the distances, and rho(L) < 1.
        if not ((delta > 0).all() and (delta * (1 - 2.0**-45) >= moved + growth @ delta).all()):
            return nothing
        return torch.from_numpy(delta).to(z.device)

    def factors(self, z: Tensor, distances: Tensor) -> Tensor:
        """Bounds `(2, d)` on the eigenvalues of an eigenvector whose blocks have those distances to `z (1, N)`.

        Two blocks of norm 1 differ entry by entry by no more than their Hilbert distance, so the values differ by no
        more than `M` makes of it.
        """
        degrees = self.function.homogeneity.to(z.device)
        slack = 2 * gamma(self.roundings + 2 * self.entries + 100) * (degrees.sum(dim=1) + 2)
        reach = torch.where(degrees > 0, degrees * distances, 0.0).sum(dim=1) * (1 + _OUTWARD) + slack
        sizes = self.blocks.norms(self(z), self.norm)[0]
        low, high = sizes * (-reach).exp() * (1 - 2.0**-46), sizes * reach.exp() * (1 + 2.0**-46)
        # Where the map leaves the range of numbers, nothing is known.
        return torch.stack([torch.where(low.isfinite(), low, 0.0), torch.where(high > 0, high, math.inf)])


def proven_distances(map_: MultiMap, z: Tensor) -> Tensor:
    """Proven Hilbert distances `(d,)` of the blocks of `z (1, N)` to those of an eigenvector; or infinite.

    Of the only one where distances contract, else of one that Newton's method proves to be near.
    """
    distances = map_.distances(z)
    if bool(distances.isfinite().all()):
        return distances
    return torch.full_like(distances, nearby(map_, z))


def _weights(function: Multihomogeneous) -> tuple[np.ndarray, float]:
    """Positive `b (d,)` of sum 1, and the largest relative excess of `M^T b` over `b`, 0 where there is none."""
    degrees = function.homogeneity.numpy()
    d = len(degrees)
    radius = _radius(degrees)
    if radius < 1 - _NEAR:
        weights = np.linalg.solve(np.eye(d) - degrees.T, np.ones(d))
    else:  # the Perron vector of M^T
        values, vectors = np.linalg.eig(degrees.T)
        weights = np.abs(vectors[:, int(np.argmax(values.real))]) + 2.0**-60
        for _ in range(_STEPS):
            following = weights + degrees.T @ weights / radius
            weights = following / following.max()
    weights = weights / weights.sum()
    # Most maps have degrees for which simple fractions fit exactly.
    simple = np.array([float(Fraction(weight).limit_denominator(_SIMPLE)) for weight in weights])
    candidates = [b for b in (simple, weights) if (b > 0).all()]
    return min(((b, _excess(function, b)) for b in candidates), key=lambda pair: pair[1])


def _excess(function: Multihomogeneous, weights: np.ndarray) -> float:
    """Of `M^T b` over `b`, in exact arithmetic, since what is lost here is lost to the brackets."""
    total = exact = [Fraction(weight) for weight in weights.tolist()]
    for piece in reversed(function.pieces):
        rows = [[Fraction(degree) for degree in row] for row in piece.degrees.tolist()]
        columns = zip(*rows, strict=True)
        total = [sum(map(mul, column, total), Fraction(0)) for column in columns]
    return max(0.0, *(float(part / weight - 1) for part, weight in zip(total, exact, strict=True)))


def _radius(matrix: np.ndarray) -> float:
    """An upper bound on the spectral radius of a small nonnegative matrix."""
    radius = float(np.abs(np.linalg.eigvals(matrix)).max())
    raised = matrix + max(radius, 1e-300) * 1e-9  # irreducible, so that its vector is positive
    vector = np.abs(np.linalg.eig(raised)[1][:, int(np.argmax(np.linalg.eigvals(raised).real))]) + 1e-12
    best = float((matrix @ vector / vector).max()) * (1 + 2.0**-40)
    return min(best, float(matrix.sum(axis=1).max()) * (1 + 2.0**-40))
