"""What `perron` takes, read once: the map for the solve, and the differentiable map for the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from .._shapes import check_floating
from ..errors import DomainError, OptionError, ShapeError
from ..layers import BoundMap, SubhomLayer
from .base import EigenMap, Jacobian
from .chain import Chain, ChainMap, Composition
from .derivative import Parametrised
from .functions import FunctionMap, operator_function
from .layers import FlatLayer, LayerMap
from .matrices import DenseMatrix, SparseMatrix
from .multi import Multihomogeneous, MultiMap
from .pieces import Sparse as SparsePiece
from .structure import Pattern

__all__ = ["Target", "read"]


@dataclass(frozen=True)
class Target:
    """An eigenproblem as `perron` works on it.

    Attributes:
        shape: of the batch; empty for one problem.
        dtype: of the results.
        map_: the map to solve for.
        exponents: `(B,)`, of the powers of two by which the eigenvalues of `map_` are too small.
        parametrised: the map for derivatives; None for a callable, whose tensors are not known.
        sample: the shape of one vector; `(N,)` if empty.
        exponent: the eigenvalue is reported to this power.
    """

    shape: torch.Size
    dtype: torch.dtype
    map_: EigenMap
    exponents: Tensor
    parametrised: Parametrised | None
    sample: tuple[int, ...] = ()
    exponent: float = 1.0

    def eigenvalue(self, factors: Tensor) -> Tensor:
        """What is reported `(...)`, of the eigenvalues of the blocks `(..., d)`."""
        return factors[..., 0]

    def submatrix(self, sample: int) -> sp.csr_array | None:
        """One of the matrices, without stored zeros; None where the map is no matrix whose entries are known."""
        return None

    def pattern(self, sample: int) -> Pattern | None:
        """The pattern of zeros of one of the matrices; None where they are not known."""
        matrix = self.submatrix(sample)
        return None if matrix is None else Pattern(matrix)

    def transposed(self) -> Target:
        """The problem of the left eigenvectors.

        Raises:
            OptionError: the map is no matrix.
        """
        raise OptionError("only matrices have left eigenvectors; leave out side.")


@dataclass(frozen=True)
class _DenseProduct:
    """`A z`, differentiable in `A (..., N, N)`; computes in float64."""

    matrix: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> _DenseProduct:
        return _DenseProduct(*tensors)

    def __call__(self, z: Tensor) -> Tensor:
        product: Tensor = (self.matrix.to(z.dtype) @ z[..., None])[..., 0]
        return product

    def linearize(self, z: Tensor) -> Jacobian:
        matrix = self.matrix.to(z.dtype)
        return Jacobian(lambda v: (matrix @ v[..., None])[..., 0], lambda u: (u[..., None, :] @ matrix)[..., 0, :])

    def jacobian(self, z: Tensor) -> Tensor:
        return self.matrix.to(z.dtype)


@dataclass(frozen=True)
class _SparseProduct:
    """`A z`, or `A^T z`, differentiable in the values `(edges,)` of a sparse matrix in CSR form."""

    values: Tensor
    starts: Tensor
    columns: Tensor
    flipped: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> _SparseProduct:
        return replace(self, values=tensors[0])

    @cached_property
    def _piece(self) -> SparsePiece:
        nodes = torch.arange(len(self.starts) - 1, device=self.starts.device)
        rows = torch.repeat_interleave(nodes, self.starts.diff())
        piece = SparsePiece(self.values, rows, self.columns, (len(nodes), len(nodes)))
        return piece.transposed() if self.flipped else piece

    def to_scipy(self) -> sp.csr_array:
        """The matrix on the CPU, in float64 and without stored zeros."""
        parts = (part.detach().cpu().numpy() for part in (self.values.to(torch.float64), self.columns, self.starts))
        size = len(self.starts) - 1
        matrix = sp.csr_array(tuple(parts), shape=(size, size))
        if not matrix.data.all():
            matrix = matrix.copy()  # the entries are the caller's
            matrix.eliminate_zeros()
        return sp.csr_array(matrix.T) if self.flipped else matrix

    def __call__(self, z: Tensor) -> Tensor:
        return self._piece(z)

    def linearize(self, z: Tensor) -> Jacobian:
        return self._piece.linearize(z)

    def jacobian(self, z: Tensor) -> Tensor:
        return self._piece.jacobian(z)


@dataclass(frozen=True)
class Dense(Target):
    """A batch of dense matrices."""

    def submatrix(self, sample: int) -> sp.csr_array:
        # Not those of the map: scaling may have lost small entries, and every nonzero counts.
        assert isinstance(self.parametrised, _DenseProduct)
        matrix = self.parametrised.matrix.detach()
        return sp.csr_array(matrix.reshape(-1, *matrix.shape[-2:])[sample].to("cpu", torch.float64).numpy())

    def transposed(self) -> Dense:
        assert isinstance(self.map_, DenseMatrix) and isinstance(self.parametrised, _DenseProduct)
        map_ = replace(self.map_, matrices=self.map_.matrices.mT.contiguous())
        return replace(self, map_=map_, parametrised=_DenseProduct(self.parametrised.matrix.mT))


@dataclass(frozen=True)
class Sparse(Target):
    """One sparse matrix."""

    def submatrix(self, sample: int) -> sp.csr_array:
        assert isinstance(self.parametrised, _SparseProduct)
        return self.parametrised.to_scipy()

    @cached_property
    def _pattern(self) -> Pattern:
        return Pattern(self.submatrix(0))

    def pattern(self, sample: int) -> Pattern:
        return self._pattern

    def transposed(self) -> Sparse:
        assert isinstance(self.map_, SparseMatrix) and isinstance(self.parametrised, _SparseProduct)
        flipped = replace(self.parametrised, flipped=not self.parametrised.flipped)
        return replace(self, map_=self.map_.transposed(), parametrised=flipped)


@dataclass(frozen=True)
class Operator(Target):
    """A SciPy operator, which may know its transpose."""

    operator: LinearOperator | None = None

    def transposed(self) -> Target:
        assert self.operator is not None
        try:
            return _operator(self.operator.T)
        except NotImplementedError:
            raise OptionError("the operator has no rmatvec, so it has no left eigenvectors; leave out side.") from None


@dataclass(frozen=True)
class Multi(Target):
    """A multi-homogeneous map."""

    def eigenvalue(self, factors: Tensor) -> Tensor:
        assert isinstance(self.map_, MultiMap)
        return self.map_.combined(factors)[0]


def read(target: object, p: float, start: Tensor | None = None) -> Target:
    """The eigenproblem of `target`, for vectors of p-norm 1 where that makes a difference, from `start`.

    Raises:
        ShapeError: it is not a square matrix, or a batch of them; empty; not floating-point.
        DomainError: an entry is negative, NaN or infinite.
    """
    if isinstance(target, BoundMap):
        return _layer(target, p, start)
    if isinstance(target, Chain):
        return _composed(target, p)
    if isinstance(target, Multihomogeneous):
        return _blocks(target, p)
    if isinstance(target, LinearOperator):
        return _operator(target)
    if isinstance(target, SubhomLayer):
        raise ShapeError("a layer has eigenvectors for a fixed input only: pass layer.bind(x).")
    if callable(target) and not isinstance(target, Tensor):
        return _function(target, start)
    if isinstance(target, np.ndarray | sp.sparray | sp.spmatrix) and target.dtype.kind == "c":
        raise DomainError(f"target must be real and nonnegative, got dtype {target.dtype}; pass its absolute values.")
    if sp.issparse(target):
        return _read_scipy(target)
    if isinstance(target, np.ndarray):
        target = torch.from_numpy(np.ascontiguousarray(target, dtype=np.float64))
    if not isinstance(target, Tensor):
        raise ShapeError(
            "target must be a matrix (tensor, array, SciPy sparse matrix or operator), a Chain, a Multihomogeneous, "
            f"layer.bind(x), or a function of positive tensors, got {type(target).__name__}."
        )
    check_floating("target", target)
    if target.dim() < 2 or target.shape[-1] != target.shape[-2]:
        raise ShapeError(f"target must be a square matrix or a batch of them, got shape {tuple(target.shape)}.")
    if target.numel() == 0:
        raise ShapeError(f"target is empty: shape {tuple(target.shape)}.")
    if target.layout != torch.strided:
        return _read_sparse(target)
    _check_entries(target)
    flat = target.detach().to(torch.float64).reshape(-1, *target.shape[-2:])
    map_, exponents = DenseMatrix.of(flat)
    return Dense(target.shape[:-2], target.dtype, map_, exponents, _DenseProduct(target))


def _composed(chain: Chain, p: float) -> Target:
    entries = chain.entries
    tensors = chain.tensors
    _require_square(chain, entries)
    device = tensors[0].device
    map_ = ChainMap.of(chain, entries, device, p)
    exponents = torch.zeros(1, dtype=torch.int32, device=device)
    return Target(torch.Size(), tensors[0].dtype, map_, exponents, chain, exponent=chain.exponent)


def _require_square(composition: Composition, entries: int) -> None:
    probe = torch.ones(entries, dtype=torch.float64, device=composition.tensors[0].device)
    with torch.no_grad():
        try:
            shape = composition(probe).shape
        except RuntimeError as error:
            raise ShapeError(f"the pieces of the chain do not fit together: {error}") from None
    if shape != probe.shape:
        raise ShapeError(f"the chain maps vectors of {entries} entries to {shape[-1]}; it must return as many.")


def _blocks(function: Multihomogeneous, p: float) -> Target:
    _require_square(function, sum(function.sizes))
    exponents = torch.zeros(1, dtype=torch.int32, device=function.tensors[0].device)
    return Multi(torch.Size(), function.tensors[0].dtype, MultiMap.of(function, p), exponents, function)


def _layer(bound: BoundMap, p: float, start: Tensor | None) -> Target:
    shape = bound.state_shape if start is None else start.shape
    if shape is None:
        raise ShapeError("the layer has no injection that would tell the state's shape; pass start.")
    map_ = LayerMap.of(bound, shape, p)
    lead, sample = shape[: len(shape) - bound.sample_dims], shape[len(shape) - bound.sample_dims :]
    exponents = torch.zeros(map_.samples, dtype=torch.int32, device=map_.smallest.device)
    return Target(lead, bound.dtype, map_, exponents, FlatLayer(bound, shape), sample)


def _function(function: Callable[[Tensor], Tensor], start: Tensor | None) -> Target:
    if start is None:
        raise ShapeError("a function does not say how many entries its vectors have; pass start, a positive tensor.")
    map_ = FunctionMap.of(function, start.detach())
    exponents = torch.zeros(map_.samples, dtype=torch.int32, device=start.device)
    lead = 1 if start.dim() > 1 else 0
    return Target(start.shape[:lead], start.dtype, map_, exponents, None, start.shape[lead:])


def _operator(operator: LinearOperator) -> Target:
    if operator.shape[0] != operator.shape[1] or operator.shape[0] == 0:
        raise ShapeError(f"target must be square, got an operator of shape {operator.shape}.")
    read_ = _function(operator_function(operator), torch.ones(operator.shape[0], dtype=torch.float64))
    return Operator(read_.shape, read_.dtype, read_.map_, read_.exponents, None, read_.sample, operator=operator)


def _read_scipy(matrix: sp.spmatrix) -> Target:
    rows = sp.csr_array(matrix, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or rows.shape[0] == 0:
        raise ShapeError(f"target must be a square matrix, got shape {rows.shape}.")
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    values = torch.from_numpy(rows.data)
    _check_entries(values)
    starts, columns = torch.from_numpy(rows.indptr), torch.from_numpy(rows.indices)
    map_, exponents = SparseMatrix.of(rows, torch.device("cpu"))
    return Sparse(torch.Size(), values.dtype, map_, exponents, _SparseProduct(values, starts, columns))


def _read_sparse(matrix: Tensor) -> Target:
    if matrix.dim() != 2:
        raise ShapeError(f"a sparse target must be one matrix, got shape {tuple(matrix.shape)}; pass them one by one.")
    if matrix.layout == torch.sparse_csr:
        starts, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    else:
        entries = matrix.coalesce() if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo().coalesce()
        (rows, columns), values = entries.indices(), entries.values()
        counts = torch.bincount(rows, minlength=matrix.shape[0])
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    _check_entries(values)
    parts = (part.detach().cpu().numpy() for part in (values.to(torch.float64), columns, starts))
    map_, exponents = SparseMatrix.of(sp.csr_array(tuple(parts), shape=tuple(matrix.shape)), matrix.device)
    return Sparse(torch.Size(), matrix.dtype, map_, exponents, _SparseProduct(values, starts, columns))


def _check_entries(values: Tensor) -> None:
    if not values.numel():
        return
    # The extremes of values with NaN among them are NaN.
    if not (float(values.detach().amin()) >= 0 and float(values.detach().amax()) < math.inf):
        bad = ~((values >= 0) & values.isfinite())
        worst = float(values.detach()[bad][0])
        raise DomainError(
            f"target must have nonnegative finite entries, but {int(bad.sum())} are not, for instance {worst:g}; the "
            "theory of Perron and Frobenius is about nonnegative matrices."
        )
