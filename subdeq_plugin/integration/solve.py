"""`solve`: the solvers, ended by a residual or by a guaranteed error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..certificates import Certificate, certify
from ..errors import CertificateError, OptionError
from ..layers import BoundMap
from ..metrics import Contraction
from ..result import Solution, Status
from ..solvers import FLOOR_UNITS, Solver
from ..solvers import solve as solve_residual

__all__ = ["solve"]

_TIGHTEN = 0.1  # the factor by which a residual's tolerance shrinks while the guaranteed error is too large


def solve(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    solver: Solver | None = None,
    *,
    tol: float = 1e-4,
    max_iter: int = 50,
    stop_mode: str = "rel",
    indexing: tuple[int, ...] = (),
    contraction: Contraction | None = None,
    certified_tol: float | None = None,
    certificate: Certificate | None = None,
) -> Solution:
    """Solve `z = function(z)` for a batch, without autograd.

    Args:
        function: the map; a `BoundMap`, or any callable on `(B, ...)` whose rows do not influence each other.
        start: `(B, ...)`; strictly positive where the map asks for it.
        solver: a solver with its options; `Auto()` if left out.
        tol, max_iter, stop_mode, indexing: see `Stop`; without `certified_tol`, the residual ends the solve.
        contraction: a proven contraction, `certificate.contraction`; `Auto` makes use of it.
        certified_tol: end when `certificate.error_bound(z)`, rounding included, is at most this for every sample: a
            distance to the true fixed point in the certificate's metric. `tol`, `stop_mode` and `contraction` are not
            used then.
        certificate: of this very map or of its layer with this input; made here if left out.

    Returns:
        A `Solution` with a status for every sample; failure is reported there, never raised. With `certified_tol` its
        `error_bound` holds the guaranteed errors, CONVERGED means that they are small enough, and ROUNDING_FLOOR that
        the dtype does not allow them to be.

    Raises:
        OptionError: an option out of range; `certified_tol` for a map that is no `BoundMap`, or together with
            `indexing`.
        CertificateError: `certified_tol` where nothing is proven.
        ShapeError, DomainError: an unusable start.
    """
    if certified_tol is None:
        return solve_residual(
            function,
            start,
            solver,
            tol=tol,
            max_iter=max_iter,
            stop_mode=stop_mode,
            indexing=indexing,
            contraction=contraction,
        )
    if not (certified_tol > 0 and math.isfinite(certified_tol)):
        raise OptionError(f"certified_tol must be positive and finite, got {certified_tol!r}.")
    if not isinstance(function, BoundMap):
        raise OptionError("certified_tol needs a map that can be certified: pass layer.bind(x).")
    if indexing:
        raise OptionError("indexing records states at fixed evaluations; leave it out with certified_tol.")
    proof = certify(function) if certificate is None else certificate
    if not bool(proof.proven.any()):
        raise CertificateError("no error is guaranteed: " + "; ".join(proof.reasons))
    return _certified(function, start, solver, certified_tol, max_iter, proof)


def _certified(
    function: BoundMap, start: Tensor, solver: Solver | None, eps: float, max_iter: int, proof: Certificate
) -> Solution:
    """Solve to a residual that should do, look at the guaranteed error, and tighten the residual if need be."""
    contraction = proof.contraction
    mode = "rel" if contraction is None else "certified"
    # Half of what is asked for leaves the other half to rounding; a relative residual is a mere guess.
    tol = min(eps, 1e-2) if contraction is None else eps / 2
    state, spent, products = start, 0, 0
    absolute: list[Tensor] = []
    relative: list[Tensor] = []
    unit = torch.finfo(start.dtype).eps
    before: Tensor | None = None
    while True:
        solution = solve_residual(
            function,
            state,
            solver,
            tol=tol,
            max_iter=max_iter - spent,
            stop_mode=mode,
            contraction=contraction,
        )
        iterations = spent + solution.iterations
        spent += solution.evaluations
        products += solution.linear_evaluations
        absolute.append(solution.abs_trace)
        relative.append(solution.rel_trace)
        error = _error(proof, solution)
        done = error <= eps
        # A residual as small as rounding allows, and a bound that no longer shrinks with it.
        small = solution.rel_residual <= FLOOR_UNITS * unit
        stuck = solution.status == Status.ROUNDING_FLOOR
        stuck |= small & (error > 0.9 * before) if before is not None else small & (solution.rel_residual == 0)
        before = error
        if bool((done | stuck | solution.failed).all()) or spent >= max_iter or tol <= 0:
            break
        state, tol = solution.value, tol * _TIGHTEN
    status = torch.where(stuck, int(Status.ROUNDING_FLOOR), solution.status)
    status = torch.where(done, int(Status.CONVERGED), status)
    missed = ~done & (status == Status.CONVERGED)
    status = torch.where(missed, int(Status.MAX_ITERATIONS), status)
    return replace(
        solution,
        status=status,
        iterations=iterations,
        evaluations=spent,
        linear_evaluations=products,
        abs_trace=torch.cat(absolute, dim=1),
        rel_trace=torch.cat(relative, dim=1),
        error_bound=error,
    )


def _error(proof: Certificate, solution: Solution) -> Tensor:
    """The guaranteed errors; infinite for samples that left the domain of the map."""
    value = solution.value
    rows = value.reshape(len(solution.status), -1)
    lost = ~(rows.isfinite().all(dim=1))
    clean = torch.where(lost.unsqueeze(1), torch.ones_like(rows), rows).reshape(value.shape)
    return torch.where(lost, torch.inf, proof.error_bound(clean))
