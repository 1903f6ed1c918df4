"""Subhomogeneous layers. `layer.bind(x)` gives the map whose fixed point is the layer's output."""

from .base import INJECTION_MAPS, Structure, SubhomLayer
from .bound import BoundMap, Linearization, MapSpec
from .conv import SubhomConv2d
from .graph import SubhomGraph, propagation_matrix
from .linear import SubhomLinear
from .nonneg import NONNEG, make_nonneg, undo_nonneg
from .normalize import Normalizer
from .pieces import Inject, Normalize, Pointwise

__all__ = [
    "INJECTION_MAPS",
    "NONNEG",
    "BoundMap",
    "Inject",
    "Linearization",
    "MapSpec",
    "Normalize",
    "Normalizer",
    "Pointwise",
    "Structure",
    "SubhomConv2d",
    "SubhomGraph",
    "SubhomLayer",
    "SubhomLinear",
    "make_nonneg",
    "propagation_matrix",
    "undo_nonneg",
]
