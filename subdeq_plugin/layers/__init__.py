"""Subhomogeneous layers. `layer.bind(x)` gives the map whose fixed point is the layer's output."""

from typing import Any

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


def __getattr__(name: str) -> Any:
    # A module without a map of its own: it calls the solvers, which the layers must not know.
    if name == "Perron":
        from ..perron import Perron

        return Perron
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
