"""Callback mode: Julia solves, torch evaluates. For any map."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

from ..errors import BridgeError
from ..result import Solution
from ..solvers import FixedPointMap, Problem, Stop
from .runtime import Julia, Runtime
from .tensors import Method, Shape, Staging, StagingPool, working_dtype

__all__ = ["MEASURES", "NoTransposedProduct", "Request", "solve_callback"]

_MOST_SAMPLES = 16_384  # each coroutine takes two memory mappings, of which Linux grants 65,530

# The stop modes as `SubDEQ.Measure` numbers them.
MEASURES = {"abs": 1, "rel": 2, "thompson": 3, "hilbert": 4}


class NoTransposedProduct(BridgeError):
    """A method needs `J^T u` of a map that autograd cannot differentiate, such as torchdeq's own backward equation."""


class Request(IntEnum):
    """What Julia asks for; the numbers are those of `SubDEQ.Request`."""

    EVALUATE = 1
    LINEARIZE = 2
    PUSHFORWARD = 3
    PULLBACK = 4
    FINISHED = 5


def solve_callback(
    runtime: Runtime,
    pool: StagingPool,
    method: Method,
    problem: Problem,
    start: Tensor,
    stop: Stop,
) -> Solution:
    """Solve with `method` from `start`, a state in its own shape, answering Julia's requests on this thread.

    The map is given staged memory, not a copy: it must not change its argument, nor keep it.

    Returns:
        A `Solution` whose residuals are computed here, from the map's values at the states returned.

    Raises:
        BridgeError: Julia cannot be used, or it raised; more samples than coroutines.
    """
    if problem.samples > _MOST_SAMPLES:
        raise BridgeError(
            f"Julia solves {problem.samples} samples in as many coroutines, and {_MOST_SAMPLES} is the most; split "
            "the batch, or use a subdeq:* solver. (Every entry of a vector is a sample of its own; add a dimension "
            "where it is one.)"
        )
    flat = problem.place(problem.flatten(start))
    shape = Shape(method, problem.samples, flat.shape[1], working_dtype(start.dtype), problem.affine)
    with runtime.solving(), pool.lend(shape) as staging:
        staging.states.copy_(flat)
        return _Exchange(runtime, staging, problem, start, stop).run()


class _Exchange:
    """One solve: requests come in, tensors go out."""

    def __init__(self, runtime: Runtime, staging: Staging, problem: Problem, start: Tensor, stop: Stop) -> None:
        self._runtime = runtime
        self._staging = staging
        self._problem = problem
        self._stop = stop
        self._like = start
        self._products: _Products | None = None
        self._evaluations = 0
        self._linear = 0
        self._recorded: list[Tensor] = []

    def run(self) -> Solution:
        stop = self._stop
        request = self._runtime.call(self._begin)
        while request != Request.FINISHED:
            if request == Request.EVALUATE:
                self._evaluate()
            elif request == Request.LINEARIZE:
                # At the states evaluated last, so that the images are known.
                self._products = _Products(
                    self._problem, self._state(self._staging.states), self._state(self._staging.images)
                )
            else:
                self._multiply(request)
            evaluated = request == Request.EVALUATE
            request = self._runtime.call(self._advance)
            if evaluated and self._evaluations in stop.indexing:
                self._recorded.append(self._best())
        return self._finish()

    # Jobs are methods or closures that hold the staging: a caller that is interrupted leaves them in the queue.

    def _begin(self, julia: Julia) -> int:
        stop, session = self._stop, self._staging.session
        settings = (float(stop.tol), int(stop.max_iter), MEASURES[stop.mode], self._problem.positive)
        julia.bridge.begin_session(session, *settings)
        return int(julia.advance(session))

    def _advance(self, julia: Julia) -> int:
        return int(julia.advance(self._staging.session))

    def _state(self, flat: Tensor) -> Tensor:
        """Staged rows as the caller's map expects them: a view where dtype and device allow it."""
        return flat.to(self._like.device, self._like.dtype).reshape(self._problem.shape)

    def _evaluate(self) -> None:
        self._evaluations += 1
        image = self._problem.evaluate(self._state(self._staging.states))
        self._staging.images.copy_(self._problem.flatten(image))

    def _multiply(self, request: int) -> None:
        assert self._products is not None, "Julia linearizes before it asks for products"
        self._linear += 1
        direction = self._state(self._staging.tangents)
        product = self._products.jvp if request == Request.PUSHFORWARD else self._products.vjp
        self._staging.products.copy_(self._problem.flatten(product(direction)))

    def _best(self) -> Tensor:
        best = torch.empty_like(self._staging.states)
        self._runtime.call(lambda julia: julia.bridge.best_states(self._staging.session, best.data_ptr()) and None)
        return self._state(best)

    def _finish(self) -> Solution:
        staging = self._staging
        trace = torch.empty(self._evaluations, self._problem.samples, 2, dtype=torch.float64, device="cpu")

        def finish(julia: Julia) -> None:
            julia.bridge.finish_session(staging.session, staging.statistics.data_ptr(), trace.data_ptr())

        self._runtime.call(finish)
        value, image = (self._state(part).clone() for part in (staging.states, staging.images))
        flat, fz = self._problem.flatten(value), self._problem.flatten(image)
        absolute = torch.linalg.vector_norm(fz - flat, dim=1)
        relative = absolute / torch.linalg.vector_norm(fz, dim=1).clamp(min=torch.finfo(fz.dtype).tiny)
        outcome, _, _, iteration = staging.statistics.to(value.device).unbind(dim=1)
        unseen = iteration == 0  # no evaluation of this sample was of any use
        absolute, relative = (torch.where(unseen, torch.inf, part) for part in (absolute, relative))
        # Julia sums in another order than torch: the last digit of the smallest residual is torch's.
        final = torch.stack([absolute, relative])[:, :, None]
        traces = torch.maximum(trace.to(value.device, value.dtype).permute(2, 1, 0), final)
        traces[:, :, -1:] = final
        # torchdeq pairs recorded states with gradient functions, the last of which must see the final state.
        recorded = self._recorded + [value] * (len(self._stop.indexing) - len(self._recorded))
        if recorded:
            recorded[-1] = value
        return Solution(
            value=value,
            status=outcome.to(torch.int64),
            abs_residual=absolute,
            rel_residual=relative,
            iterations=iteration.to(torch.int64),
            evaluations=self._evaluations,
            linear_evaluations=self._linear,
            abs_trace=traces[0],
            rel_trace=traces[1],
            trajectory=tuple(recorded),
        )


class _Products:
    """Jacobian products of a problem's map at one state, each on states in their own shape."""

    def __init__(self, problem: Problem, z: Tensor, fz: Tensor) -> None:
        self._problem = problem
        self._z = z
        self._graph: tuple[Tensor, Tensor] | None = None
        if isinstance(problem.function, FixedPointMap):
            exact = problem.function.linearize(z)
            self.jvp: Callable[[Tensor], Tensor] = exact.jvp
            self.vjp: Callable[[Tensor], Tensor] = exact.vjp
            return
        quotient = problem.jacobian_at(problem.flatten(z), problem.flatten(fz))
        self.jvp = lambda v: quotient(problem.flatten(v)).reshape(problem.shape)
        self.vjp = self._by_autograd

    def _by_autograd(self, u: Tensor) -> Tensor:
        if self._graph is None:  # recorded at the first product: most methods never ask for one
            # A clone taken outside inference mode is an ordinary tensor, even of an inference tensor.
            with torch.inference_mode(False), torch.enable_grad():
                at = self._z.detach().clone().requires_grad_()
                self._graph = (self._problem.evaluate(at), at)
        image, at = self._graph
        if not image.requires_grad:
            raise NoTransposedProduct("the map's value does not depend on its argument as far as autograd can see.")
        (product,) = torch.autograd.grad(image, at, u, retain_graph=True, materialize_grads=True)
        return product
