"""Perron vectors found by Julia: KrylovKit, LinearSolve and NonlinearSolve on matrices and layers.

Julia is trusted with nothing: its vectors are brought back and bracketed here like all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bridge.native import can_read, julia_layer, readable
from ..bridge.runtime import CancelFlag, Julia, get_runtime
from ..errors import OptionError, unknown_name
from .base import EigenMap
from .layers import LayerMap
from .loop import Goal
from .matrices import DenseMatrix, SparseMatrix

__all__ = ["JULIA_METHODS", "julia_vectors"]

JULIA_METHODS = ("auto", "krylov", "power", "noda", "newton")

Builder = Callable[[Any], Any]


def julia_vectors(map_: EigenMap, start: Tensor, method: str, goal: Goal) -> tuple[Tensor, int]:
    """Vectors `(B, N)` from the positive `start (B, N)`, and the largest number of evaluations of one sample.

    Ctrl-C ends the search at its next evaluation.

    Raises:
        OptionError: Julia has no such method, or cannot read the map: it reads matrices and layers on the CPU.
        BridgeError: Julia cannot be used, or it raised.
    """
    if method not in JULIA_METHODS:
        raise unknown_name("method of backend 'julia'", method, JULIA_METHODS)
    build = _builder(map_, method)
    vectors = start.detach().to(torch.float64).contiguous().clone()
    runtime = get_runtime()
    with runtime.solving() as flag:
        evaluations = runtime.call(_job(build, vectors, method, map_.norm or 0.0, goal, flag))
    return vectors, evaluations


def _job(
    build: Builder, vectors: Tensor, method: str, norm: float, goal: Goal, flag: CancelFlag
) -> Callable[[Julia], int]:
    """The call, with every tensor and array whose memory Julia reads held by its closure until it is over."""

    def run(julia: Julia) -> int:
        bridge = julia.bridge
        target = build(bridge)
        options = (goal.tol, goal.max_iter, norm, flag.address)
        # The GIL is released: other threads go on, and Ctrl-C reaches the caller.
        return int(bridge.perron._jl_call_nogil(target, vectors.shape[0], method, vectors.data_ptr(), *options))

    return run


def _builder(map_: EigenMap, method: str) -> Builder:
    """What makes Julia's object of the map, given `SubDEQ.Bridge`; it holds the memory that object reads."""
    if map_.smallest.device.type == "cpu":
        if isinstance(map_, DenseMatrix):
            return _dense(map_)
        if isinstance(map_, SparseMatrix):
            return _sparse(map_)
        if isinstance(map_, LayerMap) and method != "krylov":
            return _layer(map_)
    raise OptionError(
        f"backend 'julia' with method {method!r} cannot read this target: it takes matrices on the CPU whose entries "
        "are known, and layers of this package except with 'krylov'; use backend='torch'."
    )


def _dense(map_: DenseMatrix) -> Builder:
    matrices = map_.matrices.contiguous()
    return lambda bridge: bridge.dense_matrices(map_.samples, map_.entries, matrices.data_ptr())


def _sparse(map_: SparseMatrix) -> Builder:
    matrix = map_.matrix
    short = matrix.indices.dtype == np.int32 and matrix.indptr.dtype == np.int32
    kind = np.int32 if short else np.int64
    starts, columns = (np.ascontiguousarray(part, dtype=kind) for part in (matrix.indptr, matrix.indices))
    values = np.ascontiguousarray(matrix.data, dtype=np.float64)

    def build(bridge: Any) -> Any:
        addresses = [part.ctypes.data for part in (starts, columns, values)]
        return bridge.sparse_matrix(map_.entries, *addresses, len(values), short)

    return build


def _layer(map_: LayerMap) -> Builder:
    bound, shape = map_.flat.bound, map_.flat.shape
    if not can_read(bound, torch.empty(shape, dtype=torch.float64)):
        raise OptionError(
            "backend 'julia' cannot read this layer: its activation must be one that Julia has, and its injections "
            "must have the state's shape; use backend='torch'."
        )
    spec = readable(bound)
    return lambda bridge: julia_layer(bridge, spec, (), shape, map_.samples, double=True)
