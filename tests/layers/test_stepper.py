"""Maps made ready for the inside of a solve: their rounding, their states, and rows of maps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from subdeq_plugin.activations import activation_names
from subdeq_plugin.activations.base import lookup
from subdeq_plugin.layers import BoundMap, MapSpec, SubhomConv2d, SubhomGraph, SubhomLinear
from subdeq_plugin.layers.stepper import Stepper
from subdeq_plugin.solvers import Problem
from tests.helpers import EDGES, GROUPS, random_states, rounding

BUILTIN = sorted(name for name in activation_names() if lookup(name).accurate)


def layer(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, **keywords: Any):
    """A small layer of a kind of `GROUPS`."""
    torch.manual_seed(seed)
    options = {"activation": "tanh", "shift": 0.3, "dtype": dtype, **keywords}
    if kind == "dense":
        return SubhomLinear(3, 4, **options)
    if kind == "conv":
        return SubhomConv2d(2, 3, 3, **options)
    return SubhomGraph(3, 2, 0.2, mix_features=kind == "mixing graph", **options)


def features(kind: str, lead: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Any:
    """An input with the given leading dimensions."""
    shape = {"dense": (*lead, 3), "conv": (*lead, 2, 3, 4)}.get(kind, (*lead, 5, 3))
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(17), dtype=torch.float64).to(dtype)
    return x if kind in ("dense", "conv") else (x, EDGES)


LEADS = {"dense": [(3,), (), (2, 3), (1, 2), (2, 1), (2, 1, 3)], "conv": [(3,), (1,)], "graph": [(3,), (), (1,)],
         "mixing graph": [(3,), (), (1,)]}  # fmt: skip
SHAPES = [(kind, lead) for kind, leads in LEADS.items() for lead in leads]
# Every shape without a norm, and with every norm over the whole state and over the smallest groups.
NORMED = [
    (kind, lead, p, over)
    for kind, lead in SHAPES
    for p, over in [
        (None, "state"),
        *((p, over) for p in (1, 2, 3, "inf") for over in sorted({"state", GROUPS[kind][-1]})),
    ]
]


def made(kind: str, lead: tuple[int, ...], **keywords: Any) -> BoundMap:
    return layer(kind, **keywords).bind(features(kind, lead)).detach()


# The map itself


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", BUILTIN)
def test_an_image_is_as_accurate_as_it_says(name, dtype):
    """For every activation, shift, power, place of the injection and normalisation: near and far from the origin."""
    for (shift, power), place, (norm, scale) in itertools.product(
        [(0.3, 1.0), (1e-3, 1.0), (1.2, 0.5), (0.05, -0.7), (0.7, 2.0)],
        ["inside", "outside"],
        [(None, 1.0), (None, 30.0), ("inf", 1.0), (2, 1e-2), (1, 1.0)],
    ):
        options = {"activation": name, "shift": shift, "power": power, "normalize": norm, "injection": place}
        bound = layer("dense", dtype, **options).bind(features("dense", (3,), dtype)).detach()
        bound = bound.with_tensors([scale * tensor for tensor in bound.tensors])
        z = random_states((3, 4), 5, 2.0).to(dtype)
        exact = bound.to("cpu", torch.float64)(z.double())
        stepper = bound.stepper()
        image = stepper(stepper.enter(z), torch.empty_like(z))
        gap, extra = (image.double() - exact).abs(), lookup(name).overwriting.error if stepper.error else 0.0
        assert bool((gap <= 2 * exact * rounding(bound, z, extra)).all()), options
        assert bool((gap <= stepper.error + 2 * exact * rounding(bound, z)).all()), options
        assert (stepper.error == 0) == (extra == 0)


@pytest.mark.parametrize("scale", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize(
    ("shift", "power", "norm"), [(0.0, 0.5, None), (1e-4, 1.0, "inf"), (1e-4, 1.0, 2), (1e-6, 0.3, 1), (0.0, 0.7, 2)]
)
def test_the_error_holds_where_the_activation_is_small(scale, shift, power, norm):
    """There a power below one, or the division by a small norm, magnifies what cancellation has left."""
    bound = layer("dense", torch.float32, shift=shift, power=power, normalize=norm).bind(
        features("dense", (3,), torch.float32)
    )
    bound = bound.detach().with_tensors([scale * bound.tensors[0].detach(), torch.zeros(3, 4)])
    z = random_states((3, 4), 5, 1.0).float()
    exact = bound.to("cpu", torch.float64)(z.double())
    stepper = bound.stepper()
    image = stepper(stepper.enter(z), torch.empty_like(z))
    assert bool(((image.double() - exact).abs() <= stepper.error + 2 * exact * rounding(bound, z)).all())


@pytest.mark.parametrize("name", [name for name in BUILTIN if lookup(name).overwriting.error == 0])
def test_without_an_error_of_its_own_a_stepper_agrees_to_the_last_digits(name):
    for norm, power, place in itertools.product([None, 2, "inf"], [1.0, 0.5], ["inside", "outside"]):
        bound = made("dense", (3,), activation=name, normalize=norm, power=power, injection=place)
        stepper, z = bound.stepper(), random_states((3, 4), 6, 2.0)
        assert stepper.error == 0
        torch.testing.assert_close(stepper(z, torch.empty_like(z)), bound(z), rtol=4e-15, atol=0)


@pytest.mark.parametrize(("kind", "lead", "norm", "over"), NORMED)
def test_states_of_any_leading_dimensions(kind, lead, norm, over):
    bound = made(kind, lead, normalize=norm, normalize_over=over, shift=1.2)
    z = random_states(tuple(bound.state_shape), 7, 1.0)
    stepper = bound.stepper()
    state = stepper.enter(z)
    image = stepper.leave(stepper(state, torch.empty_like(state)), z.shape)
    torch.testing.assert_close(image, bound(z), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("kind", "lead"), SHAPES)
def test_entering_and_leaving_is_a_round_trip(kind, lead):
    bound = made(kind, lead)
    z, stepper = random_states(tuple(bound.state_shape), 8), bound.stepper()
    turned = z.permute(*reversed(range(z.dim()))).contiguous().permute(*reversed(range(z.dim())))
    strided = torch.stack([z, z], dim=-1)[..., 1]
    for given in (z, turned, strided, z.clone().requires_grad_(), z[..., :1].expand(z.shape)):
        before = given.detach().clone()
        state = stepper.enter(given)
        assert state.shape == (z.numel() // z.shape[len(lead) :].numel(), *z.shape[len(lead) :])
        assert state.is_contiguous(memory_format=bound.operator.layout) and not state.requires_grad
        back = stepper.leave(state, z.shape)
        assert back.shape == z.shape and back.is_contiguous()
        assert torch.equal(back, before) and torch.equal(given.detach(), before)


@pytest.mark.parametrize("kind", GROUPS)
def test_stepping_leaves_its_arguments_alone(kind):
    for place, norm, name in itertools.product(["inside", "outside"], [None, 2], ["tanh", "relu", "softsign"]):
        bound = made(kind, (3,), injection=place, normalize=norm, activation=name, shift=0.7)
        tensors = [tensor.clone() for tensor in bound.tensors]
        stepper = bound.stepper()
        z = stepper.enter(random_states(tuple(bound.state_shape), 9))
        kept, images = z.clone(), []
        for fill in (0.0, torch.nan):  # what the buffer holds does not matter
            images.append(stepper(z, torch.full_like(z, fill)))
            assert torch.equal(z, kept)
        assert torch.equal(images[0], images[1])
        for now, before in zip(bound.tensors, tensors, strict=True):
            assert torch.equal(now, before)


def test_a_map_without_injections():
    arrays = {"weight": torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    for norm in (None, 2):
        spec = MapSpec(arrays, {"kind": "dense", "activation": "tanh", "shift": 0.4, "power": 0.5, "normalize": norm})
        bound = BoundMap.from_spec(spec)
        stepper, z = bound.stepper(), random_states((2, 4), 1)
        torch.testing.assert_close(stepper(z, torch.empty_like(z)), bound(z), rtol=1e-13, atol=0)


def test_both_injections_at_once():
    inner, outer = random_states((2, 4), 2, 1.0), random_states((2, 4), 3, 1.0)
    arrays = {"weight": random_states((4, 4), 4, 1.0), "inner": inner, "outer": outer}
    for name, shift, power in itertools.product(["tanh", "arctan"], [0.0, 0.4], [1.0, 0.5]):
        bound = BoundMap.from_spec(
            MapSpec(arrays, {"kind": "dense", "activation": name, "shift": shift, "power": power})
        )
        stepper, z = bound.stepper(), random_states((2, 4), 5)
        torch.testing.assert_close(stepper(z, torch.empty_like(z)), bound(z), rtol=1e-13, atol=0)


def test_an_injection_that_autocast_has_lowered():
    module, x = layer("dense", torch.float32), features("dense", (3,), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = module.bind(x)
    assert bound.outer is not None and bound.outer.dtype == torch.bfloat16
    stepper, z = bound.detach().stepper(), random_states((3, 4), 5).float()
    image = stepper(z, torch.empty_like(z))
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, bound.detach()(z), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", GROUPS)
def test_bad_samples_are_stepped_by_themselves(kind):
    bound = made(kind, (3,), normalize=2, shift=1.2)
    stepper = bound.stepper()
    z = stepper.enter(random_states(tuple(bound.state_shape), 9))
    clean = stepper(z, torch.empty_like(z)).clone()
    z[1] = torch.nan
    image = stepper(z, torch.empty_like(z))
    torch.testing.assert_close(image[::2], clean[::2], rtol=1e-14, atol=0)
    assert bool(image[1].isnan().all())


# The adjoint map


@pytest.mark.parametrize(("kind", "lead", "norm", "over"), NORMED)
def test_adjoint_steps_of_any_leading_dimensions(kind, lead, norm, over):
    bound = made(kind, lead, normalize=norm, normalize_over=over, shift=1.2, power=0.8)
    z = random_states(tuple(bound.state_shape), 10, 0.5).requires_grad_()
    g, u = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    (pulled,) = torch.autograd.grad(bound(z), z, u)
    stepper = bound.linearize(z.detach()).adjoint_stepper(g)
    state = stepper.enter(u)
    image = stepper.leave(stepper(state, torch.empty_like(state)), z.shape)
    torch.testing.assert_close(image, g + pulled, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("how", ["expanded", "turned", "strided"])
def test_adjoint_steps_with_cotangents_of_any_layout(kind, how):
    bound = made(kind, (3,))
    z = random_states(tuple(bound.state_shape), 10, 0.5)
    g = torch.randn(z.shape, generator=torch.Generator().manual_seed(2), dtype=z.dtype)
    if how == "expanded":
        g = torch.tensor(0.7, dtype=z.dtype).expand(z.shape)
    elif how == "turned":
        g = g.permute(*reversed(range(z.dim()))).contiguous().permute(*reversed(range(z.dim())))
    else:
        g = torch.stack([g, g], dim=-1)[..., 0]
    assert not g.is_contiguous()
    jacobian, kept = bound.linearize(z), g.clone()
    stepper = jacobian.adjoint_stepper(g)
    state = stepper.enter(g)
    image = stepper.leave(stepper(state, torch.empty_like(state)), z.shape)
    torch.testing.assert_close(image, g + jacobian.vjp(g.contiguous()), rtol=1e-12, atol=1e-13)
    assert torch.equal(g, kept)


@pytest.mark.parametrize("kind", GROUPS)
def test_adjoint_steps_in_single_precision(kind):
    wide = made(kind, (3,), normalize=2, shift=1.2)
    bound, z = wide.to("cpu", torch.float32), random_states(tuple(wide.state_shape), 10, 0.5)
    g, u = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(3), dtype=z.dtype)
    truth = g + wide.vjp(z, u)
    stepper = bound.linearize(z.float()).adjoint_stepper(g.float())
    state = stepper.enter(u.float())
    image = stepper.leave(stepper(state, torch.empty_like(state)), z.shape)
    assert image.dtype == torch.float32 and stepper.error == 0
    torch.testing.assert_close(image.double(), truth, rtol=1e-4, atol=2e-5)


# Derivatives with respect to the tensors


@pytest.mark.parametrize(("kind", "lead", "norm", "over"), NORMED)
@pytest.mark.parametrize("place", ["inside", "outside"])
def test_the_pullback_for_any_leading_dimensions(kind, lead, norm, over, place):
    bound = made(kind, lead, normalize=norm, normalize_over=over, shift=1.2, power=0.8, injection=place)
    z = random_states(tuple(bound.state_shape), 11, 0.5)
    u = torch.randn(z.shape, generator=torch.Generator().manual_seed(4), dtype=z.dtype)
    tensors = [tensor.clone().requires_grad_() for tensor in bound.tensors]
    truth = torch.autograd.grad(bound.with_tensors(tensors)(z), tensors, u)
    pulled = bound.linearize(z).pullback(u)
    for got, expected in zip(pulled, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("power", [1.0, -0.6])
@pytest.mark.parametrize("norm", [None, 2, 3])
def test_the_pullback_by_finite_differences(kind, power, norm):
    bound = made(kind, (2,), power=power, normalize=norm, injection_map="softplus")
    z = random_states(tuple(bound.state_shape), 12, 0.5)
    u = torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=z.dtype)
    step, pulled = 1e-6, bound.linearize(z).pullback(u)
    for i, tensor in enumerate(bound.tensors):
        v = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(6 + i), dtype=z.dtype)

        def moved(by: float, i: int = i, v: Tensor = v) -> Tensor:
            tensors = list(bound.tensors)
            tensors[i] = tensors[i] + by * v
            return (bound.with_tensors(tensors)(z) * u).sum()

        quotient = (moved(step) - moved(-step)) / (2 * step)
        torch.testing.assert_close((pulled[i] * v).sum(), quotient, rtol=1e-6, atol=1e-8)


def test_the_pullback_has_the_dtype_of_each_tensor():
    module, x = layer("dense", torch.float32), features("dense", (3,), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = module.bind(x).detach()
    z = random_states((3, 4), 1, 0.5).float()
    pulled = bound.linearize(z).pullback(torch.ones_like(z))
    assert [part.dtype for part in pulled] == [tensor.dtype for tensor in bound.tensors]
    assert {part.dtype for part in pulled} == {torch.float32, torch.bfloat16}


# Rows


@pytest.mark.parametrize(("kind", "lead"), [(kind, lead) for kind, lead in SHAPES if lead])
@pytest.mark.parametrize(("norm", "whole"), [(None, True), (2, True), ("inf", False)])
@pytest.mark.parametrize("place", ["inside", "outside"])
def test_rows_of_a_map_and_of_its_problem(kind, lead, norm, whole, place):
    over = "state" if whole else GROUPS[kind][-1]
    bound = made(kind, lead, normalize=norm, normalize_over=over, shift=1.2, injection=place)
    z = random_states(tuple(bound.state_shape), 13, 1.0)
    samples = z.reshape(-1, *z.shape[len(lead) :])
    values = bound(z).reshape(samples.shape)
    count = len(samples)
    problem = Problem.of(bound, z)
    every = list(range(count))
    for index in (*map(torch.tensor, ([count - 1], every, every[::-1], [0, 0], every[::2])), slice(None), slice(0, 1)):
        rows = every[index] if isinstance(index, slice) else index.tolist()
        torch.testing.assert_close(bound.rows(index)(samples[index]), values[index], rtol=1e-14, atol=0)
        part = problem.rows(index)
        flat = samples[index].reshape(len(rows), -1)
        assert part.samples == len(rows) and part.shape == samples[index].shape
        assert (part.positive, part.contraction, part.affine) == (problem.positive, problem.contraction, False)
        torch.testing.assert_close(part(flat), values[index].reshape(len(rows), -1), rtol=1e-14, atol=0)
        # A part of a part, its stepper and its Jacobian are those of the same samples.
        again = part.rows(torch.tensor([0]))
        torch.testing.assert_close(again(flat[:1]), values[index][:1].reshape(1, -1), rtol=1e-14, atol=0)
        stepper = part.stepper()
        state = stepper.enter(samples[index])
        image = stepper.leave(stepper(state, torch.empty_like(state)), part.shape)
        torch.testing.assert_close(image, values[index], rtol=1e-13, atol=0)
        v = random_states(tuple(z.shape), 14).reshape(count, -1)
        product = bound.linearize(z).jvp(v.reshape(z.shape)).reshape(count, -1)[index]
        got = part.jacobian_at(flat, part(flat))(v[index])
        torch.testing.assert_close(got, product, rtol=1e-12, atol=1e-13)


def test_rows_without_injections_and_of_plain_callables():
    bound = BoundMap.from_spec(MapSpec({"weight": torch.eye(2)}, {"kind": "dense", "activation": "tanh"}))
    part = bound.rows(torch.tensor([1]))
    assert part.inner is None and part.outer is None and part.activation == bound.activation
    with pytest.raises(TypeError, match="cannot be split"):
        Problem.of(torch.cos, torch.ones(2, 2)).rows(torch.tensor([0]))


def test_a_shorter_dtype_has_a_stepper_of_its_own():
    bound = made("dense", (3,), shift=1.2)
    coarse = bound.coarse_stepper(torch.bfloat16)
    assert isinstance(coarse, Stepper)
    z = random_states((3, 4), 15, 0.5)
    image = coarse(coarse.enter(z.bfloat16()), torch.empty(3, 4, dtype=torch.bfloat16))
    assert image.dtype == torch.bfloat16
    torch.testing.assert_close(image.double(), bound(z), rtol=0.05, atol=0.02)
