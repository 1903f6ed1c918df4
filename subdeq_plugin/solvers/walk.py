"""Plain iteration whose length a proof predicts: hardly a test, hardly a tensor allocated.

S. Banach, Fund. Math. 3 (1922): where `f` contracts a distance `d` by `q`, the image `f(z)` is within
`q / (1 - q) d(z, f(z))` of the fixed point, and `d(z, f(z))` shrinks by `q` or more with every step. How much it shrank
between two tests tells when the next one will succeed; nothing is looked at before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..metrics import METRICS, Contraction, iterations_for, ratio_range
from ..result import Solution, Status
from .base import Problem, Stepper, Stop
from .rows import Mask, Rows, on_host

__all__ = ["Walk", "walk"]

_FIRST = 3  # the first evaluation that is tested: the steps away from a start of ones tell little
_CACHED = 2**22  # bytes of a state up to which the samples of a batch walk together on a CPU
_FARTHEST = 10.0  # how far a start is taken to be from its image where nothing is measured
_TRUSTED = 2  # the proof alone may ask for so many times the patience: it does not see how fast things really go
_FAITHFUL = 0.25  # the part of the tolerance that a stepper's own rounding may take


@dataclass(frozen=True)
class Walk:
    """How far plain steps came.

    Attributes:
        state: `(B, N)`: the answers of the samples that finished, the last iterates of the others.
        evaluations: taken by the whole batch.
        finished: `(B,)` bool, the samples that met the test. The others are left to another method: the proof asks for
            too many steps, or they do not behave as it says, which is rounding, or NaN.
        absolute, relative: `(B,)` residuals at the iterate that was tested.
        iteration: `(B,)`, the evaluation at which it was: the same for all that walked together.
    """

    state: Tensor
    evaluations: int
    finished: Mask
    absolute: Rows
    relative: Rows
    iteration: NDArray[np.int64]

    def solution(self, shape: torch.Size) -> Solution:
        """The result for the samples that finished, in the state's own shape."""
        state, device = self.state, self.state.device
        absolute, relative = (torch.from_numpy(rows).to(state) for rows in (self.absolute, self.relative))
        count = torch.from_numpy(self.iteration).to(device)
        return Solution(
            value=state.reshape(shape),
            status=torch.full_like(count, int(Status.CONVERGED)),
            abs_residual=absolute,
            rel_residual=relative,
            iterations=count,
            evaluations=self.evaluations,
            abs_trace=absolute[:, None],
            rel_trace=relative[:, None],
        )


def walk(
    problem: Problem,
    contraction: Contraction,
    start: Tensor,
    stop: Stop,
    *,
    patience: int,
    tested: bool = True,
    coarse: int = 0,
    fused: bool = False,
) -> Walk:
    """Take plain steps from `start`, the batch together, until its slowest sample is done.

    A batch too large for the processor's cache is taken in parts, each of which is done before the next begins.

    Args:
        problem: the map.
        contraction: proven of it.
        start: `(B, N)`; it is not overwritten.
        stop: the test; at least one evaluation below its limit is left over.
        patience: how many steps in a row are taken on trust.
        tested: measure how fast the samples converge; else, unless they are far too many, take as many steps as the
            proof asks for, whatever the input, so that nothing is read back from the device before the last.
        fused: take all steps in one kernel, where the map brings one for this device and this test.
        coarse: so many steps are taken in bfloat16 first; the later ones forget its rounding.
    """
    size = start.element_size() * start[0].numel()
    chunk = max(1, _CACHED // size)
    settings = _Settings(contraction, stop, patience, tested, coarse)
    with np.errstate(all="ignore"):  # NaN and infinity are results here
        whole = _in_one_kernel(problem, start, settings) if fused else None
        if whole is not None:
            return whole
        if start.is_cuda or not problem.separable(stop.mode) or 2 * len(start) <= 3 * chunk:
            return _begin(problem, start, settings)
        return _joined(problem, start, settings, -(-len(start) // chunk))


@dataclass(frozen=True)
class _Settings:
    """The arguments of `walk` that are the same for every part of a batch."""

    contraction: Contraction
    stop: Stop
    patience: int
    tested: bool
    coarse: int


def _joined(problem: Problem, start: Tensor, settings: _Settings, chunks: int) -> Walk:
    """Walks of equal parts of a batch, one after another: each stays in the processor's cache for all its steps."""
    state = torch.empty_like(start)
    walks, count = [], len(start)
    for number in range(chunks):
        rows = slice(count * number // chunks, count * (number + 1) // chunks)
        part = _begin(problem.rows(rows), start[rows], settings)
        state[rows] = part.state
        walks.append(replace(part, state=state[:0]))
    evaluations = max(part.evaluations for part in walks)
    names = ("finished", "absolute", "relative", "iteration")
    finished, absolute, relative, iteration = (
        np.concatenate([getattr(part, name) for part in walks]) for name in names
    )
    return Walk(state, evaluations, finished, absolute, relative, iteration)


def _in_one_kernel(problem: Problem, start: Tensor, settings: _Settings) -> Walk | None:
    stop = settings.stop
    if problem.whole is None:
        return None
    most = min(int(stop.max_iter) - 1, _TRUSTED * settings.patience)
    found = problem.whole(start.reshape(problem.shape), settings.contraction, stop, most)
    if found is None:
        return None
    z, image, steps = (problem.flatten(part) for part in found)
    test = _Test(problem, settings.contraction, stop, z)
    met = test(z, image) <= stop.tol
    answer = image if stop.mode == "certified" else torch.where(torch.from_numpy(met).to(z.device)[:, None], z, image)
    count = steps.cpu().numpy().reshape(-1).astype(np.int64)
    return Walk(answer, int(count.max()), met, *test.residuals(z, image), count)


def _begin(problem: Problem, start: Tensor, settings: _Settings) -> Walk:
    start, stepper = start.reshape(problem.shape), problem.stepper()
    early = min(settings.coarse, int(settings.stop.max_iter) // 2) if start.dtype != torch.bfloat16 else 0
    coarse = problem.coarse_stepper(torch.bfloat16) if early else None
    if coarse is None:
        return _walk(problem, stepper, start, settings, 0)
    first = coarse.enter(start.to(torch.bfloat16))
    rough = coarse.leave(_Steps(coarse, first).advance(first, early), problem.shape).to(start.dtype)
    return _walk(problem, stepper, problem.placed(rough), settings, early)


def _walk(problem: Problem, stepper: Stepper, start: Tensor, settings: _Settings, evaluations: int) -> Walk:
    contraction, stop, patience = settings.contraction, settings.stop, settings.patience
    z = stepper.enter(start)
    steps, test = _Steps(stepper, z), _Test(problem, contraction, stop, z)
    room = int(stop.max_iter) - 1  # whoever goes on needs an evaluation
    ahead = max(1, iterations_for(stop.tol, contraction.rate, _FARTHEST))
    tested = settings.tested or ahead > _TRUSTED * patience
    if tested:
        ahead = max(_FIRST - evaluations, 2)
    walking: Mask = np.ones(problem.samples, dtype=bool)
    met: Mask = ~walking
    last: Rows | None = None
    hopeful = not tested  # whether the next test is expected to be passed
    while True:
        ahead = min(ahead, room - evaluations)
        z = steps.advance(z, ahead - 1)
        if hopeful and not test.faithful(stepper.error, z):
            # From here on the map itself: what its own rounding hides is not to be looked for again.
            stepper = _Sure(problem, stepper)
            steps = _Steps(stepper, z)
        image = steps.image(z)
        evaluations += ahead
        measured = test(z, image)
        met = measured <= stop.tol
        if not hopeful and met.any() and not test.faithful(stepper.error, z):
            met[:] = False  # a surprise, to be confirmed by the next test
        going = walking & ~met
        if evaluations >= room or not going.any():
            break
        if last is None:
            ahead = 1
        else:
            rates = (measured[going] / last[going]) ** (1 / ahead)
            ahead, steady = _predict(measured[going], rates, contraction.rate, stop.tol, patience)
            walking[going] = steady
            hopeful = True
            if not steady.any():
                break
        last = measured
        steps.release(z)
        z = image
    absolute, relative = test.residuals(z, image)
    answer = image if stop.mode == "certified" or not met.any() else z
    if answer is z and not met.all():
        answer = torch.where(torch.from_numpy(met).to(z.device).reshape(-1, *[1] * (z.dim() - 1)), z, image)
    state = problem.flatten(stepper.leave(answer, problem.shape))
    return Walk(state, evaluations, met, absolute, relative, np.full(len(met), evaluations))


def _predict(measured: Rows, rates: Rows, proven: float, tol: float, patience: int) -> tuple[int, Mask]:
    """How many steps the slowest of some samples has to go, and which of them come to an end in time."""
    # In exact arithmetic no sample is slower than the proof says. What does not shrink is rounding, or NaN.
    shrinking = rates < 1
    rates = np.clip(rates, 1e-6, max(proven, 1e-6))
    steps = np.maximum(np.ceil(np.log(tol / measured) / np.log(rates)), 1.0)
    steady = shrinking & (steps <= patience)
    return int(steps[steady].max(initial=0.0)), steady


@dataclass(frozen=True)
class _Sure:
    """The map itself on the states of a stepper."""

    problem: Problem
    stepper: Stepper
    error: float = 0.0

    def enter(self, z: Tensor) -> Tensor:
        return self.stepper.enter(z)

    def leave(self, z: Tensor, shape: torch.Size) -> Tensor:
        return self.stepper.leave(z, shape)

    def __call__(self, z: Tensor, out: Tensor, /) -> Tensor:
        return self.enter(self.problem.evaluate(self.leave(z, self.problem.shape)))


class _Steps:
    """Applications of a map, in buffers that are used again."""

    def __init__(self, stepper: Stepper, start: Tensor) -> None:
        self._stepper, self._start = stepper, start
        self._free: list[Tensor] = []

    def image(self, z: Tensor) -> Tensor:
        """`f(z)`; `z` stays what it is."""
        out = self._free.pop() if self._free else torch.empty_like(z)
        image = self._stepper(z, out)
        if image.data_ptr() != out.data_ptr():
            self._free.append(out)
        return image

    def release(self, z: Tensor) -> None:
        """Say that `z` is not needed any more; what the caller passed in is never overwritten."""
        if z is not self._start and not self._free:
            self._free.append(z)

    def advance(self, z: Tensor, steps: int) -> Tensor:
        """`steps` applications to a `z` that is not needed any more."""
        for _ in range(steps):
            image = self.image(z)
            self.release(z)
            z = image
        return z


class _Test:
    """The measure of `Stop` for all samples of a state at once, with one scratch tensor."""

    def __init__(self, problem: Problem, contraction: Contraction, stop: Stop, like: Tensor) -> None:
        self._contraction, self._mode, self._flatten = contraction, stop.mode, problem.flatten
        self._dims: Any = 1 if like.dim() == 2 else tuple(range(1, like.dim()))
        self._scratch = torch.empty_like(like)
        self._tol = stop.tol
        self._metric = contraction.metric if stop.mode == "certified" else stop.mode
        self._factor = contraction.of_image if stop.mode == "certified" else 1.0

    def __call__(self, z: Tensor, image: Tensor) -> Rows:
        """What is compared with the tolerance, `(B,)`."""
        if self._metric in METRICS:
            low, high = ratio_range(image, z, self._scratch)
            below, above = np.log(on_host(low)), np.log(on_host(high))
            distance: Rows = above - below if self._metric == "hilbert" else np.maximum(above, -below)
            return self._factor * distance
        if self._mode == "certified":
            return self._factor * on_host(self._contraction.distance(self._flatten(image), self._flatten(z)))
        absolute, relative = self.residuals(z, image)
        return absolute if self._mode == "abs" else relative

    def residuals(self, z: Tensor, image: Tensor) -> tuple[Rows, Rows]:
        """Two-norms of `f(z) - z`, and the same relative to `f(z)`: each `(B,)`."""
        gap = torch.sub(image, z, out=self._scratch)
        absolute = on_host(torch.linalg.vector_norm(gap, dim=self._dims))
        size = on_host(torch.linalg.vector_norm(image, dim=self._dims))
        return absolute, absolute / np.maximum(size, torch.finfo(z.dtype).tiny)

    def faithful(self, error: float, z: Tensor) -> bool:
        """Whether an absolute error of `error` in every entry of an image near `z` leaves the test what it says.

        A residual is to be that of the map itself. What the proof says holds up to rounding, which moves the fixed
        point by up to `1 / (1 - q)` times itself; a part of the tolerance is not much of that.
        """
        if error == 0 or self._mode != "certified":
            return error == 0
        return error <= _FAITHFUL * self._tol * (1 - self._contraction.rate) * float(z.min())
