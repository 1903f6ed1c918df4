"""Whole solves of small dense maps in one kernel: certified walks and adjoint equations that stop by themselves.

A step of a small map takes a GPU less time than a launch. Here a program owns a few samples and takes all their steps:
weights and states stay in its registers, and it decides itself which samples are done. The host waits for nothing.

Products are sums of float32 products, never TensorFloat-32: a test of `1e-6` needs more than its eleven bits. Quotients
and logarithms next to 1 are correctly or faithfully rounded, and activations are accurate relative to their values, so
that an image is as good as one of `BoundMap`, up to the order of its sums.

The kernels are in Triton (P. Tillet, H. Kung, D. Cox, MAPL 2019, doi:10.1145/3315508.3329973). Without it this module
still imports, and `available` says so. Its import is left to those who use it: it takes a while.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# Arguments of kernels are pointers, numbers and tiles on the device, of types that only Triton knows.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._shapes import check_shape
from ..errors import OptionError, ShapeError, unknown_name
from ..metrics import METRICS
from .bound import BoundMap
from .operators import DenseOperator

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

__all__ = ["FUNCTIONS", "LARGEST", "FusedAdjoint", "FusedWalk", "available", "fused_adjoint", "fused_walk"]

LARGEST = 256  # entries of a state
FUNCTIONS = "elu", "erf", "hardtanh", "leaky_relu", "relu", "relu6", "sigmoid", "softplus", "softsign", "tanh"


@dataclass(frozen=True)
class FusedWalk:
    """Where plain steps ended. The tensors are on the device of the map, which may still be at work on them.

    Attributes:
        z: the state that was tested last, float32, of the shape of the start.
        image: `f(z)`, the answer of a certified solve.
        steps: `(B,)` int32, evaluations of the map, at least 1.
        distance: `(B,)` float32, `d(z, f(z))`; infinite where a quotient `f(z) / z` is negative or NaN.
    """

    z: Tensor
    image: Tensor
    steps: Tensor
    distance: Tensor


@dataclass(frozen=True)
class FusedAdjoint:
    """Where the steps of an adjoint equation ended; on the device as in `FusedWalk`.

    Attributes:
        u: the cotangent that was tested last, float32, of the shape of `g`.
        steps: `(B,)` int32, products with the transposed Jacobian, at least 1.
        residual: `(B,)` float32, `|g + J^T u - u| / |g + J^T u|` in the two-norm; NaN where `u` is not finite.
    """

    u: Tensor
    steps: Tensor
    residual: Tensor


def _jit(function: Callable[..., Any]) -> Any:
    # Nothing is gained by a compilation of its own for a size that is 1, or a multiple of 16.
    return function if triton is None else triton.jit(function, do_not_specialize=["batch", "n", "max_steps"])


@_jit
def _function(t, NAME: tl.constexpr):
    """A scalar function of the catalogue and its derivative; the compiler drops the one that is not used.

    A new one is a branch here and a name in `FUNCTIONS`. No `maximum`: that of a GPU drops NaN.
    """
    size = tl.abs(t)
    x = -2.0 * size if NAME == "tanh" else -size
    e, y = tl.exp(x), 1.0 + tl.exp(x)
    # W. Kahan's, in which roundings cancel; see N. Higham, Accuracy and Stability, 2002, section 1.14.1.
    expm1 = tl.where(e == 1.0, x, tl.where(e - 1.0 == -1.0, -1.0, tl.div_rn((e - 1.0) * x, tl.log(e))))
    log1p = tl.where(y == 1.0, e, tl.log(y) * tl.div_rn(e, y - 1.0))
    if NAME == "tanh":
        value, slope = tl.where(t < 0, expm1, -expm1) / y, 4.0 * e / (y * y)
    elif NAME == "sigmoid":
        value, slope = tl.where(t < 0, e, 1.0) / y, e / (y * y)
    elif NAME == "softplus":
        value, slope = tl.where(t < 0, 0.0, t) + log1p, tl.where(t < 0, e, 1.0) / y
    elif NAME == "softsign":
        value, slope = t / (1.0 + size), 1.0 / ((1.0 + size) * (1.0 + size))
    elif NAME == "erf":
        value, slope = tl.erf(t), 1.1283791670955126 * tl.exp(-t * t)  # 2 / sqrt(pi)
    elif NAME == "elu":
        value, slope = tl.where(t > 0, t, expm1), tl.where(t > 0, 1.0, e)
    elif NAME == "relu":
        value, slope = tl.where(t < 0, 0.0, t), tl.where(t > 0, 1.0, 0.0)
    elif NAME == "leaky_relu":
        value, slope = tl.where(t < 0, 0.01 * t, t), tl.where(t > 0, 1.0, 0.01)
    elif NAME == "relu6":
        value, slope = tl.where(t < 0, 0.0, tl.where(t > 6, 6.0, t)), tl.where((t > 0) & (t < 6), 1.0, 0.0)
    elif NAME == "hardtanh":
        value, slope = tl.where(size > 1, tl.where(t < 0, -1.0, 1.0), t), tl.where(size < 1, 1.0, 0.0)
    return value, slope


@_jit
def _weights(matrix, first, columns, n, COUNT: tl.constexpr):
    """Rows `first ... first + COUNT - 1` of an `(n, n)` matrix, `(COUNT, SIZE)`, and zeros beyond it."""
    k = first + tl.arange(0, COUNT)
    inside = (k < n)[:, None] & (columns < n)[None, :]
    return tl.load(matrix + k[:, None] * n + columns[None, :], mask=inside, other=0.0)


@_jit
def _entries(v, first, COUNT: tl.constexpr):
    """Entries `first ... first + COUNT - 1` of every row, `(ROWS, COUNT, 1)`."""
    k = tl.broadcast_to(first + tl.arange(0, COUNT)[None, :], (v.shape[0], COUNT))
    return tl.gather(v, k, axis=1)[:, :, None]


@_jit
def _times(v, held, matrix, columns, n, HELD: tl.constexpr):
    """`v M`, `(ROWS, SIZE)`, for an `(n, n)` matrix: its first `HELD` rows are there, the others are read."""
    SIZE: tl.constexpr = v.shape[1]
    BLOCK: tl.constexpr = 32 if SIZE > 32 else SIZE
    if HELD == 0:
        total = tl.zeros(v.shape, tl.float32)
    else:
        total = tl.sum((v[:, :, None] if HELD == SIZE else _entries(v, 0, HELD)) * held[None, :, :], axis=1)
    if HELD < SIZE:
        for k in range(HELD, n, BLOCK):
            total += tl.sum(_entries(v, k, BLOCK) * _weights(matrix, k, columns, n, BLOCK)[None, :, :], axis=1)
    return total


@_jit
def _apply(t, outside, real, shift, power, NAME: tl.constexpr, NORM: tl.constexpr):
    """What a map does to `t = A z + inner`: its value `G`, a scale `s` and a gradient `w`, each 0 where not `real`.

    The transposed Jacobian sends `u` to `A^T s (u - w <G, u>)`, see `NormalizerJet`; without a norm, to `A^T s u`.
    """
    value, scale = _function(t, NAME)
    value += shift
    if power is not None:
        logarithm = tl.log2(value)
        scale *= power * tl.exp2((power - 1.0) * logarithm)
        value = tl.exp2(power * logarithm)
    value, scale = tl.where(real, value + outside, 0.0), tl.where(real, scale, 0.0)
    gradient = tl.where(real, 1.0, 0.0)
    if NORM is not None:
        if NORM == 1:
            norm = tl.sum(tl.abs(value), axis=1)[:, None]
        elif NORM == 2:
            norm = tl.sqrt_rn(tl.sum(value * value, axis=1))[:, None]
            gradient = tl.div_rn(value, norm)
        else:
            norm = tl.max(value, axis=1)[:, None]
            gradient = tl.where(value == norm, 1.0, 0.0)
            gradient = tl.div_rn(gradient, tl.sum(gradient, axis=1)[:, None])
        value, scale = tl.div_rn(value, norm), tl.div_rn(scale, norm)
    return value, scale, gradient


@_jit
def _place(batch, n, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """The samples and entries of a program, which entries are real, which of them are there, and where they lie."""
    rows, columns = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, SIZE)
    real = (columns < n)[None, :]
    return rows, columns, real, (rows < batch)[:, None] & real, rows[:, None] * n + columns[None, :]


@_jit
def _walk(
    transposed, inner, outer, start, last, images, taken, distances, batch, n, shift, power, factor, tol, max_steps,
    NAME: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr,
    HILBERT: tl.constexpr,
):  # fmt: skip
    rows, columns, real, there, at = _place(batch, n, ROWS, SIZE)
    inside = 0.0 if inner is None else tl.load(inner + at, mask=there, other=0.0)
    outside = 0.0 if outer is None else tl.load(outer + at, mask=there, other=0.0)
    held = _weights(transposed, 0, columns, n, HELD)
    z = tl.load(start + at, mask=there, other=0.0)
    image, distance = z, tl.zeros((ROWS,), tl.float32)
    steps, going = tl.zeros((ROWS,), tl.int32), rows < batch
    while tl.max(going.to(tl.int32), axis=0) > 0:
        z = tl.where(going[:, None], image, z)  # a sample that is done stays, whoever shares its program
        t = _times(z, held, transposed, columns, n, HELD) + inside
        image, _, _ = _apply(t, outside, real, shift, power, NAME, NORM)
        # The largest quotients both ways, by one reduction. Comparisons with NaN are false.
        ratio = tl.join(tl.div_rn(image, z), tl.div_rn(z, image))
        ratio = tl.where(real[:, :, None], tl.where(ratio >= 0, ratio, float("inf")), 0.0)
        above, below = tl.split(tl.log(tl.max(ratio, axis=1)))
        distance = above + below if HILBERT else tl.maximum(above, below)
        steps += going.to(tl.int32)
        going = going & (factor * distance > tol) & (distance < float("inf")) & (steps < max_steps)
    tl.store(last + at, z, mask=there)
    tl.store(images + at, image, mask=there)
    tl.store(taken + rows, steps, mask=rows < batch)
    tl.store(distances + rows, distance, mask=rows < batch)


@_jit
def _adjoint(
    transposed, inner, outer, weight, state, cotangent, last, taken, residuals, batch, n, shift, power, tol, max_steps,
    NAME: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    rows, columns, real, there, at = _place(batch, n, ROWS, SIZE)
    inside = 0.0 if inner is None else tl.load(inner + at, mask=there, other=0.0)
    outside = 0.0 if outer is None else tl.load(outer + at, mask=there, other=0.0)
    z = tl.load(state + at, mask=there, other=0.0)
    t = _times(z, None, transposed, columns, n, 0) + inside
    value, scale, gradient = _apply(t, outside, real, shift, power, NAME, NORM)
    held = _weights(weight, 0, columns, n, HELD)
    g = tl.load(cotangent + at, mask=there, other=0.0)
    unit = tl.max(tl.abs(g), axis=1)[:, None]
    unit = tl.where((unit > 1e-37) & (unit < float("inf")), unit, 1.0)
    g = tl.div_rn(g, unit)  # the equation is linear, and squares of small numbers vanish
    u, image, residual = g, g, tl.zeros((ROWS,), tl.float32)
    steps, going = tl.zeros((ROWS,), tl.int32), rows < batch
    while tl.max(going.to(tl.int32), axis=0) > 0:
        u = tl.where(going[:, None], image, u)
        pulled = u
        if NORM is not None:
            pulled -= gradient * tl.sum(value * u, axis=1)[:, None]
        image = g + _times(scale * pulled, held, weight, columns, n, HELD)
        gap = image - u
        gaps, sizes = tl.split(tl.sqrt_rn(tl.sum(tl.join(gap * gap, image * image), axis=1)))
        residual = tl.div_rn(gaps, tl.maximum(sizes, 1e-37))
        steps += going.to(tl.int32)
        going = going & (residual > tol) & (steps < max_steps)
    tl.store(last + at, u * unit, mask=there)
    tl.store(taken + rows, steps, mask=rows < batch)
    tl.store(residuals + rows, residual, mask=rows < batch)


def available(bound: BoundMap) -> str:
    """Why the fused kernels do not take a map, or nothing where they do. Nothing is read from the device.

    They take dense float32 maps of at most `LARGEST` entries on a GPU, with positive states, an activation in
    `FUNCTIONS`, and no normalisation but by the norms 1, 2 and infinity.
    """
    if triton is None:
        return "triton is not installed"
    if not isinstance(bound.operator, DenseOperator):
        return f"its operator is of kind {bound.operator.kind!r}, not 'dense'"
    weight, name, norm = bound.operator.weight, bound.activation.name, bound.normalizer
    compiled = isinstance(_walk, triton.JITFunction)  # else interpreted: TRITON_INTERPRET=1
    faults = (
        (not hasattr(tl, "gather"), f"triton {triton.__version__} is too old"),
        (len(weight) > LARGEST, f"a state has {len(weight)} entries, more than {LARGEST}"),
        (weight.dtype != torch.float32, f"its dtype is {weight.dtype}, not torch.float32"),
        (name not in FUNCTIONS, f"activation {name!r} has no form for the device"),
        (norm is not None and norm.p not in (1, 2, math.inf), "it is normalised by another norm than 1, 2 and inf"),
        (not bound.positive, "its states need not be positive"),
        (compiled and not weight.is_cuda, f"it is on {weight.device.type!r}, not on a GPU"),
    )
    return next((reason for fault, reason in faults if fault), "")


def fused_walk(bound: BoundMap, z0: Tensor, *, rate: float, metric: str, tol: float, max_steps: int) -> FusedWalk:
    """Plain steps `z <- f(z)` of each sample until `rate / (1 - rate) d(z, f(z)) <= tol`, the test of `solvers.walk`.

    A sample also ends where its distance is infinite, and after `max_steps`. What becomes of it does not depend on the
    other samples. The host does not wait for the device.

    Args:
        bound: a map for which `available` has nothing to say.
        z0: `(..., n)`, positive; it is not overwritten.
        rate: a factor by which the map contracts the metric, `0 <= rate < 1`.
        metric: "thompson" or "hilbert".
        tol: in the metric, 0 or more.
        max_steps: evaluations of the map that a sample may take, at least 1.

    Raises:
        OptionError: the kernels do not take this map, or an option is out of its range.
        ShapeError: `z0` is no state of it.
    """
    z0 = _state(bound, "z0", z0)
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if not 0 <= rate < 1:
        raise OptionError(f"rate must be in [0, 1), got {rate!r}.")
    last, image, numbers = torch.empty_like(z0), torch.empty_like(z0), (rate / (1 - rate), tol)
    tensors, hilbert = (z0, last, image), metric == "hilbert"
    return FusedWalk(last, image, *_launch(_walk, bound, tensors, numbers, max_steps, HILBERT=hilbert))


def fused_adjoint(bound: BoundMap, state: Tensor, g: Tensor, *, tol: float, max_steps: int) -> FusedAdjoint:
    """Plain steps `u <- g + J^T u` of each sample, from `u = g`, until `u` has a relative residual of `tol` or less.

    Args:
        bound: a map for which `available` has nothing to say.
        state: `(..., n)`, where `J` is the Jacobian of the map; at kinks, the element that `Linearization` takes.
        g: the cotangent, of the shape of `state`.
        tol: of the residual in `FusedAdjoint`, 0 or more.
        max_steps: products with `J^T` that a sample may take, at least 1.

    Raises:
        OptionError: the kernels do not take this map, or an option is out of its range.
        ShapeError: `state` is no state of it, or `g` not of the same shape.
    """
    state, g = _state(bound, "state", state), _state(bound, "g", g)
    check_shape("g", g, tuple(state.shape))
    weight = bound.operator.coefficients()[0].detach().contiguous()
    u = torch.empty_like(g)
    return FusedAdjoint(u, *_launch(_adjoint, bound, (weight, state, g, u), (tol,), max_steps))


def _state(bound: BoundMap, name: str, z: object) -> Tensor:
    """`z` as a contiguous float32 state of the map, cut off from autograd."""
    if reason := available(bound):
        raise OptionError(f"the fused kernels do not take this map: {reason}.")
    state = bound.check_state(name, z)
    if defect := bound.operator.defect(state.shape):
        raise ShapeError(f"{name} is no state of this map: {defect}.")
    return state.detach().to(torch.float32).contiguous()


def _launch(
    kernel: Any, bound: BoundMap, tensors: tuple[Tensor, ...], numbers: tuple[float, ...], limit: int, **constants: Any
) -> tuple[Tensor, Tensor]:
    """Run a kernel into the last of `tensors`, in the current stream: the steps of its samples, and their measures."""
    if not (numbers[-1] >= 0 and limit >= 1):
        raise OptionError(f"tol must be 0 or more and max_steps 1 or more, got {numbers[-1]!r} and {limit!r}.")
    activation, norm = bound.activation, bound.normalizer
    weight = bound.operator.coefficients()[0].detach()
    injected = [None if part is None else part.detach().to(weight).contiguous() for part in (bound.inner, bound.outer)]
    n, power = len(weight), None if activation.power == 1 else activation.power
    batch, size = tensors[-1].numel() // n, max(16, triton.next_power_of_2(n))
    steps, measure = weight.new_empty(batch, dtype=torch.int32), weight.new_empty(batch)
    processors = torch.cuda.get_device_properties(weight.device).multi_processor_count if weight.is_cuda else 8
    rows = 4 if batch > 2 * processors else 1
    # With a thread for every column, sums over rows of the weights do not leave it; so many fit its 255 registers.
    held = size if size <= 128 else 128 if rows == 1 else 64
    constants |= {"ROWS": rows, "SIZE": size, "HELD": held, "num_warps": max(1, size // 32)}
    with torch.cuda.device_of(weight):
        kernel[(triton.cdiv(batch, rows),)](
            weight.t().contiguous(), *injected, *tensors, steps, measure,
            batch, n, activation.shift, power, *map(float, numbers), limit,
            NAME=activation.name, NORM=None if norm is None else norm.p, enable_fp_fusion=True, **constants,
        )  # fmt: skip
    return steps, measure
