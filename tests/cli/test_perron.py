"""`subdeq perron` on files."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import xgi
from typer.testing import CliRunner

from subdeq_plugin.cli.main import app
from subdeq_plugin.errors import DataError, DomainError, OptionError, ShapeError


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["perron", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_a_graph_from_an_edge_list(tmp_path):
    graph = nx.les_miserables_graph()
    with (tmp_path / "les.csv").open("w") as file:
        file.writelines(f"{i},{j},{data['weight']}\n" for i, j, data in graph.edges(data=True))
    written = ["--out", tmp_path / "x.csv", "--json", tmp_path / "x.json"]
    output = run(tmp_path / "les.csv", "--undirected", "--normalize", 2, *written)
    expected = nx.eigenvector_centrality_numpy(graph, weight="weight")
    found = dict(line.rsplit(",", 1) for line in (tmp_path / "x.csv").read_text().splitlines())
    assert {name: pytest.approx(float(value), abs=1e-9) for name, value in found.items()} == expected
    summary = json.loads((tmp_path / "x.json").read_text())
    radius = np.linalg.eigvalsh(nx.to_numpy_array(graph)).max()
    assert summary["lower"] <= radius * (1 + 1e-13)
    assert summary["upper"] >= radius * (1 - 1e-13)
    assert summary["status"] == "CONVERGED"
    assert summary["period"] == 1
    for part in ("irreducible, primitive", "guaranteed", "Valjean", "508 entries"):
        assert part in output


def test_periodic_reducible_and_left(tmp_path):
    sp.save_npz(tmp_path / "ring.npz", sp.csr_array(np.roll(np.eye(6), 1, axis=1)))
    assert "of period 6" in run(tmp_path / "ring.npz", "--out", tmp_path / "x.npy")
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), np.full(6, 1 / 6))
    upper = np.array([[1.0, 5.0], [0.0, 3.0]])
    np.save(tmp_path / "upper.npy", upper)
    assert "reducible, 2 classes" in run(tmp_path / "upper.npy", "--side", "left", "--out", tmp_path / "y.txt")
    assert (tmp_path / "y.txt").read_text() == "0\t0.0\n1\t1.0\n"


def test_bounds_that_are_not_close_give_exit_code_1(tmp_path):
    matrix = sp.diags_array([np.ones(999), np.ones(999)], offsets=[-1, 1])
    sp.save_npz(tmp_path / "path.npz", sp.csr_array(matrix))
    output = run(tmp_path / "path.npz", "--method", "power", "--max-iter", 5, code=1)
    assert "MAX_ITERATIONS" in output
    assert "raise max_iter" in output


def test_a_radius_beyond_the_range_of_a_double(tmp_path):
    np.save(tmp_path / "huge.npy", np.full((4, 4), 1e308))
    output = run(tmp_path / "huge.npy", "--json", tmp_path / "huge.json")
    assert "spectral radius <= inf" in output
    summary = json.loads((tmp_path / "huge.json").read_text())
    assert summary["upper"] is None
    assert summary["lower"] > 1e308


def test_errors(tmp_path):
    np.save(tmp_path / "negative.npy", -np.ones((2, 2)))
    np.save(tmp_path / "fine.npy", np.ones((2, 2)))
    for arguments, error, message in (
        ([tmp_path / "absent.txt"], DataError, "cannot be read"),
        ([tmp_path / "negative.npy"], DomainError, "nonnegative"),
        ([tmp_path / "fine.npy", "--side", "up"], OptionError, "side must be"),
        ([tmp_path / "fine.npy", "--normalize", "big"], OptionError, "normalize must be"),
        ([tmp_path / "fine.npy", "--out", tmp_path / "fine.npy" / "x"], DataError, "cannot be written"),
    ):
        with pytest.raises(error, match=message):
            run(*arguments)


def test_hubs_and_authorities(tmp_path):
    graph = nx.gnp_random_graph(40, 0.08, seed=2, directed=True)
    nx.write_edgelist(graph, tmp_path / "graph.txt", data=False)
    output = run(tmp_path / "graph.txt", "--as", "hits", "--out", tmp_path / "x.csv", "--json", tmp_path / "x.json")
    hubs, authorities = nx.hits(graph, tol=1e-14, max_iter=10_000)
    rows = [line.split(",") for line in (tmp_path / "x.csv").read_text().splitlines()]
    for name, expected in (("hubs", hubs), ("authorities", authorities)):
        found = {int(node): float(value) for kind, node, value in rows if kind == name}
        assert found == {node: pytest.approx(expected[node], abs=1e-8) for node in found}
        assert f"largest {name}: " in output
    summary = json.loads((tmp_path / "x.json").read_text())
    assert len(summary["factors"]) == 2
    assert summary["error_bound"] < 1e-8
    assert summary["lower"] <= summary["eigenvalue"] <= summary["upper"]
    with pytest.raises(DataError, match="would mix hubs and authorities"):
        run(tmp_path / "graph.txt", "--as", "hits", "--out", tmp_path / "x.npy")


HYPEREDGES = "# people\nann bob cleo\nbob cleo dan\nann, dan, eve\ncleo dan eve\nann bob eve\n"


@pytest.mark.parametrize("kind", ["h-eigen", "z-eigen", "node-edge"])
def test_centralities_of_hypergraphs(kind, tmp_path):
    (tmp_path / "edges.txt").write_text(HYPEREDGES)
    output = run(tmp_path / "edges.txt", "--as", kind, "--out", tmp_path / "x.csv")
    graph = xgi.Hypergraph([line.replace(",", "").split() for line in HYPEREDGES.splitlines()[1:]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "h-eigen": lambda: xgi.h_eigenvector_centrality(graph, max_iter=10_000, tol=1e-14, seed=0),
            "z-eigen": lambda: xgi.z_eigenvector_centrality(graph, max_iter=10_000, tol=1e-14),
            "node-edge": lambda: xgi.node_edge_centrality(
                graph, f=lambda x: x**2, g=lambda x: x**0.5, phi=lambda x: x**2, psi=lambda x: x**0.5,
                max_iter=10_000, tol=1e-14,
            )[0],
        }[kind]()  # fmt: skip
    rows = [line.split(",") for line in (tmp_path / "x.csv").read_text().splitlines()]
    found = {row[-2]: float(row[-1]) for row in rows if row[0] != "edges"}
    assert found == {node: pytest.approx(value, abs=1e-8) for node, value in expected.items()}
    assert "5 nodes, 5 hyperedges" in output
    if kind == "node-edge":
        assert sum(row[0] == "edges" for row in rows) == 5
        assert rows[-1][1] == "ann bob eve"


def test_no_edge_is_lost_on_the_way_to_hits(tmp_path):
    (tmp_path / "negative.txt").write_text("a b -1\nb a 2\n")
    with pytest.raises(DomainError, match="nonnegative"):
        run(tmp_path / "negative.txt", "--as", "hits")
    np.save(tmp_path / "empty.npy", np.zeros((3, 3)))
    with pytest.raises(DataError, match="has no edges"):
        run(tmp_path / "empty.npy", "--as", "hits")


def test_tensors(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "box.npy", rng.random((4, 5, 3)) + 0.1)
    np.save(tmp_path / "cube.npy", rng.random((4, 4, 4)) + 1)
    output = run(tmp_path / "box.npy", "--as", "hits", "--out", tmp_path / "x.csv")
    assert "4 x 5 x 3 tensor, 60 entries" in output
    assert "proven to be unique" in output
    assert sum(line.startswith("dimension 1,") for line in (tmp_path / "x.csv").read_text().splitlines()) == 5
    for kind in ("h-eigen", "z-eigen"):
        run(tmp_path / "cube.npy", "--as", kind, "--out", tmp_path / "y.npy")
        x, cube = np.load(tmp_path / "y.npy"), np.load(tmp_path / "cube.npy")
        quotients = (cube @ x @ x) / x ** (2 if kind == "h-eigen" else 1)
        assert np.ptp(quotients) < 1e-9 * quotients.max()
    with pytest.raises(DataError, match="cannot be read as an array"):
        run(tmp_path / "absent.npy", "--as", "hits")


def test_bad_hypergraphs(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "single.txt").write_text("ann\nann bob\n")
    for name, error, message in (
        ("absent.txt", DataError, "list of hyperedges"),
        ("empty.txt", DataError, "no hyperedges"),
        ("single.txt", ShapeError, "two or more"),
    ):
        with pytest.raises(error, match=message):
            run(tmp_path / name, "--as", "h-eigen")
    with pytest.raises(OptionError, match="unknown kind"):
        run(tmp_path / "single.txt", "--as", "heigen")


def test_a_defective_matrix_is_told(tmp_path):
    np.save(tmp_path / "jordan.npy", np.array([[1.0, 1.0], [0.0, 1.0]]))
    assert "defective, 2 classes have this radius, 2 in a row" in run(tmp_path / "jordan.npy")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux' /proc")
def test_a_million_edges_in_bounded_memory(tmp_path):
    """The whole process, its imports included, stays below the gigabyte that the documentation promises."""
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "edges.txt", rng.integers(200_000, size=(1_000_000, 2)), fmt="%d")
    code = (
        "import sys\n"
        "from subdeq_plugin.cli.main import app\n"
        f"sys.argv = ['subdeq', 'perron', {str(tmp_path / 'edges.txt')!r}]\n"
        "try:\n    app()\nexcept SystemExit as end:\n    print('code', end.code)\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "guaranteed" in done.stdout, done.stderr
    assert "code 0" in done.stdout
    assert int(done.stdout.split()[-1]) < 1_000_000
