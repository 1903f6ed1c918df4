"""What passes between torch and Julia at every evaluation: one copy each way, and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import subdeq_plugin as sd
from subdeq_plugin.bridge import get_runtime
from subdeq_plugin.bridge.tensors import Shape, Staging, StagingPool
from tests.problems import bound_map, ones_for, residuals

pytestmark = pytest.mark.julia

VIEWS = {"aten.view.default", "aten.detach.default", "aten.alias.default", "aten._unsafe_view.default"}


class Count(TorchDispatchMode):
    """Every operation of torch that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) not in VIEWS:
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Flip:
    """A map that costs nothing and never settles, so that every evaluation up to the limit is spent."""

    def __init__(self, entries: int) -> None:
        image = torch.full((2, entries), 2.0, dtype=torch.float64)
        self.images = [image, -image]
        self.addresses: set[int] = set()

    def __call__(self, z: Tensor) -> Tensor:
        self.addresses.add(z.data_ptr())
        self.images.reverse()
        return self.images[0]


def operations(limit: int) -> tuple[Counter[str], Flip]:
    function = Flip(64)
    start = torch.ones(2, 64, dtype=torch.float64)
    with Count() as count:
        found = sd.solve(function, start, sd.parse_solver("julia:dfsane"), tol=0.0, max_iter=limit)
    assert found.evaluations == limit
    return count.seen, function


def test_an_evaluation_costs_torch_one_copy():
    operations(5)
    few, function = operations(5)
    many, _ = operations(25)
    assert many - few == Counter({"aten.copy_.default": 20})
    assert len(function.addresses) == 1, "the map is given the same staged memory every time"


def test_a_product_costs_torch_one_copy():
    bound = bound_map("dense", 3)
    counts = []
    for dimension in (1, 3):
        solver = sd.parse_solver(f"julia:newton_krylov?native=false&krylov_dim={dimension}&linear_rtol=1e-12")
        with Count() as count:
            found = sd.solve(bound, ones_for(bound), solver, tol=0.0, max_iter=3)
        counts.append((count.seen["aten.copy_.default"], found.evaluations, found.linear_evaluations))
    (first, evaluations, one), (second, same, other) = counts
    assert evaluations == same and other > one
    assert second - first == other - one


def test_staging_is_used_again_and_bounded():
    pool = StagingPool(get_runtime(), most_samples=2)

    def shape(entries: int) -> Shape:
        return Shape(("broyden", ()), 1, entries, torch.float64, False)

    with pool.lend(shape(3)) as first:
        pass
    with pool.lend(shape(3)) as again, pool.lend(shape(3)) as other:
        assert again is first and other is not first
    sessions = "length(SubDEQ.Bridge.SESSIONS)"
    before = get_runtime().call(lambda julia: int(julia.ask(sessions)))
    for entries in range(4, 10):
        with pool.lend(shape(entries)):
            pass
    assert get_runtime().call(lambda julia: int(julia.ask(sessions))) == before


def test_a_solve_that_raises_throws_its_session_away():
    pool = StagingPool(get_runtime())
    shape = Shape(("broyden", ()), 1, 3, torch.float64, False)
    lent: list[Staging] = []

    def fail() -> None:
        with pool.lend(shape) as staging:
            lent.append(staging)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pool.lend(shape) as staging:
        assert staging is not lent[0]


def test_a_solve_inside_a_map():
    """The map may itself solve, with another session of the same shape."""
    inner = sd.parse_solver("julia:newton_krylov")

    def outer(z: Tensor) -> Tensor:
        settled = sd.solve(lambda y: torch.cos(y) + 0.1 * z, torch.ones_like(z), inner, tol=1e-12).value
        return 0.5 * settled + 0.3

    found = sd.solve(outer, torch.ones(2, 3, dtype=torch.float64), inner, tol=1e-10)
    assert found.converged and float(residuals(outer, found.value)[1].max()) <= 1e-9


def test_states_on_the_callers_terms():
    """Shape, dtype, and a start that is neither contiguous nor changed."""
    start = torch.ones(4, 6, dtype=torch.float32).t()[:, ::2]
    seen = []

    def f(z: Tensor) -> Tensor:
        seen.append((z.shape, z.dtype))
        return torch.cos(z)

    found = sd.solve(f, start, sd.parse_solver("julia:newton_krylov"), tol=1e-5)
    assert found.converged and set(seen) == {(start.shape, torch.float32)}
    assert bool((start == 1).all())
