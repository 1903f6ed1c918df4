"""Anderson acceleration against the definition: the Gram matrix, and a least-squares problem solved by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from subdeq_plugin.solvers import Anderson, Problem
from tests.problems import normal, signed_bound

EPS = np.finfo(np.float64).eps


def smooth(z: Tensor) -> Tensor:
    """Three samples with fixed points of different difficulty, mixing all entries."""
    n = z.shape[1]
    mixing = torch.linalg.qr(normal(n, n, seed=9))[0].to(z.dtype)
    size = torch.tensor([[0.4], [0.7], [0.9]], dtype=z.dtype)
    return size * torch.sin(z @ mixing.T) + 0.3


def steps(solver: Anderson, function, z: Tensor, count: int):
    """The iterates and the memory after each step; a copy, for it is written over."""
    problem = Problem.of(function, z)
    state, states = solver.start(problem, z), [z]
    for _ in range(count):
        z = solver.step(problem, z, function(z), state)
        states.append(z)
    return states, state


def check_gram(state) -> None:
    """The matrix that is kept up to date is the product of what is remembered."""
    product = torch.bmm(state.dr, state.dr.mT)
    used = min(state.count, state.dr.shape[1])
    torch.testing.assert_close(
        state.gram[:, :used, :used], product[:, :used, :used], rtol=1e-12, atol=1e-14 * float(product.abs().max())
    )
    torch.testing.assert_close(state.gram, state.gram.mT, rtol=0, atol=0)


@pytest.mark.parametrize("memory", [1, 2, 3, 5])
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_the_gram_matrix_is_that_of_the_differences(memory, damping):
    solver = Anderson(memory=memory, damping=damping)
    z = normal(3, 30, seed=1)
    problem = Problem.of(smooth, z)
    state, seen = solver.start(problem, z), []
    for count in range(2 * memory + 3):  # more than once around
        seen.append(smooth(z) - z)
        z = solver.step(problem, z, smooth(z), state)
        assert state.count == count
        if count:
            check_gram(state)
            slot = (count - 1) % memory
            torch.testing.assert_close(state.dr[:, slot], seen[-1] - seen[-2], rtol=0, atol=0)


def test_the_gram_matrix_after_forgetting():
    solver, z = Anderson(memory=3), normal(3, 6, seed=2)
    problem = Problem.of(smooth, z)
    state = solver.start(problem, z)
    for k in range(12):
        residual = 0.1 * normal(3, 6, seed=20 + k)
        if k in (5, 9):
            residual[k % 3] *= 100  # one sample forgets
        if k == 7:
            residual[1, 0] = torch.nan  # another one is lost for a step
        before = state.gram.clone()
        z = solver.step(problem, z.nan_to_num(), z.nan_to_num() + residual, state)
        if k in (5, 9):
            assert not bool(state.dr[k % 3].any()) and not bool(state.gram[k % 3].any())
            assert bool(before[k % 3].any()) and bool(state.gram[(k + 1) % 3].any())
        clean = state.dr.isfinite().all(dim=(1, 2))
        product = torch.bmm(state.dr, state.dr.mT)
        used = min(state.count, 3)
        torch.testing.assert_close(
            state.gram[clean][:, :used, :used], product[clean][:, :used, :used], rtol=1e-12, atol=1e-14
        )


def reference(function, z: np.ndarray, count: int, memory: int, damping: float, regularization: float) -> list:
    """The method for one sample, written out: differences of the last residuals, least squares by a dense solve."""
    states, differences, before, best = [z], [], None, np.inf
    for _ in range(count):
        r = function(z) - z
        g = z + damping * r
        if before is not None:
            differences = [*differences, (r - before[0], g - before[1])][-memory:]
            size = np.linalg.norm(r)
            if size > 10 * best:
                differences = [(0 * r, 0 * g) for _ in differences]
            best = min(best, size)
        before, z = (r, g), g
        if any(np.any(dr) for dr, _ in differences):
            dr, dg = (np.stack([pair[i] for pair in differences], axis=1) for i in (0, 1))
            weight = regularization * EPS * np.trace(dr.T @ dr)
            # The normal equations say the same as least squares over the matrix with a multiple of the unit below it.
            stacked = np.vstack([dr, np.sqrt(weight) * np.eye(dr.shape[1])])
            z = g - dg @ np.linalg.lstsq(stacked, np.concatenate([r, np.zeros(dr.shape[1])]), rcond=None)[0]
        states.append(z)
    return states


@pytest.mark.parametrize("memory", [1, 2, 3, 5])
@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("regularization", [10.0, 1e12])
def test_iterates_are_those_of_the_definition(memory, damping, regularization):
    solver, z = Anderson(memory=memory, damping=damping, regularization=regularization), normal(3, 30, seed=3)
    states, state = steps(solver, smooth, z, 9)
    assert state.count == 8
    for row in range(3):

        def one(v: np.ndarray, row: int = row) -> np.ndarray:
            batch = torch.zeros(3, 30, dtype=torch.float64)
            batch[row] = torch.from_numpy(v)
            return smooth(batch)[row].numpy()

        expected = reference(one, z[row].numpy(), 9, memory, damping, regularization)
        for got, truth in zip(states, expected, strict=True):
            np.testing.assert_allclose(got[row].numpy(), truth, rtol=0, atol=1e-7 * np.abs(truth).max())


def test_a_layer_in_numpy():
    bound = signed_bound()
    weight, outer = bound.operator.tensors[0].numpy(), bound.outer.numpy()
    shift = bound.activation.shift
    states, _ = steps(Anderson(memory=3), bound, torch.ones(3, 5, dtype=torch.float64), 6)
    for row in range(3):
        expected = reference(lambda v, row=row: np.tanh(weight @ v) + shift + outer[row], np.ones(5), 6, 3, 1.0, 10.0)
        for got, truth in zip(states, expected, strict=True):
            np.testing.assert_allclose(got[row].numpy(), truth, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shorter_dtypes_keep_their_dtype_and_a_finite_matrix(dtype):
    z = normal(3, 6, seed=4).to(dtype)
    states, state = steps(Anderson(memory=3), smooth, z, 8)
    assert all(part.dtype == dtype for part in (*states, state.dr, state.dg, state.gram, state.best))
    assert bool(states[-1].isfinite().all()) and bool(state.gram.isfinite().all())


def test_a_memory_is_never_longer_than_the_state():
    states, state = steps(Anderson(memory=50), smooth, normal(3, 4, seed=5), 12)
    assert state.dr.shape == (3, 4, 4) and bool(states[-1].isfinite().all())
    check_gram(state)
