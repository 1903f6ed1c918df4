"""The problems: dense, convolution and graph maps, normalised and not, easy and hard.

A new problem is one entry in `PROBLEMS`. Easy ones are `tanh(A z + b) + 1.2 (+ y)` with row sums of `A` near 1. Hard
ones are `(A z + b + 0.001) ** 0.999` with row sums of `A` equal to 1 and a small injection `b`: the proven rate is
0.999, and plain iteration contracts by almost exactly that. A norm would take the slow direction away, so a
normalised hard problem also mixes slowly: `A` is close to the identity.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..certificates import Certificate, certify
from ..errors import CertificateError, OptionError, unknown_name
from ..layers import BoundMap, SubhomConv2d, SubhomGraph, SubhomLayer, SubhomLinear
from ..layers.operators import Propagation

__all__ = ["PROBLEMS", "Problem", "Recipe", "check_problem", "make_problem", "parse_size"]

Size = tuple[int, ...]

_SMALL = 1e-3  # a hard problem's shift and the size of its injection, in units of the typical entry of its state
_LAZY = 0.02  # how much of a slowly mixing operator is not the identity


@dataclass(frozen=True)
class Problem:
    """A map with exactly one fixed point, proven, to be found from a start of ones.

    Attributes:
        name: of the problem.
        bound: the map, cut off from autograd; its injection must tell the state's shape.
        size: for people, and to match the rows of two reports.
        layer: the layer that the map is of, or None; the work "training" needs it.
        x: that layer's input.
    """

    name: str
    bound: BoundMap
    size: str = ""
    layer: SubhomLayer | None = None
    x: Any = None

    @classmethod
    def of(cls, name: str, made: object, size: str = "") -> Problem:
        """The problem that a `BoundMap`, a pair `(layer, x)` or a `Problem` describes.

        Raises:
            OptionError: it is none of these.
            ShapeError: the map does not tell its state's shape.
        """
        if isinstance(made, Problem):
            return made
        if isinstance(made, BoundMap):
            bound = made.detach()
            return cls(name, bound, size or _text(bound.start().shape))
        if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], SubhomLayer):
            with torch.no_grad():
                bound = made[0].bind(made[1]).detach()
            return cls(name, bound, size or _text(bound.start().shape), made[0], made[1])
        raise OptionError(
            f"problem {name!r} must be a BoundMap, a bench.Problem or a pair (layer, x) with one of this package's "
            f"layers, got {type(made).__name__}."
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None) -> Problem:
        """The same problem on a device and in a dtype; None leaves the dtype."""
        kind = self.bound.dtype if dtype is None else dtype
        place = torch.device(device)
        if self.layer is None:
            return replace(self, bound=self.bound.to(place, kind))
        return Problem.of(self.name, (copy.deepcopy(self.layer).to(place, kind), _cast(self.x, place, kind)), self.size)

    @cached_property
    def certificate(self) -> Certificate:
        """The proof for this map, made once.

        Raises:
            CertificateError: it is not proven: then no error is guaranteed, and nothing can be compared.
        """
        certificate = certify(self.bound)
        if not certificate.unique:
            raise CertificateError(
                f"problem {self.name!r} has no proof, so no error is guaranteed: {'; '.join(certificate.reasons)}"
            )
        return certificate


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _cast(x: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A layer's input on a device; its floating-point tensors in a dtype."""
    if isinstance(x, tuple | list):
        return tuple(_cast(part, device, dtype) for part in x)
    if isinstance(x, Propagation):
        return x.to(device, dtype)
    if isinstance(x, Tensor):
        return x.to(device, dtype if x.is_floating_point() else None)
    return x


@dataclass(frozen=True)
class Recipe:
    """How a built-in problem is made.

    Attributes:
        about: one line for people.
        layout: what the numbers of its size mean.
        size: the default one, solved in milliseconds.
        dtype: the default one; a hard problem's error can be guaranteed in float64 only.
        build: the size and a generator make a layer and its input, both in float64.
    """

    about: str
    layout: tuple[str, ...]
    size: Size
    dtype: torch.dtype
    build: Callable[[Size, torch.Generator], tuple[SubhomLayer, Any]]


def _rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _settings(hard: bool, normalised: bool, entries: int) -> dict[str, Any]:
    """The keywords of a layer whose samples have so many entries."""
    settings: dict[str, Any] = {"normalize": 2 if normalised else None, "bias": False, "dtype": torch.float64}
    if not hard:
        return {**settings, "activation": "tanh", "shift": 1.2}
    small = _small(normalised, entries)
    return {**settings, "activation": "relu", "shift": small, "power": 0.999, "injection": "inside"}


def _small(normalised: bool, entries: int) -> float:
    """`_SMALL`, where a two-norm of 1 makes the entries small as well."""
    return _SMALL * (entries**-0.5 if normalised else 1.0)


def _dense(hard: bool, normalised: bool, size: Size, generator: torch.Generator) -> tuple[SubhomLayer, Any]:
    n, batch = size
    layer = SubhomLinear(n, n, **_settings(hard, normalised, n))
    weight = _rand(generator, n, n) * (2 / n)
    if hard:
        weight = weight / weight.sum(dim=1, keepdim=True)
    if hard and normalised:
        weight = _LAZY * weight + (1 - _LAZY) * torch.eye(n, dtype=torch.float64)
    layer.weight = weight  # type: ignore[assignment]
    layer.injection.weight.copy_(torch.eye(n) * (_small(normalised, n) if hard else 1.0))
    return layer, _rand(generator, batch, n)


def _conv(hard: bool, normalised: bool, size: Size, generator: torch.Generator) -> tuple[SubhomLayer, Any]:
    channels, side, batch = size
    entries = channels * side**2
    layer = SubhomConv2d(channels, channels, 3, **_settings(hard, normalised, entries))
    weight = _rand(generator, channels, channels, 3, 3) * (2 / (9 * channels))
    if hard:
        weight = weight / weight.flatten(1).sum(dim=1)[:, None, None, None]
    centre = nn.init.dirac_(torch.empty_like(weight))
    if hard and normalised:
        weight = _LAZY * weight + (1 - _LAZY) * centre
    layer.weight = weight  # type: ignore[assignment]
    layer.injection.weight.copy_(centre * (_small(normalised, entries) if hard else 1.0))
    return layer, _rand(generator, batch, channels, side, side)


def _graph(hard: bool, normalised: bool, size: Size, generator: torch.Generator) -> tuple[SubhomLayer, Any]:
    nodes, neighbours, features = size
    entries = nodes * features
    teleport = _SMALL if hard else 0.1
    settings = {**_settings(hard, normalised, entries), "self_loops": False, "adjacency_norm": "row"}
    layer = SubhomGraph(features, features, teleport, **settings)
    # The layer multiplies what it injects by the teleport.
    layer.injection.weight.copy_(torch.eye(features) * (_small(normalised, entries) / teleport if hard else 1.0))
    rows = torch.arange(nodes)[:, None].expand(nodes, neighbours)
    edges = torch.stack([rows, torch.randint(nodes, (nodes, neighbours), generator=generator)]).flatten(1)
    values = torch.full((nodes * neighbours,), 1.0 / neighbours, dtype=torch.float64)
    if hard and normalised:
        edges = torch.cat([edges, torch.arange(nodes).expand(2, nodes)], dim=1)
        values = torch.cat([_LAZY * values, torch.full((nodes,), 1 - _LAZY, dtype=torch.float64)])
    adjacency = torch.sparse_coo_tensor(edges, values, (nodes, nodes), check_invariants=True)
    return layer, (_rand(generator, nodes, features), layer.prepare(adjacency, nodes))


_KINDS: dict[str, tuple[Callable[..., tuple[SubhomLayer, Any]], tuple[str, ...], Size]] = {
    "dense": (_dense, ("n", "batch"), (87, 64)),
    "conv": (_conv, ("channels", "side", "batch"), (8, 14, 8)),
    "graph": (_graph, ("nodes", "neighbours", "features"), (1000, 10, 8)),
}

PROBLEMS: dict[str, Recipe] = {
    f"{kind}{'-normalised' * normalised}{'-hard' * hard}": Recipe(
        about=f"{kind} {'map divided by its two-norm' if normalised else 'map'}, {'hard' if hard else 'easy'}",
        layout=layout,
        size=size,
        dtype=torch.float64 if hard else torch.float32,
        build=partial(build, hard, normalised),
    )
    for kind, (build, layout, size) in _KINDS.items()
    for normalised in (False, True)
    for hard in (False, True)
}


def parse_size(text: str) -> Size:
    """Positive integers separated by "x".

    Raises:
        OptionError: it is something else.
    """
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise OptionError(f'size must be positive integers separated by "x", such as 87x512, got {text!r}.')
    return tuple(int(part) for part in parts)


def check_problem(name: str, size: Size | None) -> Size:
    """The size of a built-in problem, the default one for None.

    Raises:
        OptionError: an unknown name, or a size of another layout.
    """
    if name not in PROBLEMS:
        raise unknown_name("problem", name, PROBLEMS)
    recipe = PROBLEMS[name]
    if size is None:
        return recipe.size
    if len(size) != len(recipe.layout):
        raise OptionError(
            f"problem {name!r} has sizes {' x '.join(recipe.layout)}, such as {_text(recipe.size)}, "
            f"got {_text(size)!r}."
        )
    return size


def make_problem(name: str, size: Size | None = None, *, seed: int = 0) -> Problem:
    """A built-in problem on the CPU, in its default dtype.

    Args:
        name: one of `PROBLEMS`.
        size: its size, in the order of `Recipe.layout`; the default one if left out.
        seed: of its random numbers, the same in every dtype up to rounding.

    Raises:
        OptionError: an unknown name, or a size of another layout.
    """
    chosen, recipe = check_problem(name, size), PROBLEMS[name]
    # Layers draw their first weights, replaced here, from torch's global generator: leave it as it was.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layer, x = recipe.build(chosen, torch.Generator().manual_seed(seed))
    return Problem.of(name, (layer, x), _text(chosen)).to("cpu", recipe.dtype)
