"""What is to be certified, as the sufficient conditions see it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..activations import Activation
from ..degrees import REALS
from ..layers import BoundMap, Normalizer, SubhomLayer
from ..layers.operators import ConvOperator, DenseOperator, Operator
from .enclosure import Enclosure, enclose, invariant_box
from .intervals import Box, IntervalMap, gamma

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """A layer for every input (`bound` is None), or a map with its input fixed.

    Attributes:
        layer: the layer, or None for a map built by hand.
        bound: a snapshot of the map, or None.
        injected: where the exact injection lies, for a layer and its input.
        x: that input as it was given; no proof looks at it again.
    """

    layer: SubhomLayer | None
    bound: BoundMap | None
    injected: Box | None = None
    x: Any = None

    @property
    def activation(self) -> Activation:
        """The activation."""
        owner: Any = self.layer if self.bound is None else self.bound
        activation: Activation = owner.activation
        return activation

    @property
    def normalizer(self) -> Normalizer | None:
        """The normalisation."""
        owner: Any = self.layer if self.bound is None else self.bound
        normalizer: Normalizer | None = owner.normalizer
        return normalizer

    @cached_property
    def operator(self) -> Operator | None:
        """The linear part in float64 on the CPU; None for a graph layer whose graph is not known."""
        if self.bound is not None:
            operator = self.bound.operator
        else:
            assert self.layer is not None
            known = self.layer.operator_without_input()
            if known is None:
                return None
            operator = known
        return operator.to(torch.device("cpu"), torch.float64)

    @property
    def state_shape(self) -> torch.Size | None:
        """The state's shape, where an input determines it."""
        return None if self.bound is None else self.bound.state_shape

    @cached_property
    def samples(self) -> int:
        """How many samples the verdict is about; 1 where no input tells."""
        if self.state_shape is None or self.operator is None:
            return 1
        return math.prod(self.state_shape[: len(self.state_shape) - self.operator.sample_dims])

    @cached_property
    def sample_shape(self) -> torch.Size | None:
        """The shape of one sample as a batch of one."""
        if self.state_shape is None or self.operator is None:
            return None
        return torch.Size([1, *self.state_shape[-self.operator.sample_dims :]])

    @cached_property
    def interval(self) -> IntervalMap:
        """The map on boxes; only with an input."""
        assert self.bound is not None
        return IntervalMap.of(self.bound, self.injected)

    @cached_property
    def slope(self) -> tuple[float, float]:
        """Proven bounds of the activation's Clarke derivative over all real arguments."""
        return self.activation.slope(REALS)

    @cached_property
    def scope(self) -> str:
        """The states that a proof over all of them covers."""
        return "every input" if self.bound is None else "the bound input"

    @cached_property
    def magnitude(self) -> tuple[Operator, torch.Size, Tensor] | None:
        """`|A|` for Collatz-Wielandt bounds, the shape of its vectors, and its diagonal `A_ii` in that shape.

        Where a convolution's image size is unknown, the vectors are constant over the image: zero padding only takes
        nonnegative terms away, so the sum over the taps bounds every size.
        """
        operator = self.operator
        if operator is None:
            return None
        if isinstance(operator, ConvOperator) and self.sample_shape is None:
            height, width = operator.weight.shape[-2:]
            summed = operator.absolute().coefficients()[0].sum(dim=(2, 3))
            centre = operator.weight[:, :, height // 2, width // 2].diagonal()
            return DenseOperator(summed * (1 + 2 * gamma(height * width))), torch.Size([1, summed.shape[0]]), centre
        if isinstance(operator, DenseOperator):
            shape = torch.Size([1, operator.weight.shape[0]])
        elif self.sample_shape is None:
            return None
        else:
            shape = self.sample_shape
        diagonal = operator.diagonal(shape) * torch.ones(shape, dtype=torch.float64)
        return operator.absolute(), shape, diagonal

    @cached_property
    def boxes(self) -> Enclosure | None:
        """Boxes with every fixed point, shrunk; None where no box to start from was found, or no input is known."""
        if self.bound is None or self.state_shape is None:
            return None
        start = invariant_box(self.interval)
        return None if start is None else enclose(self.interval, start)
