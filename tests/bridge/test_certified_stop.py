"""Solvers that only know residuals are given a test that implies the certified one; no Julia is needed for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from subdeq_plugin.bridge.solver import SOLVERS as JULIA_SOLVERS
from subdeq_plugin.certificates import certify, contraction_of
from subdeq_plugin.layers import SubhomLinear
from subdeq_plugin.metrics import Contraction
from subdeq_plugin.result import Solution
from subdeq_plugin.solvers import Picard, Problem, Solver, Stop, solve
from tests.helpers import iterate, log_distance
from tests.problems import bound_map, normal, ones_for


@dataclass(frozen=True)
class Residual(Solver):
    """Plain iteration that ends by the residual it is told, and knows nothing of proofs."""

    name: ClassVar[str] = "residual"

    def _run(self, problem: Problem, z0: Tensor, stop: Stop) -> Solution:
        assert stop.mode != "certified"
        return Picard()._run(problem, z0, stop)


@pytest.mark.parametrize("name", sorted(JULIA_SOLVERS))
@pytest.mark.parametrize(("metric", "rate"), [("thompson", 0.3), ("hilbert", 0.95), ("thompson", 0.0)])
def test_the_residual_in_the_metric_of_the_proof(name, metric, rate):
    bound = bound_map("dense", 3)
    problem = Problem.of(bound, ones_for(bound), Contraction.in_metric(rate, metric))
    told = JULIA_SOLVERS[name]()._understood(problem, Stop(1e-4, 77, "certified", (3,)))
    assert (told.mode, told.max_iter, told.indexing) == (metric, 77, (3,))
    assert told.tol == pytest.approx(1e-4 * (1 - rate), rel=1e-12)
    for mode in ("abs", "rel", "thompson"):
        assert JULIA_SOLVERS[name]()._understood(problem, Stop(1e-4, 77, mode)) == Stop(1e-4, 77, mode)


@pytest.mark.parametrize("keywords", [{"shift": 0.02}, {"shift": 0.3, "normalize": 2}, {"shift": 0.1}], ids=str)
def test_the_answer_is_within_the_tolerance(keywords):
    bound = bound_map("dense", 3, **keywords)
    proof = contraction_of(bound)
    exact = iterate(bound, ones_for(bound))
    for tol in (0.3, 1e-3, 1e-9):
        found = solve(bound, ones_for(bound), Residual(), tol=tol, max_iter=3000, stop_mode="certified",
                      contraction=proof)  # fmt: skip
        assert found.converged
        assert bool((log_distance(proof.metric, found.value, exact, 1) <= tol + 1e-13).all())


def test_a_proof_in_a_norm_is_kept_as_well():
    """There a distance is absolute: a small relative residual of a large state says too little."""
    layer = SubhomLinear(3, 4, "relu", 0.0, weight="signed", injection_map="identity", dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(0.4 * torch.eye(4))
        layer.injection.bias.fill_(1000.0)
    bound = layer.bind(normal(2, 3, seed=1)).detach()
    certificate = certify(bound, conditions="norm")
    proof = certificate.contraction
    assert proof is not None and certificate.metric == "linf"
    exact = iterate(bound, ones_for(bound))
    for solver in (Picard(), Residual()):
        found = solve(bound, ones_for(bound), solver, tol=1e-3, max_iter=3000, stop_mode="certified",
                      contraction=proof)  # fmt: skip
        assert found.converged
        assert float((found.value - exact).abs().max()) <= 1e-3 + 1e-9
