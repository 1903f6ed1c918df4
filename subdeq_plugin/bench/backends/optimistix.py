"""JAX: Optimistix's solvers on the same map written in JAX and compiled, on the whole batch as one system.

J. Rader, T. Lyons, P. Kidger, *Optimistix: modular optimisation in JAX and Equinox*, 2024 (arXiv:2402.09983).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...errors import OptionError
from ...layers import BoundMap
from ..maps import AdjointMap
from ..tasks import Equation
from .base import Answer, Backend, Solve

__all__ = ["JAX", "Optimistix"]

JAX = ("fixed_point", "newton_krylov")

_LINEAR_RTOL, _KRYLOV_DIM = 1e-2, 30  # as our own Newton's method is used in the benchmarks


@dataclass(frozen=True)
class _Form:
    """All of a map that is no array; programs are compiled for each."""

    kind: str
    activation: str
    shift: float
    power: float
    norm: tuple[float, tuple[int, ...]] | None
    dilation: tuple[int, ...]
    nodes: int

    @classmethod
    def of(cls, bound: BoundMap) -> _Form:
        options = bound.spec.options
        norm = bound.normalizer
        return cls(
            str(options["kind"]),
            bound.activation.name,
            bound.activation.shift,
            bound.activation.power,
            None if norm is None else (norm.p, norm.dims),
            tuple(options.get("dilation", ())),
            int(options.get("nodes", 0)),
        )


def _activations() -> dict[str, Callable[[Any], Any]]:
    import jax
    import jax.numpy as jnp

    return {
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
        "relu": jax.nn.relu,
        "relu6": jax.nn.relu6,
        "leaky_relu": jax.nn.leaky_relu,
        "softplus": jax.nn.softplus,
        "softsign": jax.nn.soft_sign,
        "hardtanh": jax.nn.hard_tanh,
        "arctan": jnp.arctan,
        "elu": jax.nn.elu,
        "erf": jax.scipy.special.erf,
    }


def _linear(form: _Form, arrays: dict[str, Any], z: Any) -> Any:
    """`A z`."""
    import jax
    import jax.numpy as jnp

    if form.kind == "dense":
        return z @ arrays["weight"].T
    if form.kind == "conv2d":
        weight = arrays["weight"]
        pads = [(step * (size - 1) // 2,) * 2 for step, size in zip(form.dilation, weight.shape[2:], strict=True)]
        return jax.lax.conv_general_dilated(z, weight, (1, 1), pads, rhs_dilation=form.dilation)
    nodes = jnp.moveaxis(z, -2, 0)  # the nodes first: they are what is gathered and summed
    values = arrays["values"].reshape(-1, *[1] * (nodes.ndim - 1))
    spread = jax.ops.segment_sum(values * nodes[arrays["columns"]], arrays["rows"], form.nodes, indices_are_sorted=True)
    spread = jnp.moveaxis(spread, 0, -2)
    return spread @ arrays["weight"].T if "weight" in arrays else spread


def _value(form: _Form, arrays: dict[str, Any], z: Any) -> Any:
    """`f(z)`."""
    import jax.numpy as jnp

    t = _linear(form, arrays, z)
    value = _activations()[form.activation](t + arrays["inner"] if "inner" in arrays else t) + form.shift
    value = value if form.power == 1 else value**form.power
    value = value + arrays["outer"] if "outer" in arrays else value
    if form.norm is None:
        return value
    p, dims = form.norm
    if math.isinf(p):
        return value / value.max(axis=dims, keepdims=True)
    return value / jnp.sum(value**p, axis=dims, keepdims=True) ** (1 / p)


@functools.cache
def _program() -> Callable[..., tuple[Any, Any]]:
    """`(form, method, limit, arrays, start, tol) -> (state, steps)`, compiled for each form and shape."""
    import jax
    import lineax
    import optimistix

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def solve(form: _Form, method: str, limit: int, arrays: dict[str, Any], start: Any, tol: Any) -> Any:
        function: Callable[[Any, Any], Any]
        solver: Any
        if "g" in arrays:
            _, pull = jax.vjp(lambda z: _value(form, arrays, z), arrays["state"])
            function = lambda u, _: arrays["g"] + pull(u)[0]  # noqa: E731
        else:
            function = lambda z, _: _value(form, arrays, z)  # noqa: E731
        if method == "fixed_point":
            solver = optimistix.FixedPointIteration(rtol=tol, atol=tol)
        else:
            linear = lineax.GMRES(rtol=_LINEAR_RTOL, atol=0.0, restart=_KRYLOV_DIM, stagnation_iters=_KRYLOV_DIM)
            solver = optimistix.Newton(rtol=tol, atol=tol, linear_solver=linear)
        found = optimistix.fixed_point(function, solver, start, max_steps=limit, throw=False)
        return found.value, found.stats["num_steps"]

    return solve


def _precision(dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """JAX with float64 where that is needed, for this block only: by default it has none."""
    import jax

    if dtype != torch.float64:
        return contextlib.nullcontext()
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before JAX 0.8

    return enable_x64()


def _arrays(function: BoundMap | AdjointMap) -> dict[str, Any]:
    """The map's tensors as arrays of JAX's."""
    import jax.numpy as jnp

    bound = function.primal if isinstance(function, AdjointMap) else function
    tensors = dict(bound.spec.arrays)
    if "crow_indices" in tensors:
        starts = tensors.pop("crow_indices")
        tensors["rows"] = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
        tensors["columns"] = tensors.pop("col_indices")
    if isinstance(function, AdjointMap):
        tensors |= {"g": function.g, "state": function.state}
    return {name: jnp.asarray(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Optimistix(Backend):
    """A method of Optimistix's: plain iteration, or Newton's method with Lineax's GMRES, which forms no matrix."""

    memory: ClassVar[str | None] = None
    reports: ClassVar[bool] = True
    counted: ClassVar[bool] = False

    def missing(self) -> str:
        lacking = [name for name in ("jax", "optimistix") if find_spec(name) is None]
        return f"{' and '.join(lacking)} not installed: pip install 'subdeq-plugin[jax]'" if lacking else ""

    def equation(self, task: Equation, tol: float, limit: int) -> Solve:
        function, method = task.function, self.key.partition(":")[2]
        form = _Form.of(function.primal if isinstance(function, AdjointMap) else function)
        if form.activation not in _activations():
            raise OptionError(f"activation {form.activation!r} has no counterpart in JAX; choose another backend.")
        with _precision(task.start.dtype):
            arrays = _arrays(function)
        program, kind = _program(), task.start.cpu().numpy().dtype

        def run() -> Answer:
            with _precision(task.start.dtype):
                start: Tensor = task.start.cpu()
                state, steps = program(form, method, limit, arrays, start.numpy(), kind.type(tol))
                value = torch.from_numpy(np.array(state)).to(task.start.device)
                # Plain iteration evaluates once in every step; what Newton's method does inside is not told.
                evaluations = int(steps) if method == "fixed_point" else None
                return Answer(value, evaluations, None if evaluations is None else 0, int(steps) >= limit)

        return run
