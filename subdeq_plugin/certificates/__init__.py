"""Certificates: proofs of existence and uniqueness, rates, and guaranteed errors."""

from .base import Certificate, Check
from .engine import CONDITIONS, certify
from .intervals import Box

__all__ = ["CONDITIONS", "Box", "Certificate", "Check", "certify"]
