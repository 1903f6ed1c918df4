"""How much memory a piece of work holds at its peak, beyond what it was given."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_memory"]


def _storages(value: object) -> Iterator[torch.UntypedStorage]:
    """The memory behind a tensor; several pieces where it is sparse."""
    if not isinstance(value, Tensor) or value.device.type == "meta":
        return
    if value.layout == torch.strided:
        yield value.untyped_storage()
    elif value.layout == torch.sparse_coo:
        for part in (value._indices(), value._values()):
            yield part.untyped_storage()
    elif value.layout in (torch.sparse_csr, torch.sparse_csc):
        rows = value.layout == torch.sparse_csr
        index = (value.crow_indices(), value.col_indices()) if rows else (value.ccol_indices(), value.row_indices())
        for part in (*index, value.values()):
            yield part.untyped_storage()


class _Watch(TorchDispatchMode):
    """Bytes of the storages that operations have created and that are still alive, and the most there ever were."""

    def __init__(self, traced: bool) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._traced = traced
        self._given: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._made: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._base = tracemalloc.get_traced_memory()[0] if traced else 0

    def note(self) -> None:
        """Bring the peak up to date."""
        python = 0
        if self._traced:
            # The most that NumPy held since the last look, while torch's share has not changed.
            python = tracemalloc.get_traced_memory()[1] - self._base
            tracemalloc.reset_peak()
        self.peak = max(self.peak, self._live + python)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # `torch.tensor` hands over its fresh memory as an argument of this one operation.
        if func is not torch.ops.aten.lift_fresh.default:
            for value in tree_leaves((args, kwargs)):
                for storage in _storages(value):
                    self._meet(storage)
        self.note()
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            for storage in _storages(value):
                self._count(storage)
        self.note()
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        """An argument that no operation has made was there before."""
        key = storage._cdata
        if key not in self._made and key not in self._given:
            self._given[key] = weakref.ref(storage, partial(self._forget, key))

    def _forget(self, key: int, _: object) -> None:
        self._given.pop(key, None)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        # Memory that torch cannot resize is not its own: a NumPy array seen as a tensor.
        if key in self._given or not storage.resizable():
            return
        if key not in self._made:
            self._made[key] = (weakref.ref(storage, partial(self._drop, key)), size)
            self._live += size
            return
        reference, before = self._made[key]
        if size != before:  # it was resized
            self._made[key] = (reference, size)
            self._live += size - before

    def _drop(self, key: int, _: object) -> None:
        _, size = self._made.pop(key, (None, 0))
        self._live -= size


def peak_memory(work: Callable[[], object], *, numpy: bool = False) -> int:
    """The most memory that `work` holds at any time, beyond what was there before.

    Counted are the storages of tensors that torch's operations create while `work` runs, from their creation until
    they are freed, on any device. Not counted: what an operation takes and gives back inside (the workspace of a
    convolution), and memory that torch does not know (Julia's, JAX's).

    Args:
        work: called once, without arguments.
        numpy: count what Python allocates as well, NumPy's arrays included, through `tracemalloc`; slow, and Python's
            own objects add some kilobytes.

    Returns:
        Bytes.
    """
    with _Watch(False):
        torch.empty(0)  # torch imports modules at the first operation that is watched: not the work's memory
    started = numpy and not tracemalloc.is_tracing()
    if started:
        tracemalloc.start(1)
    try:
        if numpy:
            tracemalloc.reset_peak()
        with _Watch(numpy) as watch:
            work()
            watch.note()
        return watch.peak
    finally:
        if started:
            tracemalloc.stop()
