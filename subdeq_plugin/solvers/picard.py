"""Picard iteration: apply the map.

On a certified layer it converges with the certified rate (Banach); see `docs/certificates.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Iteration, Problem, require

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard(Iteration):
    """`z <- (1 - damping) z + damping f(z)`.

    Attributes:
        damping: in `(0, 1]`; 1 is the plain iteration, for which the certified rate holds.
    """

    name: ClassVar[str] = "picard"
    damping: float = 1.0

    def check(self) -> None:
        require(0 < self.damping <= 1, "damping", self.damping, "in (0, 1]")

    def start(self, problem: Problem, z: Tensor) -> None:
        return None

    def step(self, problem: Problem, z: Tensor, fz: Tensor, state: None) -> Tensor:
        return fz if self.damping == 1 else z + self.damping * (fz - z)
