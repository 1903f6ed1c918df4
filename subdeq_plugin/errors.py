"""Exceptions and warnings. Each message names the argument, the value received and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BridgeError",
    "CertificateError",
    "CheckpointError",
    "ConvergenceError",
    "ConvergenceWarning",
    "DataError",
    "DegreeError",
    "DomainError",
    "OptionError",
    "ShapeError",
    "SubdeqError",
    "unknown_name",
]


class SubdeqError(Exception):
    """Base class of every error this package raises on purpose."""


class ShapeError(SubdeqError, ValueError):
    """A tensor has the wrong shape, dtype or device."""


class DomainError(SubdeqError, ValueError):
    """A value lies outside the set on which the map is defined (for instance, a non-positive state)."""


class OptionError(SubdeqError, ValueError):
    """An unknown name, key or option, or an option out of its range."""


class DegreeError(SubdeqError, ValueError):
    """A subhomogeneity degree could not be proven; the message says where the proof breaks."""


class CertificateError(SubdeqError, RuntimeError):
    """A certificate was asked for something that it does not prove."""


class ConvergenceError(SubdeqError, RuntimeError):
    """A solve failed and the caller asked for `on_failure="raise"`."""


class CheckpointError(SubdeqError, RuntimeError):
    """A checkpoint cannot be read or does not fit the model."""


class DataError(SubdeqError, RuntimeError):
    """A data file is missing or malformed."""


class BridgeError(SubdeqError, RuntimeError):
    """Julia cannot be found, started or used; the message says what was looked for and the remedy."""


class ConvergenceWarning(UserWarning):
    """A solve failed for some samples and the caller asked for `on_failure="warn"`."""


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> OptionError:
    """The error for a name that is not among `valid`; it points at the nearest one."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return OptionError(f"unknown {kind} {name!r}{hint} Valid: {', '.join(names)}.")
