"""Certificates: proofs of existence and uniqueness, rates, and guaranteed errors."""

from .advice import Advice, advise
from .base import Certificate, Check
from .engine import CONDITIONS, certify
from .falsify import Evidence, falsify
from .gradient import GradientBound
from .intervals import Box
from .robustness import Robustness, lipschitz_bound, robust_radius

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
    "falsify",
    "lipschitz_bound",
    "robust_radius",
]
