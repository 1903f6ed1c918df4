"""`SubDEQ`: a subhomogeneous layer with its solver, as one module `x -> z*`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..certificates import Certificate, certify
from ..errors import OptionError
from ..layers import SubhomLayer
from ..result import Solution
from .core import CertifiedDEQ
from .warm import WarmStart, numbers_refused

__all__ = ["SolveStats", "SubDEQ"]


@dataclass(frozen=True)
class SolveStats:
    """Statistics of the last solves of a `SubDEQ`, without their states; None where none has happened.

    Attributes:
        forward: of the last forward pass.
        backward: of the last backward pass.
    """

    forward: Solution | None
    backward: Solution | None


class SubDEQ(nn.Module):
    """The equilibrium of a layer as a module: `x -> z*` with `z* = layer(z*, x)`.

    Args:
        layer: a subhomogeneous layer.
        f_solver, b_solver: keys of the forward and backward solvers.
        f_tol: for a certified layer the guaranteed distance of the output to the true fixed point, in the
            certificate's metric, up to the rounding of the solve; otherwise the relative residual.
        b_tol: relative residual of the adjoint equation.
        warm_start: where solves start: None for ones, "mean" for the running mean of the equilibria seen in training,
            "sample" for the last equilibrium of the same sample, whose number the call is given. Saves evaluations; the
            tolerances hold whatever the start.
        settings: the other settings of the core; see `CertifiedDEQ`.

    The output has the shape of the layer's state. Its gradient is exact, in training and evaluation mode.

    Raises:
        OptionError: `layer` is no subhomogeneous layer, or a setting is unknown or out of range.
    """

    def __init__(
        self,
        layer: SubhomLayer,
        f_solver: str = "subdeq:auto",
        b_solver: str = "subdeq:auto",
        f_tol: float = 1e-4,
        b_tol: float = 1e-4,
        warm_start: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not isinstance(layer, SubhomLayer):
            raise OptionError(f"layer must be a subhomogeneous layer, got {type(layer).__name__}.")
        self.layer = layer
        self._warm = None if warm_start is None else WarmStart(warm_start)
        self.deq = CertifiedDEQ(f_solver=f_solver, b_solver=b_solver, f_tol=f_tol, b_tol=b_tol, **settings)

    def forward(self, x: Any, z_init: Tensor | None = None, samples: Tensor | None = None) -> Tensor:
        """The equilibrium for input `x`.

        Args:
            x: the layer's input.
            z_init: a positive start; if left out, ones or a warm start.
            samples: with `warm_start="sample"`, the numbers of the samples in the data set: `(B,)` integers.

        Raises:
            ShapeError, DomainError: an unusable input or start.
            OptionError: `samples` without a use for them, or negative ones.
            ConvergenceError: samples failed and `on_failure="raise"`.
        """
        bound = self.layer.bind(x)
        if self._warm is None:
            if samples is not None:
                raise numbers_refused()
            states, _ = self.deq(bound, z_init)
            return states[0]
        start = bound.start() if z_init is None else z_init
        numbers = self._warm.check(samples, math.prod(start.shape[: start.dim() - bound.sample_dims]))
        states, _ = self.deq(bound, self._warm.start(bound, numbers) if z_init is None else z_init)
        if self.training:
            self._warm.keep(states[0], bound, numbers)
        return states[0]

    @property
    def stats(self) -> SolveStats:
        """Statistics of the last forward and backward solve."""
        return SolveStats(self.deq.forward_solution, self.deq.backward_solution)

    def certify(self, x: Any = None) -> Certificate:
        """The layer's certificate, for every input or for `x`; see `subdeq_plugin.certify`."""
        return certify(self.layer, x)
