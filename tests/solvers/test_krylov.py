"""The batched GMRES kernel and the Jacobian products it is fed, against dense linear algebra in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subdeq_plugin.solvers import Gmres, Problem, solve
from subdeq_plugin.solvers.krylov import gmres
from tests.problems import Affine, bound_map, non_normal, normal, ones_for, plain, with_norm


def products(matrix: Tensor):
    """`v -> J v` for one matrix per sample."""
    return lambda v: (matrix @ v[..., None])[..., 0]


def solved(matrix: Tensor, right: Tensor, rtol: float = 1e-12, krylov_dim: int = 40) -> Tensor:
    return gmres(products(matrix), right, rtol=rtol, krylov_dim=krylov_dim)[0]


def direct(matrix: Tensor, right: Tensor) -> np.ndarray:
    n = matrix.shape[-1]
    system = np.eye(n) - matrix.double().expand(right.shape[0], n, n).numpy()
    return np.linalg.solve(system, right.double().numpy()[..., None])[..., 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), batch=st.integers(1, 4), seed=st.integers(0, 10_000), size=st.floats(0.0, 3.0))
def test_a_full_krylov_space_solves_the_system(n, batch, seed, size):
    matrix, right = size * normal(batch, n, n, seed=seed) / n**0.5, normal(batch, n, seed=seed + 1)
    condition = np.linalg.cond(np.eye(n) - matrix.numpy()).max()
    if condition > 1e6:
        return
    got, expected = solved(matrix, right).numpy(), direct(matrix, right)
    assert np.abs(got - expected).max() <= 1e-12 * condition**2 * (1 + np.abs(expected).max())


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_each_step_minimises_the_residual_over_the_krylov_space(steps):
    matrix, right = normal(2, 7, 7, seed=1) / 2, normal(2, 7, seed=2)
    got, used = gmres(products(matrix), right, rtol=0.0, krylov_dim=steps)
    assert used == steps
    for row in range(2):
        system = np.eye(7) - matrix[row].numpy()
        vectors = [right[row].numpy()]
        for _ in range(steps - 1):
            vectors.append(system @ vectors[-1])
        basis = np.linalg.qr(np.stack(vectors, axis=1))[0]
        y = np.linalg.lstsq(system @ basis, right[row].numpy(), rcond=None)[0]
        np.testing.assert_allclose(got[row].numpy(), basis @ y, rtol=1e-8, atol=1e-9)


def test_the_residual_is_below_the_tolerance_when_it_stops_early():
    matrix, right = with_norm(normal(30, 30, seed=3), 0.8), normal(3, 30, seed=4)
    for rtol in (1e-1, 1e-3, 1e-6):
        got, used = gmres(products(matrix), right, rtol=rtol, krylov_dim=30)
        residual = right - (got - products(matrix)(got))
        assert used < 30
        assert bool((residual.norm(dim=1) <= 1.01 * rtol * right.norm(dim=1)).all())


def test_an_exact_breakdown_stops_at_the_solution():
    # The right-hand side lies in an invariant subspace of dimension two.
    matrix = torch.diag(torch.tensor([0.5, 0.5, -0.25, 0.9, 0.9], dtype=torch.float64))
    right = torch.tensor([[1.0, 1.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    got, _ = gmres(products(matrix), right, rtol=0.0, krylov_dim=5)
    np.testing.assert_allclose(got.numpy(), direct(matrix, right), rtol=1e-13)


def test_an_eigenvector_is_solved_in_one_step():
    matrix = torch.diag(torch.tensor([0.5, 0.1], dtype=torch.float64))
    got, used = gmres(products(matrix), torch.tensor([[3.0, 0.0]], dtype=torch.float64), rtol=1e-10, krylov_dim=2)
    assert used == 1
    torch.testing.assert_close(got, torch.tensor([[6.0, 0.0]], dtype=torch.float64))


def test_a_consistent_singular_system_gives_a_solution():
    matrix = torch.diag(torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64))  # I - J has a kernel
    right = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    got = solved(matrix, right)
    torch.testing.assert_close(got - products(matrix)(got), right, rtol=1e-12, atol=1e-13)


def test_an_inconsistent_singular_system_stays_finite_and_disturbs_nobody():
    matrix = torch.stack([torch.eye(3, dtype=torch.float64), torch.diag(torch.full((3,), 0.5).double())])
    right = torch.ones(2, 3, dtype=torch.float64)
    got = solved(matrix, right)
    assert bool(got.isfinite().all())
    torch.testing.assert_close(got[1], torch.full((3,), 2.0, dtype=torch.float64))


def test_a_zero_right_hand_side_gives_exactly_zero():
    right = normal(3, 6, seed=6)
    right[1] = 0.0
    matrix = with_norm(normal(6, 6, seed=5), 0.9)
    got = solved(matrix, right)
    assert torch.equal(got[1], torch.zeros(6, dtype=torch.float64))
    np.testing.assert_allclose(got.numpy(), direct(matrix, right), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_row_comes_back_as_nan_and_disturbs_nobody(bad):
    matrix, right = with_norm(normal(6, 6, seed=5), 0.9), normal(3, 6, seed=6)
    clean = solved(matrix, right)
    right[1, 2] = bad
    got = solved(matrix, right)
    assert bool(got[1].isnan().any())
    torch.testing.assert_close(got[::2], clean[::2], rtol=0, atol=0)


def test_a_finished_row_does_not_depend_on_the_steps_of_the_others():
    easy, hard = 0.1 * torch.eye(8, dtype=torch.float64), with_norm(normal(8, 8, seed=8), 0.95)
    easy[0, 1] = 0.05
    right = normal(2, 8, seed=9)
    alone, few = gmres(products(easy[None]), right[:1], rtol=1e-2, krylov_dim=8)
    both, many = gmres(products(torch.stack([easy, hard])), right, rtol=1e-2, krylov_dim=8)
    assert many > few
    torch.testing.assert_close(both[:1], alone, rtol=1e-14, atol=1e-15)


def test_non_normal_systems():
    matrix, right = non_normal(12), normal(2, 12, seed=10)
    np.testing.assert_allclose(solved(matrix, right).numpy(), direct(matrix, right), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e8])
def test_the_scale_of_the_right_hand_side_does_not_matter(scale):
    matrix, right = with_norm(normal(20, 20, seed=11), 0.9), normal(3, 20, seed=12)
    reference, used = gmres(products(matrix), right, rtol=1e-6, krylov_dim=20)
    got, again = gmres(products(matrix), scale * right, rtol=1e-6, krylov_dim=20)
    assert again == used
    torch.testing.assert_close(got / scale, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_difference_quotient_is_exact_on_affine_maps(scale, dtype):
    matrix, constant = normal(5, 5, seed=13, dtype=dtype), scale * normal(3, 5, seed=14, dtype=dtype)
    z = scale * normal(3, 5, seed=15, dtype=dtype)
    problem = Problem.of(plain(Affine(matrix, constant)), z)
    product = problem.jacobian_at(z, problem(z))
    for length in (1e-6, 1.0, 1e6):
        v = length * normal(3, 5, seed=16, dtype=dtype)
        expected = v.double() @ matrix.double().T
        error = (product(v).double() - expected).norm() / expected.norm()
        assert float(error) <= 100 * torch.finfo(dtype).eps


def test_the_difference_quotient_of_a_zero_vector_is_zero():
    z = normal(2, 3, seed=17)
    problem = Problem.of(torch.sin, z)
    assert torch.equal(problem.jacobian_at(z, problem(z))(torch.zeros_like(z)), torch.zeros_like(z))


def test_the_difference_quotient_approaches_the_derivative_with_the_residual():
    root = torch.full((1, 3), 0.7390851332151607, dtype=torch.float64)
    v = normal(1, 3, seed=18)
    exact = -root.sin() * v
    errors = []
    for distance in (1e-1, 1e-3, 1e-5):
        z = root + distance
        problem = Problem.of(plain(torch.cos), z)
        errors.append(float((problem.jacobian_at(z, problem(z))(v) - exact).norm()))
    assert errors[0] > 20 * errors[1] > 400 * errors[2] > 0


def test_a_bound_map_supplies_its_own_products():
    bound = bound_map("conv", 3)
    z = ones_for(bound) * 0.7
    problem = Problem.of(bound, z)
    v = normal(*z.shape, seed=19)
    exact = torch.autograd.functional.jvp(bound, z, v)[1]
    got = problem.jacobian_at(problem.flatten(z), problem(problem.flatten(z)))(problem.flatten(v))
    torch.testing.assert_close(got.reshape(z.shape), exact, rtol=1e-12, atol=1e-13)


def test_gmres_on_an_affine_map_needs_one_step():
    function = Affine(with_norm(normal(9, 9, seed=20), 0.99), normal(3, 9, seed=21))
    solution = solve(function, torch.zeros(3, 9).double(), Gmres(linear_rtol=1e-12), tol=1e-10, max_iter=9)
    assert solution.evaluations == 2 and solution.linear_evaluations <= 9
    torch.testing.assert_close(solution.value, function.solution(), rtol=1e-8, atol=1e-9)


def test_gmres_refines_where_the_krylov_space_is_small():
    function = Affine(with_norm(normal(30, 30, seed=22), 0.7), normal(2, 30, seed=23))
    solution = solve(function, torch.zeros(2, 30).double(), Gmres(krylov_dim=5), tol=1e-10, max_iter=60)
    assert solution.converged and solution.evaluations > 2
    torch.testing.assert_close(solution.value, function.solution(), rtol=1e-8, atol=1e-9)


def test_products_and_evaluations_are_both_counted():
    calls = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.cos(z) * 0.5 + z.flip(1) * 0.3

    solution = solve(counted, torch.zeros(2, 4).double(), Gmres(), tol=1e-9, max_iter=50)
    assert calls == solution.evaluations + solution.linear_evaluations
