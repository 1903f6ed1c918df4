"""What the zeros of a nonnegative matrix decide: its classes, its period, and where they may spoil a Perron pair.

Indices communicate where each reaches the other along nonzero entries; the classes of communicating indices make the
matrix block triangular, and its spectral radius is the largest of those of its diagonal blocks (R. Horn, C. Johnson,
*Matrix Analysis*, 2nd ed., Cambridge University Press 2013, section 8.3; A. Berman, R. Plemmons, *Nonnegative Matrices
in the Mathematical Sciences*, SIAM 1994, chapter 2, doi:10.1137/1.9781611971262).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order, connected_components, dijkstra

__all__ = ["Pattern"]


@dataclass(frozen=True)
class Pattern:
    """The graph of a matrix: an edge from `i` to `j` for every nonzero entry `a_ij`.

    Attributes:
        matrix: SciPy CSR `(n, n)`; only its nonzero positions count.
    """

    matrix: sp.csr_array

    @cached_property
    def _components(self) -> tuple[int, np.ndarray]:
        count, labels = connected_components(self.matrix, directed=True, connection="strong")
        return int(count), labels

    @property
    def classes(self) -> int:
        """The number of communicating classes."""
        return self._components[0]

    @property
    def labels(self) -> np.ndarray:
        """`(n,)`, the class of every index."""
        return self._components[1]

    @property
    def irreducible(self) -> bool:
        """Whether there is one class; a single index counts, as for every matrix of size 1."""
        return self.classes == 1

    @cached_property
    def periods(self) -> np.ndarray:
        """`(classes,)`, of every class the greatest common divisor of the lengths of its cycles; 0 without a cycle.

        In a search from any index of a class, `level(i) + 1 - level(j)` is a multiple of the period for every edge
        from `i` to `j`, and the period is their greatest common divisor (E. Denardo, Periods of connected networks,
        Math. Oper. Res. 2, 1977, doi:10.1287/moor.2.1.20).
        """
        inside = self.diagonal_blocks.tocoo()
        levels = self._levels()
        steps = np.abs(levels[inside.row] + 1 - levels[inside.col])
        periods = np.zeros(self.classes, dtype=np.int64)
        np.gcd.at(periods, self.labels[inside.row], steps)
        return periods

    def _levels(self) -> np.ndarray:
        """`(n,)`, distances from the first index of each class, within it."""
        n = self.matrix.shape[0]
        # One search from an extra index that leads to the first index of every class.
        _, first = np.unique(self.labels, return_index=True)
        edges = self.diagonal_blocks.tocoo()
        rows = np.concatenate([edges.row, np.full(len(first), n)])
        columns = np.concatenate([edges.col, first])
        graph = sp.csr_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n + 1, n + 1))
        return dijkstra(graph, unweighted=True, indices=n)[:n].astype(np.int64)

    @property
    def period(self) -> int:
        """Of an irreducible matrix; 0 for others and for the zero matrix of size 1."""
        return int(self.periods[0]) if self.irreducible else 0

    @property
    def primitive(self) -> bool:
        """Whether some power of the matrix has no zero: irreducible, of period 1."""
        return self.period == 1

    @cached_property
    def reach(self) -> float:
        """The mean distance of nonzero entries from the diagonal: small for narrow bands, wrapped around or not."""
        rows = np.repeat(np.arange(self.matrix.shape[0], dtype=self.matrix.indices.dtype), np.diff(self.matrix.indptr))
        return float(np.abs(rows - self.matrix.indices).mean()) if len(rows) else 0.0

    @cached_property
    def elimination(self) -> float:
        """About the operations of a factorisation, eliminating level by level.

        Levels are the indices at the same distance from one at the rim of the graph; those of meshes and of matrices
        with a narrow band are small, those of random matrices hold nearly all of it.
        """
        both = sp.csr_array(self.matrix + self.matrix.T)
        rim = breadth_first_order(both, 0, return_predecessors=False)[-1]
        distances = dijkstra(both, unweighted=True, indices=int(rim))
        levels = np.bincount(distances[np.isfinite(distances)].astype(np.int64))
        return float((levels.astype(np.float64) ** 3).sum())

    @cached_property
    def diagonal_blocks(self) -> sp.csr_array:
        """The matrix with the entries between different classes left out."""
        if self.irreducible:
            return self.matrix
        entries = self.matrix.tocoo()
        same = self.labels[entries.row] == self.labels[entries.col]
        kept = (entries.data[same], (entries.row[same], entries.col[same]))
        return sp.csr_array(kept, shape=self.matrix.shape)
