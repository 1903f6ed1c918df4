"""How far an answer can be from the truth, whatever the solver says of itself.

Forward: the certificate's error bound. Adjoint: from the proven rate. In logarithmic coordinates the Jacobian `J` of a
map that contracts Thompson's metric by `q` is `M = diag(1/f(z)) J diag(z)` with infinity-norm at most `q`. With
`S = diag(f(z)/z)`, within `d` of the identity, the transpose of `S M` is `J^T` in the one-norm weighted by `z`, so
`|u - u*| <= |g + J^T u - u| / (1 - q (1 + d))`. With one norm over the state and Hilbert's metric, the range of `M` is
a hyperplane of vectors of both signs, on which `max |v_i| <= osc v <= 2 max |v_i|`, so `|M^k| <= 2 q^k` and
`|(I - M)^-1| <= (1 + q) / (1 - q) = c`; with `S` it becomes `c / (1 - 2 q c d)`. For the metrics that are norms the
dual norm takes the place of the weighted one. Evaluated in float64, not rounded outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..certificates import Certificate
from ..errors import CertificateError
from ..layers import BoundMap
from ..metrics import Contraction
from .maps import AdjointMap

__all__ = ["Judge", "Verdict", "adjoint_contraction", "adjoint_judge", "forward_judge", "gradient_judge"]


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Attributes:
        error: at most so far from the truth, the largest over the samples; infinite where nothing can be said.
        reason: why that is so, where it is infinite.
    """

    error: float
    reason: str = ""


# Judges an answer: a state, or the gradients of a layer's parameters.
Judge = Callable[[Tensor | Sequence[Tensor]], Verdict]


def _state(value: Tensor | Sequence[Tensor], like: Tensor, *, positive: bool) -> str:
    """Empty, or why a value is no state."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        return f"the answer is no state: it must have shape {tuple(like.shape)}, got {found}"
    if not bool(value.isfinite().all()):
        return "the answer has NaN or infinite entries"
    if positive and not bool((value > 0).all()):
        return "the answer has entries that are not positive, where the map is not defined"
    return ""


def forward_judge(bound: BoundMap, certificate: Certificate) -> Judge:
    """The guaranteed distance to the fixed point, in the certificate's metric, rounding included.

    Hilbert's metric does not see the length of a state: for a normalised map the logarithm of its norm, which is 0 at
    the fixed point, is added.
    """
    start = bound.start()

    def judge(value: Tensor | Sequence[Tensor]) -> Verdict:
        reason = _state(value, start, positive=bound.positive)
        if reason or not isinstance(value, Tensor):
            return Verdict(math.inf, reason)
        error = float(certificate.error_bound(value).max())
        if certificate.metric == "hilbert" and bound.normalizer is not None:
            error += float(bound.normalizer.norm(value.double()).log().abs().max())
        if not math.isfinite(error):
            return Verdict(math.inf, "nothing is proven of the answer: it lies outside the domain of the proof")
        return Verdict(error)

    return judge


def _flat(equation: AdjointMap, value: Tensor) -> Tensor:
    size = math.prod(value.shape[value.dim() - equation.sample_dims :])
    return value.detach().to("cpu", torch.float64).reshape(-1, size)


def _norm(equation: AdjointMap, certificate: Certificate) -> tuple[Callable[[Tensor], Tensor], float]:
    """The norm `(B, N) -> (B,)` in which errors are measured, and the factor of the residual that bounds them."""
    rate, metric = certificate.rate, certificate.metric
    if rate is None:
        raise CertificateError(
            f"the adjoint equation's error follows from a proven rate, and theorem {certificate.theorem!r} proves none."
        )
    exact = equation.primal.to("cpu", torch.float64)
    state = equation.state.detach().to("cpu", torch.float64)
    z, image = _flat(equation, state), _flat(equation, exact(state))
    if metric in ("thompson", "hilbert"):
        off = float((image / z - 1).abs().max())
        if metric == "thompson":
            room, most = 1 - rate * (1 + off), 1.0
        else:
            if exact.normalizer is None or not exact.normalizer.whole_state:
                raise CertificateError(
                    "a rate in Hilbert's metric bounds the adjoint for one norm over the state only."
                )
            most = (1 + rate) / (1 - rate)
            room = 1 - 2 * rate * most * off
        if not room > 0:
            raise CertificateError(f"the state is too far from the fixed point for a rate of {rate:.6g}.")
        return lambda u: (z * u.abs()).sum(dim=1), most / room
    weights = certificate.proofs[0].weights
    if metric == "linf":
        scale = torch.ones_like(z[:1]) if weights is None else weights
        scale = scale.repeat_interleave(z.shape[1] // scale.shape[1], dim=1)
        return lambda u: (scale * u.abs()).sum(dim=1), 1 / (1 - rate)
    if metric == "l1":
        return lambda u: u.abs().amax(dim=1), 1 / (1 - rate)
    return lambda u: torch.linalg.vector_norm(u, dim=1), 1 / (1 - rate)


def adjoint_judge(equation: AdjointMap, certificate: Certificate, *, relative_to: str = "g") -> Judge:
    """The distance to the solution of `u = g + J^T u`, in the norm that is dual to the certificate's metric.

    Args:
        equation: the equation; its numbers are taken as they are, and everything is computed anew in float64.
        certificate: of the map.
        relative_to: "g" or "u": the vector whose norm is the unit, sample by sample.

    Raises:
        CertificateError: no rate is proven, or the state is far from the fixed point.
    """
    norm, factor = _norm(equation, certificate)
    exact = equation.primal.to("cpu", torch.float64).linearize(equation.state.detach().to("cpu", torch.float64))
    g = equation.g.detach().to("cpu", torch.float64)

    def judge(value: Tensor | Sequence[Tensor]) -> Verdict:
        reason = _state(value, g, positive=False)
        if reason or not isinstance(value, Tensor):
            return Verdict(math.inf, reason)
        u = value.detach().to("cpu", torch.float64)
        residual = norm(_flat(equation, g + exact.vjp(u) - u))
        unit = norm(_flat(equation, g if relative_to == "g" else u))
        return Verdict(float((factor * residual / torch.where(unit > 0, unit, 1.0)).max()))

    return judge


def adjoint_contraction(equation: AdjointMap, certificate: Certificate) -> Contraction | None:
    """The proven contraction of the adjoint map, for solvers that make use of one.

    In units of the size of `g`, so that a tolerance is a relative one. A rate `q` in Hilbert's metric is a rate of
    `2 q` in Thompson's, where that is below 1.
    """
    if certificate.rate is None or certificate.metric not in ("thompson", "hilbert"):
        return None
    rate = certificate.rate if certificate.metric == "thompson" else 2 * certificate.rate
    if rate >= 1:
        return None
    size = math.prod(equation.g.shape[equation.g.dim() - equation.sample_dims :])
    z, g = equation.state.reshape(-1, size), equation.g.reshape(-1, size)
    unit = (z * g).abs().sum(dim=1)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    return Contraction(rate, "one-norm weighted by the state", lambda u, v: (z * (u - v)).abs().sum(dim=1) / unit)


def gradient_judge(reference: Sequence[Tensor]) -> Judge:
    """The distance of parameter gradients to a reference in float64, relative, two-norms over all parameters."""
    exact = [part.detach().to("cpu", torch.float64) for part in reference]
    size = math.sqrt(sum(float(part.square().sum()) for part in exact))

    def judge(value: Tensor | Sequence[Tensor]) -> Verdict:
        if isinstance(value, Tensor) or [part.shape for part in value] != [part.shape for part in exact]:
            return Verdict(math.inf, "the answer is no gradient of the layer's parameters")
        if not all(bool(part.isfinite().all()) for part in value):
            return Verdict(math.inf, "the gradient has NaN or infinite entries")
        pairs = zip(value, exact, strict=True)
        gap = math.sqrt(
            sum(float((part.detach().to("cpu", torch.float64) - true).square().sum()) for part, true in pairs)
        )
        return Verdict(gap / size if size > 0 else gap)

    return judge
