"""Many small maps at once: values, Jacobians, damped iteration and deflated Newton's method on arrays, in float64.

Shapes: `L` maps of one size `N`, `S` states each, `G` norm groups; everything is `(L, S, N)`. Nothing here is a proof;
states that overflow become NaN and drop out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .scalars import SCALARS
from .specs import Array, Flat

__all__ = ["Bucket", "key"]

_TINY = 1e-300


def key(flat: Flat, signed: bool) -> tuple[int, int, bool]:
    """Maps with the same key can share a bucket; `groups` is 0 without a norm."""
    return flat.size, 0 if flat.p is None else flat.groups, signed


class Bucket:
    """Maps with one key. In a signed bucket states are real vectors, else positive ones in logarithmic coordinates."""

    def __init__(self, members: Sequence[Flat], *, signed: bool) -> None:
        self.signed = signed
        self.members = list(members)
        self.size = members[0].size
        self.groups = 0 if members[0].p is None else members[0].groups
        self.matrix = np.stack([flat.matrix for flat in members])
        self.inner = np.stack([flat.inner for flat in members])[:, None, :]
        self.outer = np.stack([flat.outer for flat in members])[:, None, :]
        self.shift = np.array([flat.shift for flat in members])[:, None, None]
        self.power = np.array([flat.power for flat in members])[:, None, None]
        self.exponent = np.array([np.nan if flat.p is None else flat.p for flat in members])[:, None, None, None]
        names = np.array([flat.activation for flat in members])
        self._scalars = [(SCALARS[name], np.flatnonzero(names == name)) for name in sorted(set(names.tolist()))]
        self._powers = np.flatnonzero(self.power[:, 0, 0] != 1)

    def take(self, index: Array) -> Bucket:
        """Some of the maps."""
        return Bucket([self.members[i] for i in index], signed=self.signed)

    def _activated(self, z: Array, *, slopes: bool) -> tuple[Array, Array]:
        """`F(z)` and, if asked for, the slopes of the activation."""
        t = z @ self.matrix.transpose(0, 2, 1) + self.inner
        value = np.empty_like(t)
        slope = np.empty_like(t) if slopes else value
        for scalar, index in self._scalars:
            value[index] = scalar.value(t[index])
            if slopes:
                slope[index] = scalar.slope(t[index])
        value = value + self.shift
        if len(self._powers):
            some, power = self._powers, self.power[self._powers]
            base = value[some]
            value[some] = base**power
            if slopes:
                slope[some] *= power * base ** (power - 1)
        return value + self.outer, slope

    def _grouped(self, value: Array) -> tuple[Array, Array]:
        """The values as `(L, S, G, N / G)`, and their norms with the last dimension kept."""
        parts = value.reshape(*value.shape[:2], self.groups, -1)
        top = np.abs(parts).max(axis=-1, keepdims=True)
        sums = (np.abs(parts / top) ** self.exponent).sum(axis=-1, keepdims=True)
        return parts, np.where(np.isinf(self.exponent), top, top * sums ** (1 / self.exponent))

    def value(self, z: Array) -> Array:
        """`f(z)`."""
        with np.errstate(all="ignore"):
            value = self._activated(z, slopes=False)[0]
            if not self.groups:
                return value
            parts, norms = self._grouped(value)
            return (parts / norms).reshape(value.shape)

    def jacobian(self, z: Array) -> tuple[Array, Array]:
        """`f(z)` and its Jacobian `(L, S, N, N)`."""
        with np.errstate(all="ignore"):
            value, slope = self._activated(z, slopes=True)
            rows = slope[..., None] * self.matrix[:, None]
            if not self.groups:
                return value, rows
            parts, norms = self._grouped(value)
            unit = parts / norms
            peak = parts == norms
            weights = np.where(
                np.isinf(self.exponent),
                peak / peak.sum(axis=-1, keepdims=True),
                np.sign(unit) * np.abs(unit) ** (self.exponent - 1),
            )
            blocks = rows.reshape(*unit.shape, self.size)
            radial = (weights[..., None] * blocks).sum(axis=3, keepdims=True)
            blocks = (blocks - unit[..., None] * radial) / norms[..., None]
            return unit.reshape(value.shape), blocks.reshape(rows.shape)

    def residual(self, z: Array) -> Array:
        """How far each state `(L, S)` is from its image: relative for positive states; NaN counts as infinite."""
        with np.errstate(all="ignore"):
            image = self.value(z)
            gap = np.abs(image - z) / (1 + np.abs(z)) if self.signed else np.abs(np.log(image) - np.log(z))
            return np.nan_to_num(gap.max(axis=-1), nan=np.inf, posinf=np.inf)

    def place(self, z: Array) -> Array:
        """States divided by their norms, where the maps are normalised."""
        if not self.groups:
            return z
        with np.errstate(all="ignore"):
            parts, norms = self._grouped(z)
            return (parts / norms).reshape(z.shape)

    def iterate(self, z: Array, steps: int, damping: Array) -> Array:
        """Damped iteration, `damping (S,)` being the part of the old state kept."""
        keep = damping[None, :, None]
        with np.errstate(all="ignore"):
            for _ in range(steps):
                image = self.value(z)
                if self.signed:
                    z = np.clip(keep * z + (1 - keep) * image, -1e307, 1e307)
                else:
                    z = np.exp(keep * np.log(z) + (1 - keep) * np.log(np.clip(image, _TINY, 1e200)))
                    z = np.where(image > 0, z, np.nan)
        return z

    def newton(self, z: Array, steps: int, known: Array | None = None) -> Array:
        """Newton's method with bounded steps; `known (L, N)` is deflated away.

        P. Farrell, A. Birkisson, S. Funke, *Deflation techniques for finding distinct solutions of nonlinear partial
        differential equations*, SIAM J. Sci. Comput. 37, 2015: the factor `1 / |u - known|**2 + 1` before the residual
        only rescales Newton's step.
        """
        identity = np.eye(self.size)
        with np.errstate(all="ignore"):
            for _ in range(steps):
                image, jacobian = self.jacobian(z)
                if self.signed:
                    gap = image - z
                    away = None if known is None else z - known[:, None]
                else:
                    # Where the image is not positive there is no logarithm: the old coordinate stays.
                    safe = np.where(image > _TINY, image, np.nan)
                    gap = np.log(safe) - np.log(z)
                    jacobian = jacobian * (z[..., None, :] / safe[..., :, None])
                    away = None if known is None else np.log(z) - np.log(known[:, None])
                step = _solve(identity - jacobian, gap)
                if away is not None:
                    square = (away**2).sum(axis=-1, keepdims=True)
                    factor = 1 + 2 * (away * step).sum(axis=-1, keepdims=True) / (square * (1 + square))
                    step = step / np.where(np.abs(factor) > 0.05, factor, 0.05)
                size = np.abs(step).max(axis=-1, keepdims=True)
                here = np.abs(z if self.signed else np.log(z) / 4).max(axis=-1, keepdims=True)
                limit = 2 * (1 + here)
                step = step * np.minimum(1, limit / np.maximum(size, _TINY))
                z = z + step if self.signed else z * np.exp(step)
        return z


def _solve(matrices: Array, vectors: Array) -> Array:
    """Batched solutions; NaN where an entry is not finite, something large where a matrix is singular."""
    finite = np.isfinite(matrices).all(axis=(-2, -1)) & np.isfinite(vectors).all(axis=-1)
    identity = np.eye(vectors.shape[-1])
    matrices = np.where(finite[..., None, None], matrices, identity)
    try:
        found = np.linalg.solve(matrices, vectors[..., None])[..., 0]
    except np.linalg.LinAlgError:
        found = np.linalg.solve(matrices + 1e-9 * (1 + np.abs(matrices).max()) * identity, vectors[..., None])[..., 0]
    return np.where(finite[..., None], found, np.nan)
