"""`perron`: the Perron pair of a nonnegative matrix, with a guaranteed bracket."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from .._shapes import check_floating, check_positive, check_shape
from ..errors import OptionError, unknown_name
from ..layers.normalize import parse_norm
from ..result import Status
from .derivative import attach, attach_function, size
from .functions import FunctionMap
from .krylov import krylov_vector
from .loop import Found, Goal, Step, iterate
from .matrices import DenseMatrix, SparseMatrix, times_power
from .reducible import solve_classes
from .result import PerronResult
from .steps import LogAnderson, Noda, Power
from .structure import Pattern
from .targets import Target, read

__all__ = ["METHODS", "perron"]

_STEPS: dict[str, type[Step]] = {"power": Power, "noda": Noda, "anderson": LogAnderson}
METHODS = ("auto", "krylov", *_STEPS)
_FEW = 30  # steps of the power method after which others are faster
_BALANCED = 2  # further passes of a Krylov method, each in variables in which the vector so far is constant
_POLISH = 12  # of the power method after a Krylov method, whose small entries are inaccurate
_DENSE = 600  # entries up to which Noda's iteration is the fastest


def perron(
    target: object,
    start: Tensor | None = None,
    *,
    method: str = "auto",
    side: str = "right",
    tol: float = 1e-12,
    max_iter: int = 1000,
    normalize: float | str = 1,
    history: bool = False,
    progress: Callable[[int, Tensor, Tensor], None] | None = None,
) -> PerronResult:
    """The Perron pair of a nonnegative matrix or of an order-preserving positive map: `F(x) = lambda x`, `x > 0`.

    Args:
        target: a nonnegative matrix: tensor `(..., n, n)`, sparse tensor `(n, n)` (CSR or COO), NumPy array, SciPy
            sparse matrix or `LinearOperator`; or a `Chain`; or `layer.bind(x)`, with nonnegative weights and
            injections and an activation of degree at most 1; or a function of positive tensors of the shape of
            `start`, rows `(B, ...)` being samples, which is taken to be order-preserving and homogeneous of degree 1.
        start: a positive tensor of the shape of the eigenvectors; ones if left out.
        method: "auto", or one of "power" (with a shift where the map is periodic), "noda" (Newton-Noda for nonlinear
            maps), "anderson" (in logarithms), "krylov" (ARPACK, for matrices, on the CPU).
        side: "right" for `A x = lambda x`, "left" for `A^T y = lambda y`, "both" for both; matrices only.
        tol: the relative width of the bracket to reach.
        max_iter: the largest number of evaluations of the map.
        normalize: the norm of the eigenvectors: an exponent of at least 1, or "inf". Where the map is not homogeneous
            of degree 1, the eigenvalue depends on it.
        history: whether to keep the brackets after every evaluation.
        progress: called after every evaluation with their number and the bounds `(B,)` so far.

    Returns:
        A `PerronResult`; its status tells whether the bracket is as narrow as asked. The bounds hold whatever the
        status. Eigenvalue and eigenvectors are differentiable in the entries, or the map's tensors, where the
        eigenvalue is simple: to any order, for a function to the first.

    Raises:
        ShapeError: `target` is not square, empty or not floating-point; `start` is missing or does not fit.
        DomainError: an entry is negative or not finite; `start` is not positive; the map is proven not to be
            order-preserving and homogeneous of degree at most 1.
        OptionError: an option out of range.
    """
    _check(method, side, tol, max_iter)
    p = parse_norm(normalize)
    if p is None:
        raise OptionError("normalize must be a number p >= 1 or 'inf', got None: an eigenvector needs a length.")
    problem = read(target, p, start)
    first, goal = _start(problem, start), Goal(tol, max_iter, progress)
    if side == "left":
        problem = problem.transposed()
    result = _pair(problem, first, method, goal, p)
    if side == "both":
        other = _pair(problem.transposed(), first, method, goal, p)
        lower, upper = torch.maximum(result.lower, other.lower), torch.minimum(result.upper, other.upper)
        result = replace(result, left=other.eigenvector, lower=lower, upper=upper)
    return result if history else replace(result, history=None)


def _check(method: str, side: str, tol: float, max_iter: int) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if side not in ("right", "left", "both"):
        raise unknown_name("side", side, ("right", "left", "both"))
    if not (tol > 0 and math.isfinite(tol)):
        raise OptionError(f"tol must be positive and finite, got {tol!r}.")
    if max_iter < 1:
        raise OptionError(f"max_iter must be at least 1, got {max_iter!r}.")


def _start(problem: Target, start: Tensor | None) -> Tensor:
    """The first vectors `(B, N)` in float64."""
    map_ = problem.map_
    if start is None:
        return torch.ones(map_.samples, map_.entries, dtype=torch.float64, device=map_.smallest.device)
    shape = (*problem.shape, *(problem.sample or (map_.entries,)))
    check_shape("start", check_floating("start", start), shape)
    check_positive("start", start)
    return start.detach().to(map_.smallest.device, torch.float64).reshape(map_.samples, -1)


def _pair(problem: Target, start: Tensor, method: str, goal: Goal, p: float) -> PerronResult:
    with torch.no_grad():
        found = _solve(problem, start, method, goal)
        x = found.z.reshape(*problem.shape, -1)
        x = x / size(x, p)
        brackets = _powered(torch.stack([*found.history, torch.stack([found.lower, found.upper], 1)]), problem.exponent)
        brackets = _unscaled(brackets, problem.exponents[:, None])
        lower, upper = (bound.reshape(problem.shape) for bound in brackets[-1].unbind(dim=1))
    shape = (*problem.shape, *(problem.sample or (problem.map_.entries,)))
    eigenvalue, vector = _differentiable(problem, x, p) if torch.is_grad_enabled() else (None, x)
    if eigenvalue is None:
        quotient = size(problem.map_(x.reshape(found.z.shape)), p)[:, 0]
        eigenvalue = times_power(quotient, problem.exponents).reshape(problem.shape)
    if problem.exponent != 1:
        eigenvalue = eigenvalue**problem.exponent
    # The quotient of norms lies between the bounds but for its last digits.
    eigenvalue = eigenvalue + (eigenvalue.clamp(lower, upper) - eigenvalue).detach()
    samples = range(problem.map_.samples)
    return PerronResult(
        eigenvalue.to(problem.dtype),
        vector.to(problem.dtype).reshape(shape),
        lower,
        upper,
        found.status.reshape(problem.shape),
        found.iterations.reshape(problem.shape),
        found.evaluations,
        method,
        problem.map_.roundings is not None,
        history=brackets[:-1].reshape(len(found.history), *problem.shape, 2),
        _distance=-torch.log1p(-found.width).reshape(problem.shape),
        _rates=lambda: problem.map_.rate().reshape(problem.shape),
        _patterns=lambda: tuple(pattern for sample in samples if (pattern := problem.pattern(sample)) is not None),
    )


def _powered(bounds: Tensor, exponent: float) -> Tensor:
    """Lower and upper bounds `(..., 2)` to a positive power, rounded outwards; powers are accurate to 32 units."""
    if exponent == 1:
        return bounds
    outward = torch.tensor([1 - 2.0**-47, 1 + 2.0**-47], dtype=bounds.dtype, device=bounds.device)
    return bounds**exponent * outward


def _unscaled(bounds: Tensor, exponents: Tensor) -> Tensor:
    """Lower and upper bounds `(..., 2)` times `2**exponents`, rounded outwards where that leaves the normal numbers."""
    outward = torch.tensor([0.0, math.inf], dtype=bounds.dtype, device=bounds.device)
    result = times_power(bounds, exponents)
    result = torch.where((result < 2.0**-1000) & (bounds > 0), result.nextafter(outward), result)
    largest = torch.tensor([torch.finfo(bounds.dtype).max, math.inf], dtype=bounds.dtype, device=bounds.device)
    return torch.where(bounds.isfinite(), torch.minimum(result, largest), bounds)


def _differentiable(problem: Target, x: Tensor, p: float) -> tuple[Tensor | None, Tensor]:
    """Eigenvalue and eigenvector `x` with their derivatives; no eigenvalue where there is nothing to derive by."""
    if problem.parametrised is not None:
        if not any(tensor.requires_grad for tensor in problem.parametrised.tensors):
            return None, x
        return attach(problem.parametrised, x, p)
    assert isinstance(problem.map_, FunctionMap)
    first = x.to(problem.dtype).reshape(problem.map_.samples, *(problem.sample or (-1,)))
    eigenvalue, vector = attach_function(problem.map_.rows, first, p)
    return eigenvalue.reshape(problem.shape).to(torch.float64), vector


def _solve(problem: Target, start: Tensor, method: str, goal: Goal) -> Found:
    """The pairs of all samples: all at once as long as that works, then those that are left by other means."""
    map_ = problem.map_
    if method == "auto":
        found = iterate(map_, Power(), start, goal, max_iter=_FEW)
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
            found = _by_classes(problem, found, sample, pattern, method, goal)
    rest = goal.after(found.evaluations)
    if method == "auto" and left and rest.max_iter > 0:
        found = _accelerated(problem, found, torch.tensor(left, device=found.z.device), rest)
    return found


def _open(found: Found) -> list[int]:
    """The samples without a vector whose bracket is as narrow as asked."""
    unfinished: list[int] = (found.status > Status.ROUNDING_FLOOR).nonzero()[:, 0].tolist()
    return unfinished


def _accelerated(problem: Target, found: Found, which: Tensor, goal: Goal) -> Found:
    """`found` with the samples `which` continued: irreducible, with a small spectral gap."""
    map_ = problem.map_
    if map_.entries > _DENSE and isinstance(map_, DenseMatrix | SparseMatrix):
        return _merged(found, which, _krylov(problem, found.z[which], which, goal))
    if isinstance(map_, DenseMatrix):
        few = iterate(map_.rows(which), Noda(), found.z[which], goal)
        return _merged(found, which, few)
    only = torch.zeros_like(found.status, dtype=torch.bool).index_fill(0, which, True)
    exact = map_.entries <= _DENSE and not isinstance(map_, FunctionMap)
    step = Noda() if exact else LogAnderson()
    whole = iterate(map_, step, found.z, goal, only=only)
    return _merged(found, which, whole.rows(which))


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


def _by_classes(problem: Target, found: Found, sample: int, pattern: Pattern, method: str, goal: Goal) -> Found:
    """`found` with the pair of a reducible matrix."""

    def block(matrix: sp.csr_array) -> tuple[np.ndarray, float, float]:
        part = read(matrix.toarray() if matrix.shape[0] <= _DENSE else matrix, 1.0)
        pair = _solve(part, _start(part, None), method, replace(goal, progress=None))
        lower, upper = _unscaled(torch.stack([pair.lower, pair.upper], dim=1), part.exponents[:, None])[0].tolist()
        return pair.z[0].numpy(), lower, upper

    classes = solve_classes(pattern, block)
    narrow = classes.upper - classes.lower <= goal.tol * classes.upper
    status = found.status.clone()
    status[sample] = int(Status.CONVERGED if narrow else Status.MAX_ITERATIONS)
    z, lower, upper, width = (part.clone() for part in (found.z, found.lower, found.upper, found.width))
    width[sample] = math.inf  # a vector with zeros brackets nothing
    z[sample] = torch.from_numpy(classes.vector).to(z)
    # The bounds found so far are those of the scaled matrix.
    bounds = _unscaled(lower.new_tensor([[classes.lower, classes.upper]]), -problem.exponents[sample])[0]
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
