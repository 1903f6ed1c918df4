"""Certificates: proofs of existence and uniqueness, rates, and guaranteed errors."""

from .base import Certificate, Check
from .engine import CONDITIONS, certify
from .gradient import GradientBound
from .intervals import Box
from .robustness import Robustness, lipschitz_bound, robust_radius

__all__ = [
    "CONDITIONS",
    "Box",
    "Certificate",
    "Check",
    "GradientBound",
    "Robustness",
    "certify",
    "lipschitz_bound",
    "robust_radius",
]
