"""Subhomogeneity degrees: the value, its calculus, and rigorous suprema."""

from . import rules
from .degree import POSITIVE, REALS, Degree, Interval
from .rigorous import Piece, ScalarProof, enclose_range, prove_ratio

__all__ = ["POSITIVE", "REALS", "Degree", "Interval", "Piece", "ScalarProof", "enclose_range", "prove_ratio", "rules"]
