"""The kinds of work: a problem made into what a backend is to do, with the judge of its answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..certificates import Certificate, certify
from ..errors import CertificateError, OptionError
from ..layers import BoundMap, SubhomLayer
from ..metrics import Contraction
from ..solvers import SOLVERS, solve
from .judges import Judge, adjoint_contraction, adjoint_judge, forward_judge, gradient_judge
from .maps import AdjointMap, Map, Tally, counted, counted_layer
from .problems import Problem

__all__ = ["WORKS", "Equation", "Task", "Training", "make_task"]

_STEPS = 500  # evaluations that a reference may take


@dataclass(frozen=True)
class Equation:
    """Find `z = function(z)`.

    Attributes:
        function: the map; both kinds show their Jacobian.
        start: the first state.
        contraction: proven of the map, for the backends that make use of it, or None.
        judge: of states.
    """

    function: Map
    start: Tensor
    contraction: Contraction | None
    judge: Judge

    def counted(self, tally: Tally) -> Equation:
        """The same, keeping `tally`."""
        return replace(self, function=counted(self.function, tally))  # type: ignore[type-var]

    def bare(self) -> Callable[[], Tensor]:
        """One application of the linear part that an evaluation consists of."""
        function, start = self.function, self.start
        if isinstance(function, BoundMap):
            return lambda: function.operator(start)
        return lambda: function.primal.operator.transpose(start)


@dataclass(frozen=True)
class Training:
    """The gradient of a loss of the fixed point with respect to the parameters of a layer.

    The loss is half the squared distance of the fixed point to `target`, averaged over the samples.

    Attributes:
        layer: the layer.
        x: its input.
        start: the first state.
        target: of the state's shape.
        judge: of gradients, in the order of `parameters`.
    """

    layer: SubhomLayer
    x: Any
    start: Tensor
    target: Tensor
    judge: Judge

    @property
    def parameters(self) -> list[Tensor]:
        """Those that a gradient is wanted for."""
        return [parameter for parameter in self.layer.parameters() if parameter.requires_grad]

    def loss(self, z: Tensor) -> Tensor:
        """Of a fixed point, `()`."""
        return (z - self.target).square().sum() / (2 * len(self.target))

    def loss_gradient(self, z: Tensor) -> Tensor:
        """The derivative of the loss with respect to the fixed point."""
        return (z - self.target) / len(self.target)

    def gradients(self, output: Tensor, cotangent: Tensor | None = None) -> tuple[Tensor, ...]:
        """Of `output` with respect to `parameters`; zeros where it does not depend on one."""
        found = torch.autograd.grad(output, self.parameters, cotangent, allow_unused=True, materialize_grads=True)
        return tuple(found)

    def counted(self, tally: Tally) -> Training:
        """The same, keeping `tally`."""
        return replace(self, layer=counted_layer(self.layer, tally))

    def bare(self) -> Callable[[], Tensor]:
        """One application of the linear part that an evaluation consists of."""
        with torch.no_grad():
            operator = self.layer.bind(self.x).detach().operator
        start = self.start
        return lambda: operator(start)


Task = Equation | Training


def _seeded(problem: Problem, seed: int) -> Tensor:
    """Standard normal numbers of the state's shape, the same in every dtype and on every device up to rounding."""
    start = problem.bound.start()
    numbers = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return numbers.to(start.device, start.dtype)


def _fixed_point(bound: BoundMap, certificate: Certificate, accuracy: float) -> Tensor:
    """The fixed point in float64, for references.

    Raises:
        CertificateError: it cannot be guaranteed that it is accurate enough.
    """
    exact = bound.to("cpu", torch.float64)
    solver = SOLVERS["newton_krylov"]()
    z = solve(exact, exact.start(), solver, tol=0.0, max_iter=_STEPS, contraction=None).value
    verdict = forward_judge(exact, certificate)(z)
    if not verdict.error <= accuracy:
        raise CertificateError(
            f"the reference has a guaranteed error of {verdict.error:.3g}, more than {accuracy:.3g}; ask for a larger "
            f"--error{', ' if verdict.reason else ''}{verdict.reason}."
        )
    return z


def _forward(problem: Problem, seed: int, accuracy: float) -> Equation:
    bound, certificate = problem.bound, problem.certificate
    return Equation(bound, bound.start(), certificate.contraction, forward_judge(bound, certificate))


def _adjoint(problem: Problem, seed: int, accuracy: float) -> Equation:
    bound, g = problem.bound, _seeded(problem, seed)
    state = _fixed_point(bound, certify(bound.to("cpu", torch.float64)), 1e-6).to(g.device, g.dtype)
    equation = AdjointMap(g, bound, state)
    contraction = adjoint_contraction(equation, problem.certificate)
    return Equation(equation, torch.zeros_like(g), contraction, adjoint_judge(equation, problem.certificate))


def _training(problem: Problem, seed: int, accuracy: float) -> Training:
    if problem.layer is None:
        raise OptionError(f"work 'training' needs a layer: problem {problem.name!r} must be a pair (layer, x).")
    start = problem.bound.start()
    # Of the size that states have: a normalised map's are small.
    target = problem.bound.project(start) * (1 + _seeded(problem, seed))
    task = Training(problem.layer, problem.x, start, target, gradient_judge(()))
    return replace(task, judge=gradient_judge(_reference(problem, task, accuracy)))


def _reference(problem: Problem, task: Training, accuracy: float) -> tuple[Tensor, ...]:
    """The gradient in float64, from a fixed point and an adjoint whose errors are guaranteed."""
    exact = problem.to("cpu", torch.float64)
    assert exact.layer is not None, "it was asked for before"
    certificate = exact.certificate
    z = _fixed_point(exact.bound, certificate, accuracy)
    layer = copy.deepcopy(exact.layer)
    same = replace(task, layer=layer, x=exact.x, start=z, target=task.target.to("cpu", torch.float64))
    equation = AdjointMap(same.loss_gradient(z), exact.bound, z)
    u = solve(equation, torch.zeros_like(z), SOLVERS["gmres"](), tol=0.0, max_iter=_STEPS).value
    verdict = adjoint_judge(equation, certificate, relative_to="u")(u)
    if not verdict.error <= accuracy:
        raise CertificateError(
            f"the reference gradient's adjoint has a guaranteed error of {verdict.error:.3g}, more than "
            f"{accuracy:.3g}; ask for a larger --error."
        )
    return same.gradients(layer.bind(exact.x)(z), u)


WORKS: dict[str, Callable[[Problem, int, float], Task]] = {
    "forward": _forward, "adjoint": _adjoint, "training": _training
}  # fmt: skip


def make_task(problem: Problem, work: str, *, seed: int = 0, error: float = 1e-6) -> Task:
    """What a backend is to do.

    Args:
        problem: on its device and in its dtype.
        work: "forward" for the fixed point from ones; "adjoint" for `u = g + J^T u` at the fixed point, `g` standard
            normal; "training" for the gradient of a loss with respect to a layer's parameters.
        seed: of `g` and of the loss.
        error: the smallest that answers will be asked for; a reference is ten times as accurate.

    Raises:
        CertificateError: nothing is proven, no rate where one is needed, or a reference is not accurate enough.
        OptionError: training without a layer.
    """
    return WORKS[work](problem, seed, error / 10)
