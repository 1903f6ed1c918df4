"""Warm starts: where a solve begins changes how many steps it takes, and nothing of what is guaranteed."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shapes import as_samples
from ..errors import OptionError, ShapeError, unknown_name
from ..layers import BoundMap

__all__ = ["WARM_STARTS", "WarmStart", "numbers_refused"]

WARM_STARTS = ("mean", "sample")

_MOMENTUM = 0.1  # of the running mean


def numbers_refused() -> OptionError:
    """The numbers of samples were given where nothing is remembered by them."""
    return OptionError('samples are of use with warm_start="sample" only; leave them out.')


class WarmStart:
    """Starts from equilibria of earlier batches.

    "mean" starts every sample from the running mean of the equilibria seen in training; "sample" starts a sample that
    was seen before from its own last equilibrium, which it is told apart by its number, and others from the mean.
    Memory, in states of one sample: 1, and with "sample" as many as the largest number seen, and at most as many again.
    What is remembered is no part of a checkpoint.

    Raises:
        OptionError: an unknown kind.
    """

    def __init__(self, kind: str) -> None:
        if kind not in WARM_STARTS:
            raise unknown_name("warm_start", kind, WARM_STARTS)
        self.kind = kind
        self._mean: Tensor | None = None
        self._states: Tensor | None = None
        self._known = torch.zeros(0, dtype=torch.bool)

    def check(self, samples: Tensor | None, batch: int) -> Tensor | None:
        """The numbers of a batch's samples, on the CPU.

        Raises:
            OptionError: numbers are given that a "mean" has no use for, or are negative.
            ShapeError: they are no vector of integers, one for each sample.
        """
        if samples is None:
            return None
        if self.kind != "sample":
            raise numbers_refused()
        if samples.is_floating_point() or samples.shape != (batch,):
            raise ShapeError(
                f"samples must be integers of shape ({batch},), one number for each sample, got "
                f"{samples.dtype} of shape {tuple(samples.shape)}."
            )
        if int(samples.min()) < 0:
            raise OptionError(f"samples must be nonnegative numbers, got {int(samples.min())}.")
        return samples.detach().to("cpu", torch.int64)

    def start(self, bound: BoundMap, samples: Tensor | None) -> Tensor:
        """A start of the state's shape; ones where nothing is known."""
        ones = bound.start()
        rows = as_samples(ones, bound.sample_dims)
        mean = self._mean
        if mean is None or mean.shape != rows.shape[1:]:
            return ones
        start = mean.to(rows).expand_as(rows).clone()
        if samples is not None and self._states is not None:
            seen = samples < len(self._known)
            seen[seen.clone()] = self._known[samples[seen]]
            start[seen.to(start.device)] = self._states[samples[seen].to(self._states.device)].to(start)
        return start.reshape(ones.shape)

    def keep(self, z: Tensor, bound: BoundMap, samples: Tensor | None) -> None:
        """Remember the equilibria `z` of a batch; what is not positive and finite is left out."""
        rows = as_samples(z.detach(), bound.sample_dims)
        flat = rows.reshape(len(rows), -1)
        good = ((flat > 0) & flat.isfinite()).all(dim=1)
        if not bool(good.any()):
            return
        mean = rows[good].mean(dim=0)
        if self._mean is None or self._mean.shape != mean.shape:
            self._mean, self._states = mean, None
        else:
            self._mean = torch.lerp(self._mean.to(mean), mean, _MOMENTUM)
        if samples is not None:
            self._store(rows[good], samples[good.cpu()])

    def _store(self, rows: Tensor, samples: Tensor) -> None:
        needed = int(samples.max()) + 1
        if self._states is None:
            self._states = rows.new_empty(needed, *rows.shape[1:])
            self._known = torch.zeros(needed, dtype=torch.bool)
        elif needed > len(self._known):
            size = max(needed, 2 * len(self._known))
            states = rows.new_empty(size, *rows.shape[1:])
            states[: len(self._known)] = self._states
            self._known = torch.cat([self._known, torch.zeros(size - len(self._known), dtype=torch.bool)])
            self._states = states
        self._states[samples.to(self._states.device)] = rows.to(self._states)
        self._known[samples] = True
