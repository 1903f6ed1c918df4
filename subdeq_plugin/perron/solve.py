"""`perron`: the Perron pair of a nonnegative matrix, with a guaranteed bracket."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import OptionError, unknown_name
from ..layers.normalize import parse_norm
from ..result import Status
from .derivative import attach, attach_function
from .functions import FunctionMap
from .local import nearby
from .loop import Goal
from .matrices import times_power
from .methods import BACKENDS, METHODS, Route, classes_of, first_vectors, solve, unscaled
from .multi import MultiMap, proven_distances
from .reducible import longest_chain
from .result import PerronResult
from .targets import Target, read

__all__ = ["METHODS", "perron"]


def perron(
    target: object,
    start: Tensor | None = None,
    *,
    method: str = "auto",
    backend: str = "torch",
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
            maps), "newton" (of the bordered system in logarithms), "anderson" (in logarithms), "krylov" (ARPACK, for
            matrices, on the CPU).
        backend: "torch"; or "julia", which finds the vectors of matrices and layers on the CPU: by KrylovKit ("krylov",
            for matrices), LinearSolve ("noda") or NonlinearSolve ("newton"). The bounds are computed by torch even so.
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
        OptionError: an option out of range, or a method or backend that cannot take this target.
        BridgeError: the backend is "julia", and Julia cannot be found or started.
    """
    _check(method, backend, side, tol, max_iter)
    route = Route(method, backend)
    p = parse_norm(normalize)
    if p is None:
        raise OptionError("normalize must be a number p >= 1 or 'inf', got None: an eigenvector needs a length.")
    problem = read(target, p, start)
    first, goal = first_vectors(problem, start), Goal(tol, max_iter, progress)
    if side == "left":
        problem = problem.transposed()
    result = _pair(problem, first, route, goal, p)
    if side == "both":
        other = _pair(problem.transposed(), first, route, goal, p)
        lower, upper = torch.maximum(result.lower, other.lower), torch.minimum(result.upper, other.upper)
        result = replace(result, left=other.eigenvector, lower=lower, upper=upper)
    return result if history else replace(result, history=None)


def _check(method: str, backend: str, side: str, tol: float, max_iter: int) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if side not in ("right", "left", "both"):
        raise unknown_name("side", side, ("right", "left", "both"))
    if not (tol > 0 and math.isfinite(tol)):
        raise OptionError(f"tol must be positive and finite, got {tol!r}.")
    if max_iter < 1:
        raise OptionError(f"max_iter must be at least 1, got {max_iter!r}.")


def _pair(problem: Target, start: Tensor, route: Route, goal: Goal, p: float) -> PerronResult:
    with torch.no_grad():
        found = solve(problem, start, route, goal)
        blocks = problem.map_.blocks
        x = found.z.reshape(*problem.shape, -1)
        x = x / blocks.spread(blocks.norms(x, p))
        brackets = _powered(torch.stack([*found.history, torch.stack([found.lower, found.upper], 1)]), problem.exponent)
        brackets = unscaled(brackets, problem.exponents[:, None])
        lower, upper = (bound.reshape(problem.shape) for bound in brackets[-1].unbind(dim=1))
    shape = (*problem.shape, *(problem.sample or (problem.map_.entries,)))
    factors, vector = _differentiable(problem, x, p) if torch.is_grad_enabled() else (None, x)
    if factors is None:
        quotient = blocks.norms(problem.map_(x.reshape(found.z.shape)), p)
        factors = times_power(quotient, problem.exponents[:, None]).reshape(*problem.shape, -1)
    eigenvalue = problem.eigenvalue(factors)
    if problem.exponent != 1:
        eigenvalue = eigenvalue**problem.exponent
    # Scaled to another norm, a vector may leave the range in which the map can be evaluated.
    eigenvalue = torch.where(eigenvalue.detach().isnan(), (lower + upper) / 2, eigenvalue)
    # The quotient of norms lies between the bounds but for its last digits.
    clamped = eigenvalue.detach().clamp(lower, upper)
    eigenvalue = torch.where(clamped.isfinite(), eigenvalue + (clamped - eigenvalue).detach(), clamped)
    samples = range(problem.map_.samples)
    result = PerronResult(
        eigenvalue.to(problem.dtype),
        vector.to(problem.dtype).reshape(shape),
        lower,
        upper,
        found.status.reshape(problem.shape),
        found.iterations.reshape(problem.shape),
        found.evaluations,
        str(route),
        problem.map_.roundings is not None,
        history=brackets[:-1].reshape(len(found.history), *problem.shape, 2),
        _distance=-torch.log1p(-found.width).reshape(problem.shape),
        _rates=lambda: problem.map_.rate().reshape(problem.shape),
        _nearby=lambda: _nearby(problem, found.z),
        _multiplicities=lambda: _multiplicities(problem, replace(goal, progress=None)),
        _patterns=lambda: tuple(pattern for sample in samples if (pattern := problem.pattern(sample)) is not None),
    )
    map_ = problem.map_
    return _blockwise(result, map_, factors, found.z, goal) if isinstance(map_, MultiMap) else result


def _blockwise(result: PerronResult, map_: MultiMap, factors: Tensor, z: Tensor, goal: Goal) -> PerronResult:
    """`result` with what is known of the blocks; and of their product, where no vector brackets it."""
    with torch.no_grad():
        distances = proven_distances(map_, z)
        bounds = map_.factors(z, distances)
        lower, upper, status = result.lower, result.upper, result.status
        if not map_.bracketed:
            lower, upper = map_.between(bounds[0], bounds[1])
            narrow = 1 - lower / upper <= goal.tol
            found = result.status <= Status.ROUNDING_FLOOR
            unproven = torch.where(upper.isfinite(), int(Status.ROUNDING_FLOOR), int(Status.STALLED))
            status = torch.where(found, torch.where(narrow, int(Status.CONVERGED), unproven), result.status)
    return replace(
        result,
        lower=lower,
        upper=upper,
        status=status,
        factors=factors.to(result.eigenvector.dtype),
        factor_bounds=bounds.mT,
        weights=map_.weights,
        sizes=map_.blocks.sizes,
        _bound=distances.max(),
    )


def _nearby(problem: Target, z: Tensor) -> Tensor:
    """Proven distances to eigenvectors `(...)`; infinite where none is proven."""
    maps = [problem.map_.sample(row) for row in range(problem.map_.samples)]
    distances = [math.inf if map_ is None else nearby(map_, z[row : row + 1]) for row, map_ in enumerate(maps)]
    return z.new_tensor(distances).reshape(problem.shape)


def _multiplicities(problem: Target, goal: Goal) -> tuple[Tensor, Tensor]:
    """Of the eigenvalues of matrices the multiplicity and the index `(...)`; 0 for other maps."""
    pairs = []
    for row in range(problem.map_.samples):
        pattern = problem.pattern(row)
        if pattern is None:
            pairs.append((0, 0))
        elif pattern.irreducible:
            pairs.append((1, 1))
        else:
            basic = classes_of(pattern, Route(), goal).basic
            pairs.append((len(basic), longest_chain(pattern, basic)))
    table = torch.tensor(pairs, device=problem.exponents.device)
    multiplicity, index = (part.reshape(problem.shape) for part in table.unbind(dim=1))
    return multiplicity, index


def _powered(bounds: Tensor, exponent: float) -> Tensor:
    """Lower and upper bounds `(..., 2)` to a positive power, rounded outwards.

    Powers are accurate to 32 units; an exponent that is off by one costs as much as the logarithm is long.
    """
    if exponent == 1:
        return bounds
    powered = bounds**exponent
    length = torch.where((powered > 0) & powered.isfinite(), powered.log().abs(), 0.0)
    sign = torch.tensor([-1.0, 1.0], dtype=bounds.dtype, device=bounds.device)
    return powered * (1 + sign * (2.0**-47 + 2.0**-51 * length))


def _differentiable(problem: Target, x: Tensor, p: float) -> tuple[Tensor | None, Tensor]:
    """Eigenvalues `(..., d)` and eigenvector `x` with their derivatives; no eigenvalues where nothing has one."""
    if problem.parametrised is not None:
        if not any(tensor.requires_grad for tensor in problem.parametrised.tensors):
            return None, x
        return attach(problem.parametrised, x, p, problem.map_.blocks)
    assert isinstance(problem.map_, FunctionMap)
    first = x.to(problem.dtype).reshape(problem.map_.samples, *(problem.sample or (-1,)))
    eigenvalue, vector = attach_function(problem.map_.rows, first, p)
    return eigenvalue.reshape(*problem.shape, 1).to(torch.float64), vector
