"""`SubDEQ`: a subhomogeneous layer with its solver, as one module `x -> z*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..certificates import Certificate, certify
from ..errors import OptionError
from ..layers import SubhomLayer
from ..result import Solution
from .core import CertifiedDEQ

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
        **settings: Any,
    ) -> None:
        super().__init__()
        if not isinstance(layer, SubhomLayer):
            raise OptionError(f"layer must be a subhomogeneous layer, got {type(layer).__name__}.")
        self.layer = layer
        self.deq = CertifiedDEQ(f_solver=f_solver, b_solver=b_solver, f_tol=f_tol, b_tol=b_tol, **settings)

    def forward(self, x: Any, z_init: Tensor | None = None) -> Tensor:
        """The equilibrium for input `x`.

        Args:
            x: the layer's input.
            z_init: a positive start; ones if left out.

        Raises:
            ShapeError, DomainError: an unusable input or start.
            ConvergenceError: samples failed and `on_failure="raise"`.
        """
        states, _ = self.deq(self.layer.bind(x), z_init)
        result: Tensor = states[0]
        return result

    @property
    def stats(self) -> SolveStats:
        """Statistics of the last forward and backward solve."""
        return SolveStats(self.deq.forward_solution, self.deq.backward_solution)

    def certify(self, x: Any = None) -> Certificate:
        """The layer's certificate, for every input or for `x`; see `subdeq_plugin.certify`."""
        return certify(self.layer, x)
