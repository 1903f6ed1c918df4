"""Certificates: proofs of existence and uniqueness, rates, and guaranteed errors."""

from .base import Certificate, Check
from .structural import certify

__all__ = ["Certificate", "Check", "certify"]
