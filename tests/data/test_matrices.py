"""Matrices and graphs from files of every kind, and files that are none."""

from __future__ import annotations

import gzip

import networkx as nx
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

from subdeq_plugin.data import read_matrix
from subdeq_plugin.errors import DataError

MATRIX = np.array([[0.0, 2.0, 0.0], [0.5, 0.0, 1.0], [3.0, 0.0, 0.25]])


def test_arrays_and_matrix_market(tmp_path):
    np.save(tmp_path / "a.npy", MATRIX)
    np.savez(tmp_path / "b.npz", weight=MATRIX)
    sp.save_npz(tmp_path / "c.npz", sp.csr_array(MATRIX))
    scipy.io.mmwrite(tmp_path / "d.mtx", sp.coo_array(MATRIX))
    with (tmp_path / "d.mtx").open("rb") as plain, gzip.open(tmp_path / "e.mtx.gz", "wb") as packed:
        packed.write(plain.read())
    for path in sorted(tmp_path.iterdir()):
        named = read_matrix(path)
        np.testing.assert_array_equal(named.matrix.toarray(), MATRIX)
        assert named.names is None


def test_graphml(tmp_path):
    graph = nx.DiGraph()
    graph.add_edge("a", "b", weight=2.0)
    graph.add_edge("b", "c")
    nx.write_graphml(graph, tmp_path / "g.graphml")
    named = read_matrix(tmp_path / "g.graphml")
    assert named.names.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(named.matrix.toarray(), [[0, 2, 0], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("name", ["edges.txt", "edges.csv", "edges", "edges.txt.gz"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("names", [(7, 2, 30), ("x", "longer", "z"), (0.5, 1, 2)])
def test_edge_lists(tmp_path, name, weighted, names):
    separator = ", " if name == "edges.csv" else " "
    edges = [(names[0], names[1], 2.0), (names[1], names[2], 0.5), (names[0], names[1], 1.0), (names[2], names[2], 4.0)]
    lines = ["# a comment", "% another", ""]
    lines += [separator.join(map(str, edge if weighted else edge[:2])) for edge in edges]
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.write("\n".join(lines))
    for undirected in (False, True):
        graph = nx.MultiGraph() if undirected else nx.MultiDiGraph()
        for i, j, weight in edges:
            graph.add_edge(str(i), str(j), weight=weight if weighted else 1.0)
        named = read_matrix(tmp_path / name, undirected=undirected)
        expected = nx.to_numpy_array(graph, nodelist=[str(name) for name in named.names])
        np.testing.assert_array_equal(named.matrix.toarray(), expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "# nothing\n", "no edges"),
        ("fields.txt", "1 2 3 4\n", "4 fields"),
        ("ragged.txt", "1 2 0.5\n1 3\n", "edge 2 has 2 fields"),
        ("weight.txt", "1 2 heavy\n", "heavy"),
        ("broken.mtx", "no matrix\n", "cannot be read as .mtx"),
        ("broken.graphml", "<graph", "cannot be read as .graphml"),
        ("broken.npz", "no archive", "cannot be read as .npz"),
    ],
)
def test_files_that_hold_none(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_matrix(tmp_path / name)


def test_shapes_and_absence(tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((2, 3)))
    with pytest.raises(DataError, match="square"):
        read_matrix(tmp_path / "wide.npy")
    np.savez(tmp_path / "two.npz", a=MATRIX, b=MATRIX)
    with pytest.raises(DataError, match="2 arrays, a, b"):
        read_matrix(tmp_path / "two.npz")
    with pytest.raises(DataError, match="cannot be read"):
        read_matrix(tmp_path / "absent.txt")
