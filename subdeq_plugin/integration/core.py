"""torchdeq's core "subdeq": a certified forward solve and an exact implicit gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..autograd import Adjoint, attach, fixed_point
from ..certificates import Certificate, certify, contraction_of, snapshot
from ..errors import ConvergenceError, ConvergenceWarning, OptionError, ShapeError, unknown_name
from ..layers import BoundMap
from ..metrics import Contraction
from ..result import Solution
from ..solvers import Problem, Stop
from .spec import FAMILIES
from .torchdeq import DEQBase, find_solver, solver, statistics, wrap_states

__all__ = ["CertifiedDEQ", "deq_settings"]

_DEFAULTS: dict[str, Any] = {
    "f_solver": "subdeq:auto",
    "b_solver": "subdeq:auto",
    "f_tol": 1e-4,
    "b_tol": 1e-4,
    "f_max_iter": 200,
    "b_max_iter": 200,
    "f_stop_mode": "certified",
    "b_stop_mode": "rel",
    "eval_factor": 1.0,
    "eval_f_max_iter": 0,
    "no_stat": None,
    "on_failure": "warn",
}
# Settings of torchdeq's other cores. Where they would change what this core computes, only their defaults are accepted.
_FOREIGN_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n_states": (1,),
    "indexing": (None, [], ()),
    "grad": (1, [1], (1,)),
    "tau": (1, 1.0),
    "sup_gap": (-1,),
    "sup_loc": (None, [], ()),
}
_UNUSED = (
    *("core", "ift", "hook_ift", "sradius_mode", "gamma", "jac_loss_weight", "jac_loss_freq", "jac_incremental"),
    *("norm_type", "norm_no_scale", "norm_clip", "norm_clip_value", "norm_target_norm", "sn_n_power_iters"),
)
_VALID = (*_DEFAULTS, *_FOREIGN_DEFAULTS, *_UNUSED)


def deq_settings(namespace: Any) -> dict[str, Any]:
    """The entries of an argparse namespace or a dict that are settings of a DEQ core, as a new dict.

    For scripts whose namespace also holds their own options: `get_deq(deq_settings(args))`.
    """
    given = namespace if isinstance(namespace, dict) else vars(namespace)
    return {key: value for key, value in given.items() if key in _VALID}


class CertifiedDEQ(DEQBase):  # type: ignore[misc]
    """The core behind `get_deq(core="subdeq", ...)`.

    For a `BoundMap` (that is, `layer.bind(x)`) it certifies the map by theorem A or B, solves it to a guaranteed error,
    and gives the exact implicit gradient of any order, in training and in evaluation mode alike. Any other callable is
    solved too, without a certificate and with first-order gradients. Where only another condition holds (signed
    weights), `subdeq_plugin.solve` with `certified_tol` guarantees the error.

    Settings (keywords of `get_deq`):
        f_solver, b_solver: keys of solvers, ours (options allowed, `"subdeq:anderson?memory=8"`) or torchdeq's.
        f_tol, b_tol: tolerances. With `f_stop_mode="certified"`, the default, a certified solve ends when the distance
            to the true fixed point, in the certificate's metric and up to rounding, is at most `f_tol`; an uncertified
            one when the relative residual is.
        f_stop_mode: "certified", "abs", "rel", "thompson" or "hilbert". b_stop_mode: "abs" or "rel".
        f_max_iter, b_max_iter: largest numbers of evaluations. eval_factor, eval_f_max_iter: as in torchdeq.
        on_failure: "raise", "warn" or "ignore" when samples fail to converge.

    Raises:
        OptionError: an unknown setting, naming the nearest valid one, or a setting that this core cannot honour.
    """

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        given = {**_plain(args), **kwargs}
        for key, value in given.items():
            if key not in _VALID:
                error = unknown_name("setting of core 'subdeq'", key, _VALID)
                raise OptionError(f"{error} (For a namespace with other options use deq_settings(args).)")
            if key in _FOREIGN_DEFAULTS and value not in _FOREIGN_DEFAULTS[key]:
                raise OptionError(
                    f"{key}={value!r} has no meaning for core='subdeq', which returns the fixed point with its exact "
                    "gradient; leave it out, or use core='indexing' or 'sliced' with our solvers."
                )
        settings = {**_DEFAULTS, **{key: value for key, value in given.items() if key in _DEFAULTS}}
        if settings["on_failure"] not in ("raise", "warn", "ignore"):
            raise unknown_name("on_failure", settings["on_failure"], ("raise", "warn", "ignore"))
        self._certified_stop = settings["f_stop_mode"] == "certified"
        mode = "rel" if self._certified_stop else settings["f_stop_mode"]
        Stop(settings["f_tol"], settings["f_max_iter"], mode)  # refuses values out of range, here and now
        if settings["b_stop_mode"] not in ("abs", "rel"):
            raise unknown_name("stop_mode of a backward solve", settings["b_stop_mode"], ("abs", "rel"))
        Stop(settings["b_tol"], settings["b_max_iter"], settings["b_stop_mode"])
        find_solver(settings["f_solver"]), find_solver(settings["b_solver"])
        keys = {side: _registered(settings[side]) for side in ("f_solver", "b_solver")}
        base = {key: value for key, value in settings.items() if key != "on_failure"}
        super().__init__({**base, **keys, "f_stop_mode": mode})
        self._keys = keys
        self.on_failure: str = settings["on_failure"]
        self._certificate: Certificate | None = None
        self._map: BoundMap | None = None  # proven already; the certificate is written when somebody asks for it
        self.forward_solution: Solution | None = None
        self.backward_solution: Solution | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies leave out the last certificate: it holds a batch, and torch cannot copy sparse matrices."""
        return {**self.__dict__, "_certificate": None, "_map": None}

    @property
    def certificate(self) -> Certificate | None:
        """Of the last map, as it was at the last call; None where that was no `BoundMap`."""
        if self._certificate is None and self._map is not None:
            self._certificate = certify(self._map, conditions="subhomogeneous")
        return self._certificate

    def _proven(self, bound: BoundMap) -> Contraction | None:
        """The contraction proven by theorem A or B; the other conditions have their price at every training step."""
        self._map, self._certificate = snapshot(bound), None
        contraction = contraction_of(bound)
        if contraction is None:
            self._certificate = certify(bound, conditions="subhomogeneous")
            contraction = self._certificate.contraction
        return contraction

    def forward(
        self,
        func: Callable[..., Any],
        z_init: Tensor | Sequence[Tensor] | None = None,
        solver_kwargs: dict[str, Any] | None = None,
        sradius_mode: bool = False,
        backward_writer: Callable[[Any], None] | None = None,
    ) -> tuple[list[Any], Any]:
        """Solve `z = func(z)`.

        Args:
            func: a `BoundMap`, or a callable on the state (or on the list of states) whose samples are independent.
            z_init: the start; for a `BoundMap` it may be left out (ones) and must be positive. A list of tensors is
                solved as one state, as in torchdeq.
            solver_kwargs: `f_max_iter` and `f_tol`, for this call only.
            sradius_mode: report the spectral radius of the Jacobian (torchdeq's power method).
            backward_writer: called with the statistics of the backward solve.

        Returns:
            A list with the fixed point, and torchdeq's `SolverStat` with `status` and `evaluations` added.

        Raises:
            ShapeError, DomainError: an unusable start.
            ConvergenceError: samples failed and `on_failure="raise"`.
        """
        wrapped: Any = func
        if isinstance(func, BoundMap):
            start = _start(func, z_init)
            contraction = self._proven(func)
        else:
            if z_init is None:
                raise ShapeError("z_init is missing; it may be left out only for a BoundMap (layer.bind(x)).")
            self._certificate = self._map = contraction = None
            wrapped, start = wrap_states(func, z_init, no_stat=False)
        stop = self._stop(contraction, solver_kwargs or {})
        problem = Problem.of(wrapped, start, contraction)
        solution = find_solver(self._keys["f_solver"]).solve(problem, start, stop)
        self.forward_solution = _light(solution)
        self._judge("forward", solution)
        info = statistics(solution)
        value = self._differentiable(wrapped, solution.value, contraction, backward_writer)
        info["sradius"] = self._radius(wrapped, solution.value) if sradius_mode else torch.zeros(1, device=value.device)
        return [value if isinstance(func, BoundMap) else wrapped.vec2list(value)], info

    def _stop(self, contraction: Contraction | None, override: dict[str, Any]) -> Stop:
        for name in override:
            if name not in ("f_max_iter", "f_tol"):
                raise unknown_name("entry of solver_kwargs", name, ("f_max_iter", "f_tol"))
        chosen: dict[str, Any] = {"f_max_iter": self._limit(), "f_tol": self.f_tol, **override}
        limit, tol = int(chosen["f_max_iter"]), float(chosen["f_tol"])
        if self._certified_stop and contraction is not None:
            return Stop(tol, limit, "certified")
        return Stop(tol, limit, self.f_stop_mode)

    def _limit(self) -> int:
        return int(self.f_max_iter if self.training else self.eval_f_max_iter)

    def _differentiable(
        self,
        function: Callable[..., Tensor],
        value: Tensor,
        contraction: Contraction | None,
        writer: Callable[[Any], None] | None,
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return value

        def report(solution: Solution) -> None:
            self.backward_solution = _light(solution)
            if writer is not None:
                writer(statistics(solution))
            self._judge("backward", solution)

        stop = Stop(self.b_tol, self.b_max_iter, self.b_stop_mode)
        adjoint = Adjoint(find_solver(self._keys["b_solver"]), stop, _thompson_rate(contraction), report)
        if isinstance(function, BoundMap):
            return fixed_point(function, value, adjoint)
        return attach(function, value, replace(adjoint, rate=None))

    def _radius(self, function: Callable[..., Tensor], value: Tensor) -> Tensor:
        with torch.enable_grad():
            radius: Tensor = self._sradius(function, value.detach().clone())
        return radius.detach()

    def _judge(self, which: str, solution: Solution) -> None:
        if self.on_failure == "ignore" or not bool(solution.failed.any()):
            return
        message = f"{which} solve: {solution.describe_failures()}"
        if self.on_failure == "raise":
            raise ConvergenceError(message)
        warnings.warn(message, ConvergenceWarning, stacklevel=3)


def _plain(args: Any) -> dict[str, Any]:
    if args is None:
        return {}
    if isinstance(args, dict):
        return dict(args)
    config = getattr(args, "config", None)  # torchdeq's DEQConfig; a namespace may have a `config` of its own
    return dict(config if isinstance(config, dict) else vars(args))


def _registered(key: str) -> str:
    """A key torchdeq knows: variants of ours are registered on the way."""
    return solver(key) if key.partition(":")[0] in FAMILIES else key


def _start(bound: BoundMap, z_init: Any) -> Tensor:
    if z_init is None:
        return bound.start()
    if isinstance(z_init, list | tuple):
        raise ShapeError(f"z_init must be one tensor for a BoundMap, got {type(z_init).__name__}; pass z_init[0].")
    start = bound.check_state("z_init", z_init)
    if start.dtype != bound.dtype:
        raise ShapeError(f"z_init must have the dtype of the map, {bound.dtype}, got {start.dtype}.")
    return start


def _thompson_rate(contraction: Contraction | None) -> float | None:
    """A factor in Thompson's metric; on the slice a Hilbert contraction by `q` is a Thompson one by `2 q`."""
    if contraction is None or contraction.metric == "thompson":
        return None if contraction is None else contraction.rate
    doubled = 2 * contraction.rate
    return doubled if doubled < 1 else None


def _light(solution: Solution) -> Solution:
    """The statistics without the states: they would keep a batch alive until the next call."""
    return replace(solution, value=solution.value.new_empty(0), trajectory=())
