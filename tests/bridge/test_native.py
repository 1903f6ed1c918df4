"""Layers solved inside Julia: the fixed points and the adjoints of torch's layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.autograd.implicit import Adjoint, fixed_point
from subdeq_plugin.bridge import get_runtime
from subdeq_plugin.bridge.native import NATIVE_ACTIVATIONS, is_native
from subdeq_plugin.errors import BridgeError
from subdeq_plugin.layers import BoundMap
from subdeq_plugin.result import Solution, Status
from subdeq_plugin.solvers import NewtonKrylov, Picard, Problem, Stop
from tests.problems import RecordedBound, bound_map, make_input, make_layer, normal, ones_for, residuals

pytestmark = pytest.mark.julia

KINDS = ("dense", "conv", "graph", "mixed")
SHAPES = [
    {"power": 1.0},
    {"power": 0.5},
    {"power": -0.6},
    {"normalize": 1},
    {"normalize": 2},
    {"normalize": 3.5},
    {"normalize": "inf"},
    {"injection": "outside"},
    {"injection": "outside", "normalize": 2, "power": 0.7},
]


def make(kind: str, dtype: torch.dtype = torch.float64, **keywords) -> BoundMap:
    if kind == "mixed":
        kind, keywords = "graph", {**keywords, "mix_features": True}
    keywords = {"shift": 1.3, **keywords}
    layer = make_layer(kind, 3, dtype, **keywords)
    with torch.no_grad():  # well inside the region of fast convergence, whatever the activation
        if getattr(layer, "weight", None) is not None:
            layer.weight = 0.3 * layer.weight.detach()
    return layer.bind(make_input(kind, 3, dtype)).detach()


def solve(bound: BoundMap, solver: str = "julia:newton_krylov", tol: float = 1e-12, **settings) -> Solution:
    return sd.solve(bound, ones_for(bound), sd.parse_solver(solver), tol=tol, max_iter=500, **settings)


def reference(bound: BoundMap) -> Tensor:
    """By another route: torch's own Newton, polished by plain steps."""
    z = sd.solve(bound, ones_for(bound), NewtonKrylov(), tol=1e-14, max_iter=300).value
    for _ in range(40):
        z = bound(z)
    return z


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", sorted(NATIVE_ACTIVATIONS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fixed_points_are_those_of_torch(kind, activation, shape):
    bound = make(kind, activation=activation, **shape)
    assert is_native(Problem.of(bound, ones_for(bound)), ones_for(bound))
    found = solve(bound)
    assert found.status.tolist() == [Status.CONVERGED] * 3
    assert float(residuals(bound, found.value)[1].max()) <= 2e-12
    torch.testing.assert_close(found.value, reference(bound), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", sorted(NATIVE_ACTIVATIONS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adjoints_are_those_of_torch(kind, activation, shape):
    bound = make(kind, activation=activation, **shape)
    z = reference(bound)
    g = normal(*z.shape, seed=5)
    seen: list[Solution] = []
    solver = sd.parse_solver("julia:newton_krylov")
    tensors = [tensor.clone().requires_grad_() for tensor in bound.tensors]
    out = fixed_point(bound.with_tensors(tensors), z, Adjoint(solver, Stop(1e-13, 300, "rel"), None, seen.append))
    gradients = torch.autograd.grad((out * g).sum(), tensors)
    assert seen[0].statuses == (Status.CONVERGED,) * 3 or not seen[0].failed.any()
    # The Jacobian row by row, and a dense solve.
    batch = z.shape[0]
    size = z[0].numel()
    units = torch.eye(size, dtype=z.dtype)
    jacobian = torch.stack(
        [bound.vjp(z, unit.reshape(1, *z.shape[1:]).expand_as(z)).reshape(batch, -1) for unit in units], dim=1
    )
    u = torch.linalg.solve(torch.eye(size, dtype=z.dtype) - jacobian.mT, g.reshape(batch, -1)).reshape(z.shape)
    torch.testing.assert_close(seen[0].value, u, rtol=1e-9, atol=1e-10)
    expected = torch.autograd.grad(bound.with_tensors(tensors)(z), tensors, u)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "over"), [("conv", "channel"), ("conv", "pixel"), ("graph", "channel"), ("graph", "node")]
)
@pytest.mark.parametrize("p", [1, 2, 3, "inf"])
def test_groups_of_a_normalisation(kind, over, p):
    bound = make(kind, normalize=p, normalize_over=over, activation="softplus")
    found = solve(bound)
    assert found.converged
    torch.testing.assert_close(found.value, reference(bound), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["newton_raphson", "trust_region", "pseudo_transient", "broyden", "dfsane", "auto"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_method(solver, kind, dtype):
    bound = make(kind, dtype, activation="tanh", shift=0.2)
    tol = 1e-11 if dtype == torch.float64 else 3e-6
    found = solve(bound, f"julia:{solver}", tol)
    assert found.converged, found.describe_failures()
    assert found.value.dtype == dtype
    assert float(residuals(bound, found.value)[1].max()) <= 1.01 * tol
    absolute, relative = residuals(bound, found.value)
    torch.testing.assert_close(found.abs_residual.double(), absolute, rtol=1e-3, atol=1e-13)
    torch.testing.assert_close(found.rel_residual.double(), relative, rtol=1e-3, atol=1e-13)


def test_torch_is_asked_only_to_test_the_result(monkeypatch):
    bound = make("dense")
    calls = []
    monkeypatch.setattr(BoundMap, "__call__", lambda self, z, call=BoundMap.__call__: calls.append(1) or call(self, z))
    found = solve(bound)
    assert found.converged and len(calls) == 1 < found.evaluations


def test_samples_are_solved_one_by_one():
    bound = make("dense", activation="tanh", shift=0.2)
    start = ones_for(bound)
    poisoned = bound.with_tensors([*bound.operator.tensors, bound.tensors[-1].clone()])
    poisoned.tensors[-1][1] = torch.nan
    clean, found = (
        sd.solve(one, start, sd.parse_solver("julia:newton_krylov"), tol=1e-11) for one in (bound, poisoned)
    )
    assert found.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    torch.testing.assert_close(found.value[::2], clean.value[::2], rtol=1e-14, atol=0)
    assert torch.equal(found.iterations[::2], clean.iterations[::2])


@pytest.mark.parametrize("mode", ["abs", "rel", "thompson", "hilbert"])
def test_every_stop_mode_is_met_as_torch_measures_it(mode):
    bound = make("dense", normalize=2) if mode == "hilbert" else make("dense")
    found = solve(bound, tol=1e-9, stop_mode=mode)
    assert found.converged
    image = bound(found.value)
    ratio = image.log() - found.value.log()
    distance = {
        "abs": (image - found.value).norm(dim=1),
        "rel": (image - found.value).norm(dim=1) / image.norm(dim=1),
        "thompson": ratio.abs().amax(dim=1),
        "hilbert": ratio.amax(dim=1) - ratio.amin(dim=1),
    }[mode]
    assert float(distance.max()) <= 1.001e-9
    if mode == "hilbert":
        torch.testing.assert_close(found.value.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_guaranteed_error():
    bound = make_layer("dense", 4, power=0.9).bind(make_input("dense", 4)).detach()
    certificate = sd.certify(bound)
    found = sd.solve(bound, ones_for(bound), sd.parse_solver("julia:newton_krylov"), certified_tol=1e-9)
    assert found.converged and found.error_bound is not None and float(found.error_bound.max()) <= 1e-9
    exact = reference(bound)
    assert float((found.value.log() - exact.log()).abs().max()) <= 1e-9
    assert torch.equal(certificate.error_bound(found.value), found.error_bound)


def test_many_samples_large_states_and_a_graph_without_a_batch():
    torch.manual_seed(0)
    wide = sd.SubhomLinear(3, 200, shift=0.2).double().bind(torch.rand(300, 3).double()).detach()
    found = solve(wide, tol=1e-11)
    assert found.converged and float(residuals(wide, found.value)[1].max()) <= 1.01e-11
    edges = torch.randint(0, 2000, (2, 12000))
    graph = sd.SubhomGraph(3, 8, 0.1).double().bind((torch.rand(2000, 3).double(), edges)).detach()
    found = solve(graph, tol=1e-11)
    assert found.status.shape == (1,) and found.converged
    assert float(residuals(graph, found.value, 1)[1].max()) <= 1.01e-11


def test_views_that_are_not_contiguous():
    torch.manual_seed(0)
    weight = 0.2 * torch.rand(6, 5, dtype=torch.float64)[:5].t()
    inner = torch.rand(5, 3, dtype=torch.float64).t()
    bound = BoundMap.from_spec(
        sd.MapSpec({"weight": weight, "inner": inner}, {"kind": "dense", "activation": "tanh", "shift": 0.1})
    )
    found = sd.solve(
        bound, torch.ones(5, 3, dtype=torch.float64).t(), sd.parse_solver("julia:newton_krylov"), tol=1e-11
    )
    assert found.converged
    torch.testing.assert_close(found.value, reference(bound), rtol=1e-10, atol=0)


# What goes by callbacks instead


def test_what_julia_does_not_know_is_evaluated_by_torch():
    name = "swish_for_the_bridge"
    if name not in sd.activation_names():
        sd.register_activation(name, lambda t: t * t.sigmoid())
    layer = make_layer("dense", 3, activation=name, shift=0.5, power=0.5)
    bound = layer.bind(make_input("dense", 3)).detach()
    start = ones_for(bound)
    assert not is_native(Problem.of(bound, start), start)
    assert not is_native(Problem.of(RecordedBound.of(make("dense")), start), start)
    assert not is_native(Problem.of(torch.cos, start), start)
    half = make("dense", torch.bfloat16)
    assert not is_native(Problem.of(half, ones_for(half)), ones_for(half))
    found = solve(bound)
    assert found.converged and float(residuals(bound, found.value)[1].max()) <= 2e-12


def test_the_two_lists_of_activations_agree():
    names = get_runtime().call(lambda julia: str(julia.ask('join(sort!(collect(keys(SubDEQ.ACTIVATIONS))), " ")')))
    assert set(names.split()) == NATIVE_ACTIVATIONS


@pytest.mark.parametrize("key", ["julia:newton_raphson", "julia:broyden?rule=good", "julia:broyden?rule=bad"])
def test_dense_matrices_that_do_not_fit_are_refused(key):
    bound = bound_map("conv")
    big = BoundMap.from_spec(
        sd.MapSpec(
            {"weight": torch.rand(8, 8, 3, 3), "inner": torch.rand(1, 8, 60, 60)},
            {"kind": "conv2d", "activation": "tanh", "shift": 0.1, "dilation": [1, 1]},
        )
    )
    with pytest.raises(
        BridgeError, match=r"GiB for 1 matrices of 28800 x 28800 and their factors; use julia:newton_krylov"
    ):
        sd.solve(big, ones_for(big), sd.parse_solver(key))
    assert solve(bound, key).converged


def test_callback_and_native_agree():
    for kind, keywords in itertools.product(KINDS, ({}, {"normalize": 2})):
        bound = make(kind, **keywords)
        native, callback = (solve(bound, f"julia:newton_krylov?native={word}") for word in ("true", "false"))
        torch.testing.assert_close(native.value, callback.value, rtol=1e-11, atol=1e-12)
        plain = sd.solve(bound, ones_for(bound), Picard(), tol=1e-12, max_iter=5000)
        torch.testing.assert_close(native.value, plain.value, rtol=1e-9, atol=1e-10)
