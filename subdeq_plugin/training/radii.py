"""How far each image may move, in pixel values, before the model's class can change."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from ..certificates import Robustness, robust_radius
from ..certificates.robustness import NORMS
from .config import ImageClassifier

__all__ = ["read_out", "robust_radii"]

_BATCH = 256


def read_out(model: ImageClassifier, state_shape: torch.Size) -> tuple[Tensor, Tensor]:
    """What stands behind the equilibrium, pooling included, as a weight `(classes, N)` and a bias in the model's dtype.

    Args:
        model: the model; everything behind its equilibrium is affine.
        state_shape: of the state, samples first.
    """
    tail = copy.deepcopy(torch.nn.ModuleList([model.pool, model.head])).double()
    with torch.enable_grad():
        zero = torch.zeros(1, *state_shape[1:], dtype=torch.float64, device=model.mean.device, requires_grad=True)
        logits = tail[1](tail[0](zero).flatten(1))[0]
        rows = [torch.autograd.grad(logit, zero, retain_graph=True)[0].flatten() for logit in logits]
    dtype = model.head.weight.dtype
    return torch.stack(rows).to(dtype), logits.detach().to(dtype)


def robust_radii(model: ImageClassifier, images: Tensor, norm: str) -> Robustness:
    """Certified radii of the model for images, in units of pixel values.

    They hold for equilibria that are off by at most the model's `f_tol` in the logarithm of every entry, at the image
    and wherever it is moved to.

    Args:
        model: the model.
        images: `(n, channels, height, width)`.
        norm: "linf" or "l2".

    Raises:
        CertificateError: nothing is proven for some batch of the images.
        OptionError: an unknown norm.
    """
    device = next(model.parameters()).device
    parts, radii = [], []
    with torch.no_grad():
        for batch in images.split(_BATCH):
            inputs = model.layer_input(batch.to(device))
            state = model.deq(inputs)
            head = read_out(model, state.shape)
            found = robust_radius(model.deq.layer, inputs, state, head, norm, solver_error=float(model.deq.deq.f_tol))
            # The layer sees standardised images: a pixel moves it by one over the standard deviation, and the rounding
            # of that moves it as well.
            size = torch.linalg.vector_norm(inputs.flatten(1).double().cpu(), ord=NORMS[norm], dim=1)
            lost = 4 * torch.finfo(inputs.dtype).eps * (size + found.radius)
            radii.append(((found.radius - lost) * float(model.std) * (1 - 1e-6)).clamp(min=0))
            parts.append(found)
    return replace(parts[0], radius=torch.cat(radii), predicted=torch.cat([part.predicted for part in parts]))
