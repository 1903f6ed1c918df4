"""Checks of tensors that come from the user.

Shape letters used in docstrings throughout the package:
`B` samples, `N` entries of one flattened state, `C` channels, `H`, `W` image size, `n` nodes, `d` state features.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from .errors import DomainError, ShapeError

__all__ = [
    "as_samples",
    "autocast_dtype",
    "autocast_off",
    "check_floating",
    "check_nonempty",
    "check_positive",
    "check_shape",
    "cpu_default",
]


def check_floating(name: str, value: object) -> Tensor:
    """`value` as a floating-point tensor, or `ShapeError`."""
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if not value.is_floating_point():
        raise ShapeError(f"{name} must have a floating-point dtype, got {value.dtype}; call {name}.float().")
    return value


def as_samples(z: Tensor, sample_dims: int) -> Tensor:
    """A state `(..., *sample)` as `(B, *sample)`: one leading dimension, a view where that is possible."""
    return z if z.dim() == sample_dims + 1 else z.reshape(-1, *z.shape[z.dim() - sample_dims :])


def check_nonempty(name: str, value: Tensor) -> None:
    """Refuse a tensor without elements (an empty batch has no fixed point to report)."""
    if value.numel() == 0:
        raise ShapeError(f"{name} is empty: shape {tuple(value.shape)}; pass at least one sample.")


def check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a tensor whose shape differs from `expected`."""
    if tuple(value.shape) != expected:
        raise ShapeError(f"{name} must have shape {expected}, got {tuple(value.shape)}.")


def check_positive(name: str, value: Tensor) -> None:
    """Refuse a tensor with an entry that is not strictly positive and finite.

    NaN entries are let through: they belong to samples that the solvers report one by one.
    """
    smallest, largest = (float(end) for end in torch.aminmax(value.detach()))
    if smallest > 0 and largest < math.inf:
        return
    bad = (value <= 0) | torch.isinf(value)
    if bool(bad.any()):
        worst = float(value.detach()[bad].min())
        raise DomainError(
            f"{name} must be strictly positive and finite (the layer lives on the open positive orthant), "
            f"but {int(bad.sum())} entries are not, for instance {worst:g}; start from torch.ones_like({name})."
        )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast lowers products to on this device, or None where autocast is off."""
    kind = device.type
    try:
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    except (TypeError, AttributeError):  # torch < 2.4 asks for each device by a name of its own
        if kind == "cpu":
            return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def cpu_default() -> contextlib.AbstractContextManager[object]:
    """A context in which new tensors go to the CPU, whatever `torch.set_default_device` says."""
    # The context costs time at every call of torch, so it is entered only where it changes something.
    return contextlib.nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")


def autocast_off(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context without autocast; nothing at all where it is off already (not every device knows autocast)."""
    if autocast_dtype(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
