"""Staging: the memory through which states pass between torch and Julia.

A contiguous tensor `(B, N)` of torch is an array `(N, B)` of Julia, one sample a column. Torch owns the memory, Julia
wraps its address once; per evaluation one copy goes in and one comes out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BridgeError
from .runtime import Julia, Runtime

__all__ = ["Method", "Shape", "Staging", "StagingPool", "working_dtype"]

# A name in Julia's table and its options, as pairs.
Method = tuple[str, tuple[tuple[str, Any], ...]]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which Julia works on states of `dtype`: itself, or float32 for half precision."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


@dataclass(frozen=True)
class Shape:
    """What a session is made for.

    Attributes:
        method: what Julia solves with.
        samples: `B`.
        entries: `N`, of one flattened sample.
        dtype: float32 or float64.
        affine: whether the map is affine.
    """

    method: Method
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
        session: the number of Julia's session; 0 until it is open.
        bytes: about what all of it takes, the solvers' own memory included.
    """

    def __init__(self, runtime: Runtime, shape: Shape) -> None:
        size = (shape.samples, shape.entries)
        # Ordinary tensors even where the first solve runs in inference mode: later ones will write to them.
        with torch.inference_mode(False):
            self.states, self.images, self.tangents, self.products = (
                torch.zeros(size, dtype=shape.dtype, device="cpu") for _ in range(4)
            )
            self.statistics = torch.zeros(shape.samples, 4, dtype=torch.float64, device="cpu")
        self._runtime = runtime
        self.session = self.bytes = 0
        try:
            runtime.call(lambda julia: self._open(julia, shape))
        except BridgeError:
            raise  # there is no session
        except BaseException:  # Ctrl-C; Julia may still open it
            self.close()
            raise

    def _open(self, julia: Julia, shape: Shape) -> None:
        addresses = [part.data_ptr() for part in (self.states, self.images, self.tangents, self.products)]
        method, double = julia.method(shape.method), shape.dtype == torch.float64
        size = (shape.entries, shape.samples)
        self.session = int(julia.bridge.open_session(method, double, *size, *addresses, shape.affine))
        self.bytes = shape.samples * int(julia.bridge.lane_bytes(method, double, shape.entries))

    def close(self) -> None:
        """Let Julia forget the session, after whatever it is asked before."""
        self._runtime.post(lambda julia: julia.bridge.close_session(self.session))


class StagingPool:
    """Staging kept for the next solve of the same shape, which a training loop brings again and again.

    Attributes:
        most_bytes: how much memory is kept.
        most_samples: how many samples' coroutines are kept; each takes two memory mappings, and Linux grants 65,530.
    """

    def __init__(self, runtime: Runtime, most_bytes: int = 2**28, most_samples: int = 8192) -> None:
        self.most_bytes, self.most_samples = most_bytes, most_samples
        self._runtime = runtime
        self._lock = threading.Lock()
        self._free: list[tuple[Shape, Staging]] = []  # the one used last at the end

    @contextmanager
    def lend(self, shape: Shape) -> Iterator[Staging]:
        """Staging for one solve. A solve that raises leaves Julia's session in the middle: it is thrown away."""
        staging = self._take(shape) or Staging(self._runtime, shape)
        try:
            yield staging
        except BaseException:
            staging.close()
            raise
        self._keep(shape, staging)

    def _take(self, shape: Shape) -> Staging | None:
        with self._lock:
            for index, (kept, _) in enumerate(self._free):
                if kept == shape:
                    return self._free.pop(index)[1]
        return None

    def _keep(self, shape: Shape, staging: Staging) -> None:
        with self._lock:
            self._free.append((shape, staging))
            dropped = []
            while self._free and not self._fits():
                dropped.append(self._free.pop(0)[1])
        for old in dropped:
            old.close()

    def _fits(self) -> bool:
        bytes_, samples = sum(part.bytes for _, part in self._free), sum(shape.samples for shape, _ in self._free)
        return bytes_ <= self.most_bytes and samples <= self.most_samples
