"""What chains are made of: nonnegative matrices, entrywise powers, largest terms, geometric means."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .base import Jacobian, columns
from .birkhoff import birkhoff_ratio

__all__ = ["Geometric", "Largest", "Matrix", "Piece", "Powers", "Sparse", "count", "matrix_piece", "nonnegative"]

P = TypeVar("P", bound="Piece")
_POW = 40  # roundings that a power may be wrong by
_EVEN = 2.0**-48  # by which degrees of rows may differ that are meant to be equal
_LONGEST = 840  # binary digits between the logarithms of entries
_LOGS = 624  # logarithms of numbers between 2**-900 and 2**900


class Piece(ABC):
    """One step of a chain, on `(..., N) -> (..., M)` positive vectors.

    Attributes:
        degree: of homogeneity, positive; `F(c z) = c ** degree F(z)`, or its reciprocal where `reverses`.
        reverses: whether it reverses the order.
        inputs: `N`; None where any number will do.
        parameters: the names of the fields that hold its tensors; a piece is a dataclass.
        order: how many entries of a vector are multiplied with each other, at most.
        sizes: of the blocks; empty where there is only one.
    """

    degree: float
    inputs: int | None = None
    reverses: bool = False
    parameters: ClassVar[tuple[str, ...]] = ()

    @property
    def order(self) -> int:
        return 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return ()

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def linearize(self, z: Tensor) -> Jacobian: ...

    def rate(self) -> float:
        """A proven factor by which it changes Hilbert distances, at most."""
        return self.degree

    @property
    def degrees(self) -> Tensor:
        """`(d, d)` float64: the degree in which every block of the result depends on every block of the argument."""
        return torch.tensor([[self.degree]], dtype=torch.float64)

    @property
    def rates(self) -> Tensor:
        """`(d, d)` float64: proven factors from Hilbert distances of the blocks of arguments to those of results."""
        return torch.tensor([[self.rate()]], dtype=torch.float64)

    @property
    def curvature(self) -> float:
        """`c`, where its elasticities change by a factor of at most `exp(c r)` if logarithms change by `r`."""
        return 2 * float(self.degrees.sum(dim=1).max())

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        """`J_ij z_j / F_i` at `z (B, N)` with its image `(B, M)`: `(B, M, N)`, all of one sign."""
        product = self.linearize(z).jvp
        return columns(lambda v: product(v * z) / image, z)

    @abstractmethod
    def roundings(self, before: int) -> int:
        """The roundings behind an entry of the result where `before` are behind those of the argument."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those in which it is differentiable."""
        return tuple(getattr(self, name) for name in self.parameters)

    def with_tensors(self: P, tensors: Sequence[Tensor]) -> P:
        """The same piece with others; they are not checked."""
        return replace(self, **dict(zip(self.parameters, tensors, strict=True)))  # type: ignore[type-var]

    @property
    @abstractmethod
    def defect(self) -> str:
        """Why this is no map of positive vectors; empty where it is one."""


@dataclass(frozen=True)
class _OfMatrix(Piece):
    """What the pieces made of a nonnegative matrix `A (M, N)` without zero rows share."""

    matrix: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("matrix",)

    @property
    def degree(self) -> float:  # type: ignore[override]
        return 1.0

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.matrix.shape[-1]

    @property
    def defect(self) -> str:
        values = self.matrix.detach()
        if values.layout != torch.strided:
            return "a sparse matrix is a piece of its own: use Sparse.of(matrix)"
        if not nonnegative(values):
            return "a matrix must have nonnegative finite entries"
        return "" if bool((values > 0).any(dim=-1).all()) else "a matrix has a zero row, so its image is not positive"


@dataclass(frozen=True)
class Matrix(_OfMatrix):
    """`z -> A z` for a nonnegative `A (M, N)` without zero rows."""

    def rate(self) -> float:
        return float(birkhoff_ratio(self.matrix.detach().to(torch.float64)[None])[0])

    def transposed(self) -> Matrix:
        return Matrix(self.matrix.mT)

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.matrix.to(z.dtype).mT

    def linearize(self, z: Tensor) -> Jacobian:
        return Jacobian(self, lambda u: u @ self.matrix.to(u.dtype))

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        return self.matrix.to(z.dtype) * z[:, None, :] / image[:, :, None]

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

    @property
    def curvature(self) -> float:
        return math.inf  # its derivative jumps


@dataclass(frozen=True)
class Sparse(Piece):
    """`z -> A z` for a sparse nonnegative `A (M, N)` without zero rows; make it with `Sparse.of`.

    Attributes:
        values: `(edges,)`, the entries, in which it is differentiable.
        rows, columns: `(edges,)` int64, where they are.
        shape: `(M, N)`.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]
    parameters: ClassVar[tuple[str, ...]] = ("values",)

    @property
    def degree(self) -> float:  # type: ignore[override]
        return 1.0

    @classmethod
    def of(cls, matrix: Tensor) -> Sparse:
        """From a sparse tensor `(M, N)` of any layout; entries given twice are added."""
        entries = matrix.to_sparse_coo().coalesce()
        rows, columns = entries.indices()
        return cls(entries.values(), rows, columns, (matrix.shape[0], matrix.shape[1]))

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.shape[1]

    def transposed(self) -> Sparse:
        return Sparse(self.values, self.columns, self.rows, (self.shape[1], self.shape[0]))

    def __call__(self, z: Tensor) -> Tensor:
        terms = self.values.to(z.dtype) * z[..., self.columns]
        return z.new_zeros(*z.shape[:-1], self.shape[0]).index_add(-1, self.rows, terms)

    def linearize(self, z: Tensor) -> Jacobian:
        return Jacobian(self, self.transposed())

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        return self._dense(self.values.to(z.dtype) * z[:, self.columns] / image[:, self.rows])

    def jacobian(self, z: Tensor) -> Tensor:
        """The matrix `(M, N)` itself."""
        return self._dense(self.values.to(z.dtype))

    def _dense(self, values: Tensor) -> Tensor:
        """Matrices `(..., M, N)` with `values (..., edges)` in the places of the entries."""
        at = self.rows * self.shape[1] + self.columns
        flat = values.new_zeros(*values.shape[:-1], self.shape[0] * self.shape[1])
        return flat.index_add(-1, at, values).view(*values.shape[:-1], *self.shape)

    def roundings(self, before: int) -> int:
        return before + int(torch.bincount(self.rows).max())

    @property
    def defect(self) -> str:
        values = self.values.detach()
        if not nonnegative(values):
            return "a matrix must have nonnegative finite entries"
        met = torch.zeros(self.shape[0], dtype=torch.bool, device=values.device)
        met[self.rows[values > 0]] = True
        return "" if bool(met.all()) else "a matrix has a zero row, so its image is not positive"


def count(number: float) -> int:
    """The next integer; a number of roundings for which there is no bound may be as large as it likes."""
    return math.ceil(min(number, 2.0**60))


def nonnegative(values: Tensor) -> bool:
    """Whether all values are nonnegative and finite."""
    return bool((values >= 0).all()) and bool(values.isfinite().all())


def matrix_piece(matrix: Tensor) -> Matrix | Sparse:
    """The piece for a dense or a sparse matrix."""
    return Matrix(matrix) if matrix.layout == torch.strided else Sparse.of(matrix)


@dataclass(frozen=True)
class Geometric(Piece):
    """`z -> prod_j z_j ** e_ij` for nonnegative exponents `E (M, N)` with equal row sums, which are the degree.

    With row sums of 1 these are weighted geometric means; in logarithms, a matrix.
    """

    exponents: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("exponents",)

    @property
    def degree(self) -> float:  # type: ignore[override]
        return float(self.exponents.detach().to(torch.float64).sum(dim=1).max())

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.exponents.shape[1]

    def rate(self) -> float:
        """The degree, times the largest share of their exponents in which two rows differ (Dobrushin's coefficient)."""
        rows = self.exponents.detach().to(torch.float64)
        most = max((float((rows - row).abs().sum(dim=1).max()) for row in rows), default=0.0)
        return min(self.degree, most / 2 * (1 + 2.0**-40))

    def __call__(self, z: Tensor) -> Tensor:
        return (z.log() @ self.exponents.to(z.dtype).mT).exp()

    def linearize(self, z: Tensor) -> Jacobian:
        value, exponents = self(z), self.exponents.to(z.dtype)
        return Jacobian(lambda v: value * ((v / z) @ exponents.mT), lambda u: ((u * value) @ exponents) / z)

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        return self.exponents.to(z.dtype).expand(len(z), -1, -1)

    def roundings(self, before: int) -> int:
        rows = self.exponents.detach().to(torch.float64).sum(dim=1)
        # Logarithms of entries between 2**-900 and 2**900 are below 624 in size; what they are off by counts as much in
        # the result, and so does what the degrees of rows differ by.
        uneven = count(float(rows.max() - rows.min()) * 2.0**53 * _LONGEST)
        size = count(_LOGS * max(self.degree, 1.0))
        return count(self.degree * before) + size * (_POW + self.exponents.shape[1]) + uneven

    @property
    def curvature(self) -> float:
        return 0.0

    @property
    def defect(self) -> str:
        values = self.exponents.detach()
        if not nonnegative(values):
            return "exponents must be nonnegative and finite"
        rows = values.to(torch.float64).sum(dim=1)
        if not bool((rows > 0).all()):
            return "a row of exponents is zero, so its mean is of nothing"
        fine = float(rows.max() - rows.min()) <= _EVEN * float(rows.max())
        return "" if fine else "the exponents of every row must have the same sum; compute them in float64"


@dataclass(frozen=True)
class Powers(Piece):
    """`z -> z ** p`, entrywise, for `p != 0`.

    Attributes:
        power: `p`.
        rounded: whether the power stands for a number that is no double, such as 1/3.
    """

    power: float
    rounded: bool = False

    @classmethod
    def inverse(cls, of: float) -> Powers:
        """With the power `1 / of`."""
        return cls(1 / of, Fraction(1 / of) * Fraction(of) != 1)

    @property
    def degree(self) -> float:  # type: ignore[override]
        return abs(self.power)

    @property
    def reverses(self) -> bool:  # type: ignore[override]
        return self.power < 0

    def __call__(self, z: Tensor) -> Tensor:
        return z**self.power

    def linearize(self, z: Tensor) -> Jacobian:
        # The slope alone may leave the range of numbers where its products do not.
        value = self.power * self(z)
        return Jacobian(lambda v: value * (v / z), lambda u: value * u / z)

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        return self.power * torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(len(z), -1, -1)

    def roundings(self, before: int) -> int:
        # A power that is off by half a unit costs as much as the logarithm of the result is long.
        return count(abs(self.power) * before) + _POW + (_LOGS if self.rounded else 0)

    @property
    def curvature(self) -> float:
        return 0.0

    @property
    def defect(self) -> str:
        fine = self.power != 0 and math.isfinite(self.power)
        return "" if fine else f"a power must be finite and not 0, got {self.power!r}"
