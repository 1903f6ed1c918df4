"""What every subhomogeneous layer shares: its keywords, its checks, and `bind`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._shapes import autocast_dtype, autocast_off, check_floating, check_nonempty
from ..activations import Activation
from ..degrees import POSITIVE, REALS
from ..errors import DomainError, OptionError, ShapeError, unknown_name
from .bound import BoundMap, make_normalizer
from .nonneg import NONNEG, make_nonneg
from .normalize import Normalizer
from .operators import Operator

__all__ = ["INJECTION_MAPS", "Structure", "SubhomLayer"]

# How the affine image of the input is made nonnegative; "identity" leaves it as it is, and unproven.
INJECTION_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    # torch's default threshold would replace softplus(t) by t too early: a relative error of 1e-10 at t = 20.
    "softplus": lambda y: F.softplus(y, threshold=40.0),
    "abs": torch.abs,
    "square": torch.square,
    "identity": lambda y: y,
}


@dataclass(frozen=True)
class Structure:
    """The facts about a layer's linear part that hold for every input.

    Attributes:
        coefficients: tensors that are nonnegative exactly when the linear part is.
        zero_row: empty, or a description of a row that has, or may have, no nonzero coefficient.
        row_sum: computes a bound on the sum of the absolute coefficients of a row; None where the input decides it.
    """

    coefficients: tuple[Tensor, ...]
    zero_row: str
    row_sum: Callable[[], float] | None


def _injection_interval(
    module: nn.Linear | nn.Conv2d, x: Tensor, scale: float, kind: str, ball: tuple[Tensor, float]
) -> tuple[Tensor, Tensor]:
    """`injection_map(scale (U x + c))` over a ball around `x`, in float64 with the bound `gamma_k` of its rounding."""
    weight = module.weight.detach().to("cpu", torch.float64)
    bias = None if module.bias is None else module.bias.detach().to("cpu", torch.float64)

    def affine(value: Tensor, factor: Tensor, constant: Tensor | None) -> Tensor:
        if isinstance(module, nn.Conv2d):
            return F.conv2d(value, factor, constant, padding=module.padding)
        return F.linear(value, factor, constant)

    radius, norm = ball
    centre = scale * affine(x, weight, bias)
    size = scale * affine(x.abs(), weight.abs(), None if bias is None else bias.abs())
    slack = (weight[0].numel() + 8) * 2.0**-53 * (1 + 2.0**-20)
    # Sums without a nonzero term are exact; those that merely underflow are not.
    some = affine((x != 0).double(), (weight != 0).double(), None if bias is None else (bias != 0).double()) > 0
    spread = slack * size + some.double() * (weight[0].numel() * 2.0**-1022)
    if bool((radius > 0).any()):
        ones = torch.ones_like(x)
        reach = affine(ones, weight.abs(), None)
        if not math.isinf(norm):
            # The largest entry of each row is scaled out, so that no square underflows beside it.
            top = weight.abs().amax(dim=tuple(range(1, weight.dim()))).clamp(min=2.0**-1000)
            squares = (weight / top.reshape(-1, *[1] * (weight.dim() - 1))).square()
            lengths = affine(ones, squares, None).sqrt() * top.reshape(-1, *[1] * (weight.dim() - 2))
            reach = torch.where(reach > 0, lengths + 2.0**-1000, 0.0)
        spread = spread + scale * radius * reach * (1 + 2 * slack)
    lo, hi = centre - spread, centre + spread
    lo, hi = torch.where(lo.isnan(), -math.inf, lo), torch.where(hi.isnan(), math.inf, hi)  # overflow
    if kind == "abs":
        lo, hi = torch.where(lo * hi > 0, torch.minimum(lo.abs(), hi.abs()), 0.0), torch.maximum(lo.abs(), hi.abs())
    elif kind == "square":
        lo, hi = torch.where(lo * hi > 0, torch.minimum(lo**2, hi**2), 0.0), torch.maximum(lo**2, hi**2)
    elif kind != "identity":
        lo, hi = INJECTION_MAPS[kind](lo), INJECTION_MAPS[kind](hi)
        if kind != "relu":  # an elementary function, accurate to 32 units in the last place
            lo, hi = lo * (1 - 2.0**-48), hi * (1 + 2.0**-48)
    exact = (spread == 0) & (kind in ("relu", "identity", "abs"))
    below = torch.nextafter(lo, torch.full_like(lo, -math.inf))
    above = torch.nextafter(hi, torch.full_like(hi, math.inf))
    if kind != "identity":
        below = below.clamp(min=0)
    return torch.where(exact, lo, below), torch.where(exact, hi, above)


class SubhomLayer(nn.Module, ABC):
    """Base of the layers `z -> N(a(A z + inner) + outer)` with `a = (s + shift) ** power`.

    Keyword arguments common to all layers:
        activation: name of the scalar function `s`; see `activation_names()`.
        shift: added to it.
        power: exponent of the shifted activation.
        normalize: None, or the exponent `p >= 1` (or "inf") of a p-norm by which the state is divided.
        normalize_over: the entries that share one norm: "state" (a whole sample), or a group that the layer names.
        weight: "nonneg" parametrizes the state weight to be nonnegative; "signed" leaves it free (and the
            structural certificate will say "not proven").
        nonneg: the parametrization: "abs", "softplus", "square" or "exp".
        injection: where the input enters: "outside" the activation, or "inside" it.
        injection_map: what makes the injected term nonnegative: "relu", "softplus", "abs", "square", or "identity".

    Raises:
        OptionError: an unknown name or a value out of range.
        DomainError: a shift that leaves the activation without a proof of positivity on the arguments it will meet.
    """

    operator_kind: ClassVar[Any]
    injection: nn.Linear | nn.Conv2d

    def __init__(
        self,
        *,
        activation: str,
        shift: float,
        power: float,
        normalize: float | str | None,
        normalize_over: str,
        weight: str,
        nonneg: str,
        injection: str,
        injection_map: str,
    ) -> None:
        super().__init__()
        if weight not in ("nonneg", "signed"):
            raise unknown_name("weight", weight, ("nonneg", "signed"))
        if injection not in ("outside", "inside"):
            raise unknown_name("injection", injection, ("outside", "inside"))
        if nonneg not in NONNEG:
            raise unknown_name("nonnegative parametrization", nonneg, NONNEG)
        if injection_map not in INJECTION_MAPS:
            raise unknown_name("injection_map", injection_map, INJECTION_MAPS)
        self.activation = Activation(activation, shift, power)
        self.normalizer: Normalizer | None = make_normalizer(self.operator_kind.groups, normalize, normalize_over)
        self.weight_kind = weight
        self.nonneg = nonneg
        self.injection_place = injection
        self.injection_map = injection_map
        self.positive = self.check_positivity()

    def check_positivity(self) -> bool:
        """Whether the layer keeps states positive; refuse combinations that cannot work at all."""
        needs = POSITIVE if self.weight_kind == "nonneg" else REALS
        try:
            self.activation.require_positive(needs)
        except DomainError:
            if self.weight_kind == "nonneg" or self.activation.power != 1 or self.normalizer is not None:
                raise
            return False  # signed, not positive: an ordinary DEQ layer, usable but never certified by this theory
        return True

    def _finish_weight(self, fan_in: int) -> None:
        """Initialise `self.weight` and make it nonnegative if the layer is.

        Row sums of nonnegative weights start near 1: more would saturate a bounded activation at once.
        """
        nonnegative = self.weight_kind == "nonneg"
        top = 2.0 / fan_in if nonnegative else fan_in**-0.5
        nn.init.uniform_(self.get_parameter("weight"), 0.0 if nonnegative else -top, top)
        if nonnegative:
            make_nonneg(self, "weight", self.nonneg)

    def injection_parameters(self) -> tuple[Tensor, ...]:
        """The parameters through which the input is injected."""
        return tuple(parameter for name, parameter in self.named_parameters() if name.startswith("injection."))

    @abstractmethod
    def _operator(self, x: Any) -> Operator:
        """The linear part for input `x`."""

    def operator_without_input(self) -> Operator | None:
        """The linear part, where no input is needed to know it."""
        return self._operator(None)

    def structure(self) -> Structure:
        """What is known of the linear part before any input is given."""
        operator = self._operator(None)
        return Structure(operator.coefficients(), operator.zero_row(None), operator.row_sum)

    @abstractmethod
    def _features(self, x: Any) -> Tensor:
        """The tensor in `x` that is injected, checked."""

    @property
    def injection_scale(self) -> float:
        """A factor of the injected term, before `injection_map`."""
        return 1.0

    def _inject(self, features: Tensor) -> Tensor:
        """The injected term before `injection_map`, of the state's shape."""
        injected: Tensor = self.injection(features)
        return injected if self.injection_scale == 1 else self.injection_scale * injected

    def injection_interval(self, x: Any, radius: float | Tensor = 0.0, norm: float = math.inf) -> tuple[Tensor, Tensor]:
        """Bounds of the injected term in exact arithmetic, from the parameters and the input as they are stored.

        Args:
            x: the layer's input.
            radius: bounds for every input within this distance of `x`: one number, or one for each sample, in a shape
                that broadcasts against the state. Samples (graphs: nodes) are perturbed independently.
            norm: of that distance, `math.inf` or 2.

        Returns:
            Lower and upper bounds in the state's shape, float64 on the CPU, rounded outwards.

        Raises:
            ShapeError: a wrong shape or dtype, or an empty batch.
            OptionError: another norm, or a negative radius.
        """
        if norm not in (2, math.inf):
            raise OptionError(f"norm must be 2 or math.inf, got {norm!r}.")
        reach = torch.as_tensor(radius, dtype=torch.float64, device="cpu")
        if not bool(((reach >= 0) & reach.isfinite()).all()):
            raise OptionError(f"radius must be finite and nonnegative, got {radius!r}.")
        features = self._features(x)
        check_nonempty("x", features)
        with torch.no_grad(), autocast_off(torch.device("cpu")):
            return _injection_interval(
                self.injection,
                features.detach().to("cpu", torch.float64),
                self.injection_scale,
                self.injection_map,
                (reach, norm),
            )

    def bind(self, x: Any) -> BoundMap:
        """Fix the input and return the map `z -> f(z)`.

        Args:
            x: the layer's input; see the layer for its shape.

        Raises:
            ShapeError: a wrong shape or dtype, or an empty batch.
        """
        features = self._features(x)
        check_nonempty("x", features)
        injected = INJECTION_MAPS[self.injection_map](self._inject(features))
        inside = self.injection_place == "inside"
        return BoundMap(
            self._operator(x),
            self.activation,
            injected if inside else None,
            None if inside else injected,
            self.normalizer,
            self.positive,
        )

    def forward(self, z: Tensor, x: Any) -> Tensor:
        """One application of the map to a state `z` of shape `initial_state(x).shape`.

        The sign of `z` is not checked here: inside a plain torchdeq core an accelerated solver may try a state outside
        the cone and come back. Starts are checked, by `SubDEQ`, `solve` and the core "subdeq".

        Raises:
            ShapeError: `z` does not fit `x`.
        """
        bound = self.bind(x)
        bound.check_state("z", z)
        return bound(z)

    def initial_state(self, x: Any) -> Tensor:
        """The default start: all ones, in the shape and dtype of the state."""
        return self.bind(x).start()

    def _check_input(self, name: str, x: object, features: int, dim: int, allowed: tuple[int, ...] | None) -> Tensor:
        """The common checks of a feature tensor: dtype, number of dimensions, size of dimension `dim`."""
        value = check_floating(name, x)
        if allowed is not None and value.dim() not in allowed:
            raise ShapeError(
                f"{name} must have {' or '.join(map(str, allowed))} dimensions, got shape {tuple(value.shape)}."
            )
        if value.dim() < -dim or value.shape[dim] != features:
            raise ShapeError(f"{name} must have size {features} in dimension {dim}, got shape {tuple(value.shape)}.")
        dtype = next(self.parameters()).dtype
        if value.dtype != dtype and autocast_dtype(value.device) is None:
            raise ShapeError(
                f"{name} has dtype {value.dtype} but the layer has {dtype}; convert one of them, or use autocast."
            )
        return value

    def extra_repr(self) -> str:
        norm = "None" if self.normalizer is None else f"{self.normalizer.p:g} over {self.normalizer.over}"
        a = self.activation
        return (
            f"activation={a.name}, shift={a.shift:g}, power={a.power:g}, normalize={norm}, "
            f"weight={self.weight_kind}, injection={self.injection_place} ({self.injection_map})"
        )
