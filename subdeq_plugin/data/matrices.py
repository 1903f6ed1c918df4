"""Matrices and graphs from files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import scipy.io
import scipy.sparse as sp

from ..errors import DataError

__all__ = ["NamedMatrix", "lines", "read_matrix"]

_COMMENTS = ("#", "%")


@dataclass(frozen=True)
class NamedMatrix:
    """A square matrix with the names of its rows.

    Attributes:
        matrix: CSR `(n, n)`; for a graph `a_ij` is the weight of the edge from `i` to `j`.
        names: `(n,)`, of the nodes; None where rows are numbered.
    """

    matrix: sp.csr_array
    names: np.ndarray | None = None


def read_matrix(path: Path, *, undirected: bool = False) -> NamedMatrix:
    """The matrix in a file, by its name: `.npz` (SciPy sparse, or one array), `.npy`, `.mtx`, `.graphml`; each but the
    first two may end in `.gz`. Anything else is an edge list: a source, a target and, if you like, a weight on each
    line, separated by blanks or commas; lines that begin with `#` or `%` are comments. Weights of equal edges are added
    up. Nodes may have any names; numbers are taken in their order.

    Args:
        path: the file.
        undirected: whether every edge of an edge list counts in both directions.

    Raises:
        DataError: the file cannot be read, or holds no square matrix.
    """
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    try:
        if kind in (".npz", ".npy"):
            named = NamedMatrix(_array(path))
        elif kind == ".mtx":
            named = NamedMatrix(sp.csr_array(scipy.io.mmread(path)))
        elif kind == ".graphml":
            graph = nx.read_graphml(path)
            matrix = nx.to_scipy_sparse_array(graph, weight="weight", dtype=float, format="csr")
            named = NamedMatrix(sp.csr_array(matrix), np.array([str(node) for node in graph]))
        else:
            named = _edges(path, undirected)
    except (OSError, ValueError, TypeError, KeyError, nx.NetworkXError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as {kind or 'an edge list'}: {error}.") from error
    rows, columns = named.matrix.shape
    if rows != columns or rows == 0:
        raise DataError(f"{path} holds a matrix of shape {(rows, columns)}; a square one is needed.")
    return named


def _array(path: Path) -> sp.csr_array:
    if path.suffix == ".npy":
        return sp.csr_array(np.load(path, allow_pickle=False))
    with np.load(path, allow_pickle=False) as content:
        names = list(content)
        if "format" in names:
            return sp.csr_array(sp.load_npz(path))
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays, {', '.join(names)}, and one is needed")
        return sp.csr_array(content[names[0]])


def _edges(path: Path, undirected: bool) -> NamedMatrix:
    first = next(lines(path), None)
    if first is None:
        raise ValueError("it has no edges")
    delimiter = "," if "," in first else None
    count = len(first.split(delimiter))
    if count not in (2, 3):
        raise ValueError(f"its first edge has {count} fields, and 2 or 3 are needed: {first!r}")
    try:
        fields = [("i", np.int64), ("j", np.int64), ("w", np.float64)][:count]
        table = np.loadtxt(path, dtype=fields, comments=list(_COMMENTS), delimiter=delimiter, ndmin=1)
        ends, weights = np.concatenate([table["i"], table["j"]]), table["w"] if count == 3 else None
    except ValueError:  # names that are no whole numbers
        ends, weights = _words(path, delimiter, count)
    names, index = np.unique(ends, return_inverse=True)
    i, j = index[: len(index) // 2], index[len(index) // 2 :]
    values = np.ones(len(i)) if weights is None else weights
    if undirected:
        other = i != j  # a loop is one edge
        i, j = np.concatenate([i, j[other]]), np.concatenate([j, i[other]])
        values = np.concatenate([values, values[other]])
    return NamedMatrix(sp.csr_array((values, (i, j)), shape=(len(names), len(names))), names)


def _words(path: Path, delimiter: str | None, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The names of all sources, then of all targets; and the weights."""
    sources, targets, weights = [], [], []
    for number, line in enumerate(lines(path), start=1):
        fields = [field.strip() for field in line.split(delimiter)]
        if len(fields) != count:
            raise ValueError(f"edge {number} has {len(fields)} fields, but the first has {count}: {line!r}")
        sources.append(fields[0])
        targets.append(fields[1])
        if count == 3:
            weights.append(float(fields[2]))
    return np.array([*sources, *targets]), np.array(weights) if count == 3 else None


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, or of a compressed one, that are no comments."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            text = line.strip()
            if text and not text.startswith(_COMMENTS):
                yield text
