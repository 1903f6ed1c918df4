"""Implicit differentiation."""

from .implicit import Adjoint, ImplicitMap, attach, fixed_point

__all__ = ["Adjoint", "ImplicitMap", "attach", "fixed_point"]
