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
from subdeq_plugin.perron import Chain, Largest, Matrix, Powers, p_norms, power_mean
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
    "largest after matrix": lambda a: Chain((Matrix(a), Powers(0.5), Largest(a), Powers(2.0))),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("method", ["auto", "power", "noda", "anderson"])
@pytest.mark.parametrize("normalize", [1, 2, 3.5, "inf"])
def test_eigenpairs_satisfy_their_equation(name, method, normalize):
    chain = CHAINS[name](random(7, 7))
    result = sd.perron(chain, method=method, normalize=normalize, max_iter=2000)
    x, value = result.eigenvector, result.eigenvalue
    assert result.status <= Status.ROUNDING_FLOOR
    torch.testing.assert_close(chain(x), value ** (1 / chain.exponent) * x, rtol=1e-10, atol=0)
    assert float(torch.linalg.vector_norm(x, ord=float(normalize))) == pytest.approx(1, abs=1e-12)
    assert result.lower <= value <= result.upper
    assert float(result.width) < 1e-11


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


@pytest.mark.parametrize("name", ["harmonic", "cubes", "norms 2 4", "norms 3 3"])
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
