"""Multilinear forms of several vectors: singular vectors of matrices and tensors, multi-dimensional HITS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import OptionError, ShapeError
from .base import Jacobian
from .birkhoff import birkhoff_ratio
from .multi import Multihomogeneous
from .pieces import Piece, count, nonnegative
from .tensors import by_autograd

__all__ = ["BlockPowers", "Contractions", "hits", "singular_vectors"]

_POW = 40  # roundings that a power may be wrong by


@dataclass(frozen=True)
class Contractions(Piece):
    """`x_k <- T` contracted with all `x_j`, `j != k`, for a nonnegative tensor `T (n_1, ..., n_d)`; `d >= 2`.

    Make it with `Contractions.of`.

    Attributes:
        values: `(entries,)`, in which it is differentiable.
        indices: `(d, entries)` int64.
        shape: `(n_1, ..., n_d)`.
    """

    values: Tensor
    indices: Tensor
    shape: tuple[int, ...]
    parameters: ClassVar[tuple[str, ...]] = ("values",)

    @classmethod
    def of(cls, tensor: Tensor) -> Contractions:
        """From a dense or a sparse COO tensor; zeros are left out of a dense one that needs no gradient.

        Raises:
            ShapeError: it has fewer than two dimensions, or dense ones among sparse ones.
        """
        if tensor.dim() < 2 or (tensor.is_sparse and tensor.dense_dim()):
            raise ShapeError(f"tensor must have two or more dimensions, all sparse, got shape {tuple(tensor.shape)}.")
        if tensor.layout == torch.strided:
            # With gradients, those of zeros count as well.
            indices = ((tensor.detach() != 0) | tensor.requires_grad).nonzero().T
            return cls(tensor[tuple(indices)], indices, tuple(tensor.shape))
        entries = tensor.to_sparse_coo().coalesce()
        return cls(entries.values(), entries.indices(), tuple(tensor.shape))

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return sum(self.shape)

    @property
    def order(self) -> int:
        return len(self.shape) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.shape

    @property
    def degrees(self) -> Tensor:
        d = len(self.shape)
        return torch.ones(d, d, dtype=torch.float64) - torch.eye(d, dtype=torch.float64)

    @property
    def rates(self) -> Tensor:
        """One argument after another changes, each by Birkhoff's ratio of the tensor as a matrix, at most."""
        ratios = torch.ones(len(self.shape), dtype=torch.float64)
        if self.values.numel() == math.prod(self.shape):
            flat = torch.zeros(self.shape, dtype=torch.float64, device=self.values.device)
            flat[tuple(self.indices)] = self.values.detach().to(torch.float64)
            for k in range(len(self.shape)):
                ratios[k] = birkhoff_ratio(flat.movedim(k, 0).flatten(1)[None])[0].cpu()
        return ratios[:, None] * self.degrees * (1 + 2.0**-40)

    def __call__(self, z: Tensor) -> Tensor:
        parts = z.split(self.shape, dim=-1)
        factors = [part[..., index] for part, index in zip(parts, self.indices, strict=True)]
        results = []
        for k, (part, index) in enumerate(zip(parts, self.indices, strict=True)):
            terms = self.values.to(z.dtype)
            for j, factor in enumerate(factors):
                if j != k:
                    terms = terms * factor
            results.append(part.new_zeros(part.shape).index_add(-1, index, terms.expand(*z.shape[:-1], -1)))
        return torch.cat(results, dim=-1)

    def linearize(self, z: Tensor) -> Jacobian:
        return by_autograd(self, z)

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        n = self.inputs
        starts = [sum(self.shape[:k]) for k in range(len(self.shape))]
        terms = self.values.to(z.dtype)
        places = [index + start for index, start in zip(self.indices, starts, strict=True)]
        total = z.new_zeros(len(z), n * n)
        for k, into in enumerate(places):
            shares = terms / image[:, into]
            for j, of in enumerate(places):
                shares = shares * z[:, of] if j != k else shares
            for j, of in enumerate(places):
                total = total.index_add(1, into * n + of, shares) if j != k else total
        return total.view(-1, n, n)

    def roundings(self, before: int) -> int:
        most = max(int(torch.bincount(index).max()) for index in self.indices)
        return (len(self.shape) - 1) * (before + 1) + most

    @property
    def defect(self) -> str:
        values = self.values.detach()
        if not nonnegative(values):
            return "a tensor must have nonnegative finite entries"
        for k, (index, size) in enumerate(zip(self.indices, self.shape, strict=True)):
            met = torch.zeros(size, dtype=torch.bool, device=values.device)
            met[index[values > 0]] = True
            if not bool(met.all()):
                return f"slice {int((~met).nonzero()[0])} along dimension {k} of the tensor is zero; leave it out"
        return ""


@dataclass(frozen=True)
class BlockPowers(Piece):
    """`x_k <- x_k ** p_k`, entrywise, for positive `p_k`.

    Attributes:
        powers: `p_1, ..., p_d`.
        block_sizes: `n_1, ..., n_d`.
    """

    powers: tuple[float, ...]
    block_sizes: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.block_sizes

    @property
    def degrees(self) -> Tensor:
        return torch.diag(torch.tensor(self.powers, dtype=torch.float64))

    @property
    def rates(self) -> Tensor:
        return self.degrees

    @property
    def curvature(self) -> float:
        return 0.0

    def _exponents(self, z: Tensor) -> Tensor:
        powers = torch.tensor(self.powers, dtype=torch.float64, device=z.device)
        return powers.repeat_interleave(torch.tensor(self.sizes, device=z.device)).to(z.dtype)

    def __call__(self, z: Tensor) -> Tensor:
        return z ** self._exponents(z)

    def linearize(self, z: Tensor) -> Jacobian:
        value = self._exponents(z) * self(z)
        return Jacobian(lambda v: value * (v / z), lambda u: value * u / z)

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        return torch.diag(self._exponents(z)).expand(len(z), -1, -1)

    def roundings(self, before: int) -> int:
        return count(max(self.powers) * before) + _POW

    @property
    def defect(self) -> str:
        if len(self.powers) != len(self.sizes):
            return f"there must be one power for each of the {len(self.sizes)} blocks, got {len(self.powers)}"
        fine = all(power > 0 and math.isfinite(power) for power in self.powers)
        return "" if fine else f"powers of blocks must be positive and finite, got {self.powers!r}"


def hits(tensor: Tensor, powers: float | Sequence[float] | None = None) -> Multihomogeneous:
    """The map whose eigenvectors are multi-dimensional hub and authority scores of a tensor.

    `x_k ~ (T contracted with all x_j, j != k) ** p_k` for `k = 1, ..., d`: for a matrix, hubs and authorities; for the
    tensor of a temporal multilayer network, scores of nodes that point, nodes pointed to, layers and times (F. Arrigo,
    F. Tudisco, Multi-dimensional, multilayer, nonlinear and dynamic HITS, SIAM Conf. Data Mining 2019).

    Args:
        tensor: nonnegative, dense or sparse COO, `(n_1, ..., n_d)` with `d >= 2`.
        powers: one, or one for every dimension. If left out 1 for a matrix, which is HITS, and otherwise `1 / d`: then
            the homogeneity matrix has spectral radius `1 - 1 / d`, so that the scores are unique.

    Raises:
        ShapeError: fewer than two dimensions.
        OptionError: the number of powers differs from that of the dimensions.
        DomainError: an entry is negative or not finite, a slice is zero, or a power is not positive.
    """
    d = tensor.dim()
    if d < 2:
        raise ShapeError(f"tensor must have two or more dimensions, got shape {tuple(tensor.shape)}.")
    if powers is None:
        powers = 1.0 if d == 2 else 1 / d
    exponents = (float(powers),) * d if isinstance(powers, int | float) else tuple(float(power) for power in powers)
    if len(exponents) != d:
        raise OptionError(f"powers must be a number or {d} of them, one for each dimension, got {len(exponents)}.")
    sizes = tuple(tensor.shape)
    scale = () if set(exponents) == {1.0} else (BlockPowers(exponents, sizes),)
    return Multihomogeneous((Contractions.of(tensor), *scale), sizes)


def singular_vectors(tensor: Tensor, exponents: float | Sequence[float]) -> Multihomogeneous:
    """The map whose eigenvectors are the `l^{p_1, ..., p_d}` singular vectors of a nonnegative tensor.

    They maximise `T(x_1, ..., x_d)` over vectors with `|x_k|_{p_k} = 1`, and `x_k ~ (T contracted with all x_j,
    j != k) ** (1 / (p_k - 1))` (L.-H. Lim, CAMSAP 2005, doi:10.1109/CAMAP.2005.1574201; A. Gautier, F. Tudisco,
    M. Hein, A unifying Perron-Frobenius theorem for nonnegative tensors, arXiv:1801.04215).

    Args:
        tensor: nonnegative, dense or sparse COO, `(n_1, ..., n_d)`.
        exponents: `p_k > 1`, one or one for every dimension. With all `p_k > d` the vectors are unique.

    Raises:
        OptionError: an exponent is not above 1.
        ShapeError, DomainError: as for `hits`.
    """
    listed = [exponents] * tensor.dim() if isinstance(exponents, int | float) else list(exponents)
    if not all(1 < p < math.inf for p in listed):
        raise OptionError(f"exponents must be above 1 and finite, got {exponents!r}.")
    return hits(tensor, [1 / (p - 1) for p in listed])
