"""Hypergraphs from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .matrices import lines

__all__ = ["NamedHypergraph", "read_hyperedges"]


@dataclass(frozen=True)
class NamedHypergraph:
    """Hyperedges with the names of their nodes.

    Attributes:
        edges: each the numbers of its nodes, from 0.
        names: `(n,)`, of the nodes.
    """

    edges: tuple[tuple[int, ...], ...]
    names: np.ndarray


def read_hyperedges(path: Path) -> NamedHypergraph:
    """The hypergraph in a file: on each line the nodes of an edge, separated by commas or blanks, of any names.

    Lines that begin with `#` or `%` are comments; the file may end in `.gz`.

    Raises:
        DataError: the file cannot be read, or has no edges.
    """
    try:
        words = [line.replace(",", " ").split() for line in lines(path)]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of hyperedges: {error}.") from error
    if not words:
        raise DataError(f"{path} has no hyperedges: write the nodes of each on a line.")
    names = np.unique([node for edge in words for node in edge])
    number = {str(name): index for index, name in enumerate(names)}
    return NamedHypergraph(tuple(tuple(number[node] for node in edge) for edge in words), names)
