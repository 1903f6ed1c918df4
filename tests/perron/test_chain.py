"""Eigenvectors of nonlinear maps: against their own equations, closed forms and other software."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.autograd import gradcheck

import subdeq_plugin as sd
from subdeq_plugin.errors import DomainError, OptionError, ShapeError
from subdeq_plugin.layers.sparse import csr
from subdeq_plugin.perron import Chain, Geometric, Largest, Matrix, Powers, Sparse, p_norms, power_mean
from subdeq_plugin.result import Status


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


CHAINS = {
    "harmonic": lambda a: power_mean(a, -1),
    "root": lambda a: power_mean(a, 0.5),
    "cubes": lambda a: power_mean(a, 3),
    "largest": lambda a: power_mean(a, math.inf),
    "norms 2 2": lambda a: p_norms(a, 2, 2),
    "norms 3 3": lambda a: p_norms(a, 3, 3),
    "norms 2 4": lambda a: p_norms(a, 2, 4),
    "geometric": lambda a: Chain((Geometric(a / a.sum(1, keepdim=True)), Powers(0.5), Matrix(a), Powers(2.0))),
    "geometric means": lambda a: Chain((Matrix(a), Geometric(a.mT / a.sum(0)[:, None]))),
    "sparse": lambda a: Chain((Sparse.of((a * (a > 0.5) + torch.eye(7).roll(1, 0)).to_sparse()), Largest(a))),
    "largest after matrix": lambda a: Chain((Matrix(a), Powers(0.5), Largest(a), Powers(2.0))),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("method", ["auto", "power", "noda", "newton", "anderson"])
@pytest.mark.parametrize("normalize", [1, 2, 3.5, "inf"])
def test_eigenpairs_satisfy_their_equation(name, method, normalize):
    chain = CHAINS[name](random(7, 7))
    result = sd.perron(chain, method=method, normalize=normalize, max_iter=2000)
    x, value = result.eigenvector, result.eigenvalue
    assert result.status <= Status.ROUNDING_FLOOR
    torch.testing.assert_close(chain(x), value ** (1 / chain.exponent) * x, rtol=1e-10, atol=0)
    assert float(torch.linalg.vector_norm(x, ord=float(normalize))) == pytest.approx(1, abs=1e-12)
    assert result.lower <= value <= result.upper
    # What logarithms lose is counted for the largest of them.
    assert float(result.width) < (1e-10 if name.startswith("geometric") else 1e-11)


@pytest.mark.parametrize(("p", "q"), [(2, 2), (3, 3), (2, 4)])
def test_p_norms_are_the_largest_quotient(p, q):
    matrix = random(4, 5)
    result = sd.perron(p_norms(matrix, p, q), normalize=q)
    norm = float(result.eigenvalue)
    a = matrix.numpy()

    def negative(z: np.ndarray) -> float:
        return -np.linalg.norm(a @ np.abs(z), p) / np.linalg.norm(z, q)

    best = min(minimize(negative, np.random.default_rng(i).random(5) + 0.1).fun for i in range(5))
    assert norm == pytest.approx(-best, rel=1e-7)
    if p == q == 2:
        assert norm == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-12)


def test_the_largest_term_gives_the_largest_cycle_mean():
    matrix = random(5, 5)
    log = matrix.log().numpy()
    # Karp's theorem, by brute force over all closed walks of up to five steps.
    walk, best = log, -np.inf
    for length in range(1, 6):
        best = max(best, walk.diagonal().max() / length)
        walk = (walk[:, :, None] + log[None]).max(axis=1)
    result = sd.perron(Chain((Largest(matrix),)))
    assert float(result.eigenvalue) == pytest.approx(math.exp(best), rel=1e-12)


def test_a_degree_below_one_depends_on_the_norm_and_contracts():
    chain = Chain((Matrix(random(6, 6)), Powers(0.5)))
    one, two = (sd.perron(chain, normalize=p) for p in (1, 2))
    x = one.eigenvector / torch.linalg.vector_norm(one.eigenvector)
    torch.testing.assert_close(x, two.eigenvector)
    assert not torch.isclose(one.eigenvalue, two.eigenvalue)
    assert int(one.evaluations) <= 50


def test_a_geometric_mean_is_one():
    exponents = random(5, 5)
    exponents = exponents / exponents.sum(dim=1, keepdim=True)
    z = random(2, 5, seed=1)
    means = torch.stack([torch.stack([(row**share).prod() for share in exponents]) for row in z])
    torch.testing.assert_close(Geometric(exponents)(z), means)
    # In logarithms it is a matrix with rows of sum 1, of which Perron's vector is constant.
    result = sd.perron(Chain((Geometric(exponents),)))
    torch.testing.assert_close(result.eigenvector, torch.full((5,), 0.2, dtype=torch.float64))
    assert float(result.eigenvalue) == pytest.approx(1)
    assert float(result.rate) < 1


def test_the_rate_of_geometric_means():
    exponents = random(5, 5)
    exponents = exponents / exponents.sum(dim=1, keepdim=True)
    piece = Geometric(exponents)
    reached = 0.0
    for seed in range(300):
        x, y = (random(1, 5, seed=2 * seed + k) ** 6 for k in (0, 1))
        quotient = float(sd.hilbert(piece(x), piece(y)) / sd.hilbert(x, y))
        assert quotient <= piece.rate()
        reached = max(reached, quotient)
    assert reached > 0.5 * piece.rate()


@pytest.mark.parametrize("build", [lambda m: power_mean(m, -1), lambda m: power_mean(m, 2), lambda m: p_norms(m, 3, 3)])
def test_sparse_matrices_in_chains(build):
    matrix = random(9, 9) * (random(9, 9, seed=1) > 0.7) + torch.eye(9, dtype=torch.float64).roll(1, 0)
    rows, columns = matrix.nonzero().T
    for sparse in (matrix.to_sparse(), csr(rows, columns, matrix[rows, columns], 9)):
        ours, dense = sd.perron(build(sparse), normalize=3), sd.perron(build(matrix), normalize=3)
        torch.testing.assert_close(ours.eigenvector, dense.eigenvector, rtol=1e-9, atol=0)
        torch.testing.assert_close(ours.eigenvalue, dense.eigenvalue)

    def pair(values):
        indices = matrix.nonzero().T
        result = sd.perron(build(torch.sparse_coo_tensor(indices, values, (9, 9), check_invariants=True)))
        return result.eigenvalue, result.eigenvector

    assert gradcheck(pair, (matrix[matrix > 0].clone().requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize("name", ["harmonic", "cubes", "norms 2 4", "norms 3 3", "geometric means"])
def test_gradients(name):
    def pair(matrix):
        result = sd.perron(CHAINS[name](matrix), normalize=2)
        return result.eigenvalue, result.eigenvector

    assert gradcheck(pair, (random(4, 4).requires_grad_(),), atol=1e-7)


def test_what_the_theory_does_not_cover_is_refused():
    a = random(3, 3)
    with pytest.raises(DomainError, match="degree 2, above 1"):
        Chain((Matrix(a), Powers(2.0)))
    with pytest.raises(DomainError, match="reverses the order"):
        Chain((Matrix(a), Powers(-0.5)))
    with pytest.raises(DomainError, match="nonnegative"):
        Chain((Matrix(-a),))
    with pytest.raises(DomainError, match="zero row"):
        Chain((Matrix(a * torch.tensor([[1.0], [0.0], [1.0]])),))
    with pytest.raises(DomainError, match=r"use Sparse\.of"):
        Chain((Matrix(a.to_sparse()),))
    with pytest.raises(DomainError, match="zero row"):
        Chain((Sparse.of((a * torch.tensor([[1.0], [0.0], [1.0]])).to_sparse()),))
    with pytest.raises(DomainError, match="nonnegative"):
        Chain((Sparse.of((-a).to_sparse()),))
    with pytest.raises(DomainError, match="same sum"):
        Chain((Geometric(a),))
    with pytest.raises(DomainError, match="is of nothing"):
        Chain((Geometric(a * 0),))
    with pytest.raises(DomainError, match="nonnegative"):
        Chain((Geometric(-a),))
    with pytest.raises(DomainError, match="not 0"):
        Chain((Matrix(a), Powers(0.0)))
    for p in (0, -math.inf, math.nan):
        with pytest.raises(OptionError, match="other than 0"):
            power_mean(a, p)
    for p, q in ((1, 2), (3, 2), (2, math.inf)):
        with pytest.raises(OptionError, match="1 < p <= q"):
            p_norms(a, p, q)
    with pytest.raises(ShapeError, match="do not fit"):
        sd.perron(Chain((Matrix(random(3, 4)), Matrix(random(3, 4)))))
    with pytest.raises(ShapeError, match="must return as many"):
        sd.perron(Chain((Matrix(random(3, 4)),)))
    with pytest.raises(ShapeError, match="add a Matrix"):
        sd.perron(Chain((Powers(0.5),)))
    with pytest.raises(OptionError, match="left eigenvectors"):
        sd.perron(Chain((Matrix(a),)), side="left")
    with pytest.raises(OptionError, match="use 'anderson'"):
        sd.perron(Chain((Matrix(a),)), method="krylov")


def test_powers_beyond_the_range_of_a_double_give_no_bracket():
    spread = torch.diag(torch.tensor([1e200, 1e-200], dtype=torch.float64)) + 1e-200
    result = sd.perron(Chain((Matrix(spread), Powers(5.0), Powers(0.2))))
    assert result.status == Status.NONFINITE
    assert float(result.lower) == 0.0
    assert math.isinf(float(result.upper))
