"""The dense layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import OptionError
from .base import SubhomLayer
from .operators import DenseOperator

__all__ = ["SubhomLinear", "check_size"]


def check_size(name: str, value: object) -> int:
    """A positive integer size, or `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} must be a positive integer, got {value!r}.")
    return value


class SubhomLinear(SubhomLayer):
    """`f(z) = N(a(W z + b) + y)` with `(b, y) = (U x + c made nonnegative, 0)`, or `(0, U x + c made nonnegative)`.

    Args:
        in_features: size of the last dimension of `x`.
        state_features: size `n` of the state.
        activation, shift, power, normalize, normalize_over, weight, nonneg, injection, injection_map: see
            `SubhomLayer`; the only grouping is "state".
        bias: whether the injection has the constant term `c`.
        device, dtype: of the parameters.

    Shapes: `x` is `(..., in_features)`, `z` is `(..., n)`; every leading index is a sample of its own.
    Source: Sittoni and Tudisco, ICML 2024 (arXiv:2403.00720), section 4, with nonnegative state weights.
    """

    operator_kind = DenseOperator

    def __init__(
        self,
        in_features: int,
        state_features: int,
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
        self.in_features = check_size("in_features", in_features)
        self.state_features = check_size("state_features", state_features)
        self.weight = nn.Parameter(torch.empty(state_features, state_features, device=device, dtype=dtype))
        self.injection = nn.Linear(in_features, state_features, bias=bias, device=device, dtype=dtype)
        self._finish_weight(state_features)

    def _features(self, x: object) -> Tensor:
        return self._check_input("x", x, self.in_features, -1, None)

    def _operator(self, x: object) -> DenseOperator:
        return DenseOperator(self.weight)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.state_features}, {super().extra_repr()}"
