"""How far an input may move before a linear read-out of the equilibrium can change its class.

Every input `x'` of a ball around `x` has a map with the same operator and another injection. If all of these contract
with the factor `q`, then for any state `z`

    d(z, z*(x')) <= sup_x' d(f_x'(z), z) / (1 - q),

so the a-posteriori bound with the injections of the whole ball bounds every equilibrium in it, the solver's error in
`z` included. From there the mixed-monotone iteration shrinks the box further, and the read-out's margins over the box
decide.

The same inequality, with `z = z*(x)`, gives the Lipschitz constant of `x -> ln z*(x)`: `d_T(f_x, f_x')` is at most the
largest `sup |d ln F_i / d y_i| |U_i| |x - x'|` in the dual norm, over `1 - q`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._shapes import check_floating, check_shape, cpu_default
from ..degrees import POSITIVE
from ..errors import CertificateError, OptionError, ShapeError
from ..layers import SubhomLayer
from .enclosure import invariant_box
from .engine import certify
from .intervals import UNIT, Box, IntervalMap, gamma
from .posterior import error_interval
from .proof import Proof

__all__ = ["NORMS", "Robustness", "lipschitz_bound", "robust_radius"]

NORMS = {"linf": math.inf, "l2": 2.0}
_BISECTIONS = 16  # of the logarithm
_OCTAVES = 30  # the smallest radius looked for is this many halvings below the largest
_SHRINKS = 40


@dataclass(frozen=True)
class Robustness:
    """A certified radius for every sample.

    Attributes:
        radius: `(B,)` float64: for every input at most this far away the read-out's class is `predicted`; 0 where
            nothing could be proven even for the input itself.
        predicted: `(B,)` int64, the class at the input.
        norm: of the distance: "linf" or "l2".
    """

    radius: Tensor
    predicted: Tensor
    norm: str


def lipschitz_bound(layer: SubhomLayer, norm: str = "linf") -> float:
    """A constant `L` with `d(z*(x), z*(x')) <= L |x - x'|` for all inputs, in Thompson's metric (in logarithms).

    Args:
        layer: a layer that is certified for every input by theorem A or B.
        norm: of the inputs, "linf" or "l2". For a graph it is the largest over the nodes.

    Raises:
        CertificateError: the layer is not certified for every input, or its injection map has no Lipschitz constant.
        OptionError: an unknown norm.
    """
    exponent = _exponent(norm)
    certificate = certify(layer, conditions="subhomogeneous")
    if certificate.rate is None:
        raise CertificateError("no Lipschitz constant is proven: " + "; ".join(certificate.reasons))
    if layer.injection_map in ("square", "identity"):
        raise CertificateError(
            f"injection_map={layer.injection_map!r} has no Lipschitz constant over all inputs that keeps the injection "
            'nonnegative; use "relu", "softplus" or "abs".'
        )
    weight = layer.injection.weight.detach().to("cpu", torch.float64).flatten(1)
    top = weight.abs().amax(dim=1).clamp(min=2.0**-1000)  # scaled out, so that no square underflows
    share = weight.abs() / top.unsqueeze(1)
    reach = top * (share.sum(dim=1) if math.isinf(exponent) else share.square().sum(dim=1).sqrt())
    size = float(reach.max()) * layer.injection_scale * (1 + 2 * gamma(weight.shape[1])) + 2.0**-1000
    if layer.injection_place == "inside":
        growth = layer.activation.log_slope(POSITIVE)
    else:
        low = layer.activation.range(POSITIVE)[0]  # |d ln (a + y) / dy| = 1 / (a + y) <= 1 / inf a
        growth = math.inf if low <= 0 else 1 / low * (1 + 2 * UNIT)
    # Dividing by a norm moves logarithms by as much again; Hilbert's metric bounds Thompson's on the slice.
    doubled = 1.0 if layer.normalizer is None else 2.0
    value = doubled * growth * size / ((1 - certificate.rate) * (1 - 2 * UNIT)) * (1 + 2.0**-40)
    if not math.isfinite(value):
        raise CertificateError("no Lipschitz constant is proven: the activation comes close to zero; raise shift.")
    return value


def robust_radius(
    layer: SubhomLayer,
    x: Any,
    z: Tensor,
    head: nn.Linear | tuple[Tensor, Tensor | None],
    norm: str = "linf",
    *,
    solver_error: float = 0.0,
    largest: float | None = None,
) -> Robustness:
    """The largest radius found within which no input can change the class that a linear read-out gives.

    Args:
        layer: the equilibrium layer.
        x: its input.
        z: approximate equilibria, of the state's shape; the closer, the larger the radius.
        head: the read-out on flattened states: `nn.Linear(N, classes)`, or its weight `(classes, N)` and bias.
        norm: of the perturbation of `x`: "linf" or "l2" over one sample (one node, for a graph).
        solver_error: an error in every entry's logarithm that the solver of the deployed model may make, for the
            perturbed inputs as well; for `SubDEQ` in Thompson's metric that is its `f_tol`. The rounding of the
            read-out in the dtype of its weight is always included.
        largest: the largest radius of interest; the size of the input if left out.

    Returns:
        A `Robustness`. A graph counts as one sample; all its nodes' entries go into the read-out.

    Raises:
        CertificateError: nothing is proven of the layer with this input.
        OptionError: an unknown norm, a negative error, or no `nn.Linear`.
        ShapeError: shapes that do not fit.
    """
    exponent = _exponent(norm)
    if not (solver_error >= 0 and math.isfinite(solver_error)):
        raise OptionError(f"solver_error must be finite and nonnegative, got {solver_error!r}.")
    certificate = certify(layer, x)
    if not bool(certificate.proven.any()):
        raise CertificateError("no radius is proven: " + "; ".join(certificate.reasons))
    with torch.no_grad(), cpu_default():
        bound = layer.bind(x)
        state = bound.check_state("z", z).detach().to("cpu", torch.float64)
        readout = _ReadOut.of(head, state, bound.sample_dims)
        search = _Search(layer, x, exponent, state, certificate.proofs, readout, solver_error)
        return search.run(norm, _size(x) if largest is None else largest)


def _exponent(norm: str) -> float:
    if norm not in NORMS:
        raise OptionError(f'norm must be "linf" or "l2", got {norm!r}.')
    return NORMS[norm]


def _size(x: Any) -> float:
    features = x[0] if isinstance(x, tuple | list) else x
    return max(1.0, float(features.detach().double().norm()))


@dataclass(frozen=True)
class _ReadOut:
    """The class at a state, and lower bounds of its margins over boxes."""

    weight: Tensor
    bias: Tensor
    unit: float
    predicted: Tensor

    @classmethod
    def of(cls, head: object, state: Tensor, sample_dims: int) -> _ReadOut:
        if isinstance(head, nn.Linear):
            head = (head.weight, head.bias)
        if not (isinstance(head, tuple | list) and len(head) == 2):
            raise OptionError(f"head must be an nn.Linear or a pair (weight, bias), got {type(head).__name__}.")
        weight = check_floating("head weight", head[0]).detach()
        flat = state.reshape(-1, state.shape[state.dim() - sample_dims :].numel())
        if weight.dim() != 2 or weight.shape[1] != flat.shape[1]:
            raise ShapeError(f"head weight must have shape (classes, {flat.shape[1]}), got {tuple(weight.shape)}.")
        exact = weight.to("cpu", torch.float64)
        bias = torch.zeros(exact.shape[0], dtype=torch.float64)
        if head[1] is not None:
            check_shape("head bias", head[1], (exact.shape[0],))
            bias = head[1].detach().to("cpu", torch.float64)
        unit = float(torch.finfo(weight.dtype).eps)
        return cls(exact, bias, unit, (flat @ exact.T + bias).argmax(dim=1))

    def margins(self, box: Box) -> Tensor:
        """The smallest `logit[predicted] - logit[k]` over each box `(B, N)`, less all rounding: `(B,)`."""
        middle = box.lo / 2 + box.hi / 2
        radius = torch.maximum(box.hi - middle, middle - box.lo)
        own, own_bias = self.weight[self.predicted], self.bias[self.predicted]
        difference = own.unsqueeze(1) - self.weight.unsqueeze(0)  # (B, classes, N)
        size = own.abs().unsqueeze(1) + self.weight.abs().unsqueeze(0)
        centre = (difference @ middle.unsqueeze(2)).squeeze(2) + own_bias.unsqueeze(1) - self.bias
        reach = (difference.abs() @ radius.unsqueeze(2)).squeeze(2)
        scale = (size @ (middle.abs() + radius).unsqueeze(2)).squeeze(2) + own_bias.abs().unsqueeze(1) + self.bias.abs()
        # The model rounds both logits in the read-out's dtype; what is computed here is rounded in float64.
        terms = self.weight.shape[1] + 4
        slack = 1.01 * terms * self.unit + gamma(terms) * 4
        margin = centre - reach * (1 + gamma(terms)) - slack * scale
        margin.scatter_(1, self.predicted.unsqueeze(1), torch.inf)
        return margin.amin(dim=1)


class _Search:
    """The search for radii; whatever is certified at one radius does not rely on what was at another."""

    def __init__(
        self,
        layer: SubhomLayer,
        x: Any,
        norm: float,
        state: Tensor,
        proofs: tuple[Proof, ...],
        readout: _ReadOut,
        solver_error: float,
    ) -> None:
        self._layer, self._x, self._norm, self._state = layer, x, norm, state
        # A proof on a box of this input's own, or up to some argument of the activation, says nothing of neighbours;
        # nor do theorems A and B where these may have negative injections.
        free = layer.injection_map == "identity"
        self._proofs = tuple(
            proof
            for proof in proofs
            if proof.box is None and math.isinf(proof.reach) and not (free and proof.theorem in ("A", "B"))
        )
        self._readout, self._solver_error = readout, solver_error
        self._bound = layer.bind(x).detach()

    def _certified(self, radius: Tensor) -> Tensor:
        """`(B,)` bool: the class is certain within the radius of each sample."""
        dims = self._bound.sample_dims
        wide = radius.reshape(*self._state.shape[: self._state.dim() - dims], *[1] * dims)
        injected = Box(*self._layer.injection_interval(self._x, wide, self._norm))
        function = IntervalMap.of(self._bound, injected)
        box = invariant_box(function)
        if self._proofs:
            ball = error_interval(function, self._proofs, self._state)
            box = ball if box is None else ball & box
        if box is None:
            return torch.zeros(len(radius), dtype=torch.bool)
        usable = function.flat(box.lo.isfinite() & box.hi.isfinite()).all(dim=1)
        inside = usable.reshape(wide.shape)
        start = Box(torch.where(inside, box.lo, 1.0), torch.where(inside, box.hi, 1.0))
        for _ in range(_SHRINKS):
            fresh = function.image(start) & start
            moved = float(((start.hi - start.lo) - (fresh.hi - fresh.lo)).abs().max())
            start = fresh
            if moved <= 1e-3 * float((fresh.hi - fresh.lo).abs().max()):
                break
        lo, hi = function.flat(start.lo), function.flat(start.hi)
        usable &= (lo <= hi).all(dim=1)
        if self._solver_error > 0:
            grow = math.exp(self._solver_error) * (1 + 2.0**-40)
            pair = torch.stack([lo * grow, lo / grow, hi * grow, hi / grow])
            lo, hi = pair.amin(dim=0), pair.amax(dim=0)
        return usable & (self._readout.margins(Box(lo, hi)) > 0)

    def run(self, norm: str, largest: float) -> Robustness:
        """The largest certified radius up to `largest`, by bisection of its logarithm."""
        count = len(self._readout.predicted)
        zero = torch.zeros(count, dtype=torch.float64)
        certain = self._certified(zero)
        low, high = zero, torch.full_like(zero, largest)
        whole = self._certified(torch.where(certain, high, 0.0)) & certain
        low = torch.where(whole, high, low)
        floor = largest * 2.0**-_OCTAVES
        for _ in range(_BISECTIONS):
            if bool((high <= 1.001 * low.clamp(min=floor)).all()):
                break
            middle = (low.clamp(min=floor) * high).sqrt()
            fine = self._certified(torch.where(certain, middle, 0.0)) & certain
            low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
        return Robustness(torch.where(certain, low, 0.0), self._readout.predicted, norm)
