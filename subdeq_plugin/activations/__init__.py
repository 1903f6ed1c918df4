"""Activations: the catalogue, and `register_activation` for a user's own."""

from . import catalogue as _catalogue  # noqa: F401  (registers the built-in functions)
from .base import Activation, InPlace, ScalarFunction, activation_names
from .custom import register_activation

__all__ = ["Activation", "InPlace", "ScalarFunction", "activation_names", "register_activation"]
