"""Perron pairs of reducible matrices, class by class.

The spectral radius is the largest of those of the diagonal blocks of the communicating classes. A class of that radius
is called basic. A nonnegative eigenvector for it is supported on the indices that have access to a basic class that no
other basic class has access to: there, with `U` the indices outside the class that reach it,
`(rho I - A_UU) x_U = A_UC x_C`, and the inverse is nonnegative (H. Schneider, Linear Algebra Appl. 84, 1986,
doi:10.1016/0024-3795(86)90313-7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import splu

from .structure import Pattern

__all__ = ["Classes", "longest_chain", "solve_classes"]

# Of an irreducible block: vector, lower and upper bound.
BlockSolver = Callable[[sp.csr_array], tuple[np.ndarray, float, float]]


@dataclass(frozen=True)
class Classes:
    """What the classes of a matrix say.

    Attributes:
        vector: `(n,)`, a nonnegative eigenvector.
        lower, upper: bounds on the spectral radius.
        basic: the classes that have it, as far as the bounds can tell.
    """

    vector: np.ndarray
    lower: float
    upper: float
    basic: tuple[int, ...]


def solve_classes(pattern: Pattern, solve: BlockSolver) -> Classes:
    """The spectral radius and a nonnegative eigenvector of a reducible matrix.

    Args:
        pattern: of the matrix, whose entries are used.
        solve: for an irreducible block of at least two indices.
    """
    labels, blocks = pattern.labels, pattern.diagonal_blocks
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(pattern.classes + 1))
    sums = np.asarray(blocks.sum(axis=1)).ravel()
    # Row sums bound the radius of a block, up to rounding; a block that cannot matter is not solved.
    most = np.zeros(pattern.classes)
    np.maximum.at(most, labels, sums * (1 + 1e-9))
    diagonal = blocks.diagonal()
    lower, upper = 0.0, 0.0
    found: dict[int, tuple[np.ndarray, float, float]] = {}
    for label in np.argsort(-most):
        if most[label] < lower:
            break
        indices = order[starts[label] : starts[label + 1]]
        if len(indices) == 1:
            value = float(diagonal[indices[0]])
            pair = (np.ones(1), value, value)
        else:
            pair = solve(blocks[indices][:, indices])
        found[int(label)] = pair
        lower, upper = max(lower, pair[1]), max(upper, pair[2])
    # Those that may have the spectral radius, as far as the bounds can tell them apart.
    basic = tuple(sorted(label for label, (_, _, high) in found.items() if high >= lower))
    return Classes(_vector(pattern, order, starts, found, basic, upper), lower, upper, basic)


def longest_chain(pattern: Pattern, basic: tuple[int, ...]) -> int:
    """The largest number of basic classes, each with access to the next.

    It is the index of the spectral radius, the size of its largest Jordan block (U. Rothblum, Linear Algebra Appl. 12,
    1975, doi:10.1016/0024-3795(75)90050-6).
    """
    if len(basic) <= 1:
        return len(basic)
    entries = pattern.matrix.tocoo()
    edges = np.stack([pattern.labels[entries.row], pattern.labels[entries.col]])
    edges = np.unique(edges[:, edges[0] != edges[1]], axis=1)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(pattern.classes))
    graph.add_edges_from(edges.T.tolist())
    counts, members = np.zeros(pattern.classes, dtype=np.int64), set(basic)
    for label in nx.topological_sort(graph):
        before = max((counts[other] for other in graph.predecessors(label)), default=0)
        counts[label] = before + (label in members)
    return int(counts.max())


def _vector(
    pattern: Pattern,
    order: np.ndarray,
    starts: np.ndarray,
    found: dict[int, tuple[np.ndarray, float, float]],
    basic: tuple[int, ...],
    radius: float,
) -> np.ndarray:
    """The sum of the extreme nonnegative eigenvectors, each of sum 1."""
    matrix = pattern.matrix
    n = matrix.shape[0]
    if radius == 0:  # no cycles: columns without entries are sent to 0, and there are some
        empty = np.bincount(matrix.indices, minlength=n) == 0
        return empty / empty.sum()
    total, candidates = np.zeros(n), set(basic)
    reverse = sp.csr_array(matrix.T)
    members = {label: order[starts[label] : starts[label + 1]] for label in basic}
    for label, indices in members.items():
        reached = breadth_first_order(reverse, indices[0], return_predecessors=False)  # those with access to the class
        if candidates & set(np.unique(pattern.labels[reached]).tolist()) != {label}:
            continue
        upstream = np.setdiff1d(reached, indices)
        part = np.zeros(n)
        part[indices] = found[label][0]
        if len(upstream):
            right = matrix[upstream][:, indices] @ part[indices]
            shifted = radius * sp.eye_array(len(upstream), format="csc") - sp.csc_array(matrix[upstream][:, upstream])
            part[upstream] = np.abs(splu(shifted).solve(right))
        total += part / part.sum()
    return total
