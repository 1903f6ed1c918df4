"""How wrong the gradients of a training step can be, by the gradient certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..certificates import certify
from .config import ImageClassifier

__all__ = ["GradientError", "gradient_errors"]


@dataclass(frozen=True)
class GradientError:
    """One tensor's gradient as the model computes it, against the exact one.

    Attributes:
        tensor: "weight" (the effective one), or "injection".
        error: the largest difference any entry can have from the exact implicit gradient; infinite without a bound.
        largest: the largest entry of the computed gradient.
    """

    tensor: str
    error: float
    largest: float


def gradient_errors(model: ImageClassifier, images: Tensor, labels: Tensor) -> tuple[GradientError, ...]:
    """Bound the error of the gradients of the mean cross-entropy that the model's inexact solves lead to.

    The derivative of the loss with respect to the equilibrium is taken as the model computes it.

    Args:
        model: the model.
        images: `(n, channels, height, width)`.
        labels: `(n,)`.
    """
    device = next(model.parameters()).device
    inputs = model.layer_input(images.to(device)).detach()
    bound = model.deq.layer.bind(inputs).detach()
    leaves = [tensor.clone().requires_grad_() for tensor in bound.tensors]
    with torch.enable_grad():
        state: Tensor = model.deq.deq(bound.with_tensors(leaves))[0][0]
        loss = F.cross_entropy(model.head(model.pool(state).flatten(1)), labels.to(device))
        cotangent, *gradients = torch.autograd.grad(loss, [state, *leaves])
    certificate = certify(model.deq.layer, inputs)
    errors = certificate.gradient_bound(state.detach(), cotangent).error(tuple(gradients))
    names = ["weight"] * len(bound.operator.tensors)
    names += ["injection"] * (len(leaves) - len(names))
    return tuple(
        GradientError(name, float(error.max()), float(gradient.abs().max()))
        for name, error, gradient in zip(names, errors, gradients, strict=True)
    )
