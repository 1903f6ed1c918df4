"""The solver contract for every solver, entered directly and through torchdeq's registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchdeq.solver import get_solver
from torchdeq.solver.stat import SolverStat

import subdeq_plugin as sd
from subdeq_plugin.bridge.solver import NewtonKrylov as NewtonKrylovInJulia
from subdeq_plugin.errors import OptionError
from subdeq_plugin.integration.spec import FAMILIES
from subdeq_plugin.layers import BoundMap
from subdeq_plugin.solvers import SOLVERS, Anderson, Gmres, Halpern, NewtonKrylov, Picard, Solver, solve
from tests.contracts.solver_contract import Outcome, Route, SolverContract
from tests.helpers import certify_structure, marked
from tests.problems import Map

VARIANTS: dict[str, Solver] = {
    **{name: kind() for name, kind in SOLVERS.items()},
    "picard-damped": Picard(damping=0.8),
    "anderson-short": Anderson(memory=3, damping=0.9),
    "newton_krylov-rough": NewtonKrylov(linear_rtol=0.3, backtracks=5),
    "halpern-eager": Halpern(restart=0.8),
    "gmres-fine": Gmres(linear_rtol=1e-8),
}


JULIA_VARIANTS: dict[str, Solver] = {
    **{f"julia-{name}": kind(native=False) for name, kind in FAMILIES["julia"].items()},  # type: ignore[call-arg]
    "julia-newton_krylov-fine": NewtonKrylovInJulia(native=False, linear_rtol=1e-8),
}


def direct(name: str) -> Route:
    """`subdeq_plugin.solve`; the contraction is passed where there is a certificate, as the core does."""

    def run(function: Map, start: Tensor, **settings: Any) -> Outcome:
        contraction = certify_structure(function).contraction if isinstance(function, BoundMap) else None
        solution = solve(function, start, {**VARIANTS, **JULIA_VARIANTS}[name], contraction=contraction, **settings)
        return Outcome(
            solution.value, list(solution.trajectory), solution.status, solution.abs_residual, solution.rel_residual,
            solution.iterations, solution.abs_trace, solution.rel_trace, solution.evaluations,
        )  # fmt: skip

    return Route(name, run)


def through_torchdeq(key: str) -> Route:
    """A registered key with torchdeq's calling convention."""

    def run(function: Map, start: Tensor, **settings: Any) -> Outcome:
        settings["indexing"] = list(settings["indexing"]) or None
        value, trajectory, info = get_solver(key)(function, start, **settings)
        assert isinstance(info, SolverStat) and isinstance(trajectory, list)
        return Outcome(
            value, trajectory, info["status"], info["abs_lowest"], info["rel_lowest"], info["nstep"],
            info["abs_trace"], info["rel_trace"], info["evaluations"],
        )  # fmt: skip

    return Route(key, run)


class TestDirect(SolverContract):
    @pytest.fixture(params=list(VARIANTS))
    def route(self, request):
        return direct(request.param)


@pytest.mark.julia
class TestJulia(SolverContract):
    """Torch evaluates every map here; what is solved inside Julia has a suite of its own."""

    @pytest.fixture(params=list(JULIA_VARIANTS))
    def route(self, request):
        return direct(request.param)


# Where torch evaluates every map, the numbers are those that the contract reads off the map itself.
REGISTERED = [sd.solver(f"{key}?native=false") if key.startswith("julia:") else key for key in sd.register()]


class TestTorchdeq(SolverContract):
    @pytest.fixture(params=marked(REGISTERED))
    def route(self, request):
        return through_torchdeq(request.param)

    @pytest.mark.parametrize("option", ["dampin", "m", "return_final", "tau", "memry"])
    def test_an_unknown_option_is_refused_by_name(self, route, option):
        with pytest.raises(OptionError, match=f"unknown option of solver .*{option!r}"):
            get_solver(route.name)(torch.cos, torch.ones(1, 2), **{option: 1.0})

    def test_a_known_option_is_taken(self, route):
        settings = get_solver(route.name).settings
        for name, kind in settings.options().items():
            value = kind(getattr(settings, name))
            get_solver(route.name)(torch.cos, torch.ones(1, 2), max_iter=3, **{name: value})
        assert get_solver(route.name).settings == settings

    def test_an_option_out_of_range_is_refused(self, route):
        with pytest.raises(OptionError, match="must be"):
            get_solver(route.name)(torch.cos, torch.ones(1, 2), **{next(iter(_options(route))): -1})


def _options(route: Route) -> dict[str, type]:
    options: dict[str, type] = get_solver(route.name).settings.options()
    return options


def test_every_solver_has_its_keys():
    subdeq, julia = ({f"{family}:{name}" for name in solvers} for family, solvers in FAMILIES.items())
    assert subdeq | julia == set(sd.register())


def test_a_misspelt_option_points_at_the_right_one():
    with pytest.raises(OptionError, match="did you mean 'memory'"):
        get_solver("subdeq:anderson")(torch.cos, torch.ones(1, 2), memry=3)
