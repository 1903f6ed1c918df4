"""Perron pairs of nonnegative matrices and positive maps, each with a guaranteed bracket of its eigenvalue."""

from .chain import Chain, Largest, Matrix, Powers, p_norms, power_mean
from .module import Perron
from .result import PerronResult
from .solve import METHODS, perron
from .tensors import Hyperedges, TensorForm, h_eigen, node_edge

__all__ = [
    "METHODS",
    "Chain",
    "Hyperedges",
    "Largest",
    "Matrix",
    "Perron",
    "PerronResult",
    "Powers",
    "TensorForm",
    "h_eigen",
    "node_edge",
    "p_norms",
    "perron",
    "power_mean",
]
