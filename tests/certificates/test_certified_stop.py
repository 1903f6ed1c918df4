"""A certified solve in Hilbert's metric must not stop on a state that is off the slice `phi = 1`."""

from __future__ import annotations

import pytest
import torch

import subdeq_plugin as sd
from tests.helpers import iterate, log_distance, silence_injection


@pytest.mark.parametrize("solver", ["picard", "anderson", "newton_krylov", "auto"])
def test_the_default_start_is_not_mistaken_for_the_solution(solver):
    """At the ones `tanh` is saturated and `G(ones)` lies on their ray; on the slice, of entries near 1/100, it is not.

    The contraction holds on the slice only, so the zero distance from the ones to their image proves nothing.
    """
    size = 100
    layer = sd.SubhomLinear(1, size, "tanh", 0.1, 1.0, 1, dtype=torch.float64)
    weight = torch.full((size, size), 0.4, dtype=torch.float64)
    weight[size // 2 :] = 0.8
    layer.weight = weight
    silence_injection(layer)
    x = torch.zeros(1, 1, dtype=torch.float64)
    solution = iterate(layer.bind(x).detach(), torch.ones(1, size, dtype=torch.float64))
    assert float(log_distance("hilbert", torch.ones(1, size), solution, 1)) > 0.4
    with torch.no_grad():
        value = sd.SubDEQ(layer, f_solver=f"subdeq:{solver}", f_tol=1e-6)(x)
    assert float(log_distance("hilbert", value, solution, 1)) <= 1e-6
    torch.testing.assert_close(value, solution, rtol=1e-5, atol=0)
