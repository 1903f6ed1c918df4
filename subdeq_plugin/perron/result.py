"""What `perron` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..result import Status
from .structure import Pattern

__all__ = ["PerronResult"]


_MESSAGES = {
    Status.CONVERGED: "The bounds are as close as asked.",
    Status.ROUNDING_FLOOR: "The bounds are as close as float64 allows; raise tol.",
    Status.MAX_ITERATIONS: (
        "The bounds hold but are not as close as asked; raise max_iter or tol, or try method 'noda'."
    ),
    Status.DIVERGED: "The vectors left the range of floating-point numbers; scale the map.",
    Status.STALLED: (
        "No eigenvector is proven to be near this vector, so there are no bounds; try another start, or 'newton'."
    ),
    Status.NONFINITE: "The map returned NaN, infinity or numbers beyond the range of float64; scale it.",
}


@dataclass(frozen=True)
class PerronResult:
    """Perron pairs of a batch: `F(z) = lambda z` with `z > 0`. `...` is the batch's shape, empty for one problem.

    Attributes:
        eigenvalue: `(...)`, the Perron root; for a matrix its spectral radius. Differentiable.
        eigenvector: `(..., N)`, of norm 1 in the norm asked for; positive, or nonnegative where no positive one exists.
            Differentiable.
        lower: `(...)` float64, a guaranteed lower bound on the eigenvalue.
        upper: `(...)` float64, a guaranteed upper bound.
        status: `(...)` int64, values of `Status`. CONVERGED: the bracket is as narrow as asked. ROUNDING_FLOOR: as
            narrow as float64 allows.
        iterations: `(...)` int64, of the method's last run.
        evaluations: how often the map was evaluated on the whole batch.
        method: the method that was asked for, in the words of `perron`; "julia:..." for that backend.
        rigorous: whether the bounds account for rounding; False for an operator or a callable whose rounding errors
            are not known.
        left: `(..., N)`, the left eigenvector, where it was asked for.
        history: `(K, ..., 2)`, lower and upper bounds after every evaluation, where they were asked for.
        factors: of a multi-homogeneous map the eigenvalues `(d,)` of its blocks; `eigenvalue` is the product of their
            powers with the exponents `weights (d,)`. None for other maps. Differentiable.
        factor_bounds: `(d, 2)` float64, guaranteed bounds on them; 0 and infinity where none are proven.
        weights: see `factors`.
        sizes: of the blocks.
    """

    eigenvalue: Tensor
    eigenvector: Tensor
    lower: Tensor
    upper: Tensor
    status: Tensor
    iterations: Tensor
    evaluations: int
    method: str
    rigorous: bool = True
    left: Tensor | None = None
    history: Tensor | None = None
    factors: Tensor | None = None
    factor_bounds: Tensor | None = None
    weights: Tensor | None = None
    sizes: tuple[int, ...] = ()
    _patterns: Callable[[], tuple[Pattern, ...]] | None = field(default=None, repr=False)
    _rates: Callable[[], Tensor] | None = field(default=None, repr=False)
    _distance: Tensor | None = field(default=None, repr=False)
    _bound: Tensor | None = field(default=None, repr=False)
    _nearby: Callable[[], Tensor] | None = field(default=None, repr=False)
    _multiplicities: Callable[[], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """The vectors of a multi-homogeneous map, each `(..., n_i)`; the eigenvector alone for other maps."""
        return self.eigenvector.split(self.sizes, dim=-1) if self.sizes else (self.eigenvector,)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """Of every matrix of the batch, in order, what its zeros decide; empty for other maps."""
        return () if self._patterns is None else self._patterns()

    def detach(self) -> PerronResult:
        """The same pairs cut off from autograd."""
        left = None if self.left is None else self.left.detach()
        factors = None if self.factors is None else self.factors.detach()
        eigenvalue, eigenvector = self.eigenvalue.detach(), self.eigenvector.detach()
        return replace(self, eigenvalue=eigenvalue, eigenvector=eigenvector, left=left, factors=factors)

    @cached_property
    def rate(self) -> Tensor:
        """`(...)` float64, a proven factor by which a step of the map contracts Hilbert's metric; 1 where none is.

        Of positive dense matrices Birkhoff's ratio, of chains the product of the ratios and degrees of their pieces, of
        layers their degree. Below 1 it proves that the eigenvector is unique.
        """
        if self._rates is None:
            return torch.ones_like(self.lower)
        with torch.no_grad():
            return self._rates()

    @cached_property
    def error_bound(self) -> Tensor:
        """`(...)` float64, a guaranteed Hilbert distance of `eigenvector` to a true one; infinite where none is proven.

        A value `e` means that all quotients of entries are right up to a factor `exp(e)`. Where `rate` is below 1 it is
        Banach's bound: the distance of the vector to its image, which its bracket gives, divided by `1 - rate`.
        Elsewhere, for maps with up to 2,000 entries and a known derivative, it is the radius of a box in which Newton's
        method proves exactly one eigenvector; that takes about as long as inverting a matrix of that size.
        """
        rounding = self._rounding()
        if self._bound is not None:
            return self._bound * (1 + 2.0**-40) + rounding
        if self._distance is None or not self.rigorous:
            return torch.full_like(self.lower, torch.inf)
        bound = (self._distance * (1 + 2.0**-40) + 2.0**-48) / (1 - self.rate) + rounding
        bound = torch.where(self.rate < 1, bound, torch.inf)
        if self._nearby is not None and not bool(bound.isfinite().all()):
            with torch.no_grad():
                bound = torch.minimum(bound, self._nearby() + rounding)
        return bound

    def _rounding(self) -> Tensor:
        """How far the vector moves `(...)` by being normalised and getting its dtype; entries may get subnormal."""
        info = torch.finfo(self.eigenvector.dtype)
        least = self.eigenvector.detach().reshape(*self.lower.shape, -1).amin(dim=-1).to(torch.float64)
        lost = torch.where(least > 0, torch.log1p(2 * info.smallest_normal * info.eps / least), torch.inf)
        return 8 * info.eps + torch.where(least < info.smallest_normal, lost, 0.0)

    @property
    def multiplicity(self) -> Tensor:
        """`(...)` int64, the algebraic multiplicity of a matrix's spectral radius; 0 for other maps.

        The number of classes whose bounds reach it: too large where the bounds cannot tell two classes apart.
        """
        return self._jordan[0]

    @property
    def index(self) -> Tensor:
        """`(...)` int64, the size of the largest Jordan block of a matrix's spectral radius; 0 for other maps.

        Above 1 the matrix is defective: it has fewer eigenvectors than `multiplicity`. As certain as that is.
        """
        return self._jordan[1]

    @cached_property
    def _jordan(self) -> tuple[Tensor, Tensor]:
        none = torch.zeros_like(self.status)
        return (none, none) if self._multiplicities is None else self._multiplicities()

    @property
    def messages(self) -> tuple[str, ...]:
        """Of every problem of the batch, what its status means and the remedy."""
        return tuple(_MESSAGES[Status(code)] for code in self.status.flatten().tolist())

    @property
    def width(self) -> Tensor:
        """`(...)`, of the bracket, relative to its upper end; infinite where there is no upper bound."""
        relative = torch.where(self.upper > 0, (self.upper - self.lower) / self.upper, 0.0)
        return torch.where(self.upper.isfinite(), relative, torch.inf)

    @property
    def converged(self) -> bool:
        """Whether every bracket is as narrow as asked."""
        return bool((self.status == Status.CONVERGED).all())
