"""Solver keys, their options, and the registries of torchdeq."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
import torchdeq.solver
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchdeq import core, get_deq
from torchdeq.norm import base_norm
from torchdeq.solver import get_solver, register_solver

import subdeq_plugin as sd
from subdeq_plugin.errors import OptionError
from subdeq_plugin.integration.spec import FAMILIES, canonical_key
from subdeq_plugin.integration.torchdeq import find_solver
from subdeq_plugin.solvers import Anderson, Auto, Gmres, Halpern, NewtonKrylov, Picard
from tests.problems import residuals

EVERY_KEY = tuple(f"{family}:{name}" for family, solvers in FAMILIES.items() for name in solvers)

KEYS = {
    "subdeq:auto": Auto(),
    "subdeq:auto?": Auto(),
    "subdeq:anderson?memory=8&damping=0.9": Anderson(memory=8, damping=0.9),
    "subdeq:anderson?damping=9e-1&memory=+8": Anderson(memory=8, damping=0.9),
    "subdeq:anderson?regularization=1e20": Anderson(regularization=1e20),
    "subdeq:anderson?regularization=1e+2": Anderson(regularization=100.0),
    "subdeq:halpern?restart=0": Halpern(restart=0.0),
    "subdeq:newton_krylov?linear_rtol=1e-3&krylov_dim=12&backtracks=0": NewtonKrylov(1e-3, 12, 0),
    "subdeq:picard?damping=1": Picard(),
    "subdeq:gmres?krylov_dim=5": Gmres(krylov_dim=5),
}
BAD_KEYS = {
    "subdeq:andersen": "did you mean 'subdeq:anderson'",
    "subdek:anderson": "did you mean 'subdeq:anderson'",
    "anderson": "unknown solver 'anderson'",
    "subdeq:": "unknown solver 'subdeq:'",
    "": "unknown solver ''",
    "subdeq:anderson?memry=8": "unknown option of subdeq:anderson 'memry'; did you mean 'memory'",
    "subdeq:picard?memory=8": "unknown option of subdeq:picard 'memory'",
    "subdeq:anderson?memory=8&memory=9": "given twice",
    "subdeq:anderson?memory": "option=value",
    "subdeq:anderson?memory=": "must be of type int, got ''",
    "subdeq:anderson?memory=8.5": "must be of type int",
    "subdeq:anderson?memory=__import__('os')": "must be of type int",
    "subdeq:anderson?damping=nan": "damping must be in",
    "subdeq:anderson?damping=2": "damping must be in",
    "subdeq:anderson?memory=0": "memory must be at least 1",
    "subdeq:anderson?name=picard": "unknown option of subdeq:anderson 'name'",
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_parsed(key):
    assert sd.parse_solver(key) == KEYS[key]
    assert sd.parse_solver(canonical_key(key)) == KEYS[key]
    assert canonical_key(canonical_key(key)) == canonical_key(key)


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("call", [sd.parse_solver, sd.solver, canonical_key])
def test_bad_keys_are_refused_with_the_remedy(key, call):
    before = set(torchdeq.solver._solvers)
    with pytest.raises(OptionError) as caught:
        call(key)
    assert BAD_KEYS[key] in str(caught.value)
    assert set(torchdeq.solver._solvers) == before


@pytest.mark.parametrize("key", [None, 3, Anderson(), ["subdeq:auto"]])
def test_a_key_that_is_no_string_is_refused(key):
    with pytest.raises(OptionError, match="must be a string"):
        sd.parse_solver(key)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    memory=st.integers(1, 10**6),
    damping=st.floats(0, 1, exclude_min=True),
    regularization=st.floats(0, allow_nan=False, allow_infinity=False),
)
def test_a_canonical_key_describes_the_same_solver(memory, damping, regularization):
    wanted = Anderson(memory, damping, regularization)
    key = f"subdeq:anderson?regularization={regularization}&damping={damping}&memory={memory}"
    assert sd.parse_solver(key) == wanted
    assert sd.parse_solver(canonical_key(key)) == wanted


def test_the_canonical_key_leaves_out_defaults_and_orders_the_rest():
    assert canonical_key("subdeq:anderson?memory=6&damping=1.0") == "subdeq:anderson"
    one, other = "subdeq:anderson?memory=8&damping=.5", "subdeq:anderson?damping=0.50&memory=8"
    assert canonical_key(one) == canonical_key(other) == "subdeq:anderson?damping=0.5&memory=8"


def test_every_option_of_every_solver_is_reachable():
    for family, solvers in FAMILIES.items():
        for name, kind in solvers.items():
            assert set(kind.options()) == {option.name for option in fields(kind)}
            for option in fields(kind):
                assert sd.parse_solver(f"{family}:{name}?{option.name}={option.default}") == kind()


# Registries


def test_registering_again_changes_nothing():
    before = dict(torchdeq.solver._solvers), dict(core._core), dict(base_norm._norm_class)
    assert sd.register() == sd.register() == EVERY_KEY
    assert (torchdeq.solver._solvers, core._core, base_norm._norm_class) == before


def test_torchdeq_keeps_its_own_entries():
    assert {"anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter"} <= set(torchdeq.solver._solvers)
    assert {"indexing", "sliced", "subdeq"} <= set(core._core)
    assert {"weight_norm", "spectral_norm", "nonneg"} <= set(base_norm._norm_class)


def test_a_variant_is_registered_under_its_canonical_key():
    key = sd.solver("subdeq:anderson?memory=3&damping=0.75")
    assert key == "subdeq:anderson?damping=0.75&memory=3"
    assert get_solver(key).settings == Anderson(memory=3, damping=0.75)
    assert sd.solver("subdeq:anderson?damping=0.75&memory=3") == key
    assert find_solver(key) == Anderson(memory=3, damping=0.75)
    out, info = get_deq(f_solver=key, f_tol=1e-6)(torch.cos, torch.zeros(2, 3))
    assert float(residuals(torch.cos, out[-1])[0].max()) < 1e-5
    assert info["status"].tolist() == [0, 0]


@pytest.mark.parametrize("registry", ["solver", "core", "norm"])
def test_a_key_taken_by_someone_else_is_left_alone(registry, monkeypatch):
    foreign = type("Foreign", (nn.Module,), {})
    tables = {"solver": (torchdeq.solver._solvers, "subdeq:halpern"), "core": (core._core, "subdeq"),
              "norm": (base_norm._norm_class, "nonneg")}  # fmt: skip
    table, key = tables[registry]
    monkeypatch.setitem(table, key, foreign)
    with pytest.raises(OptionError, match="not ours; it is left alone"):
        sd.register()
    assert table[key] is foreign


def test_a_foreign_solver_under_our_variant_key_is_left_alone(monkeypatch):
    monkeypatch.setitem(torchdeq.solver._solvers, "subdeq:picard?damping=0.25", len)
    with pytest.raises(OptionError, match="not ours"):
        sd.solver("subdeq:picard?damping=0.25")


def test_a_solver_of_the_user_is_found_by_the_core(monkeypatch):
    monkeypatch.setattr(torchdeq.solver, "_solvers", dict(torchdeq.solver._solvers))

    def halving(func, x0, max_iter=50, tol=1e-3, stop_mode="abs", indexing=None, **_):
        z = x0
        for _ in range(max_iter):
            z = func(z)
        return z, [z], {}

    register_solver("halving", halving)
    deq = get_deq(core="subdeq", f_solver="halving", f_max_iter=60, f_tol=1e-6)
    out, info = deq(torch.cos, torch.zeros(2, 3))
    assert float((out[0] - 0.7390851).abs().max()) < 1e-5
    assert info["evaluations"] == 61 and info["status"].tolist() == [0, 0]


def test_an_unknown_solver_of_torchdeq_is_refused_by_name():
    with pytest.raises(OptionError, match="did you mean 'anderson'"):
        get_deq(core="subdeq", f_solver="andersn")
