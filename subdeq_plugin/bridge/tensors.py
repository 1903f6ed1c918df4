"""Staging: the memory through which states pass between torch and Julia.

A contiguous tensor `(B, N)` of torch is an array `(N, B)` of Julia, one sample a column. Torch owns the memory, Julia
wraps its address once; per evaluation one copy goes in and one comes out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BridgeError
from .runtime import Runtime

__all__ = ["Shape", "Staging", "StagingPool", "working_dtype"]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which Julia works on states of `dtype`: itself, or float32 for half precision."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


@dataclass(frozen=True)
class Shape:
    """What a session is made for.

    Attributes:
        method: name of the method in Julia's table.
        options: its options, as pairs.
        samples: `B`.
        entries: `N`, of one flattened sample.
        dtype: float32 or float64.
        affine: whether the map is affine.
    """

    method: str
    options: tuple[tuple[str, Any], ...]
    samples: int
    entries: int
    dtype: torch.dtype
    affine: bool


class Staging:
    """Four matrices `(B, N)` on the CPU, and the session of Julia's that wraps them.

    Attributes:
        states: where the map is asked for.
        images: the map's values there.
        tangents: arguments of Jacobian products.
        products: results of Jacobian products.
        statistics: `(B, 4)` float64: outcome, absolute and relative residual, iteration.
        session: the number of Julia's session.
    """

    def __init__(self, runtime: Runtime, shape: Shape) -> None:
        size = (shape.samples, shape.entries)
        self.states, self.images, self.tangents, self.products = (
            torch.zeros(size, dtype=shape.dtype, device="cpu") for _ in range(4)
        )
        self.statistics = torch.zeros(shape.samples, 4, dtype=torch.float64, device="cpu")
        self._runtime = runtime
        addresses = [part.data_ptr() for part in (self.states, self.images, self.tangents, self.products)]
        double = shape.dtype == torch.float64
        size = (shape.entries, shape.samples)
        self.session: int = runtime.call(
            lambda julia: int(
                julia.bridge.open_session(
                    julia.method(shape.method, shape.options), double, *size, *addresses, shape.affine
                )
            )
        )

    def close(self) -> None:
        """Let Julia forget the session."""
        session = self.session
        self._runtime.call(lambda julia: julia.bridge.close_session(session) and None)


class StagingPool:
    """Staging kept for the next solve of the same shape, which a training loop brings again and again."""

    def __init__(self, runtime: Runtime, most: int = 8) -> None:
        self._runtime = runtime
        self._most = most
        self._lock = threading.Lock()
        self._free: OrderedDict[Shape, list[Staging]] = OrderedDict()

    @contextmanager
    def lend(self, shape: Shape) -> Iterator[Staging]:
        """Staging for one solve. A solve that raises leaves Julia's session in the middle: it is thrown away."""
        with self._lock:
            waiting = self._free.get(shape)
            staging = waiting.pop() if waiting else None
        if staging is None:
            staging = Staging(self._runtime, shape)
        try:
            yield staging
        except BaseException:
            _close_quietly(staging)
            raise
        for old in self._keep(shape, staging):
            old.close()

    def _keep(self, shape: Shape, staging: Staging) -> list[Staging]:
        with self._lock:
            self._free.setdefault(shape, []).append(staging)
            self._free.move_to_end(shape)
            dropped = []
            while sum(map(len, self._free.values())) > self._most:
                oldest = next(iter(self._free))
                if self._free[oldest]:
                    dropped.append(self._free[oldest].pop(0))
                if not self._free[oldest]:
                    del self._free[oldest]
            return dropped


def _close_quietly(staging: Staging) -> None:
    try:
        staging.close()
    except BridgeError:
        return  # the error on its way to the user says more than that Julia is gone too
