"""The bridge to Julia: which one, the thread that owns it, and its methods as solvers. Importing it starts nothing."""

from .runtime import get_runtime, start_julia
from .solver import SOLVERS, JuliaSolver

__all__ = ["SOLVERS", "JuliaSolver", "get_runtime", "start_julia"]
