"""`subdeq perron` on files."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from subdeq_plugin.cli.main import app
from subdeq_plugin.errors import DataError, DomainError, OptionError


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
