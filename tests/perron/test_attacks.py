"""Cases in which an early version was wrong, or took for ever."""

from __future__ import annotations

import math

import pytest
import torch
from flint import arb, ctx
from torch.autograd import gradcheck

import subdeq_plugin as sd
from subdeq_plugin.errors import DomainError, ShapeError
from subdeq_plugin.perron import (
    BlockPowers,
    Chain,
    Contractions,
    Geometric,
    Matrix,
    Multihomogeneous,
    Powers,
    TensorForm,
    h_eigen,
    hits,
    node_edge,
    p_norms,
    power_mean,
    z_eigen,
)
from subdeq_plugin.result import Status
from tests.perron.test_tensors import random


@pytest.mark.parametrize("scale", [1e-120, 1e120])
@pytest.mark.parametrize("normalize", [1, 2, 3.5, "inf"])
def test_norms_of_tiny_and_huge_vectors(scale, normalize):
    matrix = random(3, 3)
    small, one = (sd.perron(hits(matrix * s), normalize=normalize) for s in (scale, 1.0))
    torch.testing.assert_close(small.factors / scale, one.factors)
    assert bool(
        (small.factor_bounds[:, 0] <= small.factors).all() and (small.factors <= small.factor_bounds[:, 1]).all()
    )


@pytest.mark.parametrize(("scale", "normalize"), [(1e100, 4), (1e160, 2), (1e-170, 2), (1.0, 400), (1e-110, 3)])
def test_gradients_of_tiny_and_huge_matrices(scale, normalize):
    matrix = (random(3, 3) * scale).requires_grad_()
    result = sd.perron(matrix, normalize=normalize)
    assert result.lower <= result.eigenvalue.detach() <= result.upper
    (gradient,) = torch.autograd.grad(result.eigenvalue, matrix)
    pair = sd.perron(matrix.detach(), side="both")
    expected = torch.outer(pair.left, pair.eigenvector) / (pair.left @ pair.eigenvector)
    torch.testing.assert_close(gradient, expected)


def test_slopes_that_underflow_prove_nothing():
    scale = 1e120
    eye = torch.eye(3, dtype=torch.float64)
    start = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    identity = Chain((Matrix(eye * scale), Powers(-2.0), Matrix(eye * scale**2), Powers(-0.5)))
    assert bool(sd.perron(identity, start).error_bound.isinf())
    coupled = eye + 1e-6 * torch.tensor([[0, 1.0, 0], [0, 0, 2], [3, 0, 0]], dtype=torch.float64)
    chain = Chain((Matrix(coupled * scale), Powers(-2.0), Matrix(eye * scale**2), Powers(-0.5)))
    early, final = sd.perron(chain, start, method="power", max_iter=3), sd.perron(chain)
    true = float(sd.hilbert(early.eigenvector[None], final.eigenvector[None]))
    assert true > 0.5
    assert true <= float(early.error_bound)


def test_terms_that_underflow_and_are_multiplied_up_again():
    tensor = torch.zeros(2, 2, 2, dtype=torch.float64)
    tensor[0, 1, 1], tensor[1, 0, 1], tensor[1, 1, 1] = 2.0**724, 2.0**-476, 2.0**700
    scale = torch.diag(torch.tensor([2.0**600, 2.0**-600], dtype=torch.float64))
    result = sd.perron(Chain((Matrix(scale), TensorForm(tensor), Powers(0.5))))
    exact = 2.0**-237.99999997
    assert float(result.lower) <= exact <= float(result.upper)
    assert result.status == Status.NONFINITE


def test_vectors_that_a_dtype_cannot_hold():
    for small, dtype in ((1e-30, torch.float32), (1e-20, torch.float32), (1e-4, torch.float16)):
        matrix = torch.tensor([[1, 1e-3, 1e-3], [small, 0.5, 1e-3], [0, small, 0.5]], dtype=torch.float64)
        result, exact = sd.perron(matrix.to(dtype)), sd.perron(matrix.to(dtype).double())
        vector = result.eigenvector.double()
        true = float(sd.hilbert(vector[None], exact.eigenvector[None])) if bool((vector > 0).all()) else math.inf
        assert true <= float(result.error_bound) + 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_exponents_that_are_no_doubles(seed):
    """The mean and the norm of a positive number, to 50 digits."""
    generator = torch.Generator().manual_seed(seed)
    p = 0.6 + 3 * float(torch.rand(1, generator=generator, dtype=torch.float64))
    value = 10.0 ** (280 * float(torch.rand(1, generator=generator, dtype=torch.float64)) - 140)
    with ctx.workprec(300):
        mean = sd.perron(power_mean(torch.tensor([[value]], dtype=torch.float64), p))
        exact = arb(value) ** (1 / arb(p))
        assert arb(float(mean.lower)) <= exact <= arb(float(mean.upper))
        q = p + 1
        norm = sd.perron(p_norms(torch.tensor([[value]], dtype=torch.float64), q, q), normalize=q)
        assert arb(float(norm.lower)) <= arb(value) <= arb(float(norm.upper))


def test_blocks_that_do_not_fit():
    tensor = random(3, 4, 5)
    pieces = (Contractions.of(tensor), BlockPowers((0.3,) * 3, (3, 4, 5)))
    with pytest.raises(ShapeError, match=r"sizes \(3, 4, 5\), not \(4, 4, 4\)"):
        Multihomogeneous(pieces, (4, 4, 4))
    with pytest.raises(ShapeError, match="at least one with a tensor"):
        Multihomogeneous((BlockPowers((0.5, 0.5), (2, 2)),), (2, 2))
    with pytest.raises(ShapeError, match="two or more dimensions"):
        Contractions.of(random(3))


def test_whole_numbers_and_complex_ones():
    incidence = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]])
    for build in (hits, node_edge, lambda t: hits(t.to(torch.complex128)), lambda t: power_mean(t, 2)):
        with pytest.raises(ShapeError, match="floating-point"):
            build(incidence)


def test_gradients_at_zero_entries():
    tensor = torch.zeros(3, 3, 2, dtype=torch.float64)
    tensor[0, 0, 0], tensor[1, 1, 1], tensor[2, 0, 1], tensor[0, 2, 0] = 1, 2, 1, 0.5
    parameter = tensor.clone().requires_grad_()
    sd.perron(hits(parameter, 0.4)).eigenvalue.backward()
    step = torch.zeros_like(tensor)
    step[1, 2, 0] = 1e-7
    quotient = (sd.perron(hits(tensor + step, 0.4)).eigenvalue - sd.perron(hits(tensor, 0.4)).eigenvalue) / 1e-7
    assert float(parameter.grad[1, 2, 0]) == pytest.approx(float(quotient), rel=1e-4)


def test_tiny_exponents_are_compared_with_each_other():
    with pytest.raises(DomainError, match="same sum"):
        Chain((Geometric(torch.tensor([[1e-16, 0.0], [0.0, 3e-15]], dtype=torch.float64)), Powers(1e10)))


def test_large_dense_tensors_end_at_the_rounding_floor():
    """A bracket as wide as rounding makes it is not narrowed by hundreds of further products."""
    result = sd.perron(hits(random(90, 90, 90)))
    assert result.status == Status.ROUNDING_FLOOR
    assert result.evaluations <= 20
    assert float(result.rate) < 1


def test_large_edges_and_powers():
    edges = [tuple(range(25)), (0, 1)]
    result = sd.perron(h_eigen(edges), method="power", max_iter=50)
    assert result.lower <= result.eigenvalue <= result.upper
    with pytest.raises(ShapeError, match="factorials"):
        h_eigen([tuple(range(101))])
    wide = sd.perron(Chain((Powers(1e200), Matrix(random(2, 2)), Powers(1e-200))))
    assert bool(wide.eigenvalue.isfinite())
    assert wide.lower <= wide.eigenvalue <= wide.upper


def test_maps_beyond_the_range_have_no_bounds():
    result = sd.perron(hits(random(2, 2, 2) * 1e300, 1.0))
    assert result.status > Status.ROUNDING_FLOOR
    assert not bool(result.factor_bounds.isnan().any())
    huge = sd.perron(z_eigen(random(3, 3, 3) + 7), normalize=1e3)
    assert bool(huge.eigenvalue.isfinite())


@pytest.mark.parametrize("function", [lambda t: hits(t, 0.4), lambda t: z_eigen(t + 1), lambda t: h_eigen(t)])
def test_elasticities_are_those_of_the_derivative(function):
    chain = function(random(3, 3, 3))
    z = random(2, chain(torch.ones(9 if isinstance(chain.pieces[0], Contractions) else 3, dtype=torch.float64)).numel())
    expected = chain.jacobian(z) * z[:, None, :] / chain(z)[:, :, None]
    torch.testing.assert_close(chain.elasticity(z), expected)
    assert gradcheck(chain, (z.requires_grad_(),))
