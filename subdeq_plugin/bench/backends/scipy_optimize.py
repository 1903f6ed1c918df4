"""SciPy's solvers for large systems of equations, on the whole batch as one system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..tasks import Equation
from .base import Answer, Backend, Solve

__all__ = ["SCIPY", "SciPy"]

# Functions of `scipy.optimize` with the options that they are called with.
SCIPY: dict[str, dict[str, Any]] = {"anderson": {}, "newton_krylov": {"method": "lgmres"}}


class _Spent(Exception):
    """The evaluations are used up."""


@dataclass(frozen=True)
class SciPy(Backend):
    """`scipy.optimize`, ended by the largest entry of the residual; it sees torch's memory through NumPy arrays."""

    memory: ClassVar[str | None] = "numpy"
    reports: ClassVar[bool] = True

    def equation(self, task: Equation, tol: float, limit: int) -> Solve:
        from scipy import optimize  # takes long to import, and the other commands need it not

        name = self.key.partition(":")[2]
        function, settings = getattr(optimize, name), SCIPY[name]
        image, start = task.function, task.start.cpu().numpy()
        device = task.start.device

        def run() -> Answer:
            calls, last = 0, start

            def residual(z: np.ndarray) -> np.ndarray:
                nonlocal calls, last
                if calls == limit:
                    raise _Spent
                calls += 1
                last = z
                # SciPy's line searches leave float32 behind.
                state = torch.from_numpy(z.astype(start.dtype, copy=False)).to(device)
                return (state - image(state)).cpu().numpy()

            try:
                z, spent = function(residual, start, f_tol=tol, maxiter=limit, **settings), False
            except (optimize.NoConvergence, _Spent):
                z, spent = last, True
            return Answer(torch.from_numpy(np.ascontiguousarray(z, dtype=start.dtype)).to(device), calls, 0, spent)

        return run
