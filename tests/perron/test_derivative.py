"""Derivatives against finite differences, against the formulas for dense matrices, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.autograd import gradcheck, gradgradcheck

import subdeq_plugin as sd
from subdeq_plugin.errors import ConvergenceError
from tests.perron.families import directed


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


@pytest.mark.parametrize("normalize", [1, 2, "inf"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_gradcheck(normalize, side):
    def pair(matrix):
        result = sd.perron(matrix, normalize=normalize, side=side)
        return result.eigenvalue, result.eigenvector

    matrix = random(2, 4, 4).requires_grad_()
    assert gradcheck(pair, (matrix,), atol=1e-7)


def test_second_derivatives():
    matrix = random(3, 3).requires_grad_()
    assert gradgradcheck(lambda a: sd.perron(a).eigenvalue, (matrix,), atol=1e-6)
    assert gradgradcheck(lambda a: sd.perron(a, normalize=2).eigenvector, (matrix,), atol=1e-6)


def test_the_gradient_of_the_eigenvalue_is_the_product_of_the_vectors():
    matrix = random(5, 5).requires_grad_()
    result = sd.perron(matrix, side="both")
    (gradient,) = torch.autograd.grad(result.eigenvalue, matrix)
    x, y = result.eigenvector.detach(), result.left.detach()
    torch.testing.assert_close(gradient, torch.outer(y, x) / (y @ x))


def test_the_derivative_of_the_vector_is_that_of_the_group_inverse():
    matrix, direction = random(6, 6), random(6, 6, seed=1)
    result = sd.perron(matrix, normalize=1)
    _, tangent = torch.autograd.functional.jvp(lambda a: sd.perron(a).eigenvector, matrix, direction)
    value, x = result.eigenvalue, result.eigenvector
    y = sd.perron(matrix, side="left").eigenvector
    # (lambda I - A)^# E x, corrected to keep the sum.
    n = len(x)
    projector = torch.outer(x, y) / (y @ x)
    group = torch.linalg.inv(value * torch.eye(n, dtype=torch.float64) - matrix + projector) - projector
    raw = group @ direction @ x
    torch.testing.assert_close(tangent, raw - x * raw.sum(), rtol=1e-8, atol=1e-10)


def test_sparse_and_dense_gradients_agree():
    dense = random(6, 6) * (random(6, 6, seed=2) > 0.5) + torch.eye(6, dtype=torch.float64).roll(1, 0)
    indices = dense.nonzero().T
    values = dense[tuple(indices)].clone().requires_grad_()

    def loss(matrix):
        result = sd.perron(matrix)
        return result.eigenvalue + (result.eigenvector * torch.arange(6.0, dtype=torch.float64)).sum()

    loss(torch.sparse_coo_tensor(indices, values, (6, 6), check_invariants=True)).backward()
    whole = dense.clone().requires_grad_()
    loss(whole).backward()
    torch.testing.assert_close(values.grad, whole.grad[tuple(indices)])


def test_no_derivative_where_the_eigenvalue_is_not_simple():
    matrix = torch.eye(3, dtype=torch.float64).requires_grad_()
    result = sd.perron(matrix)
    assert float(result.eigenvalue.detach()) == 1.0
    with pytest.raises(ConvergenceError, match="not be simple"):
        result.eigenvector[0].backward()


def test_a_spectral_radius_in_a_loss_gets_smaller():
    weight = torch.nn.Parameter(random(8, 8))
    optimiser = torch.optim.SGD([weight], lr=0.05)
    before = float(sd.perron(weight.detach()).eigenvalue)
    for _ in range(20):
        optimiser.zero_grad()
        sd.perron(weight.clamp(min=0)).eigenvalue.backward()
        optimiser.step()
    assert float(sd.perron(weight.detach().clamp(min=0)).eigenvalue) < before - 0.1


@pytest.mark.parametrize("size", [300, 2100])
def test_gradients_of_large_sparse_matrices(size):
    """Both ways of solving the adjoint equation, against the product of the vectors and a second route."""
    matrix = directed(size).tocoo()
    indices = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
    values = torch.from_numpy(matrix.data).requires_grad_()
    tensor = torch.sparse_coo_tensor(indices, values, matrix.shape, check_invariants=True).coalesce()
    result = sd.perron(tensor, side="both")
    (gradient,) = torch.autograd.grad(result.eigenvalue, values, retain_graph=True)
    x, y = result.eigenvector.detach(), result.left.detach()
    torch.testing.assert_close(gradient, y[indices[0]] * x[indices[1]] / (y @ x), rtol=1e-8, atol=1e-12)
    # A directional derivative of one entry of the vector, by differences.
    (gradient,) = torch.autograd.grad(result.eigenvector[7], values)
    direction = torch.rand(len(values), generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def entry(step: float) -> float:
        moved = (values.detach() + step * direction).numpy()
        return float(sd.perron(sp.coo_array((moved, (matrix.row, matrix.col)), shape=matrix.shape)).eigenvector[7])

    quotient = (entry(1e-5) - entry(-1e-5)) / 2e-5
    assert float(gradient @ direction) == pytest.approx(quotient, rel=1e-4)
