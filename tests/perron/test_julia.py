"""Perron vectors found by Julia, against brackets, against torch's, and where they cannot be."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from flint import arb
from scipy.sparse.linalg import aslinearoperator
from torch.autograd import gradcheck

import subdeq_plugin as sd
from subdeq_plugin.errors import OptionError
from subdeq_plugin.perron import hits, power_mean
from subdeq_plugin.perron.julia import JULIA_METHODS
from subdeq_plugin.result import Status
from tests.bridge.process import python
from tests.perron.families import FAMILIES, directed
from tests.perron.reference import perron_root
from tests.perron.test_tensors import random
from tests.problems import make_input, make_layer

FAST = [method for method in JULIA_METHODS if method != "power"]


@pytest.mark.julia
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("size", [2, 9, 40])
def test_brackets_contain_the_eigenvalue_at_fifty_digits(family, method, size):
    rng = np.random.default_rng(size)
    matrices = np.stack([FAMILIES[family](rng, size) for _ in range(6)])
    result = sd.perron(torch.from_numpy(matrices), backend="julia", method=method)
    for i, matrix in enumerate(matrices):
        low, high = perron_root(matrix, result.eigenvector[i].numpy())
        assert arb(float(result.lower[i])) <= high
        assert arb(float(result.upper[i])) >= low
    assert bool((result.status <= Status.ROUNDING_FLOOR).all()), result.status
    assert result.method == f"julia:{method}"


@pytest.mark.julia
@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("size", [40, 900])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_sparse_matrices_and_both_sides(method, size, index):
    matrix = directed(size)
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    result = sd.perron(matrix, backend="julia", method=method, side="both")
    x, y = result.eigenvector.numpy(), result.left.numpy()
    assert result.status <= Status.ROUNDING_FLOOR
    assert float(result.width) < 2e-12
    np.testing.assert_allclose(matrix @ x, float(result.eigenvalue) * x, rtol=1e-9)
    np.testing.assert_allclose(matrix.T @ y, float(result.eigenvalue) * y, rtol=1e-9)


@pytest.mark.julia
@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
@pytest.mark.parametrize("method", [method for method in JULIA_METHODS if method != "krylov"])
@pytest.mark.parametrize("normalize", [1, 2, "inf"])
def test_layers_are_those_of_torch(kind, method, normalize):
    layer = make_layer(kind, 3, torch.float64, shift=0.1)
    bound = layer.bind(make_input(kind, 3, torch.float64)).detach()
    ours = sd.perron(bound, backend="julia", method=method, normalize=normalize)
    theirs = sd.perron(bound, normalize=normalize)
    assert bool((ours.status <= Status.ROUNDING_FLOOR).all())
    torch.testing.assert_close(ours.eigenvector, theirs.eigenvector, rtol=1e-10, atol=1e-14)
    assert bool((ours.lower <= theirs.upper).all() and (theirs.lower <= ours.upper).all())


@pytest.mark.julia
@pytest.mark.parametrize("method", FAST)
def test_reducible_matrices_are_taken_apart(method):
    blocks = sp.block_diag([directed(30), 3 * directed(20, seed=1), sp.csr_array(np.zeros((2, 2)))], format="csr")
    result = sd.perron(blocks, backend="julia", method=method)
    expected = sd.perron(blocks)
    assert result.converged
    torch.testing.assert_close(result.eigenvector, expected.eigenvector, rtol=1e-9, atol=1e-15)
    mixed = torch.stack([random(3, 3), torch.tensor([[1.0, 2, 3], [0, 4, 5], [0, 0, 2]], dtype=torch.float64)])
    pair = sd.perron(mixed, backend="julia", method=method)
    assert pair.converged
    assert float(pair.eigenvalue[1]) == 4.0


@pytest.mark.julia
def test_gradients_do_not_care_who_solved():
    def pair(matrix):
        result = sd.perron(matrix, backend="julia", method="newton")
        return result.eigenvalue, result.eigenvector

    assert gradcheck(pair, (random(2, 4, 4).requires_grad_(),), atol=1e-7)
    module = sd.layers.Perron("eigenvalue", backend="julia")
    matrix = random(5, 5).requires_grad_()
    module(matrix).backward()
    expected = matrix.grad.clone()
    matrix.grad = None
    sd.perron(matrix).eigenvalue.backward()
    torch.testing.assert_close(expected, matrix.grad)


@pytest.mark.julia
@pytest.mark.parametrize("method", FAST)
def test_few_evaluations_give_true_bounds(method):
    matrix = FAMILIES["nearly_periodic"](np.random.default_rng(5), 30)
    low, high = perron_root(matrix, np.ones(30))
    for limit in (1, 2, 3, 5, 8, 13):
        result = sd.perron(torch.from_numpy(matrix), backend="julia", method=method, max_iter=limit)
        assert arb(float(result.lower)) <= high
        assert arb(float(result.upper)) >= low


@pytest.mark.julia
def test_the_command(tmp_path):
    np.save(tmp_path / "a.npy", directed(50).toarray())
    command = [sys.executable, "-m", "subdeq_plugin", "perron", tmp_path / "a.npy", "--backend", "julia"]
    done = subprocess.run([*command, "--method", "krylov"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "guaranteed" in done.stdout


@pytest.mark.julia
def test_ctrl_c_ends_a_search():
    done = python(
        """
        import os, signal, threading, time
        import numpy as np, scipy.sparse as sp, torch
        import subdeq_plugin as sd
        sd.perron(torch.ones(3, 3), backend="julia")
        n = 200_000
        path = sp.diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[-1, 1], format="csr")
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
        begun = time.perf_counter()
        try:
            sd.perron(path, backend="julia", method="power", max_iter=10**9, tol=1e-15)
        except KeyboardInterrupt:
            print("interrupted after", time.perf_counter() - begun)
        print(float(sd.perron(torch.ones(3, 3), backend="julia").eigenvalue))
        """
    )
    assert "interrupted after" in done.stdout, done.stderr
    assert float(done.stdout.split()[2]) < 30
    assert done.stdout.split()[-1].startswith("3.0")


def test_what_julia_does_not_take():
    matrix = random(3, 3)
    with pytest.raises(OptionError, match="unknown backend"):
        sd.perron(matrix, backend="jula")
    with pytest.raises(OptionError, match="method of backend 'julia'"):
        sd.perron(matrix, backend="julia", method="anderson")
    layer = sd.SubhomLinear(3, 4, shift=0.1).double().bind(random(2, 3)).detach()
    for target, method in (
        (power_mean(matrix, 2), "auto"),
        (hits(matrix), "auto"),
        (aslinearoperator(matrix.numpy()), "noda"),
        (layer, "krylov"),
    ):
        with pytest.raises(OptionError, match="cannot read this target"):
            sd.perron(target, backend="julia", method=method)
    spread = layer.with_tensors([layer.tensors[0], layer.tensors[1][:1]])
    with pytest.raises(OptionError, match="must have the state's shape"):
        sd.perron(spread, torch.ones(2, 4, dtype=torch.float64), backend="julia")
