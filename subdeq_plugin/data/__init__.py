"""Data sets, read from what a package ships or from files the user names; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError, unknown_name
from .base import ImageData
from .digits import load_digits
from .hypergraphs import NamedHypergraph, read_hyperedges
from .matrices import NamedMatrix, read_matrix
from .mnist import load_mnist

__all__ = ["DATASETS", "ImageData", "NamedHypergraph", "NamedMatrix", "load", "read_hyperedges", "read_matrix"]

DATASETS = ("digits", "mnist")


def load(name: str, root: Path | None = None) -> ImageData:
    """The data set called `name`.

    Args:
        name: one of `DATASETS`.
        root: the folder with its files; not needed for "digits".

    Raises:
        OptionError: unknown name.
        DataError: files are missing or malformed.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if name == "digits":
        return load_digits()
    if root is None:
        raise DataError(f"{name} is read from files: give --data-root the folder that holds them.")
    return load_mnist(root)
