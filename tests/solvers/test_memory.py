"""What a solve holds beyond its inputs, in states of the batch: the figures of `docs/performance.md`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchdeq.solver import get_solver

import subdeq_plugin as sd
from subdeq_plugin.bench import peak_memory
from subdeq_plugin.solvers import Auto, Problem, Solver, Stop
from tests.problems import seeded

KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {}, "inside": {"injection": "inside"}, "power": {"power": 0.5}, "normalised": {"normalize": 2}
}  # fmt: skip
STATES = {("dense", False): 4, ("dense", True): 8, ("conv", False): 7, ("conv", True): 10,
          ("graph", False): 8, ("graph", True): 9}  # fmt: skip


def make(kind: str, **keywords: Any) -> sd.BoundMap:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "dense":
            return sd.SubhomLinear(20, 100, shift=0.3, **keywords).bind(torch.rand(1000, 20)).detach()
        if kind == "conv":
            return sd.SubhomConv2d(3, 16, 3, shift=0.3, **keywords).bind(torch.rand(8, 3, 28, 28)).detach()
        edges = torch.randint(2000, (2, 10_000), generator=seeded(1))
        return sd.SubhomGraph(8, 16, 0.2, shift=0.3, **keywords).bind((torch.rand(2000, 8), edges)).detach()


def held(bound: sd.BoundMap, solver: Solver) -> tuple[float, int]:
    """The peak beyond weights and the numbers of a sample, in states; and the evaluations."""
    contraction = sd.certify(bound).contraction
    start, evaluations = bound.start(), []
    problem, stop = Problem.of(bound, start, contraction), Stop(1e-5, 200, "certified")

    def work() -> Tensor:
        solution = solver.solve(problem, start, stop)
        evaluations.append(solution.evaluations)
        return solution.value

    peak = peak_memory(work)
    weights = sum(part.numel() * part.element_size() for part in bound.operator.tensors)
    samples = problem.samples * 64
    return (peak - weights - samples) / (start.numel() * start.element_size()), evaluations[0]


@pytest.mark.parametrize("name", KEYWORDS)
@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
def test_a_certified_solve_holds_what_the_documentation_says(kind, name):
    bound = make(kind, **KEYWORDS[name])
    states, evaluations = held(bound, Auto())
    most = STATES[kind, name in ("normalised", "power")]
    assert evaluations >= 4 and states <= most
    assert held(bound, Auto(bfloat16=2))[0] <= most + 4


@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
def test_no_more_than_half_of_what_anderson_acceleration_of_torchdeq_holds(kind):
    bound = make(kind)
    start, anderson = bound.start(), get_solver("anderson")
    theirs = peak_memory(lambda: anderson(bound, start, max_iter=30, tol=1e-5, stop_mode="rel"))
    assert held(bound, Auto())[0] * start.numel() * start.element_size() <= theirs / 2


def test_a_large_batch_is_taken_in_parts_and_holds_little_more_than_its_answer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bound = sd.SubhomLinear(8, 64, shift=0.3).bind(torch.rand(200_000, 8)).detach()
    assert held(bound, Auto())[0] <= 1.5
