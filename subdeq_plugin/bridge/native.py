"""Native mode: a subhomogeneous layer solved entirely inside Julia, each sample by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers import BoundMap, MapSpec
from ..layers.operators import GraphOperator
from ..result import Solution
from ..solvers import AdjointMap, Problem, Stop
from .callback import MEASURES
from .runtime import CancelFlag, Julia, Runtime
from .tensors import Method

__all__ = ["NATIVE_ACTIVATIONS", "can_read", "is_native", "julia_layer", "readable", "solve_native"]

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
    if layer is None or problem.lowered is not None:
        return False
    adjoint = problem.function if isinstance(problem.function, AdjointMap) else None
    return can_read(layer, start, () if adjoint is None else (adjoint.g, adjoint.state))


def can_read(layer: BoundMap, start: Tensor, given: Sequence[Tensor] = ()) -> bool:
    """Whether Julia has the layer's function, and can read its tensors and those `given`, for states like `start`."""
    if start.dtype not in (torch.float32, torch.float64) or layer.activation.name not in NATIVE_ACTIVATIONS:
        return False
    if layer.operator.defect(start.shape):
        return False
    states = [*given, *(part for part in (layer.inner, layer.outer) if part is not None)]
    parts = [*layer.operator.coefficients(), *states, start]
    # Julia reads memory: an injection that torch would broadcast has not the entries it looks for.
    return all(part.device.type == "cpu" and part.dtype == start.dtype for part in parts) and all(
        part.shape == start.shape for part in states
    )


def solve_native(runtime: Runtime, method: Method, problem: Problem, start: Tensor, stop: Stop) -> Solution:
    """Solve inside Julia. An exception in the waiting thread, such as Ctrl-C, ends the solve at its next step.

    Returns:
        A `Solution` with Julia's own residuals, for the caller to check; its traces hold only the last of them.

    Raises:
        BridgeError: Julia cannot be used, or it raised.
    """
    value = problem.place(problem.flatten(start)).contiguous().clone()
    statistics = torch.zeros(problem.samples, 4, dtype=torch.float64, device="cpu")
    with runtime.solving() as flag:
        evaluations, products = runtime.call(_job(method, problem, value, statistics, flag, stop))
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
    method: Method, problem: Problem, value: Tensor, statistics: Tensor, flag: CancelFlag, stop: Stop
) -> Callable[[Julia], tuple[int, int]]:
    """The call, with every tensor whose memory Julia reads held by its closure until it is over."""
    layer = _layer(problem)
    assert layer is not None, "is_native was asked"
    spec, dims = readable(layer), () if layer.normalizer is None else layer.normalizer.dims
    adjoint = problem.function if isinstance(problem.function, AdjointMap) else None
    given = () if adjoint is None else (adjoint.state.detach().contiguous(), adjoint.g.detach().contiguous())
    goal = (float(stop.tol), int(stop.max_iter), MEASURES[stop.mode])

    def run(julia: Julia) -> tuple[int, int]:
        bridge = julia.bridge
        double = value.dtype == torch.float64
        map_ = julia_layer(bridge, spec, dims, problem.shape, problem.samples, double=double)
        chosen = julia.method(method)
        addresses = (value.data_ptr(), statistics.data_ptr(), flag.address)
        # The GIL is released: other threads go on, and Ctrl-C reaches the caller.
        if adjoint is None:
            counts = bridge.solve._jl_call_nogil(map_, problem.samples, chosen, *addresses, *goal, problem.positive)
        else:
            inputs = [tensor.data_ptr() for tensor in given]
            counts = bridge.solve_adjoint._jl_call_nogil(map_, problem.samples, chosen, *inputs, *addresses, *goal)
        return int(counts[0]), int(counts[1])

    return run


def readable(layer: BoundMap) -> MapSpec:
    """The layer as arrays that Julia can read: contiguous, indices as 64-bit integers, a graph with its transpose."""
    spec = layer.detach().spec
    arrays = dict(spec.arrays)
    if isinstance(layer.operator, GraphOperator):
        transposed = layer.operator.propagation.transposed
        arrays["t_crow_indices"], arrays["t_col_indices"] = transposed.crow_indices(), transposed.col_indices()
        arrays["t_values"] = transposed.values()
    arrays = {name: array if array.is_floating_point() else array.to(torch.int64) for name, array in arrays.items()}
    return MapSpec({name: array.contiguous() for name, array in arrays.items()}, spec.options)


def julia_layer(
    bridge: Any, spec: MapSpec, dims: tuple[int, ...], shape: torch.Size, samples: int, *, double: bool
) -> Any:
    """Julia's map of a layer, which reads the memory of `spec`; on Julia's thread. `dims` are those of its norms."""
    operator = _OPERATORS[spec.options["kind"]](bridge, spec, shape, double)
    options = spec.options
    p = options["normalize"]
    norm = 0.0 if p is None else (math.inf if p == "inf" else float(p))
    # torch counts dimensions from the last one, -1; so does Julia, from 1.
    grouped = tuple(-dim for dim in dims)
    scalar = (options["activation"], float(options["shift"]), float(options["power"]))
    return bridge.layer(operator, samples, *scalar, _address(spec, "inner"), _address(spec, "outer"), norm, grouped)


def _address(spec: MapSpec, name: str) -> int:
    return spec.arrays[name].data_ptr() if name in spec.arrays else 0


def _dense(bridge: Any, spec: MapSpec, shape: torch.Size, double: bool) -> Any:
    return bridge.dense(double, shape[-1], _address(spec, "weight"))


def _conv(bridge: Any, spec: MapSpec, shape: torch.Size, double: bool) -> Any:
    sizes = (*shape[-3:], *spec.arrays["weight"].shape[-2:], *spec.options["dilation"])
    return bridge.conv(double, *(int(size) for size in sizes), _address(spec, "weight"))


def _graph(bridge: Any, spec: MapSpec, shape: torch.Size, double: bool) -> Any:
    def matrix(prefix: str) -> tuple[int, ...]:
        parts = (_address(spec, prefix + part) for part in ("crow_indices", "col_indices", "values"))
        return (*parts, spec.arrays[prefix + "values"].numel())

    return bridge.graph(double, shape[-2], shape[-1], matrix(""), matrix("t_"), _address(spec, "weight"))


_OPERATORS = {"dense": _dense, "conv2d": _conv, "graph": _graph}
