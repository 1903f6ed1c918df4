"""What to change to get a proof: every suggestion was tried on a copy and certified.

A number is sought on a grid of two significant digits, by bisection, so that the number proposed is itself the one that
was certified. Bisection takes for granted that more of a change proves no less; if it does not, a number may be larger
than it had to be, never wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ..activations import Activation
from ..errors import SubdeqError
from ..layers import BoundMap, MapSpec, SubhomGraph, SubhomLayer
from ..layers.nonneg import make_nonneg
from .base import Certificate
from .engine import CONDITIONS, certify, recertify
from .report import condition_title

__all__ = ["Advice", "advise"]

_Target = SubhomLayer | BoundMap
_Layer = TypeVar("_Layer", bound=SubhomLayer)
_Edit = Callable[[_Target], _Target]

_TENTHS = tuple(range(10, 100))
_RAISES = tuple(digits * 10.0**decade for decade in range(-4, 2) for digits in _TENTHS)  # 0.001 to 990
_FALLS = tuple(digits / 10**places for places in range(5) for digits in reversed(_TENTHS))  # 99 to 0.001
_FACTORS = tuple(part for part in _FALLS if part < 1)


@dataclass(frozen=True)
class Advice:
    """A change after which `certify` finds a proof.

    Attributes:
        text: what to change.
        purpose: what that proves, and by which condition.
        settings: the change as data: "shift", "power", "injection_map", "self_loops" and "weight" as the layer's
            keywords; "scale", a factor of the state weight.
    """

    text: str
    purpose: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.text}: {self.purpose}"


@dataclass(frozen=True)
class _Change:
    """One way to change a map, by an amount or as a whole (`amounts` is empty then)."""

    setting: str
    text: Callable[[Any], str]
    apply: Callable[[_Target, Any], _Target]
    amounts: tuple[Any, ...]


def advise(certificate: Certificate) -> tuple[Advice, ...]:
    """What would turn "not proven" into a proof, smallest intervention first; each found to suffice by `certify`.

    Settings come first (shift, power, injection map, self-loops), then the weights (their size, their signs). Where no
    single change suffices, the hypotheses are repaired together, with a larger shift if need be. The changed map is
    certified for what the certificate covers: every input, or its own samples. A layer is taken as it is now.

    Args:
        certificate: made by `certify`.

    Returns:
        The suggestions; empty for a proof, and where none was found.

    Raises:
        CertificateError: the certificate was not made by `certify`, or is of a map of your own.
    """
    subject, search = certificate._known(), certificate._search
    if certificate.unique:
        return ()
    target = subject.layer if subject.layer is not None else subject.bound
    assert target is not None
    trial = _Trial(target, subject.x, tuple(CONDITIONS) if search is None else search.names)
    if not trial.finite:
        return ()
    repairs = _repairs(target)
    found = [_sought(trial, change) for change in (*_graded(target), *repairs, *_scalings(target))]
    singles = tuple(sorted((item for item in found if item is not None), key=lambda item: "weight" in item.settings))
    return singles or _together(trial, repairs, target)


class _Trial:
    """Certifies changed copies of a map."""

    def __init__(self, target: _Target, x: Any, names: tuple[str, ...]) -> None:
        self._target, self._x, self._names = target, x, names

    @property
    def finite(self) -> bool:
        """Whether the numbers are ones; otherwise nothing helps, and there is nothing to try."""
        target = self._target
        parts: Sequence[Tensor] = target.tensors if isinstance(target, BoundMap) else list(target.parameters())
        return all(bool(part.isfinite().all()) for part in parts)

    def __call__(self, edit: _Edit) -> Certificate | None:
        """The certificate of the changed map, if it is a proof."""
        try:
            with torch.no_grad():
                changed = edit(self._target)
                if isinstance(changed, BoundMap):
                    certificate = certify(changed, conditions=self._names)
                else:
                    certificate = recertify(changed, self._x, self._names, stop=True)
        except SubdeqError:  # the change leads to no valid map, for instance to one that does not stay positive
            return None
        return certificate if certificate.unique else None


def _sought(trial: _Trial, change: _Change, before: Sequence[_Change] = ()) -> Advice | None:
    """The smallest amount of a change that suffices, after others."""

    def certified(amount: Any) -> Certificate | None:
        def edit(target: _Target) -> _Target:
            for earlier in before:
                target = earlier.apply(target, None)
            return change.apply(target, amount)

        return trial(edit)

    amounts = change.amounts or (None,)
    best, certificate = _least(certified, amounts)
    if certificate is None:
        return None
    amount = amounts[best]
    texts = [*(earlier.text(None) for earlier in before), change.text(amount)]
    settings: dict[str, Any] = {}
    for part, value in [*((earlier, None) for earlier in before), (change, amount)]:
        settings |= {part.setting: _WHOLE.get(part.setting, value)}
    return Advice("; ".join(texts), _purpose(certificate), settings)


_WHOLE: dict[str, Any] = {"weight": "nonneg", "injection_map": "relu", "self_loops": True}


def _least(certified: Callable[[Any], Certificate | None], amounts: Sequence[Any]) -> tuple[int, Certificate | None]:
    """The position of the first sufficient amount, by bisection; -1 where none was found.

    The ends first, in three strides: the largest amounts may overshoot, and one call tells of a hopeless change.
    """
    low = -1
    for high in sorted({len(amounts) // 3, 2 * len(amounts) // 3, len(amounts) - 1}):
        certificate = certified(amounts[high])
        if certificate is not None:
            break
        low = high
    else:
        return -1, None
    while high - low > 1:
        middle = (low + high) // 2
        closer = certified(amounts[middle])
        if closer is None:
            low = middle
        else:
            high, certificate = middle, closer
    return high, certificate


def _together(trial: _Trial, repairs: Sequence[_Change], target: _Target) -> tuple[Advice, ...]:
    """All repairs of the hypotheses at once, with a larger shift where that is not enough."""
    if len(repairs) > 1:
        found = _sought(trial, repairs[-1], repairs[:-1])
        if found is not None:
            return (found,)
    if repairs:
        found = _sought(trial, _shift(target), repairs)
        if found is not None:
            return (found,)
    return ()


def _purpose(certificate: Certificate) -> str:
    rate = "" if certificate.rate is None else f" with factor {certificate.rate:.3g}"
    theorem = str(certificate.theorem)
    name = condition_title(theorem) if theorem in ("A", "B") else f'the condition "{theorem}"'
    return f"proves exactly one fixed point by {name}{rate}, for {certificate.scope}"


def _graded(target: _Target) -> tuple[_Change, ...]:
    """Changes of the activation's numbers."""
    now = target.activation
    powers = tuple(part for part in _FALLS if part < abs(now.power))
    sign = -1.0 if now.power < 0 else 1.0
    power = _Change(
        "power",
        lambda amount: f"lower power from {now.power:g} to {amount:g}",
        lambda changed, amount: _with_activation(changed, Activation(now.name, now.shift, amount)),
        tuple(sign * part for part in powers),
    )
    return (_shift(target), power) if powers else (_shift(target),)


def _shift(target: _Target) -> _Change:
    now = target.activation
    return _Change(
        "shift",
        lambda amount: f"raise shift from {now.shift:g} to {amount:.10g}",
        lambda changed, amount: _with_activation(changed, Activation(now.name, amount, now.power)),
        tuple(float(f"{now.shift + extra:.12g}") for extra in _RAISES),
    )


def _repairs(target: _Target) -> tuple[_Change, ...]:
    """Hypotheses that can be made to hold by construction, where they do not yet."""
    repairs = []
    if isinstance(target, BoundMap):
        parts = [part for part in (target.inner, target.outer) if part is not None]
        if any(bool((part < 0).any()) for part in parts):
            repairs.append(_Change("injection_map", lambda _: "replace the injection by its positive part", _relu, ()))
        if not target.operator.nonnegative:
            text = "replace the weights by their absolute values"
            repairs.append(_Change("weight", lambda _: text, _nonnegative, ()))
        return tuple(repairs)
    if target.injection_map == "identity":
        repairs.append(_Change("injection_map", lambda _: 'set injection_map="relu"', _relu, ()))
    if isinstance(target, SubhomGraph) and not target.self_loops:
        repairs.append(_Change("self_loops", lambda _: "set self_loops=True", _self_loops, ()))
    if target.weight_kind == "signed":
        text = 'set weight="nonneg", with the absolute values of the present weights'
        repairs.append(_Change("weight", lambda _: text, _nonnegative, ()))
    return tuple(repairs)


def _scalings(target: _Target) -> tuple[_Change, ...]:
    owned = target.operator.tensors if isinstance(target, BoundMap) else _owns_weight(target)
    if not owned:
        return ()
    return (_Change("scale", lambda amount: f"multiply the state weight by {amount:g}", _scaled, _FACTORS),)


def _owns_weight(layer: SubhomLayer) -> bool:
    """Whether the state weight is the layer's to change, not computed anew by a hook."""
    return "weight" in layer._parameters or parametrize.is_parametrized(layer, "weight")


def _copied(layer: _Layer) -> _Layer:
    """A copy to change; tensors that a hook computed are not copied by torch, so their values are."""
    computed = {
        id(value): value.detach().clone()
        for module in layer.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(layer, computed)


def _rebuilt(bound: BoundMap, arrays: dict[str, Tensor] | None = None, **options: Any) -> BoundMap:
    """The map with other arrays or options, checked again."""
    spec = bound.spec
    return BoundMap.from_spec(MapSpec({**spec.arrays, **(arrays or {})}, {**spec.options, **options}))


def _with_activation(target: _Target, activation: Activation) -> _Target:
    if isinstance(target, BoundMap):
        return _rebuilt(target, shift=activation.shift, power=activation.power)
    layer = _copied(target)
    layer.activation = activation
    layer.positive = layer.check_positivity()
    return layer


def _scaled(target: _Target, factor: float) -> _Target:
    if isinstance(target, BoundMap):
        return _rebuilt(target, {"weight": target.operator.tensors[0] * factor})
    layer = _copied(target)
    if "weight" in layer._parameters:
        layer.get_parameter("weight").mul_(factor)
    else:  # through the parametrization, which may not let it: then nothing changes, and nothing is proven
        setattr(layer, "weight", factor * getattr(layer, "weight"))  # noqa: B009, B010
    return layer


def _nonnegative(target: _Target, _: Any) -> _Target:
    if isinstance(target, BoundMap):
        return _rebuilt(target, target.operator.absolute().arrays())
    layer = _copied(target)
    if "weight" in layer._parameters:
        make_nonneg(layer, "weight", layer.nonneg)
    layer.weight_kind = "nonneg"
    layer.positive = layer.check_positivity()
    return layer


def _relu(target: _Target, _: Any) -> _Target:
    if isinstance(target, BoundMap):
        parts = {"inner": target.inner, "outer": target.outer}
        return _rebuilt(target, {name: part.clamp(min=0) for name, part in parts.items() if part is not None})
    layer = _copied(target)
    layer.injection_map = "relu"
    return layer


def _self_loops(target: _Target, _: Any) -> _Target:
    assert isinstance(target, SubhomGraph)
    layer = _copied(target)
    layer.self_loops = True
    return layer
