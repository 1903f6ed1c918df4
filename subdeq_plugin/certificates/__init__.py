"""Certificates: proofs of existence and uniqueness, rates, and guaranteed errors."""

from .advice import Advice, advise
from .base import Certificate, Check
from .engine import CONDITIONS, certify, snapshot
from .falsify import Evidence, falsify
from .gradient import GradientBound
from .intervals import Box
from .robustness import Robustness, lipschitz_bound, robust_radius
from .structural import contraction_of

__all__ = [
    "CONDITIONS",
    "Advice",
    "Box",
    "Certificate",
    "Check",
    "Evidence",
    "GradientBound",
    "Robustness",
    "advise",
    "certify",
    "contraction_of",
    "falsify",
    "lipschitz_bound",
    "robust_radius",
    "snapshot",
]
