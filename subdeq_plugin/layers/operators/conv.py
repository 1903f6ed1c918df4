"""Convolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .base import Product, all_nonnegative, columns, sample_shape

__all__ = ["ConvOperator"]


@dataclass(frozen=True)
class ConvOperator:
    """Zero-padded cross-correlation that keeps the image size: `z` is `(B, C, H, W)`, `weight` `(C, C, kh, kw)`."""

    weight: Tensor
    dilation: tuple[int, int] = (1, 1)
    kind: ClassVar[str] = "conv2d"
    sample_dims: ClassVar[int] = 3
    groups: ClassVar[dict[str, tuple[int, ...]]] = {"state": (-3, -2, -1), "channel": (-2, -1), "pixel": (-3,)}

    @property
    def _padding(self) -> tuple[int, int]:
        height, width = self.weight.shape[-2:]
        return self.dilation[0] * (height - 1) // 2, self.dilation[1] * (width - 1) // 2

    def __call__(self, z: Tensor) -> Tensor:
        return F.conv2d(z, self.weight, padding=self._padding, dilation=self.dilation)

    def transpose(self, u: Tensor) -> Tensor:
        return F.conv_transpose2d(u, self.weight, padding=self._padding, dilation=self.dilation)

    def product(self, factor: float = 1.0, *, transposed: bool = False) -> Product:
        # Odd kernels with symmetric padding: the transpose is the correlation with the flipped kernel.
        weight = self.weight.transpose(0, 1).flip(2, 3) if transposed else self.weight
        weight = (weight if factor == 1 else factor * weight).contiguous()
        padding, dilation = self._padding, self.dilation

        def product(z: Tensor, out: Tensor, add: Tensor | None = None) -> Tensor:
            image = F.conv2d(z, weight, padding=padding, dilation=dilation)
            return image if add is None else image.add_(add)

        return product

    @property
    def layout(self) -> torch.memory_format:
        # oneDNN works on channels last and reorders anything else at every call.
        return torch.channels_last if self.weight.device.type == "cpu" else torch.contiguous_format

    def gradients(self, z: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        shape = list(self.weight.shape)
        gradient: Tensor = conv2d_weight(z, shape, c, padding=self._padding, dilation=self.dilation)
        return (gradient,)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> ConvOperator:
        return replace(self, weight=tensors[0])

    def defect(self, state_shape: torch.Size | None) -> str:
        shape = tuple(self.weight.shape)
        if len(shape) != 4 or shape[0] != shape[1] or shape[2] % 2 == 0 or shape[3] % 2 == 0:
            return f"the weight must be (C, C, kh, kw) with odd kernel sizes, it has shape {shape}"
        if state_shape is not None and (len(state_shape) != 4 or state_shape[1] != shape[1]):
            return f"a state of shape {tuple(state_shape)} does not fit a weight of shape {shape}"
        return ""

    def coefficients(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def zero_row(self, state_shape: torch.Size | None) -> str:
        taps = (self.weight != 0).double()
        if state_shape is None:
            # For an unknown image size only the centre tap is certain to lie inside the image at every pixel.
            height, width = self.weight.shape[-2:]
            empty = taps[:, :, height // 2, width // 2].sum(dim=1) == 0
            return f"the centre tap of output channel {int(empty.nonzero()[0])}" if bool(empty.any()) else ""
        ones = torch.ones(1, *state_shape[-3:], dtype=taps.dtype, device=taps.device)
        counts = F.conv2d(ones, taps, padding=self._padding, dilation=self.dilation)[0].round()
        if bool((counts == 0).any()):
            channel, row, column = (counts == 0).nonzero()[0].tolist()
            return f"output channel {channel} at pixel ({row}, {column}), counting the zero padding"
        return ""

    @property
    def rows_stored(self) -> bool:
        return self.weight[0].numel() > 0

    def terms(self) -> int:
        return self.weight[0].numel()

    def row_sum(self) -> float:
        return float(self.weight.double().abs().flatten(1).sum(dim=1).max())

    def absolute(self) -> ConvOperator:
        return replace(self, weight=self.weight.abs())

    @property
    def nonnegative(self) -> bool:
        return all_nonnegative(self.coefficients())

    def diagonal(self, state_shape: torch.Size | None) -> Tensor:
        height, width = self.weight.shape[-2:]
        return self.weight[:, :, height // 2, width // 2].diagonal()[:, None, None]

    def matrix(self, state_shape: torch.Size | None) -> Tensor:
        # Zero padding and stride 1: at most one tap leads from one entry to another, so nothing is summed.
        return columns(self, sample_shape(self, state_shape), self.weight.device)

    def to(self, device: torch.device, dtype: torch.dtype) -> ConvOperator:
        return replace(self, weight=self.weight.to(device, dtype))

    def arrays(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def options(self) -> dict[str, Any]:
        return {"dilation": list(self.dilation)}

    @classmethod
    def restore(cls, arrays: dict[str, Tensor], options: dict[str, Any]) -> ConvOperator:
        height, width = options["dilation"]
        return cls(arrays["weight"], (int(height), int(width)))
