"""The methods: each a step of the loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..solvers import Anderson, Problem
from .base import EigenMap, choose
from .local import newton_update
from .loop import Step

__all__ = ["Dynamics", "LogAnderson", "Newton", "Noda", "Power"]


class Power(Step):
    """`z <- F(z)`, or the mean of both where the bracket does not get narrower.

    The mean is a step with `F + c I`, which has the same eigenvectors and is primitive where `F` is periodic.
    """

    def __init__(self) -> None:
        self._spread: np.ndarray | None = None
        self._lazy = np.zeros(0, dtype=bool)

    def __call__(self, map_: EigenMap, z: Tensor, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = 1 - low.cpu().numpy() / high.cpu().numpy()
        if self._spread is None:
            self._lazy = np.zeros(len(spread), dtype=bool)
        else:
            self._lazy = (spread > 0.95 * self._spread) & ~self._lazy
        self._spread = spread
        if not self._lazy.any():
            return image
        return choose(self._lazy, map_.normalised(image) + z, image)


class Noda(Step):
    """`z <- (upper I - J(z))^-1 z`: T. Noda, Numer. Math. 17, 1971, doi:10.1007/BF01436080.

    For a nonnegative irreducible matrix every iterate is positive and the bracket narrows monotonically, at last
    quadratically (L. Elsner, Linear Algebra Appl. 15, 1976, doi:10.1016/0024-3795(76)90071-7). For other maps `J` is
    the Jacobian, as in the Newton-Noda iteration (C. Liu, C. Guo, W. Lin, Numer. Math. 137, 2017,
    doi:10.1007/s00211-017-0869-7). A step that is not positive is replaced by one of the power method. Another one
    follows each: sums of positive terms restore digits that the factorisation loses.
    """

    def __init__(self) -> None:
        self._power = Power()

    def __call__(self, map_: EigenMap, z: Tensor, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        plain = self._power(map_, z, image, low, high)
        solved = map_.shifted_solve(z, high)
        good = (solved.isfinite() & (solved > 0)).all(dim=1)
        return map_(map_.normalised(choose(good, solved, plain)))


class Newton(Step):
    """Newton's method for the bordered system in logarithms; power steps at first, and where it is singular."""

    def __init__(self, warmup: int = 4) -> None:
        self._warmup = warmup
        self._power = Power()

    def __call__(self, map_: EigenMap, z: Tensor, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        plain = self._power(map_, z, image, low, high)
        self._warmup -= 1
        if self._warmup >= 0:
            return plain
        solved = newton_update(map_, z, image)
        good = (solved.isfinite() & (solved > 0)).all(dim=1)
        # Sums of positive terms restore digits that the factorisation loses.
        return choose(good, map_(map_.normalised(choose(good, solved, plain))), plain)


class Dynamics(Step):
    """`z <- (z + v) / 2` where `v` is the Perron vector of the derivative `J(z)`.

    For maps of degree above 1, whose powers need not converge; a discretisation of the system of A. Benson and
    D. Gleich, SIAM J. Matrix Anal. Appl. 40, 2019, doi:10.1137/18M1229584. The vector `v` is approximated by some steps
    of the shifted power method from `z`.
    """

    def __init__(self, inner: int = 20) -> None:
        self._inner = inner

    def __call__(self, map_: EigenMap, z: Tensor, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        product = map_.tangent(z)
        v = map_.normalised(image)
        for _ in range(self._inner):
            v = map_.normalised(map_.normalised(product(v)) + v)
        return (z + v) / 2


class LogAnderson(Step):
    """Anderson acceleration of the normalised map in the logarithms of the entries, where it is nonexpansive."""

    def __init__(self, memory: int = 6) -> None:
        self._method = Anderson(memory=memory)
        self._history: Any = None

    def __call__(self, map_: EigenMap, z: Tensor, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        w, fw = z.log(), map_.normalised(image).log()
        problem = Problem(map_, z.shape, z.shape[0])
        if self._history is None:
            self._history = self._method.start(problem, w)
        following = self._method.step(problem, w, fw, self._history)
        return (following - following.amax(dim=1, keepdim=True)).exp()
