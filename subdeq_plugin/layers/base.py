"""What every subhomogeneous layer shares: its keywords, its checks, and `bind`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._shapes import autocast_dtype, check_floating, check_nonempty
from ..activations import Activation
from ..degrees import POSITIVE, REALS
from ..errors import DomainError, ShapeError, unknown_name
from .bound import BoundMap, make_normalizer
from .nonneg import NONNEG, make_nonneg
from .normalize import Normalizer
from .operators import Operator

__all__ = ["INJECTION_MAPS", "Structure", "SubhomLayer"]

# How the affine image of the input is made nonnegative; "identity" leaves it as it is, and unproven.
INJECTION_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "softplus": F.softplus,
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
        self.positive = self._check_positivity()

    def _check_positivity(self) -> bool:
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

    def structure(self) -> Structure:
        """What is known of the linear part before any input is given."""
        operator = self._operator(None)
        return Structure(operator.coefficients(), operator.zero_row(None), operator.row_sum)

    @abstractmethod
    def _features(self, x: Any) -> Tensor:
        """The tensor in `x` that is injected, checked."""

    @abstractmethod
    def _inject(self, features: Tensor) -> Tensor:
        """The injected term before `injection_map`, of the state's shape."""

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
