"""A map of the user's own on boxes: what a certificate needs of it besides its proof."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._shapes import check_floating, check_shape
from ..layers import Normalizer
from .intervals import Box
from .steps import Step

__all__ = ["OwnMap", "StateSpace"]


@dataclass(frozen=True)
class StateSpace:
    """The states `(B, ...)` of a map; samples do not influence each other.

    Attributes:
        shape: of a state.
        normalizer: of the slice on which a proof in Hilbert's metric holds; None without one.
        positive: whether states are positive.
    """

    shape: torch.Size
    normalizer: Normalizer | None
    positive: bool

    @property
    def sample_dims(self) -> int:
        """How many trailing dimensions form one sample."""
        return len(self.shape) - 1

    def start(self) -> Tensor:
        """The default start: all ones."""
        return torch.ones(self.shape, dtype=torch.float64, device="cpu")

    def check_state(self, name: str, z: object) -> Tensor:
        """`z` as a floating-point tensor of the state's shape.

        Raises:
            ShapeError: it is none.
        """
        state = check_floating(name, z)
        check_shape(name, state, tuple(self.shape))
        return state


@dataclass(frozen=True)
class OwnMap:
    """A composition of steps; none for a map of which nothing is known.

    Attributes:
        bound: its states.
        steps: in the order of their application. Boxes are only asked for where a proof exists.
        scope: the states that a proof covers.
    """

    bound: StateSpace
    steps: tuple[Step, ...]
    scope: str

    @property
    def samples(self) -> int:
        """How many samples a state has."""
        return self.bound.shape[0]

    def flat(self, value: Tensor) -> Tensor:
        """A state, or anything of its shape, as `(B, N)`."""
        return value.flatten(start_dim=1)

    def argument(self, box: Box) -> Box:
        """What a proof's reach is about: the state itself."""
        return box

    def activated(self, t: Box) -> Box:
        """The image of a box of arguments."""
        for step in self.steps:
            t = step.image(t)
        return t

    def normalized(self, value: Box) -> Box:
        """The value as it is: normalisations are steps."""
        return value

    def image(self, box: Box) -> Box:
        """`f(z)` for all `z` of the box."""
        return self.normalized(self.activated(self.argument(box)))
