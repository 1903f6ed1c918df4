"""What several suites share: independent formulas, layer cases, and plain iteration. Nothing here calls a solver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from subdeq_plugin.certificates import Certificate, certify
from subdeq_plugin.layers import BoundMap, SubhomConv2d, SubhomGraph, SubhomLayer, SubhomLinear


def certify_structure(target: Any, x: Any = None) -> Certificate:
    """Theorems A and B alone: what the other conditions may prove is tested elsewhere."""
    return certify(target, x, conditions="subhomogeneous")


def marked(keys: Iterable[Any]) -> list[Any]:
    """Solver keys, or tuples that hold some, as parameters; those of Julia's solvers need a Julia."""
    rows = [key if isinstance(key, tuple) else (key,) for key in keys]
    return [pytest.param(*row, marks=[pytest.mark.julia] if "julia:" in str(row) else []) for row in rows]


Scalar = Callable[[mpf], mpf]


def _piecewise(*parts: tuple[float, Scalar]) -> Scalar:
    """`(hi, g)` pairs: the first `g` with `t <= hi`."""
    return lambda t: next(g for hi, g in parts if t <= hi)(t)


def _softplus(t: mpf) -> mpf:
    return mp.log1p(mp.exp(t)) if t < 0 else t + mp.log1p(mp.exp(-t))


def _sigmoid(t: mpf) -> mpf:
    return 1 / (1 + mp.exp(-t))


_ZERO: Scalar = lambda t: mpf(0)  # noqa: E731
_ONE: Scalar = lambda t: mpf(1)  # noqa: E731
_SLOPE = mpf(0.01)

# name -> (function, derivative, kinks), written from the definitions.
SCALARS: dict[str, tuple[Scalar, Scalar, tuple[float, ...]]] = {
    "tanh": (mp.tanh, lambda t: mp.sech(t) ** 2, ()),
    "sigmoid": (_sigmoid, lambda t: _sigmoid(t) * _sigmoid(-t), ()),
    "softplus": (_softplus, _sigmoid, ()),
    "softsign": (lambda t: t / (1 + abs(t)), lambda t: 1 / (1 + abs(t)) ** 2, ()),
    "arctan": (mp.atan, lambda t: 1 / (1 + t * t), ()),
    "erf": (mp.erf, lambda t: 2 / mp.sqrt(mp.pi) * mp.exp(-t * t), ()),
    "relu": (lambda t: max(t, mpf(0)), _piecewise((0, _ZERO), (math.inf, _ONE)), (0.0,)),
    "leaky_relu": (
        lambda t: t if t > 0 else _SLOPE * t,
        _piecewise((0, lambda t: _SLOPE), (math.inf, _ONE)),
        (0.0,),
    ),
    "relu6": (
        lambda t: min(max(t, mpf(0)), mpf(6)),
        _piecewise((0, _ZERO), (6, _ONE), (math.inf, _ZERO)),
        (0.0, 6.0),
    ),
    "hardtanh": (
        lambda t: min(max(t, mpf(-1)), mpf(1)),
        _piecewise((-1, _ZERO), (1, _ONE), (math.inf, _ZERO)),
        (-1.0, 1.0),
    ),
    "elu": (lambda t: t if t > 0 else mp.expm1(t), _piecewise((0, mp.exp), (math.inf, _ONE)), (0.0,)),
}


def supremum(function: Scalar, derivative: Scalar, shift: float, points: np.ndarray) -> mpf:
    """The largest `|t s'(t)| / (s(t) + shift)` found on a grid and by golden section around its best points.

    Whatever the grid, it never exceeds the true supremum: the working precision is taken off.
    """
    with mp.workdps(30):

        def ratio(t: mpf) -> mpf:
            return abs(t * derivative(t)) / (function(t) + mpf(shift))

        grid = [mpf(float(point)) for point in points]
        values = [ratio(t) for t in grid]
        best = max(values)
        for index in sorted(range(len(grid)), key=lambda i: values[i])[-3:]:
            lo, hi = grid[max(index - 1, 0)], grid[min(index + 1, len(grid) - 1)]
            best = max(best, _golden(ratio, lo, hi))
        return best * (1 - mpf(10) ** -25)


def _golden(g: Scalar, lo: mpf, hi: mpf, steps: int = 60) -> mpf:
    shrink = (mp.sqrt(5) - 1) / 2
    a, b = hi - shrink * (hi - lo), lo + shrink * (hi - lo)
    ga, gb = g(a), g(b)
    for _ in range(steps):
        if ga > gb:
            hi, b, gb = b, a, ga
            a = hi - shrink * (hi - lo)
            ga = g(a)
        else:
            lo, a, ga = a, b, gb
            b = lo + shrink * (hi - lo)
            gb = g(b)
    return max(ga, gb)


POSITIVE_GRID = np.concatenate([np.geomspace(1e-8, 1e8, 400), [1 - 1e-12, 6 - 1e-12, 1.0, 6.0]])
REAL_GRID = np.sort(np.concatenate([-POSITIVE_GRID, POSITIVE_GRID, -np.linspace(0.05, 40, 300)]))


NORMS: tuple[Any, ...] = (None, 1, 2, 3, "inf")
NONNEGS = ("abs", "softplus", "square", "exp")
GROUPS = {
    "dense": ("state",),
    "conv": ("state", "channel", "pixel"),
    "graph": ("state", "channel", "node"),
    "mixing graph": ("state", "channel", "node"),
}
# Trailing dimensions of a state that share one norm, written out again on purpose.
GROUP_DIMS = {
    ("dense", "state"): (-1,),
    ("conv", "state"): (-3, -2, -1),
    ("conv", "channel"): (-2, -1),
    ("conv", "pixel"): (-3,),
    ("graph", "state"): (-2, -1),
    ("graph", "channel"): (-2,),
    ("graph", "node"): (-1,),
}
EDGES = torch.tensor([[0, 1, 1, 2, 3, 3, 4], [1, 0, 2, 1, 2, 4, 0]])


def group_dims(kind: str, over: str) -> tuple[int, ...]:
    """The dimensions of one group of a layer of this kind."""
    return GROUP_DIMS[kind.removeprefix("mixing "), over]


def sample_dims(kind: str) -> int:
    """How many trailing dimensions make one sample."""
    return {"dense": 1, "conv": 3, "graph": 2, "mixing graph": 2}[kind]


@dataclass(frozen=True)
class LayerCase:
    """One way to build a layer."""

    kind: str
    normalize: Any = None
    over: str = "state"
    injection: str = "outside"
    nonneg: str = "abs"
    activation: str = "tanh"
    shift: float = 1.2
    power: float = 1.0
    seed: int = 0

    def __str__(self) -> str:
        norm = "plain" if self.normalize is None else f"norm{self.normalize}-{self.over}"
        return f"{self.kind}-{norm}-{self.injection}-{self.nonneg}".replace(" ", "_")

    def layer(self, dtype: torch.dtype = torch.float64, **more: Any) -> SubhomLayer:
        """A small layer with random parameters."""
        torch.manual_seed(self.seed)
        keywords: dict[str, Any] = {
            "activation": self.activation,
            "shift": self.shift,
            "power": self.power,
            "normalize": self.normalize,
            "normalize_over": self.over,
            "nonneg": self.nonneg,
            "injection": self.injection,
            "dtype": dtype,
            **more,
        }
        if self.kind == "dense":
            return SubhomLinear(3, 4, **keywords)
        if self.kind == "conv":
            return SubhomConv2d(2, 2, 3, **keywords)
        return SubhomGraph(3, 2, 0.2, mix_features=self.kind == "mixing graph", **keywords)

    def input(self, dtype: torch.dtype = torch.float64) -> Any:
        """A small batch of inputs for the layer."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = {"dense": (2, 3), "conv": (2, 2, 3, 4)}.get(self.kind, (2, 5, 3))
        features = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return features if self.kind in ("dense", "conv") else (features, EDGES)


def layer_cases() -> Iterator[LayerCase]:
    """Every kind x normalisation x grouping x place of the injection x parametrization."""
    for kind, normalize, injection, nonneg in itertools.product(GROUPS, NORMS, ("inside", "outside"), NONNEGS):
        for over in GROUPS[kind] if normalize is not None else ("state",):
            yield LayerCase(kind, normalize, over, injection, nonneg)


def random_states(shape: tuple[int, ...], seed: int, spread: float = 3.0) -> Tensor:
    """Positive float64 states whose logarithms are uniform in `[-spread, spread]`."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.exp(spread * (2 * uniform - 1))


def log_distance(metric: str, x: Tensor, y: Tensor, dims: int) -> Tensor:
    """Thompson's or Hilbert's metric of each sample, from differences of logarithms."""
    gap = (x.double().log() - y.double().log()).flatten(-dims).flatten(0, -2) if x.dim() > dims else None
    if gap is None:
        gap = (x.double().log() - y.double().log()).flatten()[None]
    if metric == "thompson":
        return gap.abs().max(dim=1).values
    return gap.max(dim=1).values - gap.min(dim=1).values


def p_norm(value: Tensor, p: Any, dims: tuple[int, ...]) -> Tensor:
    """The p-norm over `dims`, from its definition, scaled against underflow."""
    top = value.amax(dim=dims, keepdim=True)
    return top if p == "inf" else top * ((value / top) ** p).sum(dim=dims, keepdim=True) ** (1 / p)


def iterate(bound: BoundMap, start: Tensor, steps: int = 4000, tol: float = 1e-15) -> Tensor:
    """Plain iteration until no entry moves by more than `tol`, relatively."""
    z = start
    with torch.no_grad():
        for _ in range(steps):
            new = bound(z)
            if bool(((new - z).abs() <= tol * new).all()):
                return new
            z = new
    return z


def silence_injection(layer: SubhomLayer, value: float = -1.0) -> None:
    """Make the injection constant: `value` before `injection_map` (negative: zero behind a relu)."""
    with torch.no_grad():
        layer.injection.weight.zero_()  # type: ignore[union-attr, operator]
        layer.injection.bias.fill_(value)  # type: ignore[union-attr, operator]


def rounding(bound: BoundMap, z: Tensor, extra: float = 0.0) -> Tensor:
    """To first order, how far rounding may carry the value of a map at `z` from the exact one, relatively.

    Entry by entry, in float64; the rounding is that of the dtype of `z`, and the scalar function of the activation may
    be wrong by `extra` rounding units more.
    """
    unit, wide, state = torch.finfo(z.dtype).eps, bound.to("cpu", torch.float64), z.double()
    function, activation, dims = wide.activation.function, wide.activation, wide.sample_dims
    size = wide.operator.absolute()(state.abs())
    argument = wide.operator(state)
    if wide.inner is not None:
        size, argument = size + wide.inner.abs(), argument + wide.inner
    base = function.value(argument) + activation.shift
    gap = (function.derivative(argument).abs() * (wide.operator.terms() + 4) * size + 8 * base.abs() + extra) * unit
    value = base**activation.power
    gap = abs(activation.power) * value / base * gap + 8 * unit * value
    if wide.outer is not None:
        value = value + wide.outer
        gap = gap + unit * value.abs()
    relative = gap / value
    if wide.normalizer is None:
        return relative
    lead = value.dim() - dims
    worst = relative.reshape(*value.shape[:lead], -1).amax(dim=-1).reshape(*value.shape[:lead], *[1] * dims)
    return relative + worst + (value.shape[lead:].numel() + 8) * unit
