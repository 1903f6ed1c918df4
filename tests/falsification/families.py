"""Named, seeded families of maps: random ones, extreme ones, and the counterexamples with their surroundings.

A family is a function `(rng, count) -> list of MapSpec`. The adversarial ones are in `adversary`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from subdeq_plugin.layers import MapSpec

from .adversary import ADVERSARY
from .scalars import SCALARS
from .specs import Array, conv_spec, dense_spec, graph_spec

__all__ = ["FAMILIES", "Family", "generate"]

Family = Callable[[np.random.Generator, int], list[MapSpec]]
Rng = np.random.Generator

NAMES = tuple(sorted(SCALARS))
NORMS: tuple[Any, ...] = (1, 2, 3, "inf")
SHIFTS = (0.0, 0.1, 1.2, 1.603)
RARE_SHIFTS = (1e-3, 0.5, 1.01, 2.0, 5.0, 50.0, -0.2)
_SIGNS = np.array([[1.0, -1.0], [-1.0, 1.0]])


def _size(rng: Rng) -> int:
    return int(rng.choice([1, 2, 2, 3, 3, 4, 6, 8, 12]))


def _weight(rng: Rng, size: int, scale: float, *, nonneg: bool = False) -> Array:
    weight = scale * rng.standard_normal((size, size)) / math.sqrt(size)
    if rng.random() < 0.3:
        weight *= rng.random((size, size)) < 0.5
    if rng.random() < 0.1:
        weight[rng.integers(size)] = 0
    return np.abs(weight) if nonneg else weight


def _injections(rng: Rng, shape: tuple[int, ...], scale: float = 1.0, *, nonneg: bool = False) -> dict[str, Array]:
    """Inside, outside, both or none; sometimes for several samples, which share a certificate."""
    batch = (int(rng.integers(2, 9)),) if rng.random() < 0.4 else (1,)
    parts = {}
    for name in ("inner", "outer"):
        if rng.random() < 0.5:
            value = scale * rng.standard_normal((*batch, *shape))
            parts[name] = np.abs(value) if nonneg else value
    return parts


def _shift(rng: Rng) -> float:
    # Each pair of activation and shift costs a proof of its degree, once: most maps share a few.
    return float(rng.choice(SHIFTS if rng.random() < 0.93 else RARE_SHIFTS))


def _activation(rng: Rng, *, powers: bool = True) -> dict[str, Any]:
    power = 1.0
    if powers and rng.random() < 0.3:
        power = float(rng.choice([0.3, 0.5, 0.9, 0.99, 1.5, 2.0, 3.0, -0.3, -0.5, -0.9, -1.0, -2.0]))
    return {"activation": str(rng.choice(NAMES)), "shift": _shift(rng), "power": power}


def _norm(rng: Rng, over: tuple[str, ...] = ("state",), chance: float = 0.5) -> dict[str, Any]:
    if rng.random() >= chance:
        return {}
    return {"normalize": NORMS[rng.integers(len(NORMS))], "normalize_over": str(rng.choice(over))}


def gaussian(rng: Rng, count: int) -> list[MapSpec]:
    """Signed dense weights of many scales, with any injection."""
    specs = []
    for _ in range(count):
        size, scale = _size(rng), 10.0 ** rng.uniform(-1.5, 1)
        options = {**_activation(rng), **_norm(rng, chance=0.2)}
        weight = _weight(rng, size, scale)
        if rng.random() < 0.4:  # symmetric ones have real eigenvalues, and more fixed points
            weight = (weight + weight.T) / math.sqrt(2)
        specs.append(dense_spec(weight, **_injections(rng, (size,)), **options))
    return specs


def contractive(rng: Rng, count: int) -> list[MapSpec]:
    """Signed weights about as large as one norm or another allows, slopes of at most one."""
    specs = []
    for _ in range(count):
        size = _size(rng)
        weight = _weight(rng, size, 1.0)
        order = (1, 2, np.inf)[rng.integers(3)]
        weight *= rng.uniform(0.5, 1.3) / max(np.linalg.norm(weight, order), 1e-300)
        weight -= rng.choice([0.0, 0.0, 0.5, 3.0]) * np.eye(size)
        options = {"activation": str(rng.choice(NAMES)), "shift": float(rng.choice([0.0, 0.0, 1.2]))}
        specs.append(dense_spec(weight, **_injections(rng, (size,)), **options))
    return specs


def nonnegative(rng: Rng, count: int) -> list[MapSpec]:
    """Nonnegative dense weights, mostly nonnegative injections."""
    specs = []
    for _ in range(count):
        size, scale = _size(rng), 10.0 ** rng.uniform(-3, 3)
        options = {**_activation(rng), **_norm(rng, chance=0.4)}
        injections = _injections(rng, (size,), 10.0 ** rng.uniform(-2, 1), nonneg=rng.random() < 0.8)
        specs.append(dense_spec(_weight(rng, size, scale, nonneg=True), **injections, **options))
    return specs


def counterexamples(rng: Rng, count: int) -> list[MapSpec]:
    """The three of the theory, perturbed, scaled, mixed by permutations and embedded in larger maps."""
    specs = []
    for index in range(count):
        kind = index % 3
        copies = int(rng.integers(1, 4))
        noise = rng.choice([0.0, 1e-12, 1e-6, 1e-3, 0.05])
        weight = np.kron(np.eye(copies), (_SIGNS, 2 * _SIGNS, np.array([[6.0]]))[kind])
        size = len(weight)
        weight = weight * rng.choice([1.0, 1.0, rng.uniform(0.3, 3)]) + noise * rng.standard_normal((size, size))
        scales = 2.0 ** rng.integers(-2, 3, size) if rng.random() < 0.3 else np.ones(size)
        order = rng.permutation(size)
        weight = (weight * scales[:, None] / scales)[np.ix_(order, order)]
        shift = (1.2, 1.603, 1.05)[kind]
        inner = noise * rng.standard_normal(size) - (5.0 if kind == 2 else 0.0)
        outer = rng.choice([0.0, 1e-9, 1e-2]) * rng.standard_normal(size)
        options = {"normalize": NORMS[rng.integers(4)]} if kind == 1 else {}
        specs.append(dense_spec(weight, inner, outer, activation="tanh", shift=shift, **options))
    return specs


def ill_scaled(rng: Rng, count: int) -> list[MapSpec]:
    """Rows, columns and injections multiplied by 1e-150 to 1e150, denormal numbers, negative zeros."""
    specs = []
    for _ in range(count):
        size = _size(rng)
        reach = float(rng.choice([8, 40, 150]))
        weight = _weight(rng, size, 1.0, nonneg=rng.random() < 0.6)
        kind = rng.integers(4)
        if kind == 0:  # a similarity
            scales = 10.0 ** rng.uniform(-reach / 2, reach / 2, size)
            weight = weight * scales[:, None] / scales
        elif kind == 1:
            weight = weight * 10.0 ** rng.uniform(-reach, reach, (size, 1))
        elif kind == 2:
            weight = weight * 10.0 ** rng.uniform(-reach, reach, (1, size))
        else:
            weight = np.where(rng.random((size, size)) < 0.5, weight, rng.choice([5e-324, 1e-310, -0.0, 0.0, 2.3e-308]))
        nonneg = bool((weight >= 0).all()) and rng.random() < 0.8
        injections = _injections(rng, (size,), 10.0 ** rng.uniform(-reach, reach / 3), nonneg=nonneg)
        options = {**_activation(rng), **_norm(rng, chance=0.3)}
        specs.append(dense_spec(weight, **injections, **options))
    return specs


def biases(rng: Rng, count: int) -> list[MapSpec]:
    """Huge and negative injections, inside and outside."""
    specs = []
    for _ in range(count):
        size = _size(rng)
        weight = _weight(rng, size, 10.0 ** rng.uniform(-1, 1), nonneg=rng.random() < 0.5)
        parts = {}
        for name in ("inner", "outer"):
            scale = 10.0 ** rng.choice([-300, -20, -1, 0, 0.5, 1, 1, 2, 5, 16, 300])
            parts[name] = rng.standard_normal(size) * scale
            if rng.random() < 0.3:
                parts[name] = -np.abs(parts[name])
        options = {**_activation(rng), **_norm(rng, chance=0.2)}
        specs.append(dense_spec(weight, **parts, **options))
    return specs


def grouped(rng: Rng, count: int) -> list[MapSpec]:
    """Convolutions and graphs, plain and divided by norms per channel, pixel or node."""
    specs = []
    for index in range(count):
        nonneg = rng.random() < 0.6
        scale = 10.0 ** rng.uniform(-1.5, 1)
        options = {**_activation(rng), "shift": float(rng.choice([0.1, 1.2, 1.603, 5.0]))}
        if index % 2:
            shape = (2, *((3, 3), (2, 2), (4, 4), (1, 3))[rng.integers(4)])
            kernel = ((3, 3), (1, 1), (3, 1))[rng.integers(3)]
            weight = scale * rng.standard_normal((2, 2, *kernel)) / 3
            dilation = (2, 2) if rng.random() < 0.2 else (1, 1)
            options |= _norm(rng, ("state", "channel", "pixel"), 0.7)
            injections = _injections(rng, shape, nonneg=nonneg)
            weight = np.abs(weight) if nonneg else weight
            specs.append(conv_spec(weight, shape[1:], **injections, dilation=dilation, **options))
        else:
            nodes, features = int(rng.integers(2, 6)), int(rng.integers(1, 4))
            links = (rng.random((nodes, nodes)) < 0.5) | np.eye(nodes, dtype=bool)
            spread = links * rng.random((nodes, nodes))
            spread = spread / spread.sum(axis=1, keepdims=True) if rng.random() < 0.7 else scale * spread
            mixing = scale * rng.standard_normal((features, features)) if rng.random() < 0.6 else None
            if mixing is not None and nonneg:
                mixing = np.abs(mixing)
            options |= _norm(rng, ("state", "channel", "node"), 0.7)
            injections = _injections(rng, (nodes, features), nonneg=nonneg)
            specs.append(graph_spec(spread, features, mixing, **injections, **options))
    return specs


def catalogue(rng: Rng, count: int) -> list[MapSpec]:
    """Every activation, shift and power in turn, on small signed or nonnegative weights."""
    powers = (1.0, 0.5, 0.9, 1.1, 2.0, -0.5, -0.9, -1.1, -2.0)
    specs = []
    offset = int(rng.integers(10**6))
    for index in range(offset, offset + count):
        name = NAMES[index % len(NAMES)]
        shift = (*SHIFTS, _shift(rng))[index // len(NAMES) % (len(SHIFTS) + 1)]
        power = powers[int(rng.integers(len(powers)))]
        size = int(rng.integers(1, 4))
        nonneg = rng.random() < 0.6
        weight = _weight(rng, size, 10.0 ** rng.uniform(-2, 1), nonneg=nonneg)
        options = {"activation": name, "shift": shift, "power": power, **_norm(rng, chance=0.3)}
        specs.append(dense_spec(weight, **_injections(rng, (size,), nonneg=nonneg), **options))
    return specs


def single_precision(rng: Rng, count: int) -> list[MapSpec]:
    """Other families stored in float32."""
    specs = []
    sources = (gaussian, contractive, nonnegative, counterexamples, grouped, catalogue)
    for index in range(len(sources)):
        share = count // len(sources) + (index < count % len(sources))
        for spec in sources[index](rng, share):
            arrays = {name: a.float() if a.is_floating_point() else a for name, a in spec.arrays.items()}
            specs.append(MapSpec(arrays, spec.options))
    return specs


FAMILIES: dict[str, Family] = {
    function.__name__: function
    for function in (
        gaussian,
        contractive,
        nonnegative,
        counterexamples,
        ill_scaled,
        biases,
        grouped,
        catalogue,
        single_precision,
        *ADVERSARY,
    )
}


def generate(family: str, seed: int, count: int) -> list[MapSpec]:
    """The first `count` maps of a family; the same for the same arguments."""
    rng = np.random.default_rng([seed, *family.encode()])
    with np.errstate(all="ignore"):
        specs = FAMILIES[family](rng, count)
    return [spec for spec in specs if _finite(spec)]


def _finite(spec: MapSpec) -> bool:
    return all(bool(torch.isfinite(array).all()) for array in spec.arrays.values())
