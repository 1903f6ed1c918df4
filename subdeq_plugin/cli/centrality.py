"""What `subdeq perron` can make of a file: a matrix, hub and authority scores, centralities of a hypergraph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import read_hyperedges, read_matrix
from ..errors import DataError, unknown_name
from ..perron import h_eigen, hits, node_edge, z_eigen

__all__ = ["KINDS", "Eigenproblem", "Labels", "problems"]


@dataclass(frozen=True)
class Labels:
    """What the entries of a vector are called.

    Attributes:
        vector: its own name; empty where there is only one.
        names: of the entries; None where they are numbered.
        where: the entries that the solved vector has; all others are 0. None if it has all.
    """

    vector: str = ""
    names: np.ndarray | None = None
    where: np.ndarray | None = None

    def name(self, index: int) -> str:
        """Of one entry."""
        return str(index if self.names is None else self.names[index])

    def whole(self, vector: Tensor) -> Tensor:
        """The vector with an entry for every name."""
        if self.where is None:
            return vector
        result = vector.new_zeros(len(self.where))
        result[torch.from_numpy(self.where)] = vector
        return result


@dataclass(frozen=True)
class Eigenproblem:
    """One call of `perron`.

    Attributes:
        size: what is printed of the file.
        target: for `perron`.
        labels: of its vectors.
    """

    size: str
    target: object
    labels: tuple[Labels, ...]


def _matrix(file: Path, undirected: bool) -> list[Eigenproblem]:
    named = read_matrix(file, undirected=undirected)
    size = f"{named.matrix.shape[0]} rows, {named.matrix.nnz} entries"
    return [Eigenproblem(size, named.matrix, (Labels(names=named.names),))]


def _tensor(file: Path, least: int) -> Tensor | None:
    """The tensor in a .npy file, if it has at least so many dimensions; None for any other file."""
    if file.suffix != ".npy":
        return None
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as an array: {error}.") from error
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)) if array.ndim >= least else None


def _shape(tensor: Tensor) -> str:
    return f"{' x '.join(map(str, tensor.shape))} tensor, {int((tensor != 0).sum())} entries"


def _hits(file: Path, undirected: bool) -> list[Eigenproblem]:
    tensor = _tensor(file, least=3)
    if tensor is not None:
        modes = tuple(Labels(f"dimension {k}") for k in range(tensor.dim()))
        return [Eigenproblem(_shape(tensor), hits(tensor), modes)]
    named = read_matrix(file, undirected=undirected)
    matrix = named.matrix.astype(np.float64)
    matrix.eliminate_zeros()
    # A node without outgoing edges is no hub, and one without incoming edges no authority: their scores are 0.
    if not matrix.nnz:
        raise DataError(f"{file} has no edges, so nothing is a hub or an authority.")
    hubs = np.diff(matrix.indptr) > 0
    authorities = np.bincount(matrix.indices, minlength=matrix.shape[0]) > 0
    entries = matrix[hubs][:, authorities].tocoo()
    indices = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    links = torch.sparse_coo_tensor(indices, torch.from_numpy(entries.data), entries.shape, check_invariants=True)
    labels = (Labels("hubs", named.names, hubs), Labels("authorities", named.names, authorities))
    return [Eigenproblem(f"{matrix.shape[0]} nodes, {matrix.nnz} edges", hits(links), labels)]


def _tensor_eigen(file: Path, build: Callable[..., object]) -> list[Eigenproblem]:
    """The eigenproblem of a tensor, or of a hypergraph's adjacency tensor."""
    tensor = _tensor(file, least=2)
    if tensor is not None:
        return [Eigenproblem(_shape(tensor), build(tensor), (Labels(),))]
    graph = read_hyperedges(file)
    size = f"{len(graph.names)} nodes, {len(graph.edges)} hyperedges"
    return [Eigenproblem(size, build(graph.edges, len(graph.names)), (Labels(names=graph.names),))]


def _h_eigen(file: Path, undirected: bool) -> list[Eigenproblem]:
    return _tensor_eigen(file, h_eigen)


def _z_eigen(file: Path, undirected: bool) -> list[Eigenproblem]:
    return _tensor_eigen(file, z_eigen)


def _node_edge(file: Path, undirected: bool) -> list[Eigenproblem]:
    graph = read_hyperedges(file)
    nodes = [node for edge in graph.edges for node in edge]
    edges = np.repeat(np.arange(len(graph.edges)), [len(edge) for edge in graph.edges])
    indices = torch.from_numpy(np.stack([np.array(nodes), edges]))
    values = torch.ones(len(nodes), dtype=torch.float64)
    incidence = torch.sparse_coo_tensor(indices, values, (len(graph.names), len(graph.edges)), check_invariants=True)
    size = f"{len(graph.names)} nodes, {len(graph.edges)} hyperedges"
    titles = np.array([" ".join(str(graph.names[node]) for node in edge) for edge in graph.edges])
    to_nodes, to_edges = node_edge(incidence)
    return [
        Eigenproblem(size, to_nodes, (Labels("nodes", graph.names),)),
        Eigenproblem(size, to_edges, (Labels("edges", titles),)),
    ]


KINDS: dict[str, Callable[[Path, bool], list[Eigenproblem]]] = {
    "matrix": _matrix,
    "hits": _hits,
    "h-eigen": _h_eigen,
    "z-eigen": _z_eigen,
    "node-edge": _node_edge,
}


def problems(kind: str, file: Path, *, undirected: bool) -> list[Eigenproblem]:
    """What `kind` makes of a file.

    Raises:
        OptionError: no such kind.
        DataError: the file cannot be read.
    """
    if kind not in KINDS:
        raise unknown_name("kind", kind, tuple(KINDS))
    return KINDS[kind](file, undirected)
