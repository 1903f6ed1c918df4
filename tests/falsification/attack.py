"""The attack: look for a second fixed point in float64, then prove that it is there, or that it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subdeq_plugin.layers import BoundMap

from .buckets import Bucket, key
from .exact import Balls, ExactMap, distinct, enclose
from .specs import Array, Flat, flats

__all__ = ["Finding", "Target", "attack", "confirm", "fixed_points", "true_fixed_point"]

SOLVED = 1e-8  # residual of a candidate
APART = 1e-5  # distance between candidates that makes a pair suspicious
MOST = 4  # candidates kept


@dataclass(frozen=True)
class Target:
    """A sample to attack, and whether the states of interest are all real vectors or the positive ones only."""

    flat: Flat
    signed: bool


@dataclass(frozen=True)
class Finding:
    """What the search in float64 found for one sample.

    Attributes:
        candidates: `(K, N)` states with a small residual, the best one first and then the farthest from it; no proof.
        multiple: whether two of them are apart.
    """

    candidates: Array
    multiple: bool


def _starts(bucket: Bucket, rng: np.random.Generator, count: int) -> Array:
    """Ones, extremes, corners and random states, spread over what the maps can reach."""
    maps, size = len(bucket.members), bucket.size
    ones = np.ones((maps, 1, size))
    wide = rng.uniform(-1, 1, (maps, count - 3, size)) * rng.choice([0.3, 2.0, 8.0, 18.0], (maps, count - 3, 1))
    corners = rng.random((maps, count - 3, 1)) < 0.4
    wide = np.where(corners, np.sign(wide) * np.abs(wide).max(axis=-1, keepdims=True), wide)
    if bucket.signed:
        random = np.sinh(wide)
        return np.concatenate([0 * ones, ones, -ones, random], axis=1)
    # Around the image of ones, whose entries show the scale of each coordinate.
    image = bucket.value(ones)
    center = np.where(np.isfinite(image) & (image > 0), np.clip(image, 1e-250, 1e250), 1.0)
    with np.errstate(all="ignore"):
        random = np.clip(center * np.exp(wide), 1e-280, 1e280)
    return np.concatenate([ones, center * 1e-6, center * 1e6, random], axis=1)


def _coordinates(bucket: Bucket, z: Array) -> Array:
    with np.errstate(all="ignore"):
        return z if bucket.signed else np.log(z)


def _apart(bucket: Bucket, z: Array, reference: Array) -> Array:
    """Distances `(L, S)` of states to one reference state for each map; relative where states are positive."""
    a, b = _coordinates(bucket, z), _coordinates(bucket, reference)[:, None]
    with np.errstate(all="ignore"):
        gap = np.abs(a - b)
        return (gap / (1 + np.abs(b)) if bucket.signed else gap).max(axis=-1)


def _collect(bucket: Bucket, z: Array) -> tuple[Array, Array]:
    """The best state of each map `(L, N)`, and the distances `(L, S)` of the other solutions, -1 for non-solutions."""
    residual = bucket.residual(z)
    best = z[np.arange(len(z)), residual.argmin(axis=1)]
    apart = np.where(residual < SOLVED, _apart(bucket, z, best), -1.0)
    return best, np.where(np.isnan(apart), -1.0, apart)


def _along_eigenvectors(bucket: Bucket, best: Array, rng: np.random.Generator) -> Array:
    """States on both sides of a fixed point, along the directions it is least attracting in."""
    image, jacobian = bucket.jacobian(best[:, None])
    with np.errstate(all="ignore"):
        if not bucket.signed:
            jacobian = jacobian * (best[:, None, None, :] / image[..., :, None])
        jacobian = np.nan_to_num(jacobian[:, 0], nan=0.0, posinf=0.0, neginf=0.0)
        direction = rng.standard_normal(best.shape)
        for _ in range(12):  # of (I + J) / 2, which prefers eigenvalues near 1 to those near -1
            direction = direction + np.einsum("lij,lj->li", jacobian, direction)
            direction /= np.maximum(np.abs(direction).max(axis=-1, keepdims=True), 1e-300)
        steps = np.array([-3.0, -0.5, -0.03, 0.03, 0.5, 3.0])[None, :, None] * direction[:, None]
        return best[:, None] + steps if bucket.signed else best[:, None] * np.exp(steps)


def _slowly(bucket: Bucket, starts: Array, count: int) -> Array:
    """Heavily damped iteration, for maps that overshoot; `count` states for each map."""
    starts = np.concatenate([starts] * (1 + count // starts.shape[1]), axis=1)[:, :count]
    damping = np.array([0.0, 0.8, 0.95, 0.99])[np.arange(count) % 4]
    settled = bucket.iterate(starts, 400, damping)
    polished = bucket.newton(bucket.place(settled), 6)
    better = bucket.residual(polished) < bucket.residual(settled)
    return np.where(better[..., None], polished, settled)


def _second_search(bucket: Bucket, best: Array, starts: Array, rng: np.random.Generator) -> Array:
    """What Newton's method finds with the known solution deflated, and beside it along eigenvectors: `(L, 16, N)`."""
    beside = _along_eigenvectors(bucket, best, rng)
    guesses = np.concatenate([beside[:, 1:5], starts[:, -6:]], axis=1)
    deflated = bucket.newton(bucket.place(guesses), 12, best)
    around = bucket.iterate(beside, 15, np.zeros(beside.shape[1]))
    return bucket.newton(np.concatenate([around, deflated], axis=1), 3)


def _between(bucket: Bucket, best: Array, other: Array) -> Array:
    """What Newton's method finds from states between two solutions: `(L, 16, N)`; a third one, if they attract."""
    share = np.linspace(0.05, 0.95, 16)[None, :, None]
    with np.errstate(all="ignore"):
        if bucket.signed:
            states = (1 - share) * best[:, None] + share * other[:, None]
        else:
            states = best[:, None] ** (1 - share) * other[:, None] ** share
    return bucket.newton(bucket.place(states), 8)


def _choose(bucket: Bucket, pool: Array) -> list[Finding]:
    """The best state of each map, and others far from it and from each other."""
    best, apart = _collect(bucket, pool)
    findings = []
    for index in range(len(pool)):
        chosen, gaps = [best[index]], apart[index]
        while len(chosen) < MOST and gaps.max() > APART:
            chosen.append(pool[index, gaps.argmax()])
            one = bucket.take(np.array([index]))
            gaps = np.minimum(gaps, np.nan_to_num(_apart(one, pool[index][None], chosen[-1][None])[0], nan=-1.0))
        findings.append(Finding(np.stack(chosen), len(chosen) > 1))
    return findings


def _search(bucket: Bucket, rng: np.random.Generator, effort: int) -> list[Finding]:
    """Damped iteration and Newton's method from many starts, then deflated, and along eigenvectors."""
    count = max(6, min(16, 200 // bucket.size)) * effort
    starts = _starts(bucket, rng, count)
    damping = np.where(np.arange(count) % 3 == 2, 0.6, 0.0)
    settled = bucket.iterate(starts, 30 * effort, damping)
    pool = np.concatenate([settled, starts[:, : count // 2]], axis=1)
    pool = bucket.newton(bucket.place(pool), 9)
    stiff = np.flatnonzero(~(bucket.residual(pool) < SOLVED).any(axis=1))
    if len(stiff):
        pool[stiff] = _slowly(bucket.take(stiff), starts[stiff], pool.shape[1])
    best, apart = _collect(bucket, pool)
    more = np.repeat(best[:, None], 16, axis=1)
    lonely = (apart < APART).all(axis=1)
    if lonely.any():
        index = np.flatnonzero(lonely)
        more[index] = _second_search(bucket.take(index), best[index], starts[index], rng)
    if effort > 1 and not lonely.all():
        index = np.flatnonzero(~lonely)
        farthest = pool[index, apart[index].argmax(axis=1)]
        more[index] = _between(bucket.take(index), best[index], farthest)
    return _choose(bucket, np.concatenate([pool, more], axis=1))


def attack(targets: Sequence[Target], seed: int = 0, effort: int = 1) -> list[Finding]:
    """Search every target for several fixed points, maps of one size at once; more effort, more starts and steps."""
    rng = np.random.default_rng(seed)
    found: list[Finding | None] = [None] * len(targets)
    buckets: dict[tuple[int, int, bool], list[int]] = {}
    for index, target in enumerate(targets):
        buckets.setdefault(key(target.flat, target.signed), []).append(index)
    for (_, _, signed), members in sorted(buckets.items()):
        bucket = Bucket([targets[index].flat for index in members], signed=signed)
        for index, finding in zip(members, _search(bucket, rng, effort), strict=True):
            found[index] = finding
    return [finding for finding in found if finding is not None]


def confirm(target: Target, finding: Finding) -> tuple[list[Balls], int]:
    """Proven boxes around candidates, pairwise disjoint: as many distinct fixed points, whatever float64 says.

    Also the number of candidates near which nothing could be proven.
    """
    exact = ExactMap(target.flat)
    boxes: list[Balls] = []
    lost = 0
    for candidate in finding.candidates:
        box = enclose(exact, candidate, positive=not target.signed)
        if box is None:
            lost += 1
        elif all(distinct(box, other) for other in boxes):
            boxes.append(box)
    return boxes, lost


def fixed_points(bound: BoundMap, seed: int = 0, *, signed: bool | None = None, effort: int = 2) -> list[list[Balls]]:
    """For each sample of one map, the distinct fixed points that were found and proven."""
    targets = [Target(flat, not bound.positive if signed is None else signed) for flat in flats(bound.spec)]
    findings = attack(targets, seed, effort)
    return [confirm(target, finding)[0] for target, finding in zip(targets, findings, strict=True)]


def true_fixed_point(bound: BoundMap, approx: Array, *, signed: bool | None = None) -> list[Balls | None]:
    """For each sample a proven box around the fixed point near `approx (B, N)`, in the map's order, or None."""
    positive = bound.positive if signed is None else not signed
    boxes: list[Balls | None] = []
    for flat, start in zip(flats(bound.spec), approx, strict=True):
        box = enclose(ExactMap(flat), start[flat.order], positive=positive)
        boxes.append(None if box is None else in_map_order(flat, box))
    return boxes


def in_map_order(flat: Flat, box: Balls) -> Balls:
    """A box in the order of the flattened sample."""
    result = list(box)
    for k, place in enumerate(flat.order.tolist()):
        result[place] = box[k]
    return result
