"""Deep equilibrium layers whose fixed point is provably unique, for torchdeq.

Importing the package registers its solvers, its certified core and its weight constraint with torchdeq.
"""

from .activations import Activation, activation_names, register_activation
from .bridge import start_julia
from .certificates import (
    Advice,
    Certificate,
    Check,
    Evidence,
    GradientBound,
    Robustness,
    advise,
    certify,
    falsify,
    lipschitz_bound,
    robust_radius,
)
from .degrees import POSITIVE, REALS, Degree, Interval
from .errors import SubdeqError
from .integration import CertifiedDEQ, SubDEQ, deq_settings, parse_solver, register, solve, solver
from .layers import (
    BoundMap,
    Inject,
    MapSpec,
    Normalize,
    Pointwise,
    SubhomConv2d,
    SubhomGraph,
    SubhomLayer,
    SubhomLinear,
)
from .metrics import hilbert, thompson
from .perron import PerronResult, perron
from .result import Solution, Status

__all__ = [
    "POSITIVE",
    "REALS",
    "Activation",
    "Advice",
    "BoundMap",
    "Certificate",
    "CertifiedDEQ",
    "Check",
    "Degree",
    "Evidence",
    "GradientBound",
    "Inject",
    "Interval",
    "MapSpec",
    "Normalize",
    "PerronResult",
    "Pointwise",
    "Robustness",
    "Solution",
    "Status",
    "SubDEQ",
    "SubdeqError",
    "SubhomConv2d",
    "SubhomGraph",
    "SubhomLayer",
    "SubhomLinear",
    "activation_names",
    "advise",
    "certify",
    "deq_settings",
    "falsify",
    "hilbert",
    "lipschitz_bound",
    "parse_solver",
    "perron",
    "register",
    "register_activation",
    "robust_radius",
    "solve",
    "solver",
    "start_julia",
    "thompson",
]

__version__ = "0.1.0"

register()
