"""Time to a guaranteed error: solver backends compared on certified problems; see `docs/bench.md`."""

from .backends import Answer, Backend, Solve, available, backend_keys, make_backend
from .compare import Change, Comparison
from .memory import peak_memory
from .problems import PROBLEMS, Problem, Recipe, make_problem, parse_size
from .report import Cell, Report, Row
from .runner import run
from .tasks import WORKS, Equation, Training
from .timing import SLOW, Timing, interleave

__all__ = [
    "PROBLEMS",
    "SLOW",
    "WORKS",
    "Answer",
    "Backend",
    "Cell",
    "Change",
    "Comparison",
    "Equation",
    "Problem",
    "Recipe",
    "Report",
    "Row",
    "Solve",
    "Timing",
    "Training",
    "available",
    "backend_keys",
    "interleave",
    "make_backend",
    "make_problem",
    "parse_size",
    "peak_memory",
    "run",
]
