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
    Status.STALLED: "The method makes no more progress; try another one, such as 'noda' or 'anderson'.",
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
        method: the method that was used, in the words of `perron`.
        rigorous: whether the bounds account for rounding; False for an operator or a callable whose rounding errors
            are not known.
        left: `(..., N)`, the left eigenvector, where it was asked for.
        history: `(K, ..., 2)`, lower and upper bounds after every evaluation, where they were asked for.
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
    _patterns: Callable[[], tuple[Pattern, ...]] | None = field(default=None, repr=False)
    _rates: Callable[[], Tensor] | None = field(default=None, repr=False)
    _distance: Tensor | None = field(default=None, repr=False)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """Of every matrix of the batch, in order, what its zeros decide; empty for other maps."""
        return () if self._patterns is None else self._patterns()

    def detach(self) -> PerronResult:
        """The same pairs cut off from autograd."""
        left = None if self.left is None else self.left.detach()
        return replace(self, eigenvalue=self.eigenvalue.detach(), eigenvector=self.eigenvector.detach(), left=left)

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

    @property
    def error_bound(self) -> Tensor:
        """`(...)` float64, a guaranteed Hilbert distance of `eigenvector` to the true one; infinite where `rate` is 1.

        Banach's bound: the distance of the vector to its image, which its bracket gives, divided by `1 - rate`. A value
        `e` means that all quotients of entries are right up to a factor `exp(e)`.
        """
        if self._distance is None or not self.rigorous:
            return torch.full_like(self.lower, torch.inf)
        # Every entry is rounded when the vector is normalised, and when it gets its dtype.
        rounding = 8 * torch.finfo(self.eigenvector.dtype).eps
        bound = (self._distance * (1 + 2.0**-40) + 2.0**-48) / (1 - self.rate) + rounding
        return torch.where(self.rate < 1, bound, torch.inf)

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
