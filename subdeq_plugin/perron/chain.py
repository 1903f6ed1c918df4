"""Order-preserving homogeneous maps made of pieces: nonnegative matrices, entrywise powers, largest terms, tensors.

The degree of homogeneity of a composition is the product of the degrees of its pieces, and it preserves the order where
an even number of pieces reverse it (P. Sittoni, F. Tudisco, ICML 2024, section 4, for the calculus of degrees).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DomainError, OptionError, ShapeError
from .base import EigenMap, Jacobian, Product, columns
from .birkhoff import birkhoff_ratio

__all__ = ["Chain", "ChainMap", "Largest", "Matrix", "Piece", "Powers", "p_norms", "power_mean"]

_POW = 40  # roundings that a power may be wrong by
_SAFE = 2.0**900  # beyond it and below its inverse, relative errors are no longer bounded
_EXACT = 2.0**-48  # a degree this close to 1 is 1 up to the rounding of its factors


class Piece(ABC):
    """One step of a chain, on `(..., N) -> (..., M)` positive vectors.

    Attributes:
        degree: of homogeneity, positive; `F(c z) = c ** degree F(z)`, or its reciprocal where `reverses`.
        reverses: whether it reverses the order.
        inputs: `N`; None where any number will do.
    """

    degree: float
    inputs: int | None = None
    reverses: bool = False

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def linearize(self, z: Tensor) -> Jacobian: ...

    def rate(self) -> float:
        """A proven factor by which it changes Hilbert distances, at most."""
        return self.degree

    @abstractmethod
    def roundings(self, before: int) -> int:
        """The roundings behind an entry of the result where `before` are behind those of the argument."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return ()

    def with_tensors(self, tensors: Sequence[Tensor]) -> Piece:
        return self

    @property
    @abstractmethod
    def defect(self) -> str:
        """Why this is no map of positive vectors; empty where it is one."""


@dataclass(frozen=True)
class _OfMatrix(Piece):
    """What the pieces made of a nonnegative matrix `A (M, N)` without zero rows share."""

    matrix: Tensor
    degree: float = 1.0

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.matrix.shape[-1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Piece:
        return replace(self, matrix=tensors[0])

    @property
    def defect(self) -> str:
        values = self.matrix.detach()
        if not (bool((values >= 0).all()) and bool(values.isfinite().all())):
            return "a matrix must have nonnegative finite entries"
        return "" if bool((values > 0).any(dim=-1).all()) else "a matrix has a zero row, so its image is not positive"


@dataclass(frozen=True)
class Matrix(_OfMatrix):
    """`z -> A z` for a nonnegative `A (M, N)` without zero rows."""

    def rate(self) -> float:
        return float(birkhoff_ratio(self.matrix.detach().to(torch.float64)[None])[0])

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.matrix.to(z.dtype).mT

    def linearize(self, z: Tensor) -> Jacobian:
        return Jacobian(self, lambda u: u @ self.matrix.to(u.dtype))

    def roundings(self, before: int) -> int:
        return before + self.matrix.shape[1]


@dataclass(frozen=True)
class Largest(_OfMatrix):
    """`z -> max_j a_ij z_j` for a nonnegative `A (M, N)` without zero rows; in logarithms, a max-plus map."""

    def __call__(self, z: Tensor) -> Tensor:
        return (self.matrix.to(z.dtype) * z[..., None, :]).amax(dim=-1)

    def linearize(self, z: Tensor) -> Jacobian:
        matrix = self.matrix.to(z.dtype)
        terms = matrix * z[..., None, :]
        first = torch.nn.functional.one_hot(terms.argmax(dim=-1), terms.shape[-1]).to(z.dtype) * matrix
        return Jacobian(lambda v: (first @ v[..., None])[..., 0], lambda u: (u[..., None, :] @ first)[..., 0, :])

    def roundings(self, before: int) -> int:
        return before + 1


@dataclass(frozen=True)
class Powers(Piece):
    """`z -> z ** p`, entrywise, for `p != 0`."""

    power: float

    @property
    def degree(self) -> float:  # type: ignore[override]
        return abs(self.power)

    @property
    def reverses(self) -> bool:  # type: ignore[override]
        return self.power < 0

    def __call__(self, z: Tensor) -> Tensor:
        return z**self.power

    def linearize(self, z: Tensor) -> Jacobian:
        slope = self.power * z ** (self.power - 1)
        return Jacobian(lambda v: slope * v, lambda u: slope * u)

    def roundings(self, before: int) -> int:
        return math.ceil(abs(self.power) * before) + _POW

    @property
    def defect(self) -> str:
        fine = self.power != 0 and math.isfinite(self.power)
        return "" if fine else f"a power must be finite and not 0, got {self.power!r}"


@dataclass(frozen=True)
class Chain:
    """A composition of pieces, the first one applied first: a map of positive vectors `(..., N)` to themselves.

    Attributes:
        pieces: each with a nonnegative matrix, or an entrywise power.
        exponent: what `perron` reports is the eigenvalue to this power.

    Raises:
        DomainError: a piece is no map of positive vectors, the composition reverses the order, or its degree of
            homogeneity exceeds 1.
    """

    pieces: tuple[Piece, ...]
    exponent: float = 1.0

    def __post_init__(self) -> None:
        for piece in self.pieces:
            if piece.defect:
                raise DomainError(f"{type(piece).__name__}: {piece.defect}.")
        if sum(piece.reverses for piece in self.pieces) % 2:
            raise DomainError("an odd number of negative powers reverses the order; the theory needs it preserved.")
        if self.degree > 1 + _EXACT:
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

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrices, to which gradients flow."""
        return tuple(tensor for piece in self.pieces for tensor in piece.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Chain:
        """The same map with other matrices; they are not checked."""
        rest, pieces = list(tensors), []
        for piece in self.pieces:
            count = len(piece.tensors)
            pieces.append(piece.with_tensors(rest[:count]))
            del rest[:count]
        chain = object.__new__(Chain)
        object.__setattr__(chain, "pieces", tuple(pieces))
        object.__setattr__(chain, "exponent", self.exponent)
        return chain

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


@dataclass(frozen=True)
class ChainMap(EigenMap):
    """A chain with its matrices fixed, as an eigenproblem."""

    chain: Chain
    entries: int
    smallest: Tensor
    roundings: int
    norm: float | None
    floor: float
    samples: int = 1

    @classmethod
    def of(cls, chain: Chain, entries: int, device: torch.device, norm: float) -> ChainMap:
        """With vectors of that norm where the chain is not homogeneous of degree 1."""
        fixed = chain.with_tensors([tensor.detach().to(torch.float64) for tensor in chain.tensors])
        count = 4
        steepest = degree = 1.0
        for piece in fixed.pieces:
            count = piece.roundings(count)
            degree *= piece.degree
            steepest = max(steepest, degree)
        homogeneous = abs(degree - 1) <= _EXACT
        if homogeneous:  # what the deviation makes of vectors up to 2**600 apart
            count += math.ceil(abs(degree - 1) * 2.0**53 * 420)
        return cls(
            fixed,
            entries,
            torch.full((1,), math.inf, dtype=torch.float64, device=device),
            count,
            None if homogeneous else norm,
            2.0 ** -math.floor(600 / steepest),
        )

    def __call__(self, z: Tensor) -> Tensor:
        inside = torch.ones_like(z[:, 0], dtype=torch.bool)
        for piece in self.chain.pieces:
            z = piece(z)
            inside &= (z.amax(dim=1) < _SAFE) & (z.amin(dim=1) > 1 / _SAFE)
        # Where powers leave the range in which rounding errors are relative ones, there is no bracket.
        return torch.where(inside[:, None], z, math.nan)

    def tangent(self, z: Tensor) -> Product:
        return self.chain.linearize(z).jvp

    def rate(self) -> Tensor:
        product = math.prod(piece.rate() for piece in self.chain.pieces) * (1 + 2.0**-40)
        return torch.full_like(self.smallest, min(product, 1.0))


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
    return Chain((Powers(p), Matrix(weights), Powers(1 / p))) if p != 1 else Chain((Matrix(weights),))


def p_norms(matrix: Tensor, p: float, q: float) -> Chain:
    """The map whose eigenvector maximises `|A z|_p / |z|_q` for a nonnegative `A (M, N)`, `1 < p <= q`.

    `z <- (A^T (A z) ** (p - 1)) ** (1 / (q - 1))`; with `normalize=q` the eigenvalue that `perron` reports is the norm
    of `A` from `q` to `p` (D. Boyd, Linear Algebra Appl. 9, 1974, doi:10.1016/0024-3795(74)90029-9;
    A. Gautier, F. Tudisco, SIAM J. Matrix Anal. Appl. 40, 2019, doi:10.1137/18M1165037).

    Raises:
        OptionError: not `1 < p <= q`, both finite.
        DomainError: an entry is negative or not finite, or a row or column is zero.
    """
    if not 1 < p <= q < math.inf:
        raise OptionError(f"p and q must be finite with 1 < p <= q, got p={p!r} and q={q!r}.")
    return Chain((Matrix(matrix), Powers(p - 1), Matrix(matrix.mT), Powers(1 / (q - 1))), exponent=(q - 1) / p)
