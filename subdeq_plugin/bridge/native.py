"""Native mode: a subhomogeneous layer solved entirely inside Julia, each sample by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layers import BoundMap, MapSpec
from ..layers.operators import GraphOperator
from ..result import Solution
from ..solvers import AdjointMap, Problem, Stop
from .callback import MEASURES
from .runtime import Julia, Runtime

__all__ = ["NATIVE_ACTIVATIONS", "is_native", "solve_native"]

# The activations that SubDEQ.jl has; one registered by the user is evaluated by torch, in callback mode.
NATIVE_ACTIVATIONS = frozenset(
    ("arctan", "elu", "erf", "hardtanh", "leaky_relu", "relu", "relu6", "sigmoid", "softplus", "softsign", "tanh")
)


def _layer(problem: Problem) -> BoundMap | None:
    """The layer behind a problem: the map itself, or the one whose adjoint equation the problem is."""
    function = problem.function
    if isinstance(function, AdjointMap):
        function = function.primal
    # A subclass may compute something else.
    return function if type(function) is BoundMap else None


def is_native(problem: Problem, start: Tensor) -> bool:
    """Whether Julia can solve `problem` from `start` without asking torch for anything."""
    layer = _layer(problem)
    if layer is None or problem.lowered is not None or start.dtype not in (torch.float32, torch.float64):
        return False
    if layer.activation.name not in NATIVE_ACTIVATIONS:
        return False
    parts = [*layer.operator.coefficients(), *(part for part in (layer.inner, layer.outer) if part is not None), start]
    return all(part.device.type == "cpu" and part.dtype == start.dtype for part in parts)


def solve_native(
    runtime: Runtime, method: tuple[str, tuple[tuple[str, Any], ...]], problem: Problem, start: Tensor, stop: Stop
) -> Solution:
    """Solve inside Julia. Ctrl-C ends the solve at its next step.

    Returns:
        A `Solution` with Julia's own residuals, for the caller to check; its traces hold only the last of them.

    Raises:
        BridgeError: Julia cannot be used, or it raised.
    """
    value = problem.place(problem.flatten(start)).contiguous().clone()
    statistics = torch.zeros(problem.samples, 4, dtype=torch.float64, device="cpu")
    cancel = torch.zeros(1, dtype=torch.int64, device="cpu")
    job = _job(method, problem, (value, statistics, cancel), stop)
    try:
        evaluations, products = runtime.call(job)
    except KeyboardInterrupt:
        cancel.fill_(1)
        raise
    outcome, absolute, relative, iteration = statistics.unbind(dim=1)
    absolute, relative = absolute.to(start.dtype), relative.to(start.dtype)
    return Solution(
        value=value.reshape(problem.shape),
        status=outcome.to(torch.int64),
        abs_residual=absolute,
        rel_residual=relative,
        iterations=iteration.to(torch.int64),
        evaluations=evaluations,
        linear_evaluations=products,
        abs_trace=absolute[:, None],
        rel_trace=relative[:, None],
    )


def _job(
    method: tuple[str, tuple[tuple[str, Any], ...]], problem: Problem, tables: tuple[Tensor, Tensor, Tensor], stop: Stop
) -> Callable[[Julia], tuple[int, int]]:
    """The call, with every tensor whose memory Julia reads held by its closure until it is over."""
    layer = _layer(problem)
    assert layer is not None, "is_native was asked"
    spec = layer.detach().spec
    arrays = {name: array.contiguous() for name, array in spec.arrays.items()}
    if isinstance(layer.operator, GraphOperator):
        transposed = layer.operator.propagation.transposed
        arrays["t_crow_indices"], arrays["t_col_indices"] = transposed.crow_indices(), transposed.col_indices()
        arrays["t_values"] = transposed.values().contiguous()
    spec = MapSpec(arrays, spec.options)
    adjoint = problem.function if isinstance(problem.function, AdjointMap) else None
    given = () if adjoint is None else (adjoint.state.detach().contiguous(), adjoint.g.detach().contiguous())
    goal = (float(stop.tol), int(stop.max_iter), MEASURES[stop.mode])

    def run(julia: Julia) -> tuple[int, int]:
        bridge = julia.bridge
        map_ = _map(bridge, spec, problem)
        chosen = julia.method(*method)
        addresses = [table.data_ptr() for table in tables]
        # The GIL is released: other threads go on, and Ctrl-C reaches the caller.
        if adjoint is None:
            counts = bridge.solve._jl_call_nogil(map_, problem.samples, chosen, *addresses, *goal, problem.positive)
        else:
            inputs = [tensor.data_ptr() for tensor in given]
            counts = bridge.solve_adjoint._jl_call_nogil(map_, problem.samples, chosen, *inputs, *addresses, *goal)
        return int(counts[0]), int(counts[1])

    return run


def _map(bridge: Any, spec: MapSpec, problem: Problem) -> Any:
    options = spec.options
    operator = _OPERATORS[options["kind"]](bridge, spec, problem.shape)
    p = options["normalize"]
    norm = 0.0 if p is None else (math.inf if p == "inf" else float(p))
    layer = _layer(problem)
    assert layer is not None
    # torch counts dimensions from the last one; so does Julia, from 1.
    dims = () if layer.normalizer is None else tuple(-dim for dim in layer.normalizer.dims)
    return bridge.layer(
        operator,
        problem.samples,
        options["activation"],
        float(options["shift"]),
        float(options["power"]),
        _address(spec, "inner"),
        _address(spec, "outer"),
        norm,
        dims,
    )


def _address(spec: MapSpec, name: str) -> int:
    return spec.arrays[name].data_ptr() if name in spec.arrays else 0


def _is_double(spec: MapSpec, name: str) -> bool:
    return spec.arrays[name].dtype == torch.float64


def _dense(bridge: Any, spec: MapSpec, shape: torch.Size) -> Any:
    return bridge.dense(_is_double(spec, "weight"), shape[-1], _address(spec, "weight"))


def _conv(bridge: Any, spec: MapSpec, shape: torch.Size) -> Any:
    kernel, dilation = spec.arrays["weight"].shape[-2:], spec.options["dilation"]
    sizes = (*shape[-3:], *kernel, *dilation)
    return bridge.conv(_is_double(spec, "weight"), *(int(size) for size in sizes), _address(spec, "weight"))


def _graph(bridge: Any, spec: MapSpec, shape: torch.Size) -> Any:
    def matrix(prefix: str) -> tuple[int, ...]:
        parts = (_address(spec, prefix + part) for part in ("crow_indices", "col_indices", "values"))
        return (*parts, spec.arrays[prefix + "values"].numel())

    matrices = (matrix(""), matrix("t_"))
    return bridge.graph(_is_double(spec, "values"), shape[-2], shape[-1], *matrices, _address(spec, "weight"))


_OPERATORS = {"dense": _dense, "conv2d": _conv, "graph": _graph}
