"""Maps as data: short constructors, JSON for replays, and a flat view that knows nothing of the package's operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subdeq_plugin.layers import MapSpec

__all__ = ["Array", "Flat", "conv_spec", "dense_spec", "dump", "flats", "graph_spec", "load", "with_arrays"]

Array = np.ndarray


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(value, dtype=np.float64)).to(dtype)


def _injections(shape: tuple[int, ...], inner: Any, outer: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The injections given; a zero one outside where there is none, so that the state's shape is known."""
    if inner is None and outer is None:
        outer = np.zeros(shape)
    found = {"inner": inner, "outer": outer}
    return {
        name: _tensor(np.reshape(value, (-1, *shape[1:])), dtype) for name, value in found.items() if value is not None
    }


def dense_spec(
    weight: Any, inner: Any = None, outer: Any = None, *, dtype: torch.dtype = torch.float64, **options: Any
) -> MapSpec:
    """A dense map; `inner` and `outer` are `(n,)` or `(B, n)`."""
    weight = np.asarray(weight, dtype=np.float64)
    arrays = {"weight": _tensor(weight, dtype), **_injections((1, len(weight)), inner, outer, dtype)}
    return MapSpec(arrays, {"kind": "dense", **options})


def conv_spec(
    weight: Any,
    image: tuple[int, int],
    inner: Any = None,
    outer: Any = None,
    *,
    dtype: torch.dtype = torch.float64,
    dilation: tuple[int, int] = (1, 1),
    **options: Any,
) -> MapSpec:
    """A convolution `(C, C, kh, kw)` on images of the given size."""
    weight = np.asarray(weight, dtype=np.float64)
    arrays = {"weight": _tensor(weight, dtype), **_injections((1, len(weight), *image), inner, outer, dtype)}
    return MapSpec(arrays, {"kind": "conv2d", "dilation": list(dilation), **options})


def graph_spec(
    propagation: Any,
    features: int,
    weight: Any = None,
    inner: Any = None,
    outer: Any = None,
    *,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> MapSpec:
    """A graph map from a full propagation matrix `(nodes, nodes)` whose zeros are not stored."""
    propagation = np.asarray(propagation, dtype=np.float64)
    nodes = len(propagation)
    rows, columns = np.nonzero(propagation)
    starts = np.searchsorted(rows, np.arange(nodes + 1))
    arrays = {
        "crow_indices": torch.as_tensor(starts),
        "col_indices": torch.as_tensor(np.ascontiguousarray(columns)),
        "values": _tensor(propagation[rows, columns], dtype),
        **_injections((1, nodes, features), inner, outer, dtype),
    }
    if weight is not None:
        arrays["weight"] = _tensor(weight, dtype)
    return MapSpec(arrays, {"kind": "graph", "nodes": nodes, **options})


def with_arrays(spec: MapSpec, **arrays: Tensor) -> MapSpec:
    """The same map with some arrays replaced."""
    return MapSpec({**spec.arrays, **arrays}, dict(spec.options))


def dump(spec: MapSpec) -> dict[str, Any]:
    """JSON-compatible and exact: floating-point numbers as hexadecimal text."""

    def text(value: Tensor) -> list[Any]:
        flat = value.flatten().tolist()
        return [entry.hex() for entry in flat] if value.is_floating_point() else flat

    arrays = {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "data": text(value)}
        for name, value in spec.arrays.items()
    }
    return {"arrays": arrays, "options": spec.options}


def load(record: dict[str, Any]) -> MapSpec:
    """What `dump` wrote."""
    arrays = {}
    for name, entry in record["arrays"].items():
        data = [float.fromhex(value) if isinstance(value, str) else value for value in entry["data"]]
        arrays[name] = torch.tensor(data, dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])
    return MapSpec(arrays, dict(record["options"]))


@dataclass(frozen=True)
class Flat:
    """One sample of a map on `R^N`, its entries ordered so that the groups of the norm are contiguous.

    The matrix is the entrywise product of `first` and `second`, which are exact; `matrix` is that product rounded.

    Attributes:
        first: `(N, N)`.
        second: `(N, N)`.
        inner: `(N,)`, zero where the map has none.
        outer: `(N,)`, likewise.
        activation: name, with `shift` and `power`.
        p: exponent of the norm, or None.
        groups: how many groups of equal size share a norm; 1 for the whole state.
        order: entry `k` here is entry `order[k]` of the flattened sample.
    """

    first: Array
    second: Array
    inner: Array
    outer: Array
    activation: str
    shift: float
    power: float
    p: float | None
    groups: int
    order: Array
    matrix: Array = field(init=False)

    def __post_init__(self) -> None:
        with np.errstate(all="ignore"):
            object.__setattr__(self, "matrix", self.first * self.second)

    @property
    def size(self) -> int:
        return len(self.inner)

    def unflatten(self, z: Array) -> Array:
        """`(..., N)` in this order as flattened samples in the map's own order."""
        result = np.empty_like(z)
        result[..., self.order] = z
        return result


def _conv_matrix(weight: Array, image: tuple[int, int], dilation: tuple[int, int]) -> Array:
    channels, _, height, width = weight.shape
    rows, columns = image
    matrix = np.zeros((channels, rows, columns, channels, rows, columns))
    for a in range(height):
        down = dilation[0] * (a - height // 2)
        for b in range(width):
            right = dilation[1] * (b - width // 2)
            for y in range(max(0, -down), min(rows, rows - down)):
                for x in range(max(0, -right), min(columns, columns - right)):
                    matrix[:, y, x, :, y + down, x + right] += weight[:, :, a, b]
    size = channels * rows * columns
    return matrix.reshape(size, size)


def _factors(spec: MapSpec, shape: tuple[int, ...]) -> tuple[Array, Array]:
    arrays, options = spec.arrays, spec.options
    if options["kind"] == "dense":
        matrix = arrays["weight"].double().numpy()
    elif options["kind"] == "conv2d":
        height, width = options["dilation"]
        matrix = _conv_matrix(arrays["weight"].double().numpy(), (shape[1], shape[2]), (height, width))
    else:
        nodes, features = shape
        spread = np.zeros((nodes, nodes))
        starts = arrays["crow_indices"].tolist()
        columns, values = arrays["col_indices"].tolist(), arrays["values"].double().tolist()
        for row in range(nodes):
            for k in range(starts[row], starts[row + 1]):
                spread[row, columns[k]] += values[k]
        mixing = arrays["weight"].double().numpy() if "weight" in arrays else np.eye(features)
        return np.kron(spread, np.ones((features, features))), np.kron(np.ones((nodes, nodes)), mixing)
    return matrix, np.ones_like(matrix)


def _grouping(kind: str, over: str, shape: tuple[int, ...]) -> tuple[int, Array]:
    """How many norms a sample has, and the order that makes their entries contiguous."""
    index = np.arange(math.prod(shape)).reshape(shape)
    if over == "state":
        return 1, index.flatten()
    if (kind, over) in (("conv2d", "channel"), ("graph", "node")):
        return shape[0], index.flatten()
    moved = np.moveaxis(index, 0, -1)
    return moved.size // shape[0], moved.flatten()


def flats(spec: MapSpec) -> list[Flat]:
    """The samples of a map; it must have an injection."""
    arrays, options = spec.arrays, spec.options
    given = arrays["inner"] if "inner" in arrays else arrays["outer"]
    shape = tuple(given.shape[1:])
    first, second = _factors(spec, shape)
    norm = options.get("normalize")
    p = None if norm is None else float(norm)
    groups, order = _grouping(options["kind"], options.get("normalize_over") or "state", shape)
    first, second = first[np.ix_(order, order)], second[np.ix_(order, order)]

    def injected(name: str) -> Array:
        part = arrays[name].double().numpy() if name in arrays else np.zeros(tuple(given.shape))
        return part.reshape(len(given), -1)[:, order]

    inner, outer = injected("inner"), injected("outer")
    shift, power = float(options.get("shift", 0.0)), float(options.get("power", 1.0))
    return [
        Flat(first, second, inner[b], outer[b], options["activation"], shift, power, p, groups, order)
        for b in range(len(given))
    ]
