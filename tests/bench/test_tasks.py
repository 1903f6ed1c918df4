"""The kinds of work, against derivatives taken by other routes."""

from __future__ import annotations

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.bench import WORKS, Equation, Problem, Training, make_problem
from subdeq_plugin.bench.maps import AdjointMap, Tally, counted, counted_layer
from subdeq_plugin.bench.tasks import make_task
from subdeq_plugin.errors import CertificateError, OptionError

SIZES = {"dense": (6, 3), "conv": (2, 4, 2), "graph": (10, 3, 2)}
EASY = ("dense", "dense-normalised", "conv", "graph", "graph-normalised")


def tiny(name: str) -> Problem:
    return make_problem(name, SIZES[name.partition("-")[0]])


@pytest.mark.parametrize("name", EASY)
def test_the_reference_gradient_is_that_of_many_plain_steps(name):
    problem = tiny(name).to("cpu", torch.float64)
    task = make_task(problem, "training")
    assert isinstance(task, Training)
    bound = task.layer.bind(task.x)
    z = bound.start()
    for _ in range(80):
        z = bound(z)
    found = torch.autograd.grad(task.loss(z), task.parameters)
    assert task.judge(found).error < 1e-11
    assert task.judge([2 * part for part in found]).error == pytest.approx(1)


def test_the_loss_and_its_derivative():
    task = make_task(tiny("dense"), "training")
    z = (task.start + 0.5).requires_grad_()
    expected = sum(((a - b) ** 2).sum() for a, b in zip(z.detach(), task.target, strict=True)) / (2 * len(z))
    torch.testing.assert_close(task.loss(z), expected)
    torch.testing.assert_close(torch.autograd.grad(task.loss(z), z)[0], task.loss_gradient(z.detach()))


@pytest.mark.parametrize("name", EASY)
def test_the_adjoint_is_taken_at_the_fixed_point(name):
    problem = tiny(name)
    task = make_task(problem, "adjoint")
    assert isinstance(task, Equation) and isinstance(task.function, AdjointMap)
    state = task.function.state
    gap = (problem.bound(state) - state).abs().max() / state.abs().max()
    assert float(gap) < 1e-6 and state.dtype == torch.float32
    u = torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
    at = state.clone().requires_grad_()
    (pulled,) = torch.autograd.grad(problem.bound(at), at, u)
    torch.testing.assert_close(task.function(u), task.function.g + pulled)
    torch.testing.assert_close(task.bare()(), problem.bound.operator.transpose(task.start))


def test_the_seed_decides_about_cotangents_and_targets():
    problem = tiny("dense")
    for work, pick in (("adjoint", lambda task: task.function.g), ("training", lambda task: task.target)):
        first, same, other = (pick(make_task(problem, work, seed=seed)) for seed in (0, 0, 1))
        assert torch.equal(first, same) and not torch.equal(first, other)


def test_forward_begins_at_ones():
    problem = tiny("conv")
    task = make_task(problem, "forward")
    assert task.function is problem.bound and torch.equal(task.start, torch.ones_like(task.start))
    assert task.contraction.rate == problem.certificate.rate
    torch.testing.assert_close(task.bare()(), problem.bound.operator(task.start))


def test_what_cannot_be_done_says_why():
    bound = Problem.of("mine", tiny("dense").bound)
    with pytest.raises(OptionError, match=r"'training' needs a layer: problem 'mine' must be a pair \(layer, x\)"):
        make_task(bound, "training")
    with pytest.raises(CertificateError, match="ask for a larger --error"):
        make_task(tiny("dense-normalised-hard"), "training", error=1e-15)
    assert set(WORKS) == {"forward", "adjoint", "training"}


@pytest.mark.parametrize("name", ["dense", "conv-normalised", "graph"])
def test_counted_maps_are_the_same_and_count(name):
    bound = tiny(name).bound
    tally = Tally()
    spy = counted(bound, tally)
    z = bound.start()
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    assert isinstance(spy, sd.BoundMap) and torch.equal(spy(z), bound(z))
    assert (tally.evaluations, tally.products) == (1, 0)
    jacobian, plain = spy.linearize(z), bound.linearize(z)
    assert torch.equal(jacobian.jvp(v), plain.jvp(v)) and torch.equal(jacobian.vjp(v), plain.vjp(v))
    assert torch.equal(jacobian.value, plain.value)
    assert (tally.evaluations, tally.products) == (1, 2)
    at = z.clone().requires_grad_()
    image = spy(at)
    for _ in range(3):
        torch.autograd.grad(image, at, v, retain_graph=True)
    assert (tally.evaluations, tally.products) == (2, 5)
    stepper, step = spy.stepper(), bound.stepper()
    assert torch.equal(stepper(stepper.enter(z), stepper.enter(z).clone()), step(step.enter(z), step.enter(z).clone()))
    assert (tally.evaluations, tally.products) == (3, 5)
    jacobian.adjoint_stepper(v)(jacobian.adjoint_stepper(v).enter(v), torch.empty_like(v))
    assert (tally.evaluations, tally.products) == (3, 6)
    assert spy.detach().with_tensors(spy.tensors).tally is tally


def test_counted_adjoint_maps():
    task = make_task(tiny("dense"), "adjoint")
    tally = Tally()
    spy = task.counted(tally).function
    u = torch.randn(task.start.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spy(u), task.function(u))
    products, plain = spy.linearize(u), task.function.linearize(u)
    assert torch.equal(products.jvp(u), plain.jvp(u)) and torch.equal(products.vjp(u), plain.vjp(u))
    # The Jacobian of the adjoint map is the transpose of the map's.
    torch.testing.assert_close((products.jvp(u) * u).sum(), (products.vjp(u) * u).sum())
    stepper, step = spy.stepper(), task.function.stepper()
    torch.testing.assert_close(stepper(stepper.enter(u), torch.empty_like(u)), step(step.enter(u), torch.empty_like(u)))
    assert (tally.evaluations, tally.products) == (2, 4)


def test_counted_layers_share_their_parameters():
    problem = tiny("dense")
    tally = Tally()
    spy = counted_layer(problem.layer, tally)
    assert all(a is b for a, b in zip(spy.parameters(), problem.layer.parameters(), strict=True))
    spy.bind(problem.x)(problem.bound.start())
    problem.layer.bind(problem.x)(problem.bound.start())
    assert tally.evaluations == 1 and "bind" not in problem.layer.__dict__
