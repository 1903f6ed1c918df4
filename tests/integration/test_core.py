"""The core "subdeq": its settings, its refusals, its reports."""

from __future__ import annotations

import argparse
import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor
from torchdeq import get_deq
from torchdeq.utils import add_deq_args
from torchdeq.utils.config import DEQConfig

import subdeq_plugin as sd
from subdeq_plugin.certificates import contraction_of
from subdeq_plugin.errors import ConvergenceError, ConvergenceWarning, DomainError, OptionError, ShapeError
from subdeq_plugin.integration.core import _thompson_rate
from subdeq_plugin.integration.torchdeq import find_solver
from subdeq_plugin.layers.operators import GraphOperator
from subdeq_plugin.metrics import Contraction
from subdeq_plugin.result import Status
from subdeq_plugin.solvers import Anderson
from tests.problems import bound_map, make_input, make_layer, ones_for, residuals


def core(**settings) -> sd.CertifiedDEQ:
    return get_deq(core="subdeq", **settings)


# Settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"f_sovler": "subdeq:auto"}, "did you mean 'f_solver'"),
        ({"fmaxiter": 10}, "unknown setting of core 'subdeq' 'fmaxiter'"),
        ({"learning_rate": 0.1}, "deq_settings"),
        ({"n_states": 3}, "n_states=3 has no meaning for core='subdeq'"),
        ({"indexing": [4]}, "indexing=.* has no meaning"),
        ({"grad": 5}, "grad=5 has no meaning"),
        ({"tau": 0.5}, "tau=0.5 has no meaning"),
        ({"sup_gap": 2}, "sup_gap=2 has no meaning"),
        ({"sup_loc": [1]}, "sup_loc=.* has no meaning"),
        ({"f_solver": "subdeq:aut"}, "did you mean 'subdeq:auto'"),
        ({"b_solver": "broydn"}, "did you mean 'broyden'"),
        ({"f_solver": "subdeq:anderson?memory=0"}, "memory must be at least 1"),
        ({"f_tol": -1.0}, "tol must be a nonnegative number"),
        ({"b_tol": float("nan")}, "tol must be a nonnegative number"),
        ({"f_max_iter": 0}, "max_iter must be a positive integer"),
        ({"b_max_iter": 1.5}, "max_iter must be a positive integer"),
        ({"f_stop_mode": "certifed"}, "unknown stop_mode"),
        ({"b_stop_mode": "certified"}, "unknown stop_mode of a backward solve"),
        ({"on_failure": "explode"}, "unknown on_failure 'explode'"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(given, message):
    with pytest.raises(OptionError, match=message):
        core(**given)


def test_settings_of_other_cores_are_accepted_at_their_defaults():
    deq = core(n_states=1, indexing=[], grad=1, tau=1.0, sup_gap=-1, sup_loc=None, ift=True, hook_ift=False, gamma=0.8)
    assert isinstance(deq, sd.CertifiedDEQ)


def test_torchdeqs_own_argument_parser_fits():
    parser = argparse.ArgumentParser()
    add_deq_args(parser)
    # torchdeq's parser offers its own solvers only for --b_solver.
    given = "--core subdeq --f_solver subdeq:anderson --b_solver anderson --ift --f_tol 1e-7 --f_stop_mode rel"
    args = parser.parse_args(given.split())
    out, info = get_deq(args=args)(torch.cos, torch.zeros(2, 3))
    assert float(residuals(torch.cos, out[0])[1].max()) <= 1e-6 and info["status"].tolist() == [0, 0]


def test_a_namespace_with_other_options_goes_through_deq_settings():
    args = argparse.Namespace(core="subdeq", f_solver="subdeq:picard", epochs=10, config="run.yaml", f_tol=1e-5)
    with pytest.raises(OptionError, match="deq_settings"):
        get_deq(args)
    assert sd.deq_settings(args) == {"core": "subdeq", "f_solver": "subdeq:picard", "f_tol": 1e-5}
    assert get_deq(sd.deq_settings(args)).f_tol == 1e-5
    assert sd.deq_settings(vars(args)) == sd.deq_settings(args)
    del args.epochs  # a `config` of the user's own is an option like any other, not torchdeq's configuration
    with pytest.raises(OptionError, match="unknown setting of core 'subdeq' 'config'"):
        sd.CertifiedDEQ(args)


@pytest.mark.parametrize("args", [None, {}, DEQConfig(None), DEQConfig({}), argparse.Namespace()])
def test_no_settings_at_all(args):
    assert sd.CertifiedDEQ(args).f_tol == 1e-4


def test_keywords_go_before_the_namespace():
    assert sd.CertifiedDEQ(argparse.Namespace(f_tol=1e-3), f_tol=1e-6).f_tol == 1e-6


def test_solver_variants_with_options():
    deq = core(f_solver="subdeq:anderson?regularization=1e20", b_solver="subdeq:anderson?memory=3")
    assert find_solver(deq._keys["f_solver"]) == Anderson(regularization=1e20)
    assert find_solver(deq._keys["b_solver"]) == Anderson(memory=3)
    out, _ = deq(torch.cos, torch.zeros(1, 2))
    assert float(residuals(torch.cos, out[0])[1].max()) <= 1e-4


# Calls


@pytest.mark.parametrize("name", ["f_maxiter", "memory", "tol"])
def test_unknown_solver_kwargs_are_refused(name):
    with pytest.raises(OptionError, match=f"unknown entry of solver_kwargs {name!r}"):
        core()(torch.cos, torch.zeros(1, 2), solver_kwargs={name: 3})


def test_solver_kwargs_hold_for_one_call():
    deq = core(f_solver="subdeq:picard", on_failure="ignore", f_tol=1e-9)
    _, short = deq(torch.cos, torch.zeros(1, 2), solver_kwargs={"f_max_iter": 5})
    _, rough = deq(torch.cos, torch.zeros(1, 2), solver_kwargs={"f_tol": 1e-2})
    _, full = deq(torch.cos, torch.zeros(1, 2))
    assert short["evaluations"] == 5 < rough["evaluations"] < full["evaluations"]
    assert [int(info["status"]) for info in (short, rough)] == [Status.MAX_ITERATIONS, Status.CONVERGED]


def test_limits_of_evaluation_mode():
    common = {"f_solver": "subdeq:picard", "on_failure": "ignore", "f_tol": 1e-12, "f_max_iter": 10}

    def count(deq: sd.CertifiedDEQ) -> int:
        return deq(torch.cos, torch.zeros(1, 2))[1]["evaluations"]

    assert count(core(**common, eval_factor=2.0).train()) == 10
    assert count(core(**common, eval_factor=2.0).eval()) == 20
    assert count(core(**common, eval_f_max_iter=7).train()) == 10
    assert count(core(**common, eval_f_max_iter=7).eval()) == 7


def test_sradius_mode():
    bound = bound_map("dense", 1, shift=0.5)
    out, info = core(f_tol=1e-9)(bound, sradius_mode=True)
    for row in range(3):
        one = bound.with_tensors([bound.tensors[0], bound.tensors[1][row : row + 1]])
        jacobian = torch.autograd.functional.jacobian(lambda z, one=one: one(z[None])[0], out[0][row])
        assert abs(float(info["sradius"][row]) - float(torch.linalg.eigvals(jacobian).abs().max())) < 1e-6
    assert torch.equal(core()(bound)[1]["sradius"], torch.zeros(1))


def test_backward_writer_gets_the_statistics_of_the_backward_solve():
    layer, x, seen = make_layer("dense", 1), make_input("dense", 1), []
    deq = core(b_tol=1e-8)
    out, _ = deq(layer.bind(x), backward_writer=seen.append)
    assert seen == []
    out[0].sum().backward()
    (info,) = seen
    assert float(info["rel_lowest"].max()) <= 1e-8 and info["status"].tolist() == [0, 0, 0]
    assert deq.backward_solution is not None and deq.backward_solution.converged


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_on_failure(which):
    def solve(**settings) -> None:
        layer, x = make_layer("dense", 1, shift=0.02), make_input("dense", 1)
        with torch.no_grad():
            layer.injection.weight.mul_(0.01)
        tight = {"f": {"f_max_iter": 3, "f_tol": 1e-14}, "b": {"b_max_iter": 1, "b_tol": 1e-14}}[which[0]]
        out, _ = core(**tight, **settings)(layer.bind(x))
        out[0].sum().backward()

    with pytest.raises(ConvergenceError, match=f"{which} solve: 3 of 3 samples failed. 3 x MAX_ITERATIONS"):
        solve(on_failure="raise")
    with pytest.warns(ConvergenceWarning, match=f"{which} solve: 3 of 3 samples failed"):
        solve()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(on_failure="ignore")


def test_the_failing_samples_are_counted_by_their_cause():
    def function(z: Tensor) -> Tensor:
        return torch.stack([z[0].cos(), z[1] + torch.nan, z[2] ** 2 + 10])

    with pytest.raises(ConvergenceError, match=r"2 of 3 samples failed\. 1 x DIVERGED: .* 1 x NONFINITE: "):
        core(on_failure="raise", f_solver="subdeq:picard")(function, torch.full((3, 2), 2.0))


def test_starts_are_checked():
    bound, deq = bound_map("dense", 1), core()
    with pytest.raises(ShapeError, match="z_init is missing"):
        deq(torch.cos)
    with pytest.raises(ShapeError, match=r"z_init must have shape \(3, 5\), got \(3, 4\)"):
        deq(bound, torch.ones(3, 4, dtype=torch.float64))
    with pytest.raises(ShapeError, match="z_init must be one tensor for a BoundMap, got list"):
        deq(bound, [torch.ones(3, 5, dtype=torch.float64)])
    with pytest.raises(DomainError, match="strictly positive"):
        deq(bound, torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ShapeError, match="floating-point"):
        deq(torch.cos, torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ShapeError, match="empty"):
        deq(torch.cos, torch.zeros(0, 5))


def test_the_certificate_of_the_last_solve():
    deq = core()
    deq(bound_map("dense", 1))
    assert deq.certificate is not None and deq.certificate.unique
    deq(torch.cos, torch.zeros(1, 2))
    assert deq.certificate is None


# The certificate


@pytest.mark.parametrize("kind", ["dense", "conv", "graph", "mixing"])
@pytest.mark.parametrize("read_before", [False, True])
def test_the_certificate_is_of_the_weights_at_the_call(kind, read_before):
    """Written when somebody asks, about what was solved: changes in place do not reach it, in either direction."""
    keywords = {"mix_features": True} if kind == "mixing" else {}
    layer = make_layer("graph" if kind == "mixing" else kind, 1, shift=1.2, weight="signed", **keywords)
    x = make_input("graph" if kind == "mixing" else kind, 1)
    changed = [part for name, part in layer.named_parameters() if "weight" in name]
    deq = core(f_tol=1e-9, on_failure="ignore")
    with torch.no_grad():
        for part in changed:
            part.abs_()
        bound = layer.bind(x)
        expected = sd.certify(bound, conditions="subhomogeneous")
        assert expected.unique
        (z,), _ = deq(bound)
        assert not read_before or deq.certificate.unique
        for part in (*changed, *bound.tensors):
            part.mul_(-3)
        if isinstance(bound.operator, GraphOperator):
            for matrix in (bound.operator.propagation.matrix, bound.operator.propagation.transposed):
                matrix.values().mul_(-3)
        certificate = deq.certificate
        assert certificate is not None and certificate.unique and certificate is deq.certificate
        assert (certificate.rate, certificate.metric) == (expected.rate, expected.metric)
        assert float(certificate.error_bound(z).max()) < 1e-6, "its numbers too are those of the call"
        # And a map that proves nothing keeps a certificate that says so, whatever becomes of it.
        deq(bound, ones_for(bound))
        for part in (*changed, *bound.tensors):
            part.mul_(-1)
        assert deq.certificate is not None and not deq.certificate.unique


def test_each_call_replaces_the_certificate():
    deq, first, second = core(), bound_map("dense", 1, shift=0.3), bound_map("dense", 1, shift=0.6, normalize=2)
    assert deq.certificate is None
    deq(first)
    deq(second)
    assert deq.certificate.metric == "hilbert"
    deq(first)
    assert deq.certificate.metric == "thompson"
    deq(torch.cos, torch.zeros(1, 2))
    assert deq.certificate is None
    hasty = core(f_max_iter=1, f_tol=1e-14, on_failure="raise")
    with pytest.raises(ConvergenceError):
        hasty(first)
    assert hasty.certificate.unique


@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
@pytest.mark.parametrize("read_before", [False, True])
def test_copies_and_pickles_leave_the_certificate_behind(kind, read_before):
    model, x = sd.SubDEQ(make_layer(kind, 2), f_tol=1e-8), make_input(kind, 2)
    z = model(x)
    z.sum().backward()
    assert not read_before or model.deq.certificate.unique
    bound = model.layer.bind(x)
    twins = copy.deepcopy(model).deq, copy.copy(model.deq), pickle.loads(pickle.dumps(model.deq))
    for twin in twins:
        assert twin.certificate is None
        torch.testing.assert_close(twin(bound)[0][0], z, rtol=1e-14, atol=0)
        assert twin.certificate.unique
    assert model.deq.certificate.unique, "the original keeps its own"


def test_the_certificate_keeps_nothing_of_a_graph_of_gradients():
    layer, x = make_layer("dense", 1), make_input("dense", 1).requires_grad_()
    deq = core()
    deq(layer.bind(x))
    assert deq._map is not None and not any(tensor.requires_grad for tensor in deq._map.tensors)


def test_a_proof_that_needs_the_whole_certificate_is_found_too():
    """A weight that is zero leaves the quick way; the stop is certified all the same."""
    bound = bound_map("dense", 3, shift=0.05)
    weight = bound.tensors[0].clone()
    weight[0, 1] = 0.0
    bound = bound.with_tensors([weight, *bound.tensors[1:]])
    assert contraction_of(bound) is None
    out, _ = core(f_tol=1e-6)(bound)
    z = ones_for(bound)
    for _ in range(600):
        z = bound(z)
    assert float((out[0].log() - z.log()).abs().max()) <= 1e-6
    weight[0] = 0.0
    deq = core(f_tol=1e-6)
    deq(bound.with_tensors([weight, *bound.tensors[1:]]))
    assert not deq.certificate.unique


def test_a_stop_of_residuals_is_left_as_it_is():
    bound = bound_map("dense", 3, shift=0.05)
    for mode in ("abs", "rel", "thompson"):
        out, info = core(f_tol=1e-7, f_stop_mode=mode)(bound)
        assert info["status"].tolist() == [0, 0, 0]
        absolute, relative = residuals(bound, out[0])
        gap = (bound(out[0]).log() - out[0].log()).abs().amax(dim=1)
        assert bool(({"abs": absolute, "rel": relative, "thompson": gap}[mode] <= 1.001e-7).all())


@pytest.mark.parametrize("f_solver", ["subdeq:auto", "subdeq:anderson", "anderson", "broyden", "fixed_point_iter"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_certified_stop_is_a_guaranteed_distance_with_any_solver(f_solver, kind):
    keywords = {"shift": 0.05, "activation": "tanh"}
    for f_tol in (1e-2, 1e-5):
        bound = bound_map(kind, 6, **keywords)
        out, info = core(f_solver=f_solver, f_tol=f_tol, f_max_iter=400)(bound)
        assert info["status"].tolist() == [0, 0, 0]
        z = ones_for(bound)
        for _ in range(600):
            z = bound(z)
        error = float((out[0].log() - z.log()).abs().max())
        assert error <= f_tol * (1 + 1e-9)


@pytest.mark.parametrize("keywords", [{"shift": 0.05}, {"shift": 0.3, "normalize": 2}], ids=str)
def test_a_foreign_solver_is_told_a_residual_that_the_proof_asks_for(monkeypatch, keywords):
    """It knows nothing of proofs: `d(z, z*) <= d(f(z), z) / (1 - rate)`, with the residual it knows for the metric."""
    import torchdeq.solver

    told = []

    def spy(func, x0, **settings):
        told.append(settings)
        return x0, [], {}

    monkeypatch.setitem(torchdeq.solver._solvers, "spy", spy)
    bound = bound_map("dense", 6, **keywords)
    proof = contraction_of(bound)
    core(f_solver="spy", f_tol=1e-3, f_max_iter=99)(bound)
    core(f_solver="spy", f_tol=1e-3, f_max_iter=99, f_stop_mode="abs")(bound)
    core(f_solver="spy", f_tol=1e-3, f_max_iter=99)(torch.cos, torch.ones(1, 2))
    assert [settings["stop_mode"] for settings in told] == ["rel", "abs", "rel"]
    assert [settings["tol"] for settings in told] == pytest.approx([1e-3 * (1 - proof.rate), 1e-3, 1e-3])
    assert {settings["max_iter"] for settings in told} == {99}


def test_what_a_foreign_solver_says_of_itself_is_not_believed(monkeypatch):
    import torchdeq.solver

    lie = {"abs_lowest": torch.zeros(2), "rel_lowest": torch.zeros(2)}
    monkeypatch.setitem(torchdeq.solver._solvers, "liar", lambda func, x0, max_iter=1, **_: (x0 + 5, [], lie))
    deq = core(f_solver="liar", f_max_iter=1, on_failure="ignore")
    out, info = deq(torch.cos, torch.zeros(2, 3))
    assert info["status"].tolist() == [Status.MAX_ITERATIONS] * 2
    torch.testing.assert_close(info["abs_lowest"].double(), residuals(torch.cos, torch.full((2, 3), 5.0))[0])
    assert out[0].shape == (2, 3)


def test_second_derivatives_of_a_plain_callable_are_refused():
    weight = torch.full((2, 3), 0.5, requires_grad=True)
    out, _ = core()(lambda z: torch.tanh(weight * z + 1), torch.zeros(2, 3))
    with pytest.raises(sd.SubdeqError, match="second derivatives"):
        torch.autograd.grad(out[0].sum(), weight, create_graph=True)


def test_the_rate_handed_to_the_backward_solve_is_one_of_thompsons_metric():
    assert _thompson_rate(None) is None
    assert _thompson_rate(Contraction.in_metric(0.9, "thompson")) == 0.9
    assert _thompson_rate(Contraction.in_metric(0.3, "hilbert")) == pytest.approx(0.6)
    assert _thompson_rate(Contraction.in_metric(0.5, "hilbert")) is None


@pytest.mark.parametrize("kind", ["dense", "conv", "graph"])
def test_a_core_can_be_copied_after_a_solve(kind):
    deq = core(f_solver="subdeq:anderson?memory=4", f_tol=1e-7)
    bound = bound_map(kind, 2)
    out, _ = deq(bound)
    twin = copy.deepcopy(deq)
    assert torch.equal(twin(bound)[0][0], out[0])
    assert twin.certificate is not None


def test_no_graph_without_gradients():
    layer, x = make_layer("dense", 1), make_input("dense", 1)
    with torch.no_grad():
        out, _ = core()(layer.bind(x))
    assert not out[0].requires_grad
    with torch.inference_mode():
        out, _ = core()(layer.bind(x))
    assert out[0].is_inference()
