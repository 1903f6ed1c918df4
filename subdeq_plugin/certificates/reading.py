"""Reads modules as steps, and checks on their actual numbers what the steps take for granted."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from ..activations import Activation
from ..errors import ShapeError
from ..layers.pieces import Inject, Normalize, Pointwise
from .intervals import Box, nudge
from .proof import Check
from .steps import AddStep, LinearStep, MaxStep, NormStep, PointStep, ReshapeStep, ScaleStep, Step

__all__ = ["Reading", "is_piece", "read"]

_EXACT_SOFTPLUS = 40.0  # beyond it softplus(t) rounds to t in a double; in lower precisions beyond 20, torch's default


class _Unreadable(Exception):
    """A piece whose output cannot even be described."""

    def __init__(self, check: Check) -> None:
        self.check = check


@dataclass
class Reading:
    """The steps and checks of the pieces read so far.

    Attributes:
        shape: of the value, `(B, ...)`.
        dtype: in which the map is computed.
        steps, checks: in order.
        readable: False once a piece was met that is not known; what follows it has not been read.
    """

    shape: torch.Size
    dtype: torch.dtype
    steps: list[Step] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    readable: bool = True

    def check(self, label: str, name: str, value: str | float, threshold: str, reason: str) -> None:
        """Record a hypothesis; an empty reason means that it holds."""
        text = f"{label}: {reason}" if reason else ""
        self.checks.append(Check(f"{label}: {name}", value, threshold, not reason, text))

    def add(self, step: Step) -> None:
        """Append a step."""
        self.steps.append(step)
        self.shape = step.out


def read(module: nn.Module, shape: torch.Size, dtype: torch.dtype) -> Reading:
    """The steps of a module on states of the given shape and dtype; no gradients.

    Pieces are numbered as `module.named_modules()` names them. The checks say where and why reading stopped.
    """
    reading = Reading(shape, dtype)
    try:
        _read(module, "", reading)
    except _Unreadable as fault:
        reading.checks.append(fault.check)
        reading.readable = False
    return reading


def is_piece(module: nn.Module) -> bool:
    """Whether `read` should be tried: a sequence, or one known piece."""
    return _is_sequence(module) or _reader(module) is not None


def _is_sequence(module: nn.Module) -> bool:
    kind = type(module)
    same = kind.forward is nn.Sequential.forward and getattr(kind, "__iter__", None) is nn.Sequential.__iter__
    return isinstance(module, nn.Sequential) and same


def _read(module: nn.Module, path: str, reading: Reading) -> None:
    kind = type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)
    label = f"piece {path or '0'} ({kind.__name__})"
    _refuse_hooks(module, label)
    if _is_sequence(module):
        for name, child in module._modules.items():  # named_children() would leave out a piece that comes again
            assert child is not None
            _read(child, f"{path}.{name}" if path else name, reading)
        return
    reader = _reader(module)
    if reader is None:
        raise _unreadable(
            label,
            "is known",
            "write it in known pieces (nn.Linear, nn.Conv2d, pooling, Pointwise, Inject, Normalize; see "
            "docs/any-map.md); sd.register_activation makes a Pointwise of a scalar function.",
            f"nothing is known of {type(module).__name__}; ",
        )
    batch = reading.shape[0]
    try:
        reader(module, label, reading)
    except (RuntimeError, ValueError, IndexError) as error:
        raise _unreadable(
            label, "fits its input", "change its sizes.", f"it does not take shape {tuple(reading.shape)}: {error}; "
        ) from error
    if len(reading.shape) < 2 or reading.shape[0] != batch:
        raise _unreadable(label, "keeps samples apart", "leave dimension 0 as it is.", "it changes the batch; ")


def _unreadable(label: str, name: str, remedy: str, fact: str) -> _Unreadable:
    return _Unreadable(Check(f"{label} {name}", "no", "yes", False, f"{label}: {fact}{remedy}"))


def _reader(module: nn.Module) -> Callable[[Any, str, Reading], None] | None:
    """How to read a module whose class, or the class it only adds attributes to, is known."""
    for kind in type(module).__mro__:
        if kind in _READERS:
            same = all(getattr(type(module), name, None) is getattr(kind, name, None) for name in _METHODS)
            return _READERS[kind] if same else None
    return None


_METHODS = ("forward", "__call__", "_conv_forward", "normalizer")


def _refuse_hooks(module: nn.Module, label: str) -> None:
    foreign = [hook for hook in module._forward_pre_hooks.values() if not isinstance(hook, WeightNorm)]
    if foreign or module._forward_hooks or "forward" in vars(module):
        raise _unreadable(
            label,
            "computes what its class does",
            "remove them (torch.nn.utils.prune.remove for pruning); parametrizations and weight_norm are fine.",
            "forward hooks, or a replaced forward, may change its value; ",
        )


def _effective(module: nn.Module, name: str, label: str) -> Tensor | None:
    """A weight as the module uses it now, in float64 on the CPU."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm) and hook.name == name]

    def once() -> Tensor | None:
        # The attribute is what the last forward pass left behind.
        value = hooks[0].compute_weight(module) if hooks else getattr(module, name)
        return None if value is None else value.detach().to("cpu", torch.float64, copy=True)

    first, second = once(), once()
    if first is None or second is None:
        return None
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise _unreadable(
            label, "stays the same", "call eval() first.", f"its {name} changes from one call to the next; "
        )
    return first


def _affine(
    label: str,
    reading: Reading,
    apply: Callable[[Tensor, Tensor], Tensor],
    weight: Tensor,
    bias: Tensor | None,
    terms: int,
) -> None:
    """`z -> apply(z, weight) + bias`; the bias broadcasts."""
    ones = torch.ones(reading.shape, dtype=torch.float64)
    entries = apply(ones, (weight > 0).double())
    full = None if bias is None else bias.expand(entries.shape)
    bad = int((~weight.isfinite()).sum()) + (0 if bias is None else int((~bias.isfinite()).sum()))
    reading.check(
        label, "weights are finite", float(bad), "0 entries with NaN or infinity",
        f"{bad} weights are NaN or infinite; the piece defines no map." if bad else "",
    )  # fmt: skip
    for name, part, remedy in (
        ("weight", weight, "parametrize them, as sd's layers do (make_nonneg), or take their abs()."),
        ("bias", bias, "a negative one can create several fixed points; use bias=False, or clamp it."),
    ):
        if part is not None and part.numel():
            least = float(part.min())
            fault = "" if least >= 0 or bad else f"the smallest {name} is {least:.6g}; {remedy}"
            reading.check(label, f"{name} is nonnegative", least, ">= 0", fault)
    empty = entries == 0 if full is None else (entries == 0) & ~(full > 0)
    where = [] if not bool(empty.any()) else empty.nonzero()[0].tolist()
    reading.check(
        label, "no row is zero", f"entry {where}" if where else "none", "none",
        f"entry {where} of its output is always zero; the piece does not map the open cone into itself." if where
        else "",
    )  # fmt: skip
    reading.add(LinearStep(entries.shape, lambda z: apply(z, weight), terms))
    if full is not None:
        reading.add(AddStep(entries.shape, Box.point(full)))


def _linear(module: nn.Linear, label: str, reading: Reading) -> None:
    weight = _effective(module, "weight", label)
    assert weight is not None
    _affine(label, reading, F.linear, weight, _effective(module, "bias", label), weight.shape[1])


def _four(label: str, reading: Reading) -> None:
    if len(reading.shape) != 4:
        raise ShapeError("it needs images (B, C, H, W)")


def _conv(module: nn.Conv2d, label: str, reading: Reading) -> None:
    _four(label, reading)
    weight, bias = _effective(module, "weight", label), _effective(module, "bias", label)
    assert weight is not None
    if module.padding_mode != "zeros":
        raise _unreadable(label, "pads with zeros", 'use padding_mode="zeros".', f"got {module.padding_mode!r}; ")
    options = (module.stride, module.padding, module.dilation, module.groups)
    column = None if bias is None else bias[:, None, None]

    def apply(z: Tensor, taps: Tensor) -> Tensor:
        return F.conv2d(z, taps, None, *options)  # type: ignore[arg-type]

    _affine(label, reading, apply, weight, column, weight[0].numel())


def _average(module: nn.AvgPool2d | nn.AdaptiveAvgPool2d, label: str, reading: Reading) -> None:
    _four(label, reading)
    value = module.forward(torch.ones(reading.shape, dtype=torch.float64))
    fault = "" if bool((value > 0).all()) else "an average is not positive; check padding and divisor_override."
    reading.check(label, "averages are positive", float(value.min()), "> 0", fault)
    # No window is larger than the image.
    reading.add(LinearStep(value.shape, deepcopy(module).forward, reading.shape[-2] * reading.shape[-1]))


def _maximum(module: nn.MaxPool2d | nn.AdaptiveMaxPool2d, label: str, reading: Reading) -> None:
    _four(label, reading)
    if module.return_indices:
        raise ShapeError("it returns indices as well")
    value = module.forward(torch.ones(reading.shape, dtype=torch.float64))
    fault = "" if bool((value > 0).all()) else "a window holds nothing but padding; lower padding or dilation."
    reading.check(label, "every window meets the image", float(value.min()), "> 0", fault)
    reading.add(MaxStep(value.shape, deepcopy(module).forward))


def _reshape(module: nn.Flatten | nn.Unflatten, label: str, reading: Reading) -> None:
    value = module.forward(torch.empty(reading.shape))
    start = module.start_dim if isinstance(module, nn.Flatten) else module.dim
    if start in (0, -len(reading.shape)):
        raise ShapeError("it changes dimension 0, the batch")
    reading.add(ReshapeStep(value.shape))


def _dropout(module: _DropoutNd, label: str, reading: Reading) -> None:
    fault = "in training mode the map is random; call eval() first." if module.training and module.p > 0 else ""
    reading.check(label, "is switched off", "training mode" if fault else "off", "off", fault)


def _nothing(module: nn.Module, label: str, reading: Reading) -> None:
    """The identity."""


def _named(name: str) -> Callable[[Any, str, Reading], None]:
    def reader(module: nn.Module, label: str, reading: Reading) -> None:
        reading.add(PointStep(reading.shape, Activation(name)))

    return reader


def _pointwise(module: Pointwise, label: str, reading: Reading) -> None:
    reading.add(PointStep(reading.shape, module.activation))


def _softplus(module: nn.Softplus, label: str, reading: Reading) -> None:
    least = _EXACT_SOFTPLUS if reading.dtype == torch.float64 else 20.0
    exact = module.beta == 1 and module.threshold >= least
    fault = "" if exact else f'needs beta=1, threshold={least:g} or more; use Pointwise("softplus").'
    reading.check(
        label, "is softplus", f"beta={module.beta:g}, threshold={module.threshold:g}", f"1, >= {least:g}", fault
    )
    reading.add(PointStep(reading.shape, Activation("softplus")))


def _hardtanh(module: nn.Hardtanh, label: str, reading: Reading) -> None:
    six = module.max_val == 6
    fits = module.min_val <= 0 and (six or module.max_val == 1)
    fault = "" if fits else "on positive arguments it must be min(t, 1) or min(t, 6); register another as a Pointwise."
    reading.check(label, "clips at 1 or 6", f"[{module.min_val:g}, {module.max_val:g}]", "min <= 0, max 1 or 6", fault)
    reading.add(PointStep(reading.shape, Activation("relu6" if six else "hardtanh")))


def _inject(module: Inject, label: str, reading: Reading) -> None:
    y = _effective(module, "y", label)
    assert y is not None
    if torch.broadcast_shapes(y.shape, reading.shape) != reading.shape:
        raise ShapeError(f"y of shape {tuple(y.shape)} does not broadcast to it")
    bad, least = int((~y.isfinite()).sum()), float(y.min())
    fault = f"{bad} entries are NaN or infinite; clean the input." if bad else ""
    if not fault and least < 0:
        fault = f"y goes down to {least:.6g}; a negative one can create several fixed points; use torch.relu(y)."
    reading.check(label, "y is finite and nonnegative", least, ">= 0", fault)
    reading.add(AddStep(reading.shape, Box.point(y.expand(reading.shape))))


def _normalize(module: Normalize, label: str, reading: Reading) -> None:
    reading.add(NormStep(reading.shape, module.normalizer(len(reading.shape))))


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, label: str, reading: Reading) -> None:
    """In eval mode, `z -> scale z + shift` by channel, with both enclosed."""
    if module.training or module.running_mean is None or module.running_var is None:
        raise _unreadable(
            label, "has fixed statistics", "call eval(), with track_running_stats=True.",
            "it divides by the batch's own statistics, which ties samples together; ",
        )  # fmt: skip
    mean, var = (part.detach().to("cpu", torch.float64) for part in (module.running_mean, module.running_var))
    weight, bias = _effective(module, "weight", label), _effective(module, "bias", label)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    low, high = nudge(var + module.eps, var + module.eps)
    low, high = nudge(low.sqrt(), high.sqrt())
    ends = torch.stack([weight / low, weight / high])
    scale = Box.outward(ends.amin(0), ends.amax(0))
    ends = torch.stack([mean * scale.lo, mean * scale.hi])
    moved = Box.outward(ends.amin(0), ends.amax(0))
    moved = Box.outward(bias - moved.hi, bias - moved.lo)
    shift = Box(torch.where(mean == 0, bias, moved.lo), torch.where(mean == 0, bias, moved.hi))
    columns = [part.reshape(-1, *[1] * (len(reading.shape) - 2)) for part in (scale.lo, scale.hi, shift.lo, shift.hi)]
    module.forward(torch.ones(reading.shape, dtype=module.running_mean.dtype, device=module.running_mean.device))
    least, finite = float(scale.lo.min()), bool(scale.hi.isfinite().all() & shift.hi.isfinite().all())
    fault = "" if least > 0 and finite else "make its weight positive, and all its numbers finite."
    reading.check(label, "scale is positive and finite", least, "> 0", fault)
    least = float(shift.lo.min())
    fault = "" if least >= 0 else "bias - mean * scale is negative for some channel; raise its bias."
    reading.check(label, "folded shift is nonnegative", least, ">= 0", fault)
    lo, hi, below, above = (part.expand(reading.shape) for part in columns)
    reading.add(ScaleStep(reading.shape, Box(lo, hi)))
    reading.add(AddStep(reading.shape, Box(below, above)))


# leaky_relu, elu, celu and prelu are the identity on positive arguments, whatever their parameters.
_READERS: dict[type[nn.Module], Callable[[Any, str, Reading], None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _average,
    nn.MaxPool2d: _maximum,
    nn.AdaptiveMaxPool2d: _maximum,
    nn.Flatten: _reshape,
    nn.Unflatten: _reshape,
    nn.Identity: _nothing,
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    nn.Dropout3d: _dropout,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Tanh: _named("tanh"),
    nn.Sigmoid: _named("sigmoid"),
    nn.Softsign: _named("softsign"),
    nn.ReLU: _named("relu"),
    nn.LeakyReLU: _named("relu"),
    nn.PReLU: _named("relu"),
    nn.ELU: _named("relu"),
    nn.CELU: _named("relu"),
    nn.Hardtanh: _hardtanh,
    nn.Softplus: _softplus,
    Pointwise: _pointwise,
    Inject: _inject,
    Normalize: _normalize,
}
