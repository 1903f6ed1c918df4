"""The convolutional layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import OptionError
from .base import SubhomLayer
from .linear import check_size
from .operators import ConvOperator

__all__ = ["SubhomConv2d"]


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise OptionError(f"{name} must be an integer or a pair of integers, got {value!r}.")
    return check_size(name, pair[0]), check_size(name, pair[1])


class SubhomConv2d(SubhomLayer):
    """`f(z) = N(a(W * z + b) + y)` with a zero-padded convolution that keeps the image size.

    Args:
        in_channels: channels of `x`.
        state_channels: channels `C` of the state.
        kernel_size: odd, an integer or a pair; for the state and for the injection.
        activation, shift, power, normalize, normalize_over, weight, nonneg, injection, injection_map: see
            `SubhomLayer`; groupings: "state", "channel" (one norm per channel), "pixel" (one norm per pixel).
        dilation: of the state's convolution, an integer or a pair.
        bias: whether the injection has a constant term per channel.
        device, dtype: of the parameters.

    Shapes: `x` is `(B, in_channels, H, W)`, `z` is `(B, C, H, W)`.
    """

    operator_kind = ConvOperator

    def __init__(
        self,
        in_channels: int,
        state_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        activation: str = "tanh",
        shift: float = 0.1,
        power: float = 1.0,
        normalize: float | str | None = None,
        weight: str = "nonneg",
        *,
        normalize_over: str = "state",
        nonneg: str = "abs",
        injection: str = "outside",
        injection_map: str = "relu",
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            activation=activation,
            shift=shift,
            power=power,
            normalize=normalize,
            normalize_over=normalize_over,
            weight=weight,
            nonneg=nonneg,
            injection=injection,
            injection_map=injection_map,
        )
        self.in_channels = check_size("in_channels", in_channels)
        self.state_channels = check_size("state_channels", state_channels)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.dilation = _pair("dilation", dilation)
        if any(size % 2 == 0 for size in self.kernel_size):
            raise OptionError(f"kernel_size must be odd so that the image keeps its size, got {kernel_size!r}.")
        height, width = self.kernel_size
        self.weight = nn.Parameter(
            torch.empty(state_channels, state_channels, height, width, device=device, dtype=dtype)
        )
        self.injection = nn.Conv2d(
            in_channels,
            state_channels,
            self.kernel_size,
            padding=(height // 2, width // 2),
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self._finish_weight(state_channels * height * width)

    def _features(self, x: object) -> Tensor:
        return self._check_input("x", x, self.in_channels, -3, (4,))

    def _operator(self, x: object) -> ConvOperator:
        return ConvOperator(self.weight, self.dilation)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.state_channels}, kernel_size={self.kernel_size}, {super().extra_repr()}"
