"""Perron pairs of nonnegative matrices and positive maps, each with a guaranteed bracket of its eigenvalue."""

from .chain import Chain, p_norms, power_mean
from .forms import BlockPowers, Contractions, hits, singular_vectors
from .module import Perron
from .multi import Multihomogeneous
from .pieces import Geometric, Largest, Matrix, Piece, Powers, Sparse
from .result import PerronResult
from .solve import METHODS, perron
from .tensors import Hyperedges, TensorForm, h_eigen, node_edge, z_eigen

__all__ = [
    "METHODS",
    "BlockPowers",
    "Chain",
    "Contractions",
    "Geometric",
    "Hyperedges",
    "Largest",
    "Matrix",
    "Multihomogeneous",
    "Perron",
    "PerronResult",
    "Piece",
    "Powers",
    "Sparse",
    "TensorForm",
    "h_eigen",
    "hits",
    "node_edge",
    "p_norms",
    "perron",
    "power_mean",
    "singular_vectors",
    "z_eigen",
]
