"""`SubDEQ`: the equilibrium of a layer as a module."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import subdeq_plugin as sd
from subdeq_plugin.errors import ConvergenceWarning, DomainError, OptionError, ShapeError
from tests.helpers import marked
from tests.problems import make_input, make_layer, normal, residuals

LAYERS = {
    "dense": ("dense", {"shift": 0.05}),
    "dense-inside": ("dense", {"activation": "sigmoid", "shift": 0.0, "injection": "inside"}),
    "dense-power": ("dense", {"activation": "relu", "shift": 0.05, "power": 0.9}),
    "dense-norm-inf": ("dense", {"shift": 1.603, "normalize": "inf"}),
    "dense-norm-2-slow": ("dense", {"activation": "softplus", "shift": 0.05, "power": 0.9, "normalize": 2}),
    "conv": ("conv", {"shift": 0.1}),
    "conv-channel-norm": ("conv", {"shift": 1.2, "activation": "softsign", "normalize": 1,
                                   "normalize_over": "channel"}),
    "graph": ("graph", {"shift": 0.1}),
    "graph-mixing": ("graph", {"shift": 0.2, "mix_features": True}),
}  # fmt: skip


def reference(layer: sd.SubhomLayer, x) -> Tensor:
    """Plain iteration in float64 until nothing moves."""
    exact = copy.deepcopy(layer).double()
    given = (x[0].double(), x[1]) if isinstance(x, tuple) else x.double()
    bound = exact.bind(given).detach()
    z = torch.ones(bound.state_shape, dtype=torch.float64)
    for _ in range(3000):
        new = bound(z)
        if bool(((new - z).abs() <= 1e-15 * new).all()):
            break
        z = new
    return z


def distance(metric: str | None, x: Tensor, y: Tensor) -> Tensor:
    gap = (x.double().log() - y.log()).reshape(x.shape[0], -1)
    assert metric in ("thompson", "hilbert")
    return gap.abs().amax(dim=1) if metric == "thompson" else gap.amax(dim=1) - gap.amin(dim=1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("f_solver", ["subdeq:auto", "subdeq:anderson", "subdeq:newton_krylov", "anderson"])
def test_the_tolerance_is_a_guaranteed_distance(name, dtype, f_solver):
    kind, keywords = LAYERS[name]
    layer, x = make_layer(kind, 11, dtype, **keywords), make_input(kind, 11, dtype)
    truth, metric = reference(layer, x), sd.certify(layer).metric
    for f_tol in (1e-1, 1e-4) if dtype == torch.float32 else (1e-2, 1e-9):
        model = sd.SubDEQ(layer, f_solver, f_tol=f_tol, f_max_iter=500, on_failure="raise")
        z = model(x)
        assert z.dtype == dtype
        rounding = 100 * torch.finfo(dtype).eps
        assert float(distance(metric, z.detach(), truth).max()) <= f_tol + rounding
        bound = model.certify(x).error_bound(z.detach())
        assert bool((distance(metric, z.detach(), truth) <= bound * (1 + 1e-9) + 1e-13).all())


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_of_the_last_solves(name):
    kind, keywords = LAYERS[name]
    layer, x = make_layer(kind, 12, **keywords), make_input(kind, 12)
    model = sd.SubDEQ(layer, f_tol=1e-7, b_tol=1e-8)
    assert model.stats.forward is None and model.stats.backward is None
    z = model(x)
    forward = model.stats.forward
    assert forward is not None and model.stats.backward is None
    absolute, relative = residuals(layer.bind(x).detach(), z.detach())
    # Those of the state that was tested, of which the answer is the image.
    assert bool((absolute <= 1.001 * forward.abs_residual + 1e-14).all()) and float(forward.abs_residual.max()) < 1e-4
    assert bool((relative <= 1.001 * forward.rel_residual + 1e-14).all()) and float(forward.rel_residual.max()) < 1e-4
    assert forward.value.numel() == 0 and forward.trajectory == ()
    z.square().sum().backward()
    backward = model.stats.backward
    assert backward is not None and backward.converged and float(backward.rel_residual.max()) <= 1e-8


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_and_a_state_dict_give_the_same_answer(name):
    kind, keywords = LAYERS[name]
    model, x = sd.SubDEQ(make_layer(kind, 13, **keywords), f_tol=1e-9), make_input(kind, 13)
    z = model(x)
    z.sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), z)
    assert twin.layer is not model.layer
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = sd.SubDEQ(make_layer(kind, 14, **keywords), f_tol=1e-9)
    assert not torch.equal(fresh(x), z)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), z)
    assert set(model.state_dict()) == {f"layer.{key}" for key in model.layer.state_dict()}


def test_the_copy_trains_by_itself():
    model, x = sd.SubDEQ(make_layer("dense", 13)), make_input("dense", 13)
    before = model(x).detach()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(x).sum().backward()
    optimizer.step()
    assert torch.equal(model(x), before) and not torch.equal(twin(x), before)


@pytest.mark.parametrize("name", ["dense", "conv", "graph-mixing"])
def test_gradients_do_not_depend_on_the_mode(name):
    kind, keywords = LAYERS[name]
    model, x = sd.SubDEQ(make_layer(kind, 15, **keywords), f_tol=1e-10, b_tol=1e-10), make_input(kind, 15)
    gradients = []
    for module in (model.train(), model.eval()):
        z = module(x)
        assert z.requires_grad
        gradients.append(torch.autograd.grad((z * normal(*z.shape, seed=1)).sum(), list(module.parameters())))
        model.train()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    assert any(bool(g.abs().max() > 1e-4) for g in gradients[0])


def test_second_derivatives_with_respect_to_the_input():
    model = sd.SubDEQ(make_layer("dense", 16, injection_map="softplus"), f_tol=1e-13, b_tol=1e-13)
    x = make_input("dense", 16)[:1].requires_grad_()
    assert torch.autograd.gradcheck(model, x, atol=1e-6)
    assert torch.autograd.gradgradcheck(model, x, atol=1e-5)


def test_a_penalty_on_the_gradient_trains():
    model, x = sd.SubDEQ(make_layer("dense", 17)), make_input("dense", 17).requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_warm_start_saves_evaluations():
    model, x = sd.SubDEQ(make_layer("dense", 18, shift=0.05), f_tol=1e-8), make_input("dense", 18)
    z = model(x).detach()
    cold = model.stats.forward.evaluations
    again = model(x, z_init=z)
    assert model.stats.forward.evaluations < cold
    torch.testing.assert_close(again, z, rtol=1e-7, atol=0)


@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
def test_every_start_leads_to_the_same_point(spread):
    model, x = sd.SubDEQ(make_layer("dense", 19), f_tol=1e-9), make_input("dense", 19)
    z = model(x).detach()
    start = torch.exp(spread * (2 * torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).double() - 1))
    torch.testing.assert_close(model(x, z_init=start).detach(), z, rtol=3e-9, atol=0)


@pytest.mark.parametrize("entry", [0.0, -0.5, float("inf")])
def test_a_start_outside_the_cone_is_refused(entry):
    model, x = sd.SubDEQ(make_layer("dense", 18)), make_input("dense", 18)
    start = torch.ones(3, 5, dtype=torch.float64)
    start[2, 3] = entry
    with pytest.raises(DomainError, match="strictly positive"):
        model(x, z_init=start)


def test_unusable_inputs_are_refused():
    model = sd.SubDEQ(make_layer("dense", 18))
    with pytest.raises(ShapeError, match="size 3 in dimension -1"):
        model(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(ShapeError, match="empty"):
        model(torch.ones(0, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"shape \(2, 5\)"):
        model(torch.ones(2, 3, dtype=torch.float64), z_init=torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(OptionError, match="must be a subhomogeneous layer, got Linear"):
        sd.SubDEQ(nn.Linear(3, 3))
    with pytest.raises(OptionError, match="did you mean 'f_max_iter'"):
        sd.SubDEQ(make_layer("dense", 18), f_maxiter=3)


def test_a_bad_sample_is_reported_and_the_others_are_exact():
    model, x = sd.SubDEQ(make_layer("dense", 20), f_tol=1e-9), make_input("dense", 20)
    clean = model(x).detach()
    x[1] = torch.nan
    with pytest.warns(ConvergenceWarning, match="1 of 3 samples failed. 1 x NONFINITE"):
        z = model(x)
    torch.testing.assert_close(z.detach()[::2], clean[::2], rtol=1e-8, atol=0)
    assert model.stats.forward.failed.tolist() == [False, True, False]


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_any_number_of_leading_dimensions(lead):
    model = sd.SubDEQ(make_layer("dense", 21), f_tol=1e-9)
    x = normal(*lead, 3, seed=21)
    z = model(x)
    assert z.shape == (*lead, 5)
    one = model(x.reshape(-1, 3)).reshape(z.shape)
    torch.testing.assert_close(z, one, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("inside", [False, True])
def test_autocast(name, inside):
    kind, keywords = LAYERS[name]
    layer, x = make_layer(kind, 22, torch.float32, **keywords), make_input(kind, 22, torch.float32)
    model = sd.SubDEQ(layer, f_tol=1e-2, b_tol=1e-2)
    expected = model(x)
    targets = list(model.parameters())
    weights = normal(*expected.shape, seed=1, dtype=torch.float32)
    reference = torch.autograd.grad((expected * weights).sum(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(x)
        loss = (z * weights).sum()
        got = torch.autograd.grad(loss, targets) if inside else None
    if got is None:
        got = torch.autograd.grad(loss, targets)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, expected, rtol=0.1, atol=0.05)
    for one, other in zip(got, reference, strict=True):
        assert one.dtype == torch.float32
        size = float(other.abs().max()) + 0.1
        assert float((one - other).abs().max()) <= 0.25 * size


@pytest.mark.parametrize("solver", marked(sd.register()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(solver, dtype):
    layer, x = make_layer("dense", 23, torch.float32, shift=0.5), make_input("dense", 23, torch.float32)
    expected = sd.SubDEQ(layer)(x).detach()
    model = sd.SubDEQ(copy.deepcopy(layer).to(dtype), solver, solver, f_tol=0.05, b_tol=0.05)
    z = model(x.to(dtype))
    z.sum().backward()
    assert z.dtype == dtype
    torch.testing.assert_close(z.detach().float(), expected, rtol=0.1, atol=0)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_start_of_another_dtype_is_refused():
    torch.manual_seed(0)
    layer = sd.SubhomLinear(3, 4)
    x = torch.rand(2, 3)
    with pytest.raises(ShapeError, match=r"dtype of the map, torch\.float32, got torch\.float64"):
        sd.SubDEQ(layer)(x, torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"dtype of the map, torch\.float32, got torch\.float64"):
        sd.CertifiedDEQ()(layer.bind(x), torch.ones(2, 4, dtype=torch.float64))


def test_the_state_of_a_graph_keeps_its_dtype_under_autocast():
    torch.manual_seed(0)
    layer = sd.SubhomGraph(3, 4)
    x = (torch.rand(5, 3), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (z,), _ = sd.CertifiedDEQ(on_failure="ignore")(layer.bind(x))
    assert z.dtype == torch.float32
