"""Every backend on small problems, judged by bounds that it has no part in."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torchdeq.solver

import subdeq_plugin as sd
from subdeq_plugin.bench import Answer, available, backend_keys, make_backend, make_problem
from subdeq_plugin.bench.backends import Own, is_builtin
from subdeq_plugin.bench.tasks import make_task
from subdeq_plugin.bridge.native import NATIVE_ACTIVATIONS
from subdeq_plugin.errors import BridgeError, OptionError
from subdeq_plugin.integration.torchdeq import registered

SIZES = {"dense": (6, 3), "conv": (2, 4, 2), "graph": (10, 3, 2)}
HERE = [key for key in backend_keys() if key.partition(":")[0] in ("subdeq", "torchdeq", "scipy")]
JULIA = [key for key in backend_keys() if key.startswith("julia:")]
JAX = [key for key in backend_keys() if key.startswith("jax:")]
needs_jax = pytest.mark.skipif(find_spec("optimistix") is None, reason="no JAX: pip install 'subdeq-plugin[jax]'")


def task_of(name: str, work: str, dtype: torch.dtype = torch.float64):
    problem = make_problem(name, SIZES[name.partition("-")[0]]).to("cpu", dtype)
    return make_task(problem, work)


def solve(
    key: str, name: str, work: str, tol: float = 1e-9, dtype: torch.dtype = torch.float64
) -> tuple[Answer, float]:
    task = task_of(name, work, dtype)
    answer = make_backend(key).prepare(task, tol, 300)()
    return answer, task.judge(answer.value).error


@pytest.mark.parametrize("work", ["forward", "adjoint", "training"])
@pytest.mark.parametrize("key", HERE)
def test_every_backend_does_every_kind_of_work(key, work):
    answer, error = solve(key, "dense", work)
    assert error < 1e-7
    values = [answer.value] if work != "training" else answer.value
    assert all(not value.requires_grad and value.dtype == torch.float64 for value in values)
    if make_backend(key).reports:
        assert answer.evaluations > 0 and answer.products is not None and not answer.exhausted


@pytest.mark.parametrize("name", ["conv", "graph", "dense-normalised", "conv-normalised"])
@pytest.mark.parametrize("key", ["subdeq:auto", "torchdeq:fixed_point_iter", "scipy:newton_krylov"])
def test_other_kinds_of_maps(key, name):
    for work in ("forward", "adjoint", "training"):
        assert solve(key, name, work)[1] < 1e-6


@pytest.mark.filterwarnings("ignore:An ill-conditioned matrix")
@pytest.mark.parametrize("key", HERE)
def test_float32_stays_float32(key):
    answer, error = solve(key, "dense", "forward", 1e-5, torch.float32)
    assert answer.value.dtype == torch.float32 and error < 1e-4


def test_torchdeq_is_called_as_torchdeq_calls_it(monkeypatch):
    """The solver gets the map itself: nothing counts, checks or measures in between."""
    seen = []

    def spy(func, x0, max_iter, tol, stop_mode, **rest):
        seen.append((func, x0, max_iter, tol, stop_mode, rest))
        return x0, [], {}

    monkeypatch.setitem(torchdeq.solver._solvers, "anderson", spy)
    task = task_of("dense", "forward")
    make_backend("torchdeq:anderson").prepare(task, 1e-3, 50)()
    assert seen == [(task.function, task.start, 50, 1e-3, "rel", {})] and seen[0][0] is task.function
    assert registered("anderson") is spy
    with pytest.raises(OptionError, match="did you mean 'anderson'"):
        registered("andersen")


def test_training_of_torchdeq_goes_through_its_core(monkeypatch):
    from subdeq_plugin.bench.backends import registered as family

    seen = []
    monkeypatch.setattr(
        family, "get_deq", lambda **settings: seen.append(settings) or sd.integration.torchdeq.get_deq(**settings)
    )
    task = task_of("dense", "training")
    answer = make_backend("torchdeq:anderson").prepare(task, 1e-8, 70)()
    assert task.judge(answer.value).error < 1e-6
    (settings,) = seen
    assert settings["ift"] is True
    assert {name: settings[name] for name in ("f_solver", "b_solver", "f_tol", "b_max_iter", "b_stop_mode")} == {
        "f_solver": "anderson", "b_solver": "anderson", "f_tol": 1e-8, "b_max_iter": 70, "b_stop_mode": "rel"
    }  # fmt: skip


def test_ours_are_told_what_is_proven(monkeypatch):
    from subdeq_plugin.bench.backends import ours

    seen = []
    monkeypatch.setattr(ours, "solve", lambda *args, **keywords: seen.append(keywords) or sd.solve(*args, **keywords))
    for work in ("forward", "adjoint"):
        task = task_of("dense", work)
        make_backend("subdeq:auto").prepare(task, 1e-5, 40)()
        keywords = seen.pop()
        assert keywords["contraction"] is task.contraction is not None
        assert (keywords["max_iter"], keywords["tol"]) == (40, 1e-5)
        assert keywords["stop_mode"] == ("certified" if work == "forward" else "rel")


@pytest.mark.parametrize("key", ["subdeq:picard", "scipy:newton_krylov", "scipy:anderson"])
def test_evaluations_that_do_not_suffice_are_admitted(key):
    task = task_of("dense-hard", "forward")
    answer = make_backend(key).prepare(task, 1e-12, 5)()
    assert answer.exhausted and answer.evaluations == 5
    assert isinstance(answer.value, torch.Tensor) and answer.value.shape == task.start.shape


def test_scipy_sees_the_whole_batch_as_one_system():
    task = task_of("dense", "forward")
    answer = make_backend("scipy:newton_krylov").prepare(task, 1e-6, 100)()
    residual = (answer.value - task.function(answer.value)).abs().max()
    assert float(residual) <= 1e-6


def test_a_solver_of_ones_own():
    calls = []

    def mine(func, x0, max_iter=50, tol=1e-3, stop_mode="abs", **rest):
        calls.append((max_iter, tol, stop_mode, rest))
        z = x0
        for _ in range(40):
            z = func(z)
        return z, [], {}

    backend = make_backend(mine)
    assert backend == Own("mine", mine) and make_backend(backend) is backend
    for work in ("forward", "adjoint", "training"):
        task = task_of("dense", work)
        assert task.judge(backend.prepare(task, 1e-4, 60)().value).error < 1e-9
    assert calls == [(60, 1e-4, "rel", {})] * 4  # training has two equations


@pytest.mark.parametrize("result", [None, torch.ones(3), (1, [], {}), (torch.ones(3), [])])
def test_a_solver_that_does_not_keep_the_convention(result):
    backend = make_backend(lambda func, x0, **keywords: result)
    with pytest.raises(TypeError, match=r"must return \(z, trajectory, info\)"):
        backend.prepare(task_of("dense", "forward"), 1e-3, 10)()


def test_keys():
    assert len(set(backend_keys())) == len(backend_keys()) and set(HERE) == set(backend_keys(usual=True))
    assert set(available()) == set(backend_keys())
    assert make_backend("subdeq:anderson?memory=8").key == "subdeq:anderson?memory=8"
    assert is_builtin("anderson") and is_builtin("jax:x") and not is_builtin("my_module:solver")
    for target, message in (
        ("subdeq:andersen", "did you mean 'subdeq:anderson'"),
        ("anderson", "unknown backend 'anderson'; did you mean"),
        ("subdeq:anderson?memry=8", "did you mean 'memory'"),
        ("torchdeq:anderson?m=8", "takes no options, got 'm=8'"),
        ("my:solver", "unknown backend"),
        (7, "must be a key, a solver or a Backend, got 7"),
    ):
        with pytest.raises(OptionError, match=message):
            make_backend(target)


def test_an_option_reaches_the_solver():
    few, many = (solve(f"subdeq:anderson?memory={memory}", "dense-hard", "forward", 1e-6)[0] for memory in (1, 8))
    assert few.evaluations > many.evaluations


def test_what_is_missing_is_listed_with_the_remedy(monkeypatch):
    from subdeq_plugin.bench.backends import optimistix, ours

    class Downloading:
        offline = False

    def nothing():
        raise BridgeError("no Julia was found.\nLooked for: everywhere.")

    monkeypatch.setattr(optimistix, "find_spec", lambda name: None)
    monkeypatch.setattr(ours, "find_route", nothing)
    assert available()["jax:fixed_point"] == "jax and optimistix not installed: pip install 'subdeq-plugin[jax]'"
    assert available()["julia:auto"] == "no Julia was found."
    assert available()["subdeq:auto"] == available()["scipy:anderson"] == available()["torchdeq:broyden"] == ""
    monkeypatch.setattr(ours, "find_route", Downloading)
    assert "subdeq doctor --use-julia" in available()["julia:auto"]


@pytest.mark.julia
@pytest.mark.parametrize("key", JULIA)
def test_julia(key):
    assert available()[key] == ""
    for work in ("forward", "adjoint", "training"):
        answer, error = solve(key, "dense", work)
        assert error < 1e-7 and answer.evaluations > 0
    assert make_backend(key).memory is None and not make_backend(key).counted


@needs_jax
@pytest.mark.parametrize(
    ("key", "name", "work"),
    [
        *[("jax:fixed_point", name, "forward") for name in ("dense", "conv", "graph-normalised")],
        *[("jax:fixed_point", name, "adjoint") for name in ("dense-normalised", "conv-normalised", "graph")],
        *[("jax:newton_krylov", name, "forward") for name in ("dense-hard", "conv-normalised")],
        ("jax:fixed_point", "dense", "training"),
        ("jax:newton_krylov", "graph", "adjoint"),
    ],
)
def test_jax(key, name, work):
    answer, error = solve(key, name, work, 1e-10)
    assert error < 1e-6 and not answer.exhausted
    assert make_backend(key).memory is None


@needs_jax
def test_jax_in_float32_and_with_too_few_evaluations():
    answer, error = solve("jax:fixed_point", "dense", "forward", 1e-4, torch.float32)
    assert answer.value.dtype == torch.float32 and error < 1e-3 and answer.evaluations > 0
    task = task_of("dense-hard", "forward")
    assert make_backend("jax:fixed_point").prepare(task, 1e-12, 5)().exhausted


@needs_jax
@pytest.mark.parametrize("norm", [None, 1.0, "inf"])
@pytest.mark.parametrize("activation", sorted(NATIVE_ACTIVATIONS))
def test_the_map_in_jax_is_the_map_in_torch(activation, norm):
    import jax

    from subdeq_plugin.bench.backends import optimistix

    generator = torch.Generator().manual_seed(0)
    part = torch.rand(4, 3, 5, 2, generator=generator, dtype=torch.float64)
    arrays = {
        "weight": torch.rand(3, 3, 3, 1, generator=generator, dtype=torch.float64),
        "inner": part,
        "outer": part.flip(0),
    }
    options = {
        "kind": "conv2d",
        "activation": activation,
        "shift": 1.5,
        "power": 0.7,
        "dilation": [2, 1],
        "normalize": norm,
    }
    bound = sd.BoundMap.from_spec(sd.MapSpec(arrays, options))
    z = torch.rand(part.shape, generator=generator, dtype=torch.float64) + 0.5
    with optimistix._precision(torch.float64):
        found = optimistix._value(optimistix._Form.of(bound), optimistix._arrays(bound), z.numpy())
    assert found.dtype == np.float64 and not jax.config.jax_enable_x64
    np.testing.assert_allclose(np.asarray(found), bound(z).numpy(), rtol=1e-13)


@needs_jax
def test_a_graph_with_mixed_features_in_jax():
    from subdeq_plugin.bench.backends import optimistix

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = sd.SubhomGraph(3, 2, 0.2, mix_features=True, dtype=torch.float64)
    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    bound = layer.bind((torch.rand(2, 4, 3, dtype=torch.float64), edges)).detach()
    z = torch.rand(2, 4, 2, dtype=torch.float64)
    with optimistix._precision(torch.float64):
        found = optimistix._value(optimistix._Form.of(bound), optimistix._arrays(bound), z.numpy())
    np.testing.assert_allclose(np.asarray(found), bound(z).numpy(), rtol=1e-13)


@needs_jax
def test_an_activation_that_jax_does_not_have(monkeypatch):
    from subdeq_plugin.bench.backends import optimistix

    monkeypatch.setattr(optimistix, "_activations", dict)
    with pytest.raises(OptionError, match="'tanh' has no counterpart in JAX"):
        make_backend("jax:fixed_point").prepare(task_of("dense", "forward"), 1e-3, 10)
