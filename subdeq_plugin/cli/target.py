"""Functions of the user's own, named on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from ..errors import OptionError

__all__ = ["load_function"]


def load_function(target: str, what: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION names; the module is imported from the current folder or the environment.

    Args:
        target: the name.
        what: it is to give, for the message.

    Raises:
        OptionError: it cannot be found.
    """
    module_name, _, name = target.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise OptionError(f"{what} must be given as MODULE:FUNCTION, got {target!r}.")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise OptionError(f"module {module_name!r} cannot be imported: {error}.") from error
    finally:
        sys.path.remove("")
    function = getattr(module, name, None)
    if not callable(function):
        raise OptionError(f"module {module_name!r} has no function {name!r}.")
    return function
