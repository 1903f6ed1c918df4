"""Nonnegative weights through `torch.nn.utils.parametrize`: one positive function of a free parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import DomainError, OptionError, unknown_name

__all__ = ["NONNEG", "Nonneg", "make_nonneg", "undo_nonneg"]


def _floored(weight: Tensor) -> Tensor:
    """Without exact zeros: there the inverse of exp or softplus is -inf, and the weight could never grow again."""
    return weight.clamp(min=max(1e-12, torch.finfo(weight.dtype).tiny))


class Nonneg(nn.Module, ABC):
    """Base of the parametrizations; subclasses give the function and its inverse on nonnegative tensors."""

    @abstractmethod
    def forward(self, free: Tensor) -> Tensor:
        """The nonnegative weight."""

    @abstractmethod
    def invert(self, weight: Tensor) -> Tensor:
        """A free parameter that `forward` maps to `weight >= 0`."""

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Called by torch when the user assigns the weight.

        Raises:
            DomainError: the assigned weight has a negative entry.
        """
        if bool((weight < 0).any()):
            raise DomainError(
                f"weight must be nonnegative, got a smallest entry of {float(weight.min()):g}; assign weight.abs(), "
                'or build the layer with weight="signed".'
            )
        return self.invert(weight)


class _Abs(Nonneg):
    def forward(self, free: Tensor) -> Tensor:
        return free.abs()

    def invert(self, weight: Tensor) -> Tensor:
        return weight


class _Square(Nonneg):
    def forward(self, free: Tensor) -> Tensor:
        return free.square()

    def invert(self, weight: Tensor) -> Tensor:
        return weight.sqrt()


class _Softplus(Nonneg):
    def forward(self, free: Tensor) -> Tensor:
        return F.softplus(free)

    def invert(self, weight: Tensor) -> Tensor:
        clamped = _floored(weight)
        return clamped + torch.log(-torch.expm1(-clamped))


class _Exp(Nonneg):
    def forward(self, free: Tensor) -> Tensor:
        return free.exp()

    def invert(self, weight: Tensor) -> Tensor:
        return _floored(weight).log()


NONNEG: dict[str, type[Nonneg]] = {"abs": _Abs, "softplus": _Softplus, "square": _Square, "exp": _Exp}


def make_nonneg(module: nn.Module, name: str = "weight", how: str = "abs") -> None:
    """Make `module.<name>` nonnegative from now on; its entries become the absolute values of what they were.

    Args:
        module: any module with a parameter of that name.
        name: of the parameter.
        how: one of `NONNEG`. With "softplus" and "exp" an exact zero becomes 1e-12.

    Raises:
        OptionError: unknown `how`, or the parameter is already parametrized.
    """
    if how not in NONNEG:
        raise unknown_name("nonnegative parametrization", how, NONNEG)
    if parametrize.is_parametrized(module, name):
        raise OptionError(f"{type(module).__name__}.{name} is already parametrized; remove that parametrization first.")
    weight = module._parameters.get(name)
    if weight is None:
        raise OptionError(
            f"{type(module).__name__} has no parameter {name!r} (it has {', '.join(module._parameters) or 'none'}); if "
            "another norm has replaced it, remove that norm first."
        )
    with torch.no_grad():
        weight.abs_()
    parametrize.register_parametrization(module, name, NONNEG[how]())


def undo_nonneg(module: nn.Module, name: str = "weight") -> None:
    """Remove the parametrization; the parameter keeps its present nonnegative values and is free again."""
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
