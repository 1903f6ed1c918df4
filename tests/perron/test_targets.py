"""What `perron` takes: matrices of every kind, operators, functions and layers; and what it refuses."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator, eigs
from torch.autograd import gradcheck

import subdeq_plugin as sd
from subdeq_plugin.errors import DomainError, OptionError, ShapeError
from subdeq_plugin.layers.sparse import csr
from subdeq_plugin.perron import Chain, Matrix
from subdeq_plugin.result import Status
from tests.perron.families import directed

METHODS = ["auto", "power", "noda", "newton", "anderson", "krylov"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


def in_every_form(matrix: sp.csr_array) -> dict[str, object]:
    coo = sp.coo_array(matrix)
    rows, columns, values = (torch.from_numpy(part.astype(kind)) for part, kind in
                             ((coo.row, np.int64), (coo.col, np.int64), (coo.data, np.float64)))  # fmt: skip
    return {
        "dense": torch.from_numpy(matrix.toarray()),
        "batch": torch.from_numpy(matrix.toarray())[None],
        "numpy": matrix.toarray(),
        "csr": csr(rows, columns, values, coo.shape[0]),
        "coo": torch.sparse_coo_tensor(torch.stack([rows, columns]), values, coo.shape, check_invariants=True),
        "scipy csr": matrix,
        "scipy coo": coo,
        "scipy csc matrix": sp.csc_matrix(matrix),
        "operator": aslinearoperator(matrix),
    }


def test_every_form_of_a_matrix_gives_the_same_pair():
    matrix = directed()
    value = float(eigs(matrix, k=1, which="LR", return_eigenvectors=False, tol=0)[0].real)
    for name, target in in_every_form(matrix).items():
        result = sd.perron(target)
        x = result.eigenvector.flatten().numpy()
        assert bool((result.status <= Status.ROUNDING_FLOOR).all()), name
        assert float(result.eigenvalue) == pytest.approx(value, rel=1e-11), name
        np.testing.assert_allclose(matrix @ x, float(result.eigenvalue) * x, rtol=1e-10)
        assert result.rigorous == (name != "operator")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [40, 900])
def test_every_method_on_a_sparse_matrix(method, size):
    matrix = directed(size)
    result = sd.perron(matrix, method=method, side="both")
    x, y = result.eigenvector.numpy(), result.left.numpy()
    assert result.status <= Status.ROUNDING_FLOOR
    assert float(result.width) < 2e-12
    np.testing.assert_allclose(matrix @ x, float(result.eigenvalue) * x, rtol=1e-9)
    np.testing.assert_allclose(matrix.T @ y, float(result.eigenvalue) * y, rtol=1e-9)


@pytest.mark.parametrize("name", ["karate_club_graph", "les_miserables_graph", "florentine_families_graph"])
def test_eigenvector_centrality_is_that_of_networkx(name):
    graph = getattr(nx, name)()
    ours = sd.perron(nx.to_scipy_sparse_array(graph, weight="weight", dtype=float), normalize=2).eigenvector.numpy()
    theirs = nx.eigenvector_centrality_numpy(graph, weight="weight")
    np.testing.assert_allclose(ours, [abs(theirs[node]) for node in graph], atol=1e-8)


def test_hits_is_that_of_networkx():
    graph = nx.gnp_random_graph(60, 0.1, seed=1, directed=True)
    matrix = torch.from_numpy(nx.to_numpy_array(graph))
    matrix = matrix[:, matrix.sum(0) > 0][matrix.sum(1) > 0]
    hubs, authorities = nx.hits(graph, tol=1e-14, max_iter=10000)
    authority = sd.perron(Chain((Matrix(matrix), Matrix(matrix.mT)))).eigenvector
    hub = sd.perron(Chain((Matrix(matrix.mT), Matrix(matrix)))).eigenvector
    np.testing.assert_allclose(sorted(authority), [v for v in sorted(authorities.values()) if v > 1e-12], atol=1e-8)
    np.testing.assert_allclose(sorted(hub), [v for v in sorted(hubs.values()) if v > 1e-12], atol=1e-8)


def test_left_vectors_of_operators():
    matrix = directed(60)
    left = sd.perron(aslinearoperator(matrix), side="left")
    torch.testing.assert_close(left.eigenvector, sd.perron(matrix, side="left").eigenvector, rtol=1e-8, atol=0)
    both = sd.perron(aslinearoperator(matrix), side="both")
    torch.testing.assert_close(both.left, left.eigenvector, rtol=1e-8, atol=0)
    one_way = LinearOperator((60, 60), matvec=lambda x: matrix @ x, dtype=np.float64)
    with pytest.raises(OptionError, match="no rmatvec"):
        sd.perron(one_way, side="left")


def test_batches_of_any_shape():
    matrices = random(2, 3, 5, 5)
    result = sd.perron(matrices, side="both", history=True)
    assert result.eigenvalue.shape == result.lower.shape == result.status.shape == (2, 3)
    assert result.eigenvector.shape == result.left.shape == (2, 3, 5)
    assert result.history.shape == (result.evaluations, 2, 3, 2)
    assert bool((result.history.diff(dim=0)[..., 0] >= 0).all() and (result.history.diff(dim=0)[..., 1] <= 0).all())
    alone = sd.perron(matrices[1, 2])
    torch.testing.assert_close(result.eigenvector[1, 2], alone.eigenvector, rtol=1e-11, atol=0)


def test_float32_in_and_out():
    result = sd.perron(random(4, 4).float())
    assert result.eigenvalue.dtype == result.eigenvector.dtype == torch.float32
    assert result.lower.dtype == torch.float64
    assert result.converged


def test_a_start_saves_steps():
    matrix = random(50, 50)
    first = sd.perron(matrix)
    again = sd.perron(matrix, first.eigenvector)
    assert again.evaluations < first.evaluations
    assert again.evaluations <= 2


def test_extreme_scales():
    for scale in (1e-300, 1e-100, 1.0, 1e150, 1e300):
        matrix = random(6, 6) * scale
        result = sd.perron(matrix)
        assert result.converged
        assert float(result.eigenvalue) == pytest.approx(float(sd.perron(matrix / scale).eigenvalue) * scale, rel=1e-12)


class TestFunctions:
    def test_values_and_gradients(self):
        matrix = random(4, 4).requires_grad_()

        def pair(a):
            result = sd.perron(lambda z: z @ a.mT, torch.ones(4, dtype=torch.float64))
            return result.eigenvalue, result.eigenvector

        torch.testing.assert_close(pair(matrix)[0], sd.perron(matrix).eigenvalue)
        assert gradcheck(pair, (matrix,), atol=1e-6)

    def test_batches_and_modules(self):
        module = torch.nn.Linear(5, 5, bias=False)
        with torch.no_grad():
            module.weight.abs_()
        result = sd.perron(module, torch.ones(3, 5))
        assert result.eigenvalue.shape == (3,)
        torch.testing.assert_close(result.eigenvalue, sd.perron(module.weight).eigenvalue.expand(3), rtol=1e-4, atol=0)
        assert not result.rigorous
        (gradient,) = torch.autograd.grad(result.eigenvalue[0], module.weight)
        (expected,) = torch.autograd.grad(sd.perron(module.weight).eigenvalue, module.weight)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)

    def test_what_is_proven_not_to_be_one_is_refused(self):
        matrix = torch.tensor([[1.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
        with pytest.raises(DomainError, match="exclude each other"):
            sd.perron(lambda z: (1 if z[0] > z[1] else 5) * matrix @ z, torch.tensor([1.0, 2.0], dtype=torch.float64))
        with pytest.raises(ShapeError, match="returned"):
            sd.perron(lambda z: z[:2], torch.ones(3))
        with pytest.raises(ShapeError, match="pass start"):
            sd.perron(lambda z: z)


class TestLayers:
    @pytest.mark.parametrize("activation", ["relu", "tanh", "softplus", "softsign"])
    @pytest.mark.parametrize("normalize", [1, 2])
    def test_a_layer_and_its_input(self, activation, normalize):
        layer = sd.SubhomLinear(3, 6, activation=activation, shift=0.1).double()
        bound = layer.bind(random(4, 3))
        result = sd.perron(bound, normalize=normalize)
        assert result.eigenvector.shape == (4, 6)
        assert bool((result.status <= Status.ROUNDING_FLOOR).all())
        torch.testing.assert_close(bound(result.eigenvector), result.eigenvalue[:, None] * result.eigenvector)
        norms = torch.linalg.vector_norm(result.eigenvector, ord=normalize, dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
        result.eigenvalue.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())

    def test_the_gradient_of_a_layer(self):
        bound = sd.SubhomLinear(3, 4, shift=0.1).double().bind(random(2, 3)).detach()

        def pair(*tensors):
            result = sd.perron(bound.with_tensors(tensors))
            return result.eigenvalue, result.eigenvector

        assert gradcheck(pair, tuple((tensor + 0.1).requires_grad_() for tensor in bound.tensors), atol=1e-6)

    def test_products_that_underflow_give_no_bracket(self):
        layer = sd.SubhomLinear(3, 2, activation="relu", shift=0.0, power=0.5).double()
        bound = layer.bind(torch.zeros(1, 3, dtype=torch.float64)).detach()
        weight = torch.tensor([[1.0, 1e-250], [1e-250, 1e-250]], dtype=torch.float64)
        bound = bound.with_tensors([weight, *(torch.zeros_like(tensor) for tensor in bound.tensors[1:])])
        start = torch.tensor([[1.0, 1e-150]], dtype=torch.float64)
        result = sd.perron(bound, start, max_iter=1, method="power")
        assert result.status == Status.NONFINITE
        assert float(result.lower) == 0.0
        assert bool(result.upper.isinf().all())

    def test_what_is_refused(self):
        layer = sd.SubhomLinear(3, 4)
        with pytest.raises(ShapeError, match=r"layer\.bind"):
            sd.perron(layer)
        with pytest.raises(DomainError, match="normalised already"):
            sd.perron(sd.SubhomLinear(3, 4, normalize=1).bind(torch.rand(2, 3)))
        with pytest.raises(DomainError, match="nonneg"):
            sd.perron(sd.SubhomLinear(3, 4, weight="signed", shift=1.2).bind(torch.rand(2, 3)))
        with pytest.raises(DomainError, match="above 1"):
            sd.perron(sd.SubhomLinear(3, 4, power=3.0).bind(torch.rand(2, 3)))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.rand(3, 4), ShapeError, "square"),
        (torch.rand(3), ShapeError, "square"),
        (torch.ones(3, 3, dtype=torch.int64), ShapeError, "floating-point"),
        (torch.empty(0, 0), ShapeError, "empty"),
        (-torch.ones(2, 2), DomainError, "nonnegative finite entries"),
        (torch.full((2, 2), torch.nan), DomainError, "nonnegative finite entries"),
        (torch.full((2, 2), torch.inf), DomainError, "nonnegative finite entries"),
        (sp.csr_array(-np.eye(2)), DomainError, "nonnegative finite entries"),
        (sp.csr_array(np.ones((2, 3))), ShapeError, "square"),
        (sp.csr_array(np.eye(2) * 1j), DomainError, "must be real"),
        (np.eye(2) * 1j, DomainError, "must be real"),
        ("a word", ShapeError, "target must be"),
    ],
)
def test_bad_targets(target, error, message):
    with pytest.raises(error, match=message):
        sd.perron(target)


def test_bad_options():
    matrix = random(3, 3)
    for keywords, message in (
        ({"method": "nodda"}, "did you mean 'noda'"),
        ({"side": "up"}, "unknown side"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"normalize": 0.5}, "p >= 1"),
        ({"normalize": None}, "needs a length"),
    ):
        with pytest.raises(OptionError, match=message):
            sd.perron(matrix, **keywords)
    with pytest.raises(ShapeError, match="start must have shape"):
        sd.perron(matrix, torch.ones(4, dtype=torch.float64))
    with pytest.raises(DomainError, match="strictly positive"):
        sd.perron(matrix, torch.zeros(3, dtype=torch.float64))


def test_the_callers_matrix_stays_as_it_is():
    matrix = directed(50)
    matrix.data[::3] = 0.0
    matrix.data[1] = 1e300
    kept = matrix.copy()
    sd.perron(matrix, side="both")
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(matrix, part), getattr(kept, part))
    tensor = torch.from_numpy(matrix.toarray())
    sd.perron(tensor)
    np.testing.assert_array_equal(tensor, kept.toarray())
