"""Julia's methods as solvers: options, failures, gradients, and the company they must keep in torch."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchdeq import get_deq

import subdeq_plugin as sd
from subdeq_plugin.bridge import SOLVERS
from subdeq_plugin.errors import BridgeError, ConvergenceError, ConvergenceWarning, OptionError
from subdeq_plugin.result import Status
from tests.problems import bound_map, make_input, make_layer, normal, ones_for, residuals

KEYS = [f"julia:{name}" for name in SOLVERS]


# Keys and options; these need no Julia


def test_the_keys_are_those_of_the_contract():
    names = {"newton_krylov", "newton_raphson", "trust_region", "pseudo_transient", "broyden", "dfsane", "auto"}
    assert {f"julia:{name}" for name in names} == set(KEYS) <= set(sd.register())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("julia:newton_krilov", "did you mean 'julia:newton_krylov'"),
        ("julia:newton_krylov?linear_tol=1", "did you mean 'linear_rtol'"),
        ("julia:newton_krylov?linear_rtol=2", r"linear_rtol must be in \(0, 1\), got 2"),
        ("julia:newton_krylov?krylov_dim=0", "krylov_dim must be at least 1"),
        ("julia:pseudo_transient?alpha=-1", "alpha must be positive"),
        ("julia:broyden?rule=diagnal", "did you mean 'diagonal'"),
        ("julia:broyden?alpha=0", "alpha must be positive"),
        ("julia:dfsane?memory=0", "memory must be at least 1"),
        ("julia:dfsane?memory=many", "must be of type int"),
        ("julia:auto?native=1", "must be true or false"),
        ("julia:auto?on_failure=panic", "unknown on_failure 'panic'"),
        ("julia:newton_krylov?krylov_dim=exit()", "must be of type int"),
    ],
)
def test_options_are_validated_never_evaluated(key, message):
    with pytest.raises(OptionError, match=message):
        sd.solver(key)


def test_a_variant_is_a_key_like_any_other():
    key = sd.solver("julia:newton_krylov?linear_rtol=1e-2&krylov_dim=20")
    assert key == "julia:newton_krylov?krylov_dim=20"
    assert sd.parse_solver(key).method == ("newton_krylov", (("krylov_dim", 20), ("linear_rtol", 0.01)))


@pytest.mark.parametrize("key", ["julia:auto", "julia:newton_krylov"])
def test_without_julia_the_error_says_what_was_looked_for(key, monkeypatch, tmp_path):
    """In a fresh process: this one may have a Julia already."""
    code = (
        "import torch, subdeq_plugin as sd\n"
        "from torchdeq import get_deq\n"
        f"deq = get_deq(f_solver={key!r})\n"
        "try:\n    deq(torch.cos, torch.ones(1, 2))\n"
        "except sd.errors.BridgeError as error:\n    print(error)\n"
        "try:\n    sd.perron(torch.ones(2, 2), backend='julia')\n"
        "except sd.errors.BridgeError as error:\n    print(error)\n"
        "print(sd.solve(torch.cos, torch.ones(1, 2), sd.parse_solver('subdeq:anderson')).converged)\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SUBDEQ_", "PYTHON_JULIA"))}
    clean["SUBDEQ_CONFIG"] = str(tmp_path / "none.json")
    hidden = "import sys; sys.modules['juliacall'] = None; sys.modules['juliapkg'] = None\n"
    command = [sys.executable, "-c", hidden + code]
    result = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)
    for words in ("SUBDEQ_JULIA_EXE", "PYTHON_JULIACALL_EXE", "none.json", "subdeq-plugin[julia]", "--use-julia"):
        assert result.stdout.count(words) >= 2, result.stdout + result.stderr[-1000:]
    assert result.stdout.splitlines()[-1] == "True"


# Failures


def growing(z: Tensor) -> Tensor:
    """Three samples: one with a solution, one without, one that is broken."""
    return torch.stack([z[0].cos(), z[1] ** 2 + 10, z[2] + torch.nan])


@pytest.mark.julia
class TestFailures:
    start = torch.full((3, 4), 2.0, dtype=torch.float64)

    def solve(self, key: str) -> sd.Solution:
        return sd.solve(growing, self.start, sd.parse_solver(key), tol=1e-9, max_iter=60)

    def test_reported(self):
        found = self.solve("julia:newton_krylov")
        assert found.status[0] == Status.CONVERGED and found.status[2] == Status.NONFINITE
        assert found.status[1] in (Status.DIVERGED, Status.MAX_ITERATIONS, Status.STALLED)
        assert "2 of 3 samples failed" in found.describe_failures()

    def test_raised(self):
        with pytest.raises(ConvergenceError, match="julia:newton_krylov: 2 of 3 samples failed"):
            self.solve("julia:newton_krylov?on_failure=raise")

    def test_warned(self):
        with pytest.warns(ConvergenceWarning, match="2 of 3 samples failed"):
            self.solve("julia:newton_krylov?on_failure=warn")

    def test_silence_where_nothing_failed(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for reaction in ("raise", "warn", "anderson"):
                solver = sd.parse_solver(f"julia:newton_krylov?on_failure={reaction}")
                assert sd.solve(torch.cos, self.start, solver, tol=1e-9, max_iter=60).converged

    def test_fallback_solves_what_julia_could_not(self):
        # Three evaluations are too few for the method, and no limit for the torch solver: its own count starts anew.
        bound = bound_map("dense", 4, power=0.3)
        start = 50 * ones_for(bound)
        found = sd.solve(bound, start, sd.parse_solver("julia:dfsane?on_failure=newton_krylov"), tol=1e-9, max_iter=6)
        alone = sd.solve(bound, start, sd.parse_solver("julia:dfsane"), tol=1e-9, max_iter=6)
        assert bool(alone.failed.any()) and found.converged
        assert found.evaluations > alone.evaluations
        assert float(residuals(bound, found.value)[1].max()) <= 1e-9

    def test_fallback_leaves_solved_samples_alone(self):
        found = self.solve("julia:newton_krylov?on_failure=anderson")
        alone = self.solve("julia:newton_krylov")
        assert torch.equal(found.value[0], alone.value[0]) and found.status[0] == Status.CONVERGED
        assert found.status[2] == Status.NONFINITE


# Gradients


def unrolled(layer, x, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    parameters = list(layer.parameters())
    z = torch.ones_like(weights)
    for _ in range(150):
        z = layer(z, x)
    return z.detach(), list(torch.autograd.grad((z * weights).sum(), parameters))


@pytest.mark.julia
@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
@pytest.mark.parametrize("key", KEYS)
def test_gradients_through_forward_and_backward(kind, key):
    layer, x = make_layer(kind, 1, shift=0.6), make_input(kind, 1)
    with torch.no_grad():
        shape = layer(torch.ones_like(layer.bind(x).start()), x).shape
    weights = normal(*shape, seed=2)
    expected, gradients = unrolled(layer, x, weights)
    model = sd.SubDEQ(layer, key, key, f_tol=1e-11, b_tol=1e-11)
    z = model(x)
    torch.testing.assert_close(z.detach(), expected, rtol=1e-9, atol=1e-10)
    got = torch.autograd.grad((z * weights).sum(), list(layer.parameters()))
    for one, other in zip(got, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)
    assert model.stats.backward is not None and not model.stats.backward.failed.any()
    # By finite differences too, in one direction.
    direction = [normal(*p.shape, seed=3) for p in layer.parameters()]
    slope = sum(float((g * d).sum()) for g, d in zip(got, direction, strict=True))
    values = []
    for step in (1e-5, -1e-5):
        moved = make_layer(kind, 1, shift=0.6)
        with torch.no_grad():
            for parameter, change in zip(moved.parameters(), direction, strict=True):
                parameter.add_(step * change)
            values.append(float((sd.SubDEQ(moved, key, key, f_tol=1e-12)(x) * weights).sum()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.julia
def test_second_derivatives():
    layer, x = make_layer("dense", 1, shift=0.6), make_input("dense", 1)
    model = sd.SubDEQ(layer, "julia:newton_krylov", "julia:newton_krylov", f_tol=1e-12, b_tol=1e-12)
    reference = sd.SubDEQ(layer, f_tol=1e-12, b_tol=1e-12)
    results = []
    for one in (model, reference):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(one(given).square().sum(), given, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), given)[0])
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


@pytest.mark.julia
@pytest.mark.parametrize("key", KEYS)
def test_plain_torchdeq_models(key):
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    deq = get_deq(f_solver=key, b_solver=key, f_tol=1e-10, b_tol=1e-10, ift=True, f_stop_mode="rel", b_stop_mode="rel")
    out, info = deq(lambda z: torch.tanh(0.4 * linear(z) + x), torch.zeros(3, 4, dtype=torch.float64))
    assert info["status"].tolist() == [0, 0, 0]
    out[-1].sum().backward()
    got = linear.weight.grad.clone()
    linear.zero_grad()
    z = torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(200):
        z = torch.tanh(0.4 * linear(z) + x)
    z.sum().backward()
    torch.testing.assert_close(got, linear.weight.grad, rtol=1e-6, atol=1e-8)


# Company


@pytest.mark.julia
def test_under_no_grad_and_inference_mode():
    layer, x = make_layer("dense", 1), make_input("dense", 1)
    model = sd.SubDEQ(layer, "julia:newton_krylov", f_tol=1e-10)
    expected = model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=0)


@pytest.mark.julia
def test_under_autocast():
    layer, x = make_layer("dense", 1, torch.float32, shift=0.5), make_input("dense", 1, torch.float32)
    expected = sd.SubDEQ(layer)(x).detach()
    model = sd.SubDEQ(layer, "julia:newton_krylov", "julia:newton_krylov", f_tol=0.05, b_tol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(x)
    z.sum().backward()
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.detach(), expected, rtol=0.1, atol=0.05)
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.julia
@pytest.mark.filterwarnings("ignore")  # Dynamo, tracing autograd functions, warns of its own doings
@pytest.mark.parametrize("core", ["indexing", "subdeq"])
def test_under_torch_compile(core):
    """The bridge is a clean graph break: the rest may be compiled around it."""
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)
            settings = {"ift": True} if core == "indexing" else {"on_failure": "raise"}
            self.deq = get_deq(core=core, f_solver="julia:newton_krylov", b_solver="julia:newton_krylov", f_tol=1e-5,
                               b_tol=1e-5, f_stop_mode="rel", b_stop_mode="rel", **settings)  # fmt: skip

        def forward(self, x):
            out, _ = self.deq(lambda z: torch.tanh(0.4 * self.linear(z) + x), torch.zeros_like(x))
            return out[-1].square().sum()

    model = Model()
    x = torch.rand(3, 4)
    model(x).backward()
    expected = model.linear.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, backend="eager")
    value = compiled(x)
    value.backward()
    torch.testing.assert_close(model.linear.weight.grad, expected, rtol=1e-3, atol=1e-5)


def _train(rank: int, world: int, path: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = sd.SubDEQ(sd.SubhomLinear(3, 5), "julia:newton_krylov", "julia:newton_krylov")
    model = torch.nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(rank)
    model(torch.rand(4, 3)).sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.save(gradients, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.julia
def test_processes_of_ddp_have_a_julia_each(tmp_path):
    mp.spawn(_train, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second) and bool(first.isfinite().all()) and float(first.abs().max()) > 0


@pytest.mark.julia
def test_states_that_are_asked_for_are_recorded():
    bound = bound_map("dense", 2)
    found = sd.solve(bound, ones_for(bound), sd.parse_solver("julia:newton_krylov"), tol=1e-11, indexing=(1, 2, 50))
    assert torch.equal(found.trajectory[0], ones_for(bound)) and torch.equal(found.trajectory[-1], found.value)


@pytest.mark.julia
@pytest.mark.parametrize(("power", "products"), [(0.4, False), (0.9, True)])
def test_auto_iterates_in_torch_only_where_the_proof_says_it_is_quick(power, products):
    bound = bound_map("dense", 2, power=power)
    contraction = sd.certify(bound, conditions="subhomogeneous").contraction
    solver = sd.parse_solver("julia:auto")
    found = sd.solve(bound, ones_for(bound), solver, tol=1e-9, max_iter=200, contraction=contraction)
    assert found.converged and (found.linear_evaluations > 0) == products
    assert sd.solve(bound, ones_for(bound), solver, tol=1e-9).linear_evaluations > 0, "nothing proven, nothing assumed"


@pytest.mark.julia
def test_a_julia_error_is_a_bridge_error_and_the_next_solve_works(monkeypatch):
    solver = sd.parse_solver("julia:newton_krylov")
    monkeypatch.setattr(type(solver), "method", ("no_such_method", ()))
    with pytest.raises(BridgeError, match="unknown method"):
        sd.solve(torch.cos, torch.ones(1, 2), solver)
    monkeypatch.undo()
    assert sd.solve(torch.cos, torch.ones(1, 2), sd.parse_solver("julia:newton_krylov")).converged
