"""Order-preserving homogeneous maps made of pieces.

The degree of homogeneity of a composition is the product of the degrees of its pieces, and it preserves the order where
an even number of pieces reverse it (P. Sittoni, F. Tudisco, ICML 2024, section 4, for the calculus of degrees).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from .._shapes import check_floating
from ..errors import DomainError, OptionError, ShapeError
from .base import EigenMap, Jacobian, Product, columns
from .pieces import Largest, Piece, Powers, matrix_piece

__all__ = ["EXACT", "Chain", "ChainMap", "ComposedMap", "Composition", "p_norms", "power_mean"]

C = TypeVar("C", bound="Composition")
_LOST = 2.0**-1000  # products below it may lose digits
_SAFE = 2.0**900  # beyond it and below its inverse, relative errors are no longer bounded
EXACT = 2.0**-48  # a degree this close to 1 is 1 up to the rounding of its factors


@dataclass(frozen=True)
class Composition:
    """Pieces, the first one applied first."""

    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        for piece in self.pieces:
            for tensor in piece.tensors:
                check_floating(type(piece).__name__, tensor)
            if piece.defect:
                raise DomainError(f"{type(piece).__name__}: {piece.defect}.")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrices, to which gradients flow."""
        return tuple(tensor for piece in self.pieces for tensor in piece.tensors)

    def with_tensors(self: C, tensors: Sequence[Tensor]) -> C:
        """The same map with other matrices; they are not checked."""
        rest, pieces = list(tensors), []
        for piece in self.pieces:
            count = len(piece.tensors)
            pieces.append(piece.with_tensors(rest[:count]))
            del rest[:count]
        other = copy(self)
        object.__setattr__(other, "pieces", tuple(pieces))
        return other

    def __call__(self, z: Tensor) -> Tensor:
        """`F(z)` for positive `z (..., N)`."""
        for piece in self.pieces:
            z = piece(z)
        return z

    def linearize(self, z: Tensor) -> Jacobian:
        """The derivative at `z`; at a tie of largest terms, one of Clarke's."""
        parts = []
        for piece in self.pieces:
            parts.append(piece.linearize(z))
            z = piece(z)

        def jvp(v: Tensor) -> Tensor:
            for part in parts:
                v = part.jvp(v)
            return v

        def vjp(u: Tensor) -> Tensor:
            for part in reversed(parts):
                u = part.vjp(u)
            return u

        return Jacobian(jvp, vjp)

    def jacobian(self, z: Tensor) -> Tensor:
        """The derivative at `z` as matrices `(..., N, N)`."""
        return columns(self.linearize(z).jvp, z)

    def elasticity(self, z: Tensor) -> Tensor:
        """`J_ij z_j / F_i` at `z (B, N)` as matrices `(B, N, N)`."""
        total = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        for piece in self.pieces:
            image = piece(z)
            total = piece.elasticity(z, image) @ total
            z = image
        return total.expand(len(z), -1, -1)

    @property
    def homogeneity(self) -> Tensor:
        """`M (d, d)` float64."""
        return _product([piece.degrees for piece in self.pieces])

    @property
    def contraction(self) -> Tensor:
        """`L (d, d)` float64: proven factors from Hilbert distances of the blocks of arguments to those of values."""
        return _product([piece.rates for piece in self.pieces])

    @property
    def curvature(self) -> float:
        """`c`, where its elasticities change by a factor of at most `exp(c r)` if logarithms change by `r`."""
        total, reach = 0.0, 1.0
        for piece in self.pieces:
            total += piece.curvature * reach
            reach *= float(piece.degrees.sum(dim=1).max())
        return total * (1 + 2.0**-40)

    def roundings(self) -> int:
        """Upper bound on the roundings behind an entry of its values."""
        count = 4
        for piece in self.pieces:
            count = piece.roundings(count)
        return count

    def guarded(self, z: Tensor) -> Tensor:
        """`F(z)` for `z (B, N)`; NaN where powers leave the range in which rounding errors are relative ones."""
        inside = torch.ones_like(z[:, 0], dtype=torch.bool)
        for piece in self.pieces:
            image = piece(z)
            inside &= (image.amax(dim=1) < _SAFE) & (image.amin(dim=1) > 1 / _SAFE)
            if piece.order > 1:  # what underflows may be multiplied up again
                lost = _LOST * z.amax(dim=1).clamp(min=1.0) ** (piece.order - 1)
                inside &= lost < image.amin(dim=1)
            z = image
        return torch.where(inside[:, None], z, math.nan)


@dataclass(frozen=True)
class Chain(Composition):
    """A composition of pieces, the first one applied first: a map of positive vectors `(..., N)` to themselves.

    Attributes:
        pieces: each with a nonnegative matrix, or an entrywise power.
        exponent: what `perron` reports is the eigenvalue to this power.

    Raises:
        DomainError: a piece is no map of positive vectors, the composition reverses the order, or its degree of
            homogeneity exceeds 1.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(len(piece.degrees) > 1 for piece in self.pieces):
            raise DomainError("a piece works on several vectors at once; use Multihomogeneous instead of Chain.")
        if sum(piece.reverses for piece in self.pieces) % 2:
            raise DomainError("an odd number of negative powers reverses the order; the theory needs it preserved.")
        if self.degree > 1 + EXACT:
            raise DomainError(
                f"the map is homogeneous of degree {self.degree:g}, above 1: it may have several positive "
                "eigenvectors, and nothing brackets its eigenvalue; lower the powers."
            )

    @property
    def degree(self) -> float:
        """The degree of homogeneity."""
        return math.prod(piece.degree for piece in self.pieces)

    @property
    def entries(self) -> int:
        """`N`, as the first piece that says it has it.

        Raises:
            ShapeError: none does.
        """
        for piece in self.pieces:
            if piece.inputs is not None:
                return piece.inputs
        raise ShapeError("a chain of powers alone does not say how many entries its vectors have; add a Matrix.")


def _product(matrices: list[Tensor]) -> Tensor:
    total = matrices[0]
    for matrix in matrices[1:]:
        total = matrix @ total
    return total


class ComposedMap(EigenMap):
    """A composition with its tensors fixed, in float64, as an eigenproblem of one sample."""

    function: Composition

    def __call__(self, z: Tensor) -> Tensor:
        return self.function.guarded(z)

    def tangent(self, z: Tensor) -> Product:
        return self.function.linearize(z).jvp

    @property
    def degrees(self) -> Tensor:
        return self.function.homogeneity

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        return self.function.elasticity(z)


@dataclass(frozen=True)
class ChainMap(ComposedMap):
    """A chain with its matrices fixed, as an eigenproblem."""

    function: Chain
    entries: int
    smallest: Tensor
    roundings: int
    norm: float | None
    floor: float
    curvature: float
    samples: int = 1

    @classmethod
    def of(cls, chain: Chain, entries: int, device: torch.device, norm: float) -> ChainMap:
        """With vectors of that norm where the chain is not homogeneous of degree 1."""
        fixed = chain.with_tensors([tensor.detach().to(torch.float64) for tensor in chain.tensors])
        count = fixed.roundings()
        steepest, degree = 1.0, Fraction(1)
        for piece in fixed.pieces:
            degree *= Fraction(piece.degree)
            steepest = max(steepest, float(degree))
        homogeneous = abs(degree - 1) <= EXACT
        if homogeneous:  # what the deviation makes of vectors up to 2**600 apart
            count += math.ceil(float(abs(degree - 1)) * 2.0**53 * 420)
        return cls(
            fixed,
            entries,
            torch.full((1,), math.inf, dtype=torch.float64, device=device),
            count,
            None if homogeneous else norm,
            2.0 ** -math.floor(600 / steepest),
            fixed.curvature,
        )

    def rate(self) -> Tensor:
        return torch.full_like(self.smallest, min(float(self.function.contraction) * (1 + 2.0**-40), 1.0))


def power_mean(weights: Tensor, p: float) -> Chain:
    """The map `z_i <- (sum_j w_ij z_j ** p) ** (1 / p)` for nonnegative weights `(N, N)`.

    `p = 1` is a matrix, `p = -1` the harmonic mean, `p = inf` the largest term, `max_j w_ij z_j`.

    Raises:
        OptionError: `p` is 0, minus infinity or NaN.
        DomainError: a weight is negative or not finite, or a row has none.
    """
    if p == 0 or math.isnan(p) or p == -math.inf:
        raise OptionError(f"p must be a number other than 0, or inf, got {p!r}.")
    if p == math.inf:
        return Chain((Largest(weights),))
    piece = matrix_piece(weights)
    return Chain((Powers(p), piece, Powers.inverse(p))) if p != 1 else Chain((piece,))


def p_norms(matrix: Tensor, p: float, q: float) -> Chain:
    """The map whose eigenvector maximises `|A z|_p / |z|_q` for a nonnegative `A (M, N)`, `1 < p <= q`.

    `z <- (A^T (A z) ** (p - 1)) ** (1 / (q - 1))`; with `normalize=q` the eigenvalue that `perron` reports is the norm
    of `A` from `q` to `p` (D. Boyd, Linear Algebra Appl. 9, 1974, doi:10.1016/0024-3795(74)90029-9;
    A. Gautier, F. Tudisco, M. Hein, SIAM J. Matrix Anal. Appl. 40, 2019, doi:10.1137/18M1165037).

    Raises:
        OptionError: not `1 < p <= q`, both finite.
        DomainError: an entry is negative or not finite, or a row or column is zero.
    """
    if not 1 < p <= q < math.inf:
        raise OptionError(f"p and q must be finite with 1 < p <= q, got p={p!r} and q={q!r}.")
    piece = matrix_piece(matrix)
    return Chain((piece, Powers(p - 1), piece.transposed(), Powers.inverse(q - 1)), exponent=(q - 1) / p)
