"""Families built backwards, from fixed points that are wanted: maps that have just one, or just two.

A state `z*` is a fixed point of `a(W z + b) + y` for every `W` once `b = t* - W z*` and `z* = a(t*) + y`. So the
Jacobian there, or a second fixed point, can be prescribed, and `W` be as small as that allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from subdeq_plugin.layers import MapSpec

from .buckets import Bucket
from .scalars import SCALARS
from .specs import Array, conv_spec, dense_spec, flats, graph_spec

__all__ = ["ADVERSARY"]

Rng = np.random.Generator
_SMOOTH = ("tanh", "sigmoid", "softplus", "softsign", "arctan", "erf", "elu")
_STEEP = {  # where the slope is 1, or nearly so
    "tanh": 0.0,
    "softsign": 0.0,
    "arctan": 0.0,
    "hardtanh": 0.25,
    "relu": 1.0,
    "relu6": 2.0,
    "elu": 0.5,
    "softplus": 30.0,
}

_CORNERS = {
    "relu": (0.0, 4.0),
    "leaky_relu": (0.0, 2.0),
    "relu6": (0.0, 6.0),
    "hardtanh": (-1.0, 1.0),
    "elu": (0.0, 3.0),
}
_CONCAVE = ("relu", "softplus", "tanh", "sigmoid", "elu", "relu6", "softsign", "leaky_relu", "arctan")


def _margin(rng: Rng, deepest: float = -16.0) -> float:
    """A number near 0, of either sign, or 0."""
    return float(rng.choice([-1, 1]) * 10.0 ** rng.uniform(deepest, -1.5)) if rng.random() < 0.9 else 0.0


def _normalised(value: Array, norm: Any) -> Array:
    return value if norm is None else value / np.linalg.norm(value, float(norm))


def near_degree(rng: Rng, count: int) -> list[MapSpec]:
    """Powers that put the degree within 1e-16 to 0.03 of 1, or 1/2, with a fixed point where the degree is attained."""
    grid = np.concatenate([np.geomspace(1e-4, 1e4, 4000), [1.0, 6.0]])
    specs = []
    while len(specs) < count:
        name = str(rng.choice(sorted(SCALARS)))
        shift = float(rng.choice([0.0, 0.1, 1.2]))
        scalar = SCALARS[name]
        below = np.nextafter(grid, 0)  # on the steeper side of kinks
        ratio = below * scalar.slope(below) / (scalar.value(below) + shift)
        argument, degree = float(below[ratio.argmax()]), float(ratio.max())
        sign = -1.0 if rng.random() < 0.3 else 1.0
        size = int(rng.integers(1, 5))
        norm = (1, 2, 3, "inf")[rng.integers(4)] if rng.random() < 0.5 else None
        kind = rng.integers(3) if norm is not None else 0
        half = norm is not None and (kind > 0 or sign < 0)
        power = sign * (0.5 if half else 1.0) * (1 + _margin(rng)) / degree
        value = (scalar.value(np.array(argument)) + shift) ** power
        members = size if kind == 0 else 2
        state = float(_normalised(np.full(members, value), norm)[0])
        options = {"activation": name, "shift": shift, "power": power}
        if norm is not None:
            options |= {"normalize": norm, "normalize_over": ("state", "node", "pixel")[kind]}
        mixing = rng.random((members, members)) ** 3 + 1e-3
        mixing *= argument / state / mixing.sum(axis=1, keepdims=True)
        if kind == 0:
            specs.append(dense_spec(mixing, **options))
        elif kind == 1:
            spread = rng.random((size + 1, size + 1))
            spread /= spread.sum(axis=1, keepdims=True)
            specs.append(graph_spec(spread, members, mixing, **options))
        else:
            specs.append(conv_spec(mixing[:, :, None, None], (2, 2), **options))
    return specs


def _tight(rng: Rng, size: int) -> Array:
    """A matrix with one of its norms or measures equal to one, mostly attained by a real eigenvalue."""
    kind = rng.integers(7)
    weight = rng.standard_normal((size, size))
    signs = rng.choice([-1.0, 1.0], size)
    if kind == 0:  # symmetric, largest eigenvalue 1
        weight = weight + weight.T
        weight /= max(np.linalg.eigvalsh(weight).max(), 1e-6)
    elif kind == 1:  # row sums of 1 up to signs
        weight = np.abs(weight) / np.abs(weight).sum(axis=1, keepdims=True) * signs[:, None] * signs
    elif kind == 2:
        weight = np.abs(weight) / np.abs(weight).sum(axis=0, keepdims=True) * signs[:, None] * signs
    elif kind == 3:  # the same in weighted norms: rho(|W|) = 1
        scales = 10.0 ** rng.uniform(-2, 2, size)
        weight = np.abs(weight) / np.abs(weight).sum(axis=1, keepdims=True) * scales[:, None] / scales
        weight *= signs[:, None] * signs
    elif kind == 4:  # one minus something monotone: abscissa 1
        skew = weight - weight.T
        vector = rng.standard_normal(size)
        vector /= np.linalg.norm(vector)
        weight = 3 * skew - rng.uniform(0, 4) * (np.eye(size) - np.outer(vector, vector)) + np.outer(vector, vector)
    elif kind == 5:  # matrix measure of the maximum norm 1, with large negative diagonal entries
        off = np.abs(weight) * (1 - np.eye(size)) * rng.choice([0.1, 1.0, 5.0]) * signs[:, None] * signs
        weight = off + np.diag(1 - np.abs(off).sum(axis=1))
    else:
        weight /= max(np.linalg.norm(weight, 2), 1e-6)
    return weight


def near_norm(rng: Rng, count: int) -> list[MapSpec]:
    """Norms, radii and measures within 1e-16 to 0.03 of 1, at a fixed point where the activation is steepest."""
    specs = []
    for _ in range(count):
        size = int(rng.integers(1, 7))
        name = str(rng.choice(sorted(_STEEP)))
        weight = _tight(rng, size) * (1 + _margin(rng))
        argument = np.full(size, _STEEP[name]) + rng.choice([0.0, 0.0, 1e-6, 0.1]) * rng.standard_normal(size)
        shift = float(rng.choice([0.0, 1.2]))
        value = SCALARS[name].value(argument) + shift
        outer = np.zeros(size) if rng.random() < 0.5 else rng.standard_normal(size)
        inner = argument - weight @ (value + outer)
        specs.append(dense_spec(weight, inner, outer, activation=name, shift=shift))
    return specs


def _smallest_weight(rng: Rng, dt: Array, dz: Array) -> Array:
    """`W` with `W dz = dt`, smallest in one norm or another."""
    size, kind = len(dt), rng.integers(6)
    if kind == 0:  # Euclidean
        return np.outer(dt, dz) / (dz @ dz)
    if kind == 1:  # maximum norm: only the largest difference is used
        weight = np.zeros((size, size))
        weight[:, np.abs(dz).argmax()] = dt / dz[np.abs(dz).argmax()]
        return weight
    if kind == 2:  # sum norm
        return np.outer(dt, np.sign(dz)) / np.abs(dz).sum()
    if kind == 3:  # nothing mixes; nonnegative for an increasing activation
        return np.diag(dt / dz)
    projector = np.outer(dz, dz) / (dz @ dz)
    if kind == 4:  # strongly dissipative in all other directions
        return np.outer(dt, dz) / (dz @ dz) - rng.uniform(0, 5) * (np.eye(size) - projector)
    return np.outer(dt, dz) / (dz @ dz) + rng.standard_normal((size, size)) @ (np.eye(size) - projector)


def two_points(rng: Rng, count: int) -> list[MapSpec]:
    """Two prescribed fixed points, and then weights a little smaller or larger than that takes."""
    specs: list[MapSpec] = []
    while len(specs) < count:
        size = int(rng.integers(1, 7))
        name = str(rng.choice(_SMOOTH))
        shift = float(rng.choice([0.0, 0.1, 1.2, 1.603]))
        power = float(rng.choice([1.0, 1.0, 0.5, 2.0, -0.5]))
        norm = (1, 2, 3, "inf")[rng.integers(4)] if size > 1 and rng.random() < 0.3 else None
        center = rng.choice([0.1, 1.0, 3.0]) * rng.standard_normal(size)
        gap = 10.0 ** rng.uniform(-3, 0.7) * rng.standard_normal(size)
        arguments = (center + gap, center - gap)
        outer = np.abs(rng.standard_normal(size)) if rng.random() < 0.4 else np.zeros(size)
        images = [(SCALARS[name].value(t) + shift) ** power + outer for t in arguments]
        a, b = (_normalised(image, norm) for image in images)
        if not np.isfinite(a).all() or not np.isfinite(b).all() or (a == b).any():
            continue
        weight = _smallest_weight(rng, arguments[0] - arguments[1], a - b)
        inner = arguments[0] - weight @ a
        weight = weight * (1 + (0.0 if rng.random() < 0.5 else _margin(rng, -6)))
        if rng.random() < 0.15 and (weight >= 0).all():
            inner = np.maximum(inner, 0)
        options = {} if norm is None else {"normalize": norm}
        specs.append(dense_spec(weight, inner, outer, activation=name, shift=shift, power=power, **options))
    return specs


def bifurcations(rng: Rng, count: int) -> list[MapSpec]:
    """A fixed point with an eigenvalue within 1e-8 to 0.03 of 1: a second one is about as near."""
    specs: list[MapSpec] = []
    while len(specs) < count:
        size = int(rng.choice([1, 2, 2, 3, 4, 6]))
        name = str(rng.choice(_SMOOTH))
        shift = float(rng.choice([0.0, 0.1, 1.2, 1.603]))
        power = float(rng.choice([1.0, 1.0, 0.5, 2.0, -0.5]))
        norm = (1, 2, 3, "inf")[rng.integers(4)] if size > 1 and rng.random() < 0.3 else None
        argument = rng.choice([0.0, 0.3, 1.0, 2.0]) * rng.standard_normal(size)
        value = (SCALARS[name].value(argument) + shift) ** power
        outer = np.abs(rng.standard_normal(size)) if rng.random() < 0.4 else np.zeros(size)
        state = _normalised(value + outer, norm)
        weight = rng.standard_normal((size, size)) / math.sqrt(size)
        if rng.random() < 0.4:
            weight = np.abs(weight)
        if not np.isfinite(state).all() or not (weight @ state).all():
            continue
        options: dict[str, Any] = {"activation": name, "shift": shift, "power": power}
        if norm is not None:
            options["normalize"] = norm
        flat = flats(dense_spec(weight, argument - weight @ state, outer, **options))[0]
        jacobian = Bucket([flat], signed=True).jacobian(state[None, None])[1][0, 0]
        if not np.isfinite(jacobian).all():
            continue
        eigenvalues = np.linalg.eigvals(jacobian)
        real = eigenvalues[np.abs(eigenvalues.imag) < 1e-12 * np.abs(eigenvalues)].real
        if not len(real) or not 1e-6 < np.abs(real).max() < 1e6:
            continue
        eigenvalue = real.max() if rng.random() < 0.8 and real.max() > 1e-6 else real[np.abs(real).argmax()]
        weight = weight * (1 + _margin(rng, -8)) / eigenvalue
        specs.append(dense_spec(weight, argument - weight @ state, outer, **options))
    return specs


def kinks(rng: Rng, count: int) -> list[MapSpec]:
    """Arguments exactly at a kink or far beyond it, in numbers that float64 adds without rounding."""
    specs = []
    for _ in range(count):
        size = int(rng.integers(1, 6))
        name = str(rng.choice(sorted(_CORNERS)))
        argument = rng.choice(_CORNERS[name], size)
        away = rng.random(size) < 0.3
        argument = np.where(away, argument + rng.choice([-64.0, -0.5, 0.5, 64.0], size), argument)
        shift = float(rng.choice([0.0, 0.5, 1.25]))
        weight = rng.integers(-8, 9, (size, size)) / float(rng.choice([4, 8, 16, 64]))
        if rng.random() < 0.4:
            weight = np.abs(weight)
        if rng.random() < 0.1:
            weight = np.eye(size)
        state = rng.integers(1, 33, size) / 8.0 * rng.choice([1.0, 1.0, -1.0])
        outer = state - (SCALARS[name].value(argument) + shift)
        specs.append(dense_spec(weight, argument - weight @ state, outer, activation=name, shift=shift))
    return specs


def concave(rng: Rng, count: int) -> list[MapSpec]:
    """Nonnegative weights and concave activations about the edge of existence, and with what breaks concavity."""
    specs = []
    for _ in range(count):
        size = int(rng.integers(1, 7))
        name = str(rng.choice(_CONCAVE))
        weight = rng.random((size, size)) * (rng.random((size, size)) < rng.choice([0.3, 0.6, 1.0]))
        radius = float(np.abs(np.linalg.eigvals(weight)).max())
        if radius > 1e-9:
            weight = weight / radius * (1 + _margin(rng) if rng.random() < 0.6 else 10.0 ** rng.uniform(-1, 2))
        inner = rng.random(size) * rng.choice([0.0, 1e-9, 1.0, -1e-9, -0.1, -3.0])
        outer = rng.random(size) * rng.choice([0.0, 1e-12, 1.0])
        power = float(rng.choice([1.0, 1.0, 0.7, 1.0 + 1e-6, 1.3]))
        shift = float(rng.choice([0.0, 0.0, 1e-6, 0.1]))
        specs.append(dense_spec(weight, inner, outer, activation=name, shift=shift, power=power))
    return specs


_TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": torch.nn.functional.softsign,
    "arctan": torch.atan,
    "erf": torch.erf,
}
_OFFSETS = (0.0, 1e-8, -1e-8, 1e-5, -1e-5, 1e-3, -1e-3, 3e-2, -3e-2, 0.2, -0.2)


def ascended(rng: Rng, count: int) -> list[MapSpec]:
    """Gradient ascent on the distance of two orbits, until they part; then back to where they only just do so."""
    maps, size = -(-count // len(_OFFSETS)), int(rng.integers(2, 6))
    name, shift = str(rng.choice(sorted(_TORCH))), float(rng.choice([0.0, 1.01, 1.2, 1.603]))
    function = _TORCH[name]
    normalised = shift > 1 and name != "arctan" and rng.random() < 0.3
    first = torch.from_numpy(0.4 * rng.standard_normal((maps, size, size + 1)))
    starts = torch.from_numpy(np.abs(shift) + 2 * rng.standard_normal((maps, 6, size)))
    if normalised:
        starts = starts.abs() + 0.01

    def orbit(parameters: torch.Tensor, steps: int) -> torch.Tensor:
        weight, inner = parameters[:, :, :size], parameters[:, None, :, size]
        z = starts
        for _ in range(steps):
            image = function(z @ weight.transpose(1, 2) + inner) + shift
            if normalised:
                image = image / image.amax(dim=-1, keepdim=True)
            z = (z + image) / 2  # undamped orbits would rather part into cycles
        return z

    def spread(parameters: torch.Tensor, steps: int) -> torch.Tensor:
        z = orbit(parameters, steps)
        return (z - z.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2)).sqrt()

    last = first.clone()
    for steps in [20] * 40 + [70] * 15:
        last.requires_grad_(True)
        (gradient,) = torch.autograd.grad((spread(last, steps) + 1e-30).log().clamp(max=0.5).sum(), last)
        length = gradient.flatten(1).norm(dim=1)[:, None, None]
        last = (last + 0.15 * gradient / (length + 1e-30)).detach()
    low, high = torch.zeros(maps, 1, 1, dtype=torch.float64), torch.ones(maps, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(10):
            middle = (low + high) / 2
            parted = (spread(torch.lerp(first, last, middle), 200) > 1e-3)[:, None, None]
            low, high = torch.where(parted, low, middle), torch.where(parted, middle, high)
        choices = [torch.lerp(first, last, high + offset).numpy() for offset in _OFFSETS]
    options = {"activation": name, "shift": shift, **({"normalize": "inf"} if normalised else {})}
    specs = []
    for index in range(count):
        member = choices[index % len(_OFFSETS)][index // len(_OFFSETS)]
        specs.append(dense_spec(member[:, :size], member[:, size], **options))
    return specs


ADVERSARY = (near_degree, near_norm, two_points, bifurcations, kinks, concave, ascended)
