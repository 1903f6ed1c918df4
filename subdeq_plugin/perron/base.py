"""What an eigenproblem `F(z) = lambda z` is made of, and the bracket that every positive vector gives for `lambda`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..certificates.verified import gamma
from ..solvers.krylov import gmres
from .blocks import Blocks

__all__ = ["TINY", "EigenMap", "Jacobian", "Product", "choose", "columns"]

TINY = 2.0**-1000  # a product below it may lose digits to underflow
_ULP = 2.0**-1074
_DENSE = 2000  # entries up to which a shifted system is solved by a dense factorisation
_KRYLOV = 60


Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Jacobian:
    """The derivative of a map at one state, as products with tangents and cotangents of the state's shape."""

    jvp: Product
    vjp: Product


def columns(product: Product, like: Tensor) -> Tensor:
    """The matrices `(..., N, N)` behind a product with vectors of the shape of `like (..., N)`."""
    units = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    return torch.stack([product(unit.expand_as(like)) for unit in units], dim=-1)


class EigenMap(ABC):
    """An order-preserving map of positive vectors with `F(c z) <= c F(z)` for `c >= 1`, in float64.

    For such a map any positive `z` brackets the eigenvalue: `min_i F(z)_i / z_i <= lambda <= max_i F(z)_i / z_i`
    (for matrices L. Collatz, Math. Z. 48, 1942, doi:10.1007/BF01180013, and H. Wielandt, Math. Z. 52, 1950,
    doi:10.1007/BF02230720). Proof: let `F(x) = lambda x` with `x > 0`, and let `c` be the largest `z_i / x_i`, at
    `i = k`. If `c >= 1`, then `F(z)_k <= F(c x)_k <= c F(x)_k = lambda z_k`. For a homogeneous `F`, one with
    `F(c z) = c F(z)`, any `c > 0` will do; for another, `c >= 1` where `z` and `x` have the same norm. The upper bound
    is the same argument with the smallest `z_i / x_i`.

    Attributes:
        norm: the exponent of the norm of the vectors on which the eigenvalue depends; None for a homogeneous map.
        samples: `B`, of the batch.
        entries: `N`, of one vector.
        roundings: upper bound on the number of rounded operations behind an entry of `F(z)`, one after another, all on
            nonnegative numbers; None where it is not known, and brackets then hold up to rounding only.
        bracketed: whether a vector brackets the eigenvalue; if not, quotients of a vector only tell whether it is one.
        curvature: `c`, where its elasticities `J_ij z_j / F_i` are nonnegative and change by a factor of at most
            `exp(c r)` if logarithms change by at most `r`; infinite where none is known.
        smallest: `(B,)`, a lower bound on the nonzero coefficients, none of which exceeds `2**400`.
        floor: of the largest entry of a vector, what its other entries are raised to.
        epsilon: of the arithmetic in which the map is evaluated.
    """

    norm: float | None = None
    bracketed: bool = True
    curvature: float = math.inf
    floor: float = 2.0**-600
    epsilon: float = 2.0**-52
    samples: int
    entries: int
    roundings: int | None
    smallest: Tensor

    @property
    def blocks(self) -> Blocks:
        """The blocks of a vector that have eigenvalues of their own; one for most maps."""
        return Blocks((self.entries,))

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """`F(z)` for positive `z (B, N)`, row by row."""

    @abstractmethod
    def tangent(self, z: Tensor) -> Product:
        """The derivative at `z (B, N)`: its product with tangents `(B, N)`."""

    def normalised(self, z: Tensor) -> Tensor:
        """Rows `(B, N)` with largest entry 1, or of norm 1 where the map has one; NaN where there is no such.

        Entries below the map's floor are raised to it, so that the vectors are positive.
        """
        raised = (z / z.amax(dim=1, keepdim=True)).clamp_(min=self.floor)
        if self.norm is not None:
            raised = raised / torch.linalg.vector_norm(raised, ord=self.norm, dim=1, keepdim=True)
        return raised

    def bracket(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds `(B,)` on the eigenvalues from normalised positive `z (B, N)` and the computed `F(z)`.

        Not finite where there are none. Rounded outwards: with `k` roundings an entry of the image is off by a factor
        between `1 / (1 + gamma_k)` and `1 + gamma_k`, or where products may underflow, by another `k 2**-1074`. A norm
        is 1 up to rounding only; a factor `c` off, it costs the bounds as much.
        """
        k = self.outward_roundings
        outward = 1 + 2 * gamma(k)
        low = high = image / z
        if self._may_underflow:
            # With coefficients up to 2**400 and vectors up to 1, what one underflow costs is not multiplied beyond
            # 2**400.
            tiny = self.smallest * z.amin(dim=1) < TINY
            lost = torch.where(tiny, k * math.ldexp(_ULP, 400), 0.0)[:, None]
            low, high = (image - lost).clamp_min(0.0) / z, (image + lost) / z
        return low.amin(dim=1) / outward, high.amax(dim=1) * outward

    @property
    def outward_roundings(self) -> int:
        """Upper bound on the roundings behind a quotient `F(z)_i / z_i`, those of the norm of `z` included."""
        return (self.roundings or 0) + (4 if self.norm is None else self.entries + 50)

    @cached_property
    def _may_underflow(self) -> bool:
        """Whether a coefficient times an entry of a vector may be below `TINY`; norms lower the floor a little."""
        return float(self.smallest.min()) * self.floor < TINY * 2.0**50

    def rate(self) -> Tensor:
        """Proven factors `(B,)` by which `F` contracts Hilbert's metric; 1 where none below 1 is known."""
        return torch.ones_like(self.smallest)

    def sample(self, row: int) -> EigenMap | None:
        """The map of one sample; None where it cannot be taken apart."""
        return self if self.samples == 1 else None

    def jacobian(self, z: Tensor) -> Tensor:
        """The derivative at `z (B, N)` as matrices `(B, N, N)`."""
        return columns(self.tangent(z), z)

    @property
    def degrees(self) -> Tensor:
        """`(d, d)` float64, the degrees of homogeneity; of matrices, and wherever `curvature` is finite."""
        return torch.ones(1, 1, dtype=torch.float64)

    def elasticity(self, z: Tensor, image: Tensor) -> Tensor:
        """`J_ij z_j / F_i` at `z (B, N)` with its image, as matrices `(B, N, N)`."""
        return self.jacobian(z) * z[:, None, :] / image[:, :, None]

    def shifted_solve(self, z: Tensor, shift: Tensor) -> Tensor:
        """`(shift I - J(z))^-1 z` for every row, `shift (B,)`; rows that could not be solved are NaN.

        In the variables `w` of `D w`, `D = diag(z)`: near an eigenvector all entries of `w` are of one size, so that
        a factorisation does not lose the small entries of `z`. Where the map is not homogeneous, `J` is the derivative
        of `|z| F(z / |z|)`, which is, and has the same eigenvectors of norm 1.
        """
        image, product, scale = self(z), self.tangent(z), shift[:, None]
        defect = gradient = None  # of a homogeneous map
        if self.norm is not None:
            gradient = self.blocks.gradient(z, self.norm)
            defect = (image - product(z)).clamp_min(0.0)
        if self.entries > _DENSE:
            if defect is not None and gradient is not None:
                product = _plus_rank_one(product, defect, gradient)
            right = torch.ones_like(z) / scale
            return z * gmres(lambda w: product(z * w) / (z * scale), right, rtol=1e-10, krylov_dim=_KRYLOV)[0]
        matrix = -self.elasticity(z, image) * (image / z)[:, :, None]
        if defect is not None and gradient is not None:
            matrix = matrix - (defect / z)[:, :, None] * (gradient * z)[:, None, :]
        matrix.diagonal(dim1=1, dim2=2).add_(scale)
        solution, info = torch.linalg.solve_ex(matrix, torch.ones_like(z))
        return torch.where((info == 0)[:, None], z * solution, math.nan)


def _plus_rank_one(product: Product, left: Tensor, right: Tensor) -> Product:
    """`(J + left right^T) v` for every row."""
    return lambda v: product(v) + left * (right * v).sum(dim=1, keepdim=True)


def choose(condition: Tensor | np.ndarray, first: Tensor, second: Tensor) -> Tensor:
    """Rows `(B, N)` of `first` where the condition `(B,)` holds, else of `second`; no copy where all are of one."""
    if bool(condition.all()):
        return first
    if not bool(condition.any()):
        return second
    return torch.where(torch.as_tensor(condition, device=first.device)[:, None], first, second)
