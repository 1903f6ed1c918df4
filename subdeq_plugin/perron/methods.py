"""Which method finds the vectors of a problem, and what follows where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from .._shapes import check_floating, check_positive, check_shape
from ..errors import OptionError
from ..result import Status
from .base import EigenMap
from .functions import FunctionMap
from .julia import julia_vectors
from .krylov import krylov_vector
from .local import LARGEST
from .loop import Found, Goal, Step, iterate
from .matrices import DenseMatrix, SparseMatrix, times_power
from .multi import MultiMap
from .reducible import Classes, solve_classes
from .steps import Dynamics, LogAnderson, Newton, Noda, Power
from .structure import Pattern
from .targets import Target, read

__all__ = ["BACKENDS", "METHODS", "Route", "classes_of", "first_vectors", "solve", "unscaled"]

_STEPS: dict[str, type[Step]] = {"power": Power, "noda": Noda, "newton": Newton, "anderson": LogAnderson}
METHODS = ("auto", "krylov", *_STEPS)
BACKENDS = ("torch", "julia")
_ROUGH = 1e-3  # a relative width from which Newton's method converges, as a rule
_FEW = 8  # steps of the power method after which it is judged
_WINDOW = 6  # by its last few steps
_MORE = 40  # further steps for which a faster method is not worth its start
_BALANCED = 2  # further passes of a Krylov method, each in variables in which the vector so far is constant
_NARROW = 8  # mean distance of entries from the diagonal up to which factorisations cost next to nothing
_AFFORDABLE, _MOST = 2e4, 2e10  # operations of a factorisation, for each entry and in all: some seconds
_POLISH = 12  # of the power method after a Krylov method, whose small entries are inaccurate
_DENSE = 600  # entries up to which Noda's iteration is the fastest


class Route(NamedTuple):
    """How vectors are found: one of `METHODS` and one of `BACKENDS`."""

    method: str = "auto"
    backend: str = "torch"

    def __str__(self) -> str:
        return self.method if self.backend == "torch" else f"{self.backend}:{self.method}"


def first_vectors(problem: Target, start: Tensor | None) -> Tensor:
    """The first vectors `(B, N)` in float64."""
    map_ = problem.map_
    if start is None:
        return torch.ones(map_.samples, map_.entries, dtype=torch.float64, device=map_.smallest.device)
    shape = (*problem.shape, *(problem.sample or (map_.entries,)))
    check_shape("start", check_floating("start", start), shape)
    check_positive("start", start)
    return start.detach().to(map_.smallest.device, torch.float64).reshape(map_.samples, -1)


def unscaled(bounds: Tensor, exponents: Tensor) -> Tensor:
    """Lower and upper bounds `(..., 2)` times `2**exponents`, rounded outwards where that leaves the normal numbers."""
    outward = torch.tensor([0.0, math.inf], dtype=bounds.dtype, device=bounds.device)
    result = times_power(bounds, exponents)
    result = torch.where((result < 2.0**-1000) & (bounds > 0), result.nextafter(outward), result)
    largest = torch.tensor([torch.finfo(bounds.dtype).max, math.inf], dtype=bounds.dtype, device=bounds.device)
    return torch.where(bounds.isfinite(), torch.minimum(result, largest), bounds)


def solve(problem: Target, start: Tensor, route: Route, goal: Goal) -> Found:
    """The pairs of all samples: all at once as long as that works, then those that are left by other means."""
    map_, method = problem.map_, route.method
    if isinstance(map_, MultiMap) and route.backend == "torch":
        return _solve_blocks(map_, start, method, goal)
    if method == "newton" and route.backend == "torch" and map_.entries > LARGEST:
        raise OptionError(f"method 'newton' is for up to {LARGEST} entries, got {map_.entries}; use 'auto'.")
    if route.backend == "julia":
        found = _by_julia(problem, start, method, goal)
    elif method == "auto":
        found = _by_power(map_, start, goal)
    elif method == "krylov":
        found = _krylov(problem, start, torch.arange(map_.samples), goal)
    else:
        found = iterate(map_, _STEPS[method](), start, goal)
    left: list[int] = []
    for sample in _open(found):
        pattern = problem.pattern(sample)
        if pattern is None or pattern.irreducible:
            left.append(sample)
        else:
            found = _by_classes(problem, found, sample, pattern, route, goal)
    rest = goal.after(found.evaluations)
    if route == Route() and left and rest.max_iter > 0:
        found = _accelerated(problem, found, torch.tensor(left, device=found.z.device), rest)
    return found


def _solve_blocks(map_: MultiMap, start: Tensor, method: str, goal: Goal) -> Found:
    if method in ("noda", "krylov") or (method == "newton" and map_.entries > LARGEST):
        raise OptionError(f"method {method!r} is not for this map; use 'auto', 'power' or 'anderson'.")
    if method != "auto":
        return iterate(map_, _STEPS[method](), start, goal)
    found = iterate(map_, Power(), start, goal, max_iter=_FEW)
    # Powers of a map of degree above 1 need not get closer to anything.
    steps: list[tuple[Step, float]] = [] if map_.bracketed else [(Dynamics(), _ROUGH)]
    steps.append((Newton(0) if map_.entries <= LARGEST else LogAnderson(), goal.tol))
    if not map_.bracketed:
        steps.append((Dynamics(), goal.tol))
    for step, tol in steps:
        rest = goal.after(found.evaluations)
        if not _open(found) or rest.max_iter < 1:
            break
        following = iterate(map_, step, found.z, replace(rest, tol=max(tol, goal.tol)))
        found = _joined(found, following)
        if tol > goal.tol:
            found = replace(found, status=torch.full_like(found.status, int(Status.MAX_ITERATIONS)))
    return found


def _open(found: Found) -> list[int]:
    """The samples without a vector whose bracket is as narrow as asked."""
    unfinished: list[int] = (found.status > Status.ROUNDING_FLOOR).nonzero()[:, 0].tolist()
    return unfinished


def _by_power(map_: EigenMap, start: Tensor, goal: Goal) -> Found:
    """Some steps of the power method, and more of them as long as it looks as if few will do."""
    found = iterate(map_, Power(), start, goal, max_iter=_FEW)
    worth = max(_MORE, map_.entries // 2 if map_.entries <= _DENSE else 0)
    while found.evaluations < 4 * worth:
        left = _steps_left(found, goal)
        soon = ((found.status > Status.ROUNDING_FLOOR) & (left <= worth)).nonzero()[:, 0]
        rest = goal.after(found.evaluations)
        if not len(soon) or rest.max_iter < 1:
            break
        steps = min(int(left[soon].amax()) + 2, _WINDOW, rest.max_iter)
        found = _continued(map_, found, soon, Power(), replace(rest, max_iter=steps))
    return found


def _accelerated(problem: Target, found: Found, which: Tensor, goal: Goal) -> Found:
    """`found` with the samples `which` continued: irreducible, with a small spectral gap."""
    map_ = problem.map_
    large = map_.entries > _DENSE
    if large and isinstance(map_, SparseMatrix):
        return _joined(found, _sparse(problem, found.z, goal))
    if large and isinstance(map_, DenseMatrix):
        return _merged(found, which, _krylov(problem, found.z[which], which, goal))
    return _continued(map_, found, which, LogAnderson() if large or isinstance(map_, FunctionMap) else Noda(), goal)


def _sparse(problem: Target, start: Tensor, goal: Goal) -> Found:
    """The pair of a sparse matrix: by ARPACK, but by Noda's iteration where factorisations cost less."""
    pattern, map_ = problem.pattern(0), problem.map_
    assert pattern is not None
    if pattern.reach <= _NARROW:
        return iterate(map_, Noda(), start, goal)
    found = _krylov(problem, start, torch.arange(1, device=start.device), goal)
    rest = goal.after(found.evaluations)
    if not _open(found) or rest.max_iter < 1 or pattern.elimination > min(_AFFORDABLE * pattern.matrix.nnz, _MOST):
        return found
    return _joined(found, iterate(map_, Noda(), found.z, rest))


def _steps_left(found: Found, goal: Goal) -> Tensor:
    """How many more steps `(B,)` of the power method will do, from what the last few did."""
    window = min(_WINDOW, len(found.history) - 1)
    if window < 1:
        return torch.full_like(found.width, math.inf)
    before, now = (1 - bounds[:, 0] / bounds[:, 1] for bounds in (found.history[-window - 1], found.history[-1]))
    shrinking = (now / before).clamp(max=1.0).log() / window
    steps = ((goal.tol / now).log() / shrinking).clamp(min=0.0)
    return torch.where(steps.isnan() | (shrinking >= 0), math.inf, steps)


def _continued(map_: EigenMap, found: Found, which: Tensor, step: Step, goal: Goal) -> Found:
    """`found` with the samples `which` continued by a method."""
    # Copies of most of a batch would cost more than the products that they save.
    if isinstance(map_, DenseMatrix) and 2 * len(which) <= map_.samples:
        return _merged(found, which, iterate(map_.rows(which), step, found.z[which], goal))
    only = torch.zeros_like(found.status, dtype=torch.bool).index_fill(0, which, True)
    return _merged(found, which, iterate(map_, step, found.z, goal, only=only).rows(which))


def _krylov(problem: Target, start: Tensor, which: Tensor, goal: Goal) -> Found:
    """ARPACK's vectors, one by one, polished by the power method; then once more where they are not good enough."""
    map_ = problem.map_.rows(which) if isinstance(problem.map_, DenseMatrix) else problem.map_
    if not isinstance(map_, DenseMatrix | SparseMatrix):
        raise OptionError("method 'krylov' needs a matrix whose entries are known; use 'anderson'.")
    found = _krylov_pass(map_, start, range(len(which)), goal, balanced=False)
    for _ in range(_BALANCED):
        left, rest = _open(found), goal.after(found.evaluations)
        if not left or rest.max_iter < 1:
            break
        found = _joined(found, _krylov_pass(map_, found.z, left, rest, balanced=True))
    return found


def _by_julia(problem: Target, start: Tensor, method: str, goal: Goal) -> Found:
    """Julia's vectors, polished; reducible matrices, of which it would not find any, are left at their start."""
    map_ = problem.map_
    patterns = [problem.pattern(row) for row in range(map_.samples)]
    rows = [row for row, pattern in enumerate(patterns) if pattern is None or pattern.irreducible]
    which = torch.tensor(rows, dtype=torch.int64, device=start.device)
    z, evaluations = start.clone(), 0
    if rows:
        part = map_.rows(which) if isinstance(map_, DenseMatrix) else map_
        z[which], evaluations = julia_vectors(part, start[which], method, goal)
    found = iterate(map_, Power(), z, goal, max_iter=_POLISH if rows else 1)
    return replace(found, evaluations=found.evaluations + evaluations)


def _krylov_pass(
    map_: DenseMatrix | SparseMatrix, start: Tensor, rows: Sequence[int], goal: Goal, *, balanced: bool
) -> Found:
    z, used = start.clone(), 0
    for row in rows:
        begin = start[row].cpu().numpy()
        vector, products = krylov_vector(map_.to_scipy(row), begin, goal.max_iter, balanced=balanced)
        z[row] = torch.from_numpy(np.ascontiguousarray(vector)).to(z)
        used = max(used, products)
    found = iterate(map_, Power(), z, goal, max_iter=_POLISH)
    return replace(found, evaluations=found.evaluations + used)


def classes_of(pattern: Pattern, route: Route, goal: Goal) -> Classes:
    """The pair of a reducible matrix, and which of its classes decide it."""

    def block(matrix: sp.csr_array) -> tuple[np.ndarray, float, float]:
        part = read(matrix.toarray() if matrix.shape[0] <= _DENSE else matrix, 1.0)
        pair = solve(part, first_vectors(part, None), route, replace(goal, progress=None))
        lower, upper = unscaled(torch.stack([pair.lower, pair.upper], dim=1), part.exponents[:, None])[0].tolist()
        return pair.z[0].numpy(), lower, upper

    return solve_classes(pattern, block)


def _by_classes(problem: Target, found: Found, sample: int, pattern: Pattern, route: Route, goal: Goal) -> Found:
    """`found` with the pair of a reducible matrix."""
    classes = classes_of(pattern, route, goal)
    narrow = classes.upper - classes.lower <= goal.tol * classes.upper
    status = found.status.clone()
    status[sample] = int(Status.CONVERGED if narrow else Status.MAX_ITERATIONS)
    z, lower, upper, width = (part.clone() for part in (found.z, found.lower, found.upper, found.width))
    width[sample] = math.inf  # a vector with zeros brackets nothing
    z[sample] = torch.from_numpy(classes.vector).to(z)
    # The bounds found so far are those of the scaled matrix.
    bounds = unscaled(lower.new_tensor([[classes.lower, classes.upper]]), -problem.exponents[sample])[0]
    lower[sample], upper[sample] = torch.maximum(lower[sample], bounds[0]), torch.minimum(upper[sample], bounds[1])
    return replace(found, z=z, lower=lower, upper=upper, width=width, status=status)


def _joined(found: Found, other: Found) -> Found:
    """`found` with all samples continued by `other`."""
    return _merged(found, torch.arange(len(found.lower), device=found.z.device), other)


def _merged(found: Found, which: Tensor, other: Found) -> Found:
    """`found` with the samples `which` continued by `other`."""

    def put(whole: Tensor, part: Tensor) -> Tensor:
        return whole.index_copy(0, which, part)

    lower = put(found.lower, torch.maximum(found.lower[which], other.lower))
    upper = put(found.upper, torch.minimum(found.upper[which], other.upper))
    last = found.history[-1]
    return Found(
        put(found.z, other.z),
        lower,
        upper,
        put(found.width, other.width),
        put(found.status, other.status),
        put(found.iterations, found.evaluations + other.iterations),
        found.evaluations + other.evaluations,
        [*found.history, *(put(last, step) for step in other.history)],
    )
