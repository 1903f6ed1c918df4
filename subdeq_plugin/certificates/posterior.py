"""A-posteriori error: how far a given state can be from the true fixed point.

Every proof comes with `d(z, z*) <= factor d(f(z), z)` on its domain (for a contraction the factor is `1 / (1 - rate)`,
Banach). The residual is measured from `z` to the farthest point of an outward-rounded enclosure of `f(z)`. A state
outside the domain is moved to its nearest point, and the way there is added.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from .._shapes import check_nonempty, check_positive
from ..activations.base import TINY
from ..errors import CertificateError
from ..layers import Normalizer
from ..metrics import METRICS
from .intervals import ELEMENTARY_UNITS, UNIT, Box, gamma
from .proof import Proof

__all__ = ["BoxMap", "error_bound", "error_interval", "first_step", "ratio_distance"]


class _States(Protocol):
    """What must be known of a map's states."""

    @property
    def normalizer(self) -> Normalizer | None:
        """Of the slice that a proof in Hilbert's metric is about."""

    @property
    def sample_dims(self) -> int:
        """How many trailing dimensions form one sample."""

    @property
    def positive(self) -> bool:
        """Whether states are positive."""

    def start(self) -> Tensor:
        """The default start, in float64 on the CPU."""

    def check_state(self, name: str, z: object) -> Tensor:
        """`z` as a state, or `ShapeError`."""


class BoxMap(Protocol):
    """A map on boxes: `f = normalized o activated o argument`, each rounded outwards."""

    @property
    def bound(self) -> _States:
        """Its states."""

    def flat(self, value: Tensor) -> Tensor:
        """A state as `(B, N)`."""

    def argument(self, box: Box) -> Box:
        """What a proof's `reach` limits."""

    def activated(self, t: Box) -> Box:
        """From the argument to the value before normalisation."""

    def normalized(self, value: Box) -> Box:
        """The value."""

    def image(self, box: Box) -> Box:
        """All three."""


_OUTWARD = 1 + 2.0**-40  # covers the handful of roundings made in forming a bound
_FEW_SUBNORMALS = 2.0**-1000  # and this those of results near underflow
_LOG_SLACK = 4 * (ELEMENTARY_UNITS + 1) * UNIT  # the rounding of two logarithms of quotients


def ratio_distance(metric: str, box: Box, z: Tensor) -> Tensor:
    """The largest Thompson or Hilbert distance of flat states `z (B, N)` to the points of a flat box, rounded up."""
    lo, hi = (box.lo / z).log(), (box.hi / z).log()
    hilbert, thompson = hi.amax(dim=1) - lo.amin(dim=1), torch.maximum(hi.abs(), lo.abs()).amax(dim=1)
    reach = hilbert if metric == "hilbert" else thompson
    return (reach + _LOG_SLACK) * _OUTWARD


def _largest_difference(box: Box, z: Tensor) -> Tensor:
    """The largest `|y - z|` in each entry, `y` in the box."""
    return torch.maximum((box.hi - z).abs(), (z - box.lo).abs()) * (1 + 4 * UNIT)


def _norm(proof: Proof, gap: Tensor) -> Tensor:
    """The norm of an additive metric of a bound `gap (B, N)` of absolute differences, rounded up."""
    if proof.metric == "linf":
        return (gap if proof.weights is None else gap / proof.weights).amax(dim=1) * _OUTWARD + _FEW_SUBNORMALS
    slack = 1 + gamma(gap.shape[1])
    top = gap.amax(dim=1)  # scaled out, so that no square under- or overflows
    order = 1 if proof.metric == "l1" else 2
    size = torch.linalg.vector_norm(gap / top.unsqueeze(1), ord=order, dim=1) * top
    return torch.where(top > 0, size * slack * _OUTWARD, top) + _FEW_SUBNORMALS


def _residual(proof: Proof, image: Box, z: Tensor) -> Tensor:
    """The distance from `z` to `f(z)` in the proof's metric, at most; everything flat."""
    if proof.preconditioner is None:
        return _farthest(proof, image, z)
    middle = image.lo / 2 + image.hi / 2
    centre = (middle - z).unsqueeze(2)
    radius = (_largest_difference(image, middle) + 4 * UNIT * (middle - z).abs()).unsqueeze(2)
    inverse = proof.preconditioner
    slack = gamma(z.shape[1])
    gap = (inverse @ centre).abs() + inverse.abs() @ (radius + slack * centre.abs()) * (1 + slack)
    return _norm(proof, gap.squeeze(2) * (1 + 4 * UNIT))


def _place(function: BoxMap, proof: Proof, state: Tensor) -> tuple[Tensor, Box]:
    """The point of the proof's domain nearest to a state, and a box that holds it in exact arithmetic."""
    normalizer = function.bound.normalizer
    if proof.metric == "hilbert" and normalizer is not None:
        # The point on the slice of norm 1 that lies on the same ray; the largest entry becomes 1 first, so that no
        # power over- or underflows in the norm.
        placed = normalizer(state / state.amax(dim=normalizer.dims, keepdim=True))
        placed = torch.where(placed >= TINY, placed, torch.nan)  # near underflow the slack below does not hold
        slack = _slice_slack(function, state)
        exact = Box(placed * (1 - slack), placed * (1 + slack))
        if proof.box is not None:
            # Moving along the ray is the only way that the metric does not see: outside the box nothing follows.
            inside = (exact.lo >= proof.box.lo) & (exact.hi <= proof.box.hi)
            outside = ~function.flat(inside).all(dim=1)
            placed = torch.where(outside.reshape(_lead(function, placed)), torch.nan, placed)
        return placed, exact
    placed = state if proof.box is None else proof.box.clamp(state)
    return placed, Box.point(placed)


def _slice_slack(function: BoxMap, state: Tensor) -> float:
    """How far, relatively, rounding leaves a state that was divided by its norm from the slice."""
    normalizer = function.bound.normalizer
    return 0.0 if normalizer is None else (normalizer.group_size(state.shape) + 2 * ELEMENTARY_UNITS + 4) * 2 * UNIT


def _lead(function: BoxMap, value: Tensor) -> tuple[int, ...]:
    """The shape that makes one number per sample broadcast against a state."""
    dims = function.bound.sample_dims
    return (*value.shape[: value.dim() - dims], *[1] * dims)


def _bound(function: BoxMap, proof: Proof, state: Tensor) -> tuple[Tensor, Tensor]:
    """The guaranteed distance `(B,)` of the placed state to the fixed point, and the placed state."""
    placed, exact = _place(function, proof, state)
    argument = function.argument(exact)
    image = function.normalized(function.activated(argument))
    flat = Box(function.flat(image.lo), function.flat(image.hi))
    error = proof.factor * _residual(proof, flat, function.flat(placed)) * _OUTWARD + _FEW_SUBNORMALS
    error = torch.where(function.flat(argument.hi <= proof.reach).all(dim=1), error, torch.inf)
    if proof.metric == "hilbert":
        error = error + _LOG_SLACK + _slice_slack(function, state)  # the ray of `placed` is that of the state
    return torch.where(error.isnan(), torch.inf, error), placed


def error_bound(function: BoxMap, proof: Proof | None, z: Tensor, metric: Proof | None = None) -> Tensor:
    """Guaranteed distance of each sample of `z` to the fixed point: `(B,)` float64, on `z`'s device.

    Infinite where nothing is proven and for samples with NaN. Measured as `metric` does, where that is another proof
    than the one relied on. See `Certificate.error_bound`.
    """
    state = _checked(function, z, proof)
    samples = function.flat(state)
    if proof is None:
        return torch.full((samples.shape[0],), torch.inf, dtype=torch.float64, device=z.device)
    with torch.no_grad():
        if metric is not None:
            found = error_interval(function, (proof,), z)
            around = Box(function.flat(found.lo), function.flat(found.hi))
            error = torch.where(proof.proven, _farthest(metric, around, samples), torch.inf)
            return torch.where(error.isnan(), torch.inf, error).to(z.device)
        error, placed = _bound(function, proof, state)
        if proof.box is not None:
            error = (error + _moved(proof, samples, function.flat(placed))) * _OUTWARD
            # Every fixed point lies in the box: its farthest point bounds the error of the samples proven.
            box = Box(function.flat(proof.box.lo), function.flat(proof.box.hi))
            most = torch.where(proof.proven, _farthest(proof, box, samples), torch.inf)
            error = torch.fmin(error, most)
        return torch.where(error.isnan(), torch.inf, error).to(z.device)


def _farthest(proof: Proof, box: Box, z: Tensor) -> Tensor:
    """The largest distance from `z` to a point of the box; everything flat."""
    if proof.metric in METRICS:
        return ratio_distance(proof.metric, box, z)
    return _norm(proof, _largest_difference(box, z))


def _moved(proof: Proof, z: Tensor, placed: Tensor) -> Tensor:
    """The distance from `z` to the point it was moved to."""
    if proof.metric == "hilbert":
        return torch.zeros(z.shape[0], dtype=torch.float64)
    there = (z == placed).all(dim=1)
    return torch.where(there, 0.0, _farthest(proof, Box.point(placed), z))


def error_interval(function: BoxMap, proofs: tuple[Proof, ...], z: Tensor) -> Box:
    """Entrywise bounds of the fixed point, from everything that is proven, in the state's shape on the CPU."""
    state = _checked(function, z, proofs[0] if proofs else None)
    free = torch.full_like(state, torch.inf)
    known = Box(-free, free)
    with torch.no_grad():
        for proof in proofs:
            error, placed = _bound(function, proof, state)
            found = _around(function, proof, placed, error)
            if proof.box is not None:
                # Where the sample is not proven its box still holds every fixed point.
                found = found & proof.box
            lost = found.lo.isnan() | found.hi.isnan()
            known = known & Box(torch.where(lost, -torch.inf, found.lo), torch.where(lost, torch.inf, found.hi))
        # The fixed point is its own image: one more application can only sharpen the bounds.
        finite = known.lo.isfinite() & known.hi.isfinite()
        known = known & function.image(known) if bool(finite.all()) and proofs else known
        # A box can only be empty if something went wrong near underflow: then nothing is known.
        empty = (function.flat(known.lo) > function.flat(known.hi)).any(dim=1).reshape(_lead(function, state))
        return Box(torch.where(empty, -torch.inf, known.lo), torch.where(empty, torch.inf, known.hi))


def _around(function: BoxMap, proof: Proof, placed: Tensor, error: Tensor) -> Box:
    """The states within a distance `error (B,)` of `placed`, as a box."""
    flat, wide = function.flat(placed), error.unsqueeze(1)
    if proof.metric in METRICS:
        # On the slice of norm 1 the Thompson distance is at most Hilbert's.
        slack = 2 * ELEMENTARY_UNITS * UNIT
        lo, hi = flat * (-wide).exp() * (1 - slack), flat * wide.exp() * (1 + slack)
        lo, hi = torch.where(wide.isinf(), -torch.inf, lo), torch.where(wide.isinf(), torch.inf, hi)
    else:
        reach = (wide if proof.weights is None else wide * proof.weights) * (1 + 4 * UNIT)
        lo, hi = flat - reach, flat + reach
    return Box.outward(lo.reshape(placed.shape), hi.reshape(placed.shape))


def _checked(function: BoxMap, z: Tensor, proof: Proof | None) -> Tensor:
    function.bound.check_state("z", z)
    check_nonempty("z", z)
    if function.bound.positive and (proof is None or proof.metric in METRICS):
        check_positive("z", z)
    return z.detach().to("cpu", torch.float64)


def first_step(function: BoxMap, proof: Proof) -> float:
    """The `d` for which `rate**k / (1 - rate) * d` bounds the distance after `k` steps from the start of ones.

    That is the largest distance over the samples from the start to its image, with its rounding added. In Hilbert's
    metric the ones are first moved to `e = ones / phi(ones)` on the slice. The first step is really taken from the
    ones, which costs `d(f(ones), f(e)) <= rate |ln phi(ones)|` and is made up for by `(1 - rate) |ln phi(ones)|`.

    Raises:
        CertificateError: nothing can be said of the start of ones.
    """
    rate = proof.largest_rate
    if rate is None:
        raise CertificateError(f"theorem {proof.theorem!r} proves no rate of the plain iteration.")
    with torch.no_grad():
        start = function.bound.start()
        if proof.box is not None and bool((proof.box.clamp(start) != start).any()):
            raise CertificateError("the rate holds inside a box without the start of ones; pass first_step.")
        placed, exact = _place(function, proof, start)
        if bool((function.argument(exact).hi > proof.reach).any()):
            raise CertificateError("the start of ones lies outside the domain of the proof; pass first_step.")
        image = function.image(exact)
        flat = Box(function.flat(image.lo), function.flat(image.hi))
        step = float(_residual(proof, flat, function.flat(placed)).max())
        if not math.isfinite(step):
            raise CertificateError("the first step from ones leaves the range of a double; pass first_step.")
        if proof.metric == "hilbert":
            step += (1 - rate) * (float((start / placed).log().abs().max()) + _LOG_SLACK) + _slice_slack(
                function, start
            )
        return step * _OUTWARD
