"""A search for a second fixed point of any callable: evidence against uniqueness, never a proof of it.

From many starts, plain and damped iteration find fixed points that attract; Anderson's acceleration finds others too
(D. G. Anderson, *Iterative procedures for nonlinear integral equations*, J. ACM 12, 1965, doi:10.1145/321296.321305).
What is found is confirmed by its residual, evaluated once more, and must lie far apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._shapes import check_floating, check_nonempty
from ..errors import OptionError, ShapeError

__all__ = ["Evidence", "falsify"]

_DAMPINGS = (1.0, 0.5, 1.0, 0.2)  # by turns
_DEPTH = 5
_ANDERSON_STEPS = 60
_SEPARATION = 1e-3  # relative; and 1000 times the tolerance, so that no rate below 0.998 explains two solutions
_REACH = 10.0  # solutions larger than the largest start by this factor are taken for divergence
_MOST = 16  # solutions reported
_CHUNK = 2**22  # entries evaluated at a time


@dataclass(frozen=True)
class Evidence:
    """What a search for fixed points found.

    Attributes:
        solutions: `(K, ...)`, different fixed points of the sample `sample`, the smallest residual first; at most 16.
        residuals: `(K,)`, the largest entry of `|f(z) - z|`, relative to the largest of `|z|` where that exceeds 1.
        starts: how many were tried.
        sample: the sample of the batch with the most solutions.
        gap: the smallest distance of two solutions, relative as the residuals are; infinite for fewer than two.
    """

    solutions: Tensor
    residuals: Tensor
    starts: int
    sample: int
    gap: float

    @property
    def refuted(self) -> bool:
        """Whether several fixed points were found: strong evidence against uniqueness, up to rounding."""
        return len(self.solutions) > 1

    @property
    def message(self) -> str:
        """The finding in a sentence."""
        count, where = len(self.solutions), f"from {self.starts} starts"
        if count > 1:
            sizes = ", ".join(f"{value:.1e}" for value in self.residuals[:5].tolist()) + (", ..." if count > 5 else "")
            return (
                f"{count} different fixed points found {where} (sample {self.sample}, residuals {sizes}, at least "
                f"{self.gap:.1e} apart): strong evidence against uniqueness, short of a proof."
            )
        if count == 1:
            return f"no second fixed point found {where}: this proves nothing."
        return f"no fixed point found {where}: this proves nothing."

    def __str__(self) -> str:
        return self.message


class _Batched:
    """The map on many states at once, `(S, B, N)`; each sample's trajectory by itself.

    Starts are stacked along the batch where the map is seen to treat samples alike; else it is called once for each.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], start: Tensor) -> None:
        self._function, self._shape = function, start.shape
        self._stackable = False
        alone = self._call(start)
        other = start * 1.5 + 0.25
        try:
            both = function(torch.cat([start, other]))
            expected = torch.cat([alone, self._call(other)])
            scale = expected.abs().amax().clamp(min=1)
            close = (both - expected).abs() <= 64 * torch.finfo(start.dtype).eps * scale
            self._stackable = both.shape == expected.shape and bool((close | (both.isnan() & expected.isnan())).all())
        except Exception:  # whatever a foreign callable raises for a batch it was not made for
            self._stackable = False

    def _call(self, z: Tensor) -> Tensor:
        value = self._function(z.clone())  # a copy, as it may work in place
        if not isinstance(value, Tensor) or value.shape != z.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"function must return a tensor of the shape of its argument, {tuple(z.shape)}, got {got}."
            )
        return value.detach()

    def __call__(self, z: Tensor) -> Tensor:
        starts = z.shape[0]
        step = max(1, _CHUNK // z[0].numel()) if self._stackable else 1
        parts = []
        for first in range(0, starts, step):
            part = z[first : first + step]
            parts.append(self._call(part.reshape(-1, *self._shape[1:])).reshape(part.shape))
        return torch.cat(parts)


@dataclass
class _Best:
    """The state of the smallest residual met so far, for each start and sample."""

    z: Tensor
    residual: Tensor

    def update(self, rows: Tensor, z: Tensor, value: Tensor) -> Tensor:
        """Take note of states and their images; returns the residuals `(R, B)`."""
        residual = _residual(z, value)
        better = residual < self.residual[rows]
        self.residual[rows] = torch.where(better, residual, self.residual[rows])
        self.z[rows] = torch.where(better.unsqueeze(2), z, self.z[rows])
        return residual


def _residual(z: Tensor, value: Tensor) -> Tensor:
    """`max |f(z) - z| / max(1, max |z|)` for each sample; infinite where that is no number."""
    size = z.abs().amax(dim=-1).clamp(min=1)
    return ((value - z).abs().amax(dim=-1) / size).nan_to_num(nan=torch.inf)


def falsify(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    starts: int = 256,
    seed: int = 0,
    tol: float | None = None,
    max_iter: int = 500,
    positive: bool = False,
) -> Evidence:
    """Look for several fixed points of any map; finding one, or none, proves nothing.

    The map is called as it is, without gradients; put a module into eval mode first. Samples must not influence each
    other. Starts are spread around `start`, over positive numbers of all sizes, and over signed ones where the map is
    finite there. Solutions ten times larger than the largest start are not reported.

    Args:
        function: maps states `(B, ...)` to states of the same shape.
        start: a state `(B, ...)`; its dtype is the one to search in, so that float64 sees more than float32.
        starts: how many starts to try.
        seed: of the starts.
        tol: the largest residual of a solution, relative to the largest entry of the state where that exceeds 1; by
            default the dtype's precision to the power 3/4.
        max_iter: the number of plain or damped steps from each start.
        positive: look among positive states only, the domain that the certificates of this package are about.

    Returns:
        The `Evidence`; `str(evidence)` says what it is worth.

    Raises:
        ShapeError: `start` is no state, or the function does not return one.
        OptionError: a number out of range.
    """
    state = check_floating("start", start).detach()
    check_nonempty("start", state)
    if state.dim() < 2:
        raise ShapeError(f"start must be a state (B, ...) with at least 2 dimensions, got {tuple(state.shape)}.")
    for name, number in (("starts", starts), ("max_iter", max_iter)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise OptionError(f"{name} must be a positive integer, got {number!r}.")
    tolerance = torch.finfo(state.dtype).eps ** 0.75 if tol is None else tol
    if not 0 < tolerance < 1:
        raise OptionError(f"tol must be between 0 and 1, got {tol!r}.")
    with torch.no_grad():
        batched = _Batched(function, state)
        z = _starts(batched, state, starts, seed, positive)
        found = []
        for method in (_damped, _anderson):
            best = _Best(z.clone(), torch.full(z.shape[:2], torch.inf, dtype=z.dtype, device=z.device))
            method(batched, z.clone(), best, tolerance, max_iter, positive)
            found.append(best.z)
        candidates = torch.cat(found)
        residual = _residual(candidates, batched(candidates))  # once more: a random map does not repeat itself
        far = candidates.abs().amax(dim=2) > _REACH * z.abs().max()  # z + 1 looks like z where z is large
        residual = residual.masked_fill(far, torch.inf)
        if positive:
            residual = residual.masked_fill((candidates <= 0).any(dim=2), torch.inf)
        return _evidence(batched, candidates, residual, state.shape, starts, tolerance)


def _starts(batched: _Batched, state: Tensor, count: int, seed: int, positive: bool) -> Tensor:
    """`(S, B, N)`: the start, its multiples, its neighbourhood, and states of all sizes."""
    flat = state.reshape(1, state.shape[0], -1).double()
    generator = torch.Generator().manual_seed(seed)

    def uniform(lo: float, hi: float, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * (hi - lo) + lo
        return drawn.to(flat.device)

    size = tuple(flat.shape[1:])
    base = flat.abs() + (flat == 0) if positive else flat
    rows = [base]
    for turn in range(count - 1):
        kind = turn % 4
        if kind == 0:  # a multiple
            rows.append(base * uniform(-3, 2, 1, 1, 1).mul(2.302585).exp())
        elif kind == 1:  # nearby
            rows.append(base * uniform(-2, 2, 1, *size).exp())
        else:
            spread = uniform(-4, 2, 1, *size) if kind == 2 else uniform(-3, 2, 1, 1, 1) + uniform(-1, 1, 1, *size)
            rows.append(spread.mul(2.302585).exp())
    z = torch.cat(rows).to(state.dtype)
    if positive:
        return z
    signed = z.clone()
    signed[3::4] *= torch.sign(uniform(-1, 1, *signed[3::4].shape)).to(z.dtype)
    signed[5::8] *= -1
    signed[1:2] = 0
    finite = batched(signed).isfinite().reshape(len(z), -1).all(dim=1)
    return torch.where(finite[:, None, None], signed, z)


def _kept(new: Tensor, old: Tensor, positive: bool) -> Tensor:
    """The new states, the old ones where these left the positive orthant."""
    return torch.where((new > 0).all(dim=2, keepdim=True), new, old) if positive else new


def _unsettled(residual: Tensor, tol: float) -> Tensor:
    """`(R,)`: the starts with a sample that has neither settled nor been lost."""
    settled = max(0.01 * tol, 2 * torch.finfo(residual.dtype).eps)
    return ((residual > settled) & residual.isfinite()).any(dim=1)


def _damped(batched: _Batched, z: Tensor, best: _Best, tol: float, max_iter: int, positive: bool) -> None:
    """`z <- z + a (f(z) - z)`, until all samples of a start have settled or are lost."""
    turns = torch.arange(len(z), device=z.device) % len(_DAMPINGS)
    damping = torch.tensor(_DAMPINGS, dtype=z.dtype, device=z.device)[turns, None, None]
    rows = torch.arange(len(z), device=z.device)
    for _ in range(max_iter):
        value = batched(z)
        residual = best.update(rows, z, value)
        going = _unsettled(residual, tol)
        if not bool(going.any()):
            return
        z, value, rows = z[going], value[going], rows[going]
        z = _kept(z + damping[rows] * (value - z), z, positive)


def _anderson(batched: _Batched, z: Tensor, best: _Best, tol: float, max_iter: int, positive: bool) -> None:
    """Anderson's acceleration without damping, sample by sample; a lost sample stays where it is."""
    rows = torch.arange(len(z), device=z.device)
    depth = min(_DEPTH, z.shape[2])
    states: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(min(max_iter, _ANDERSON_STEPS)):
        value = batched(z)
        residual = best.update(rows, z, value)
        going = _unsettled(residual, tol)
        if not bool(going.any()):
            return
        rows = rows[going]
        states = [part[going] for part in (*states[-depth:], z)]
        values = [part[going] for part in (*values[-depth:], value)]
        z = _kept(_mixed(states, values), values[-1], positive)
        z = torch.where(z.isfinite().all(dim=2, keepdim=True), z, values[-1])


def _mixed(states: list[Tensor], values: list[Tensor]) -> Tensor:
    """The affine combination of images whose residual is smallest."""
    gaps = [(value - state).double() for state, value in zip(states, values, strict=True)]
    if len(gaps) == 1:
        return values[-1]
    steps = torch.stack([gaps[-1] - gap for gap in gaps[:-1]], dim=3)
    moves = torch.stack([(values[-1] - value).double() for value in values[:-1]], dim=3)
    normal = steps.mT @ steps
    # Relative to each column's own size: near a solution all of them are tiny.
    weights = normal.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
    normal = normal / weights.unsqueeze(-1) / weights.unsqueeze(-2)
    normal = normal + 1e-12 * torch.eye(normal.shape[-1], dtype=torch.float64, device=normal.device)
    right = (steps.mT @ gaps[-1].unsqueeze(3)) / weights.unsqueeze(-1)
    solved, info = torch.linalg.solve_ex(normal.nan_to_num(), right.nan_to_num())
    gamma = torch.where(info[..., None, None] == 0, solved, 0.0) / weights.unsqueeze(-1)
    return (values[-1].double() - (moves @ gamma).squeeze(3)).to(values[-1].dtype)


def _evidence(
    batched: _Batched, candidates: Tensor, residual: Tensor, shape: torch.Size, starts: int, tol: float
) -> Evidence:
    """The largest set of solutions of one sample that lie apart."""
    separation = max(_SEPARATION, 1000 * tol)
    most: tuple[list[int], int, float] = ([], 0, torch.inf)
    for sample in range(candidates.shape[1]):
        order = residual[:, sample].argsort().tolist()
        kept: list[int] = []
        gap = torch.inf
        for index in order:
            if not float(residual[index, sample]) <= tol or len(kept) == _MOST:
                break
            here = candidates[index, sample]
            apart = [_distance(here, candidates[other, sample]) for other in kept]
            if all(value > separation for value in apart) and all(
                _distinct(batched, candidates, residual, sample, index, other) for other in kept
            ):
                kept.append(index)
                gap = min([gap, *apart])
        if len(kept) > len(most[0]):
            most = (kept, sample, gap)
    kept, sample, gap = most
    return Evidence(candidates[kept, sample].reshape(-1, *shape[1:]), residual[kept, sample], starts, sample, gap)


def _distance(a: Tensor, b: Tensor) -> float:
    """`max |a - b|`, relative to the largest entry where that exceeds 1."""
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp(min=1))


def _distinct(batched: _Batched, candidates: Tensor, residual: Tensor, sample: int, a: int, b: int) -> bool:
    """Whether the residual rises between two solutions: slow convergence to one leaves a flat valley behind.

    Where both residuals and all between are zero, every point of the segment is a solution.
    """
    ends = max(float(residual[a, sample]), float(residual[b, sample]))
    between = torch.stack([torch.lerp(candidates[a], candidates[b], weight) for weight in (0.25, 0.5, 0.75)])
    highest = float(_residual(between, batched(between))[:, sample].max())
    rounding = 4 * torch.finfo(candidates.dtype).eps
    return highest > 10 * max(ends, rounding) or (ends == 0 and highest == 0)
