"""The brackets contain the eigenvalue, whatever the method says of its convergence."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from flint import arb

import subdeq_plugin as sd
from subdeq_plugin.result import Status
from tests.perron.families import FAMILIES
from tests.perron.reference import perron_root

COUNT = 24  # matrices of each family and size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [2, 3, 7, 20, 45, 60])
def test_brackets_contain_the_eigenvalue_at_fifty_digits(family, size):
    rng = np.random.default_rng(size)
    matrices = np.stack([FAMILIES[family](rng, size) for _ in range(COUNT)])
    result = sd.perron(torch.from_numpy(matrices))
    for i, matrix in enumerate(matrices):
        low, high = perron_root(matrix, result.eigenvector[i].numpy())
        assert arb(float(result.lower[i])) <= high, (i, result.status[i])
        assert arb(float(result.upper[i])) >= low, (i, result.status[i])
        if result.status[i] == Status.CONVERGED:
            assert float(result.width[i]) <= 1e-12
        assert result.lower[i] <= result.eigenvalue[i] <= result.upper[i]
    assert float((result.status <= Status.ROUNDING_FLOOR).double().mean()) == 1.0, result.status


@pytest.mark.parametrize("scale", [1e308, 1e-300, 5e-324, 1e-310])
def test_brackets_at_the_ends_of_the_range(scale):
    matrix = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]) * scale
    result = sd.perron(torch.from_numpy(matrix))
    root = 2 * arb(scale)
    assert arb(float(result.lower)) <= root
    assert arb(float(result.upper)) >= root
    assert float(result.lower) > 0


@pytest.mark.parametrize("small", [1e-300, 1e-320, 5e-324])
@pytest.mark.parametrize("form", [torch.from_numpy, sp.csr_array])
def test_no_nonzero_entry_is_lost(small, form):
    for matrix in ([[0.0, 1e300], [small, 0.0]], [[1.0, 1e300, 0.0], [0.0, 2.0, small], [small, 0.0, 1e-200]]):
        array = np.array(matrix)
        result = sd.perron(form(array))
        low, high = perron_root(array, np.array([1.0, 1e-300, 1e-300][: len(array)]))
        assert arb(float(result.lower)) <= high
        assert arb(float(result.upper)) >= low
        assert result.patterns[0].irreducible
