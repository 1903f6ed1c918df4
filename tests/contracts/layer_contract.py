"""What every layer must satisfy. A concrete suite supplies the fixtures `layer` and `x`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from subdeq_plugin.errors import DomainError, ShapeError
from subdeq_plugin.layers import BoundMap, SubhomLayer
from subdeq_plugin.solvers import solve
from tests.helpers import p_norm, random_states


def full_jacobian(bound: BoundMap, z: Tensor) -> Tensor:
    """`(B, N, N)`: the Jacobian of every sample by autograd; asserts that samples do not influence each other."""
    jacobian = torch.autograd.functional.jacobian(bound, z)
    batch = z.shape[: z.dim() - bound.sample_dims].numel()
    blocks = jacobian.reshape(batch, z.numel() // batch, batch, z.numel() // batch)
    for i in range(batch):
        for j in range(batch):
            assert i == j or not bool(blocks[i, :, j].any())
    return torch.stack([blocks[i, :, i] for i in range(batch)])


class LayerFixtures:
    """A float64 layer, an input with at least two samples, and what follows from them."""

    @pytest.fixture
    def layer(self) -> SubhomLayer:
        """The layer under test, with float64 parameters and a positive map."""
        raise NotImplementedError

    @pytest.fixture
    def x(self, layer: SubhomLayer) -> Any:
        """An input for it."""
        raise NotImplementedError

    @pytest.fixture
    def bound(self, layer, x) -> BoundMap:
        return layer.bind(x).detach()

    @pytest.fixture
    def z(self, bound) -> Tensor:
        return random_states(tuple(bound.state_shape), seed=5, spread=1.5)


class LayerContract(LayerFixtures):
    """Values, derivatives, specs and error cases of a layer."""

    def test_one_application_is_positive_and_of_the_states_shape(self, layer, x, z):
        value = layer(z, x)
        assert value.shape == z.shape and value.dtype == z.dtype
        assert bool((value > 0).all()) and bool(value.isfinite().all())

    def test_layer_and_bound_map_agree(self, layer, x, bound, z):
        torch.testing.assert_close(bound(z), layer(z, x).detach(), rtol=0, atol=0)
        torch.testing.assert_close(bound.linearize(z).value, bound(z), rtol=1e-14, atol=0)

    def test_start_is_ones(self, layer, x, bound):
        start = layer.initial_state(x)
        assert start.shape == bound.state_shape and start.dtype == torch.float64 and bool((start == 1).all())

    def test_value_follows_from_its_parts(self, bound, z):
        t = bound.operator(z) if bound.inner is None else bound.operator(z) + bound.inner
        value = bound.activation(t) if bound.outer is None else bound.activation(t) + bound.outer
        if bound.normalizer is not None:
            p = "inf" if bound.normalizer.p == float("inf") else bound.normalizer.p
            value = value / p_norm(value, p, bound.normalizer.dims)
        torch.testing.assert_close(bound(z), value, rtol=1e-13, atol=0)

    def test_jvp_and_vjp_are_the_jacobian_of_autograd(self, bound, z):
        jacobian = full_jacobian(bound, z)
        v, u = random_states(tuple(z.shape), 6), -random_states(tuple(z.shape), 7)
        batch = jacobian.shape[0]
        forward = (jacobian @ v.reshape(batch, -1, 1)).reshape(z.shape)
        backward = (jacobian.mT @ u.reshape(batch, -1, 1)).reshape(z.shape)
        torch.testing.assert_close(bound.jvp(z, v), forward, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(bound.vjp(z, u), backward, rtol=1e-10, atol=1e-12)

    def test_jvp_is_the_difference_quotient(self, bound, z):
        v = torch.randn(z.shape, generator=torch.Generator().manual_seed(8), dtype=z.dtype)
        step = 1e-6
        quotient = (bound(z + step * v) - bound(z - step * v)) / (2 * step)
        torch.testing.assert_close(bound.jvp(z, v), quotient, rtol=1e-5, atol=1e-7)

    def test_jvp_and_vjp_are_transposes(self, bound, z):
        v, u = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(9), dtype=z.dtype)
        torch.testing.assert_close((bound.jvp(z, v) * u).sum(), (v * bound.vjp(z, u)).sum(), rtol=1e-10, atol=1e-11)

    def test_operator_and_its_transpose_are_transposes(self, bound, z):
        v, u = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(10), dtype=z.dtype)
        left, right = (bound.operator(v) * u).sum(), (v * bound.operator.transpose(u)).sum()
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)

    def test_unnormalised_jacobian_obeys_the_degree(self, bound, z):
        plain = BoundMap(bound.operator, bound.activation, bound.inner, bound.outer)
        jacobian = full_jacobian(plain, z)
        flat = z.reshape(jacobian.shape[0], -1, 1)
        moved, value = jacobian.abs() @ flat, plain(z).reshape(flat.shape)
        assert bool((moved <= plain.activation.degree().bound * value * (1 + 1e-12)).all())

    def test_spec_round_trip_is_exact(self, bound, z):
        restored = BoundMap.from_spec(bound.spec)
        torch.testing.assert_close(restored(z), bound(z), rtol=0, atol=0)
        assert restored.positive and restored.activation == bound.activation
        assert restored.normalizer == bound.normalizer and restored.sample_dims == bound.sample_dims

    def test_non_contiguous_states_give_the_same(self, layer, x, bound, z):
        strided = torch.stack([z, z], dim=-1)[..., 0]
        assert not strided.is_contiguous()
        torch.testing.assert_close(layer(strided, x), layer(z, x), rtol=1e-14, atol=0)
        torch.testing.assert_close(bound.vjp(strided, strided), bound.vjp(z, z), rtol=1e-13, atol=1e-15)

    def test_gradients_reach_every_parameter(self, layer, x, z):
        for parameter in layer.parameters():
            parameter.grad = None
        weights = torch.linspace(1.0, 2.0, z.numel(), dtype=z.dtype).reshape(z.shape)
        (layer(z, x) * weights).sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
            assert bool((parameter.grad != 0).any()), name

    def test_with_tensors_replaces_all_of_them(self, bound, z):
        scaled = bound.with_tensors([2 * tensor for tensor in bound.tensors])
        assert len(scaled.tensors) == len(bound.tensors)
        for new, old in zip(scaled.tensors, bound.tensors, strict=True):
            torch.testing.assert_close(new, 2 * old, rtol=0, atol=0)
        torch.testing.assert_close(scaled.with_tensors(bound.tensors)(z), bound(z), rtol=0, atol=0)

    def test_a_copy_and_a_state_dict_give_the_same_map(self, layer, x, z):
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.25)
        assert not torch.equal(twin(z, x), layer(z, x))
        twin.load_state_dict(layer.state_dict())
        torch.testing.assert_close(twin(z, x), layer(z, x), rtol=0, atol=0)

    def test_bad_states_are_refused(self, layer, x, bound, z):
        with pytest.raises(ShapeError, match="must have shape"):
            layer(z[..., :-1], x)
        with pytest.raises(ShapeError, match="floating-point"):
            layer(torch.ones(z.shape, dtype=torch.int64), x)
        with pytest.raises(ShapeError, match=r"torch\.Tensor"):
            layer(z.tolist(), x)
        for bad in (0.0, -1.0, float("inf")):
            broken = z.clone()
            broken.view(-1)[1] = bad
            with pytest.raises(DomainError, match="strictly positive"):
                solve(bound, broken)


class StepperContract(LayerFixtures):
    """The forms in which solves and gradients use a map; all of it follows from the map, however it is parametrized."""

    def test_the_stepper_is_the_map_and_changes_nothing(self, bound, z):
        stepper, given, tensors = bound.stepper(), z.clone(), [tensor.clone() for tensor in bound.tensors]
        state = stepper.enter(z)
        assert state.shape == (z.shape[: z.dim() - bound.sample_dims].numel(), *z.shape[z.dim() - bound.sample_dims :])
        assert torch.equal(stepper.leave(state, z.shape), z)
        for _ in range(2):  # a second call finds everything as the first one did
            image = stepper.leave(stepper(state, torch.empty_like(state)), z.shape)
            torch.testing.assert_close(image, bound(z), rtol=1e-13, atol=0)
        assert image.is_contiguous() and not image.requires_grad
        assert torch.equal(z, given)
        for now, before in zip(bound.tensors, tensors, strict=True):
            assert torch.equal(now, before)

    def test_the_adjoint_stepper_is_the_adjoint_map_and_changes_nothing(self, bound, z):
        g, u = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(11), dtype=z.dtype)
        at = z.clone().requires_grad_()
        (pulled,) = torch.autograd.grad(bound(at), at, u)
        jacobian, kept = bound.linearize(z), (g.clone(), u.clone())
        stepper = jacobian.adjoint_stepper(g)
        state = stepper.enter(u)
        for _ in range(2):
            image = stepper.leave(stepper(state, torch.empty_like(state)), u.shape)
            torch.testing.assert_close(image, g + pulled, rtol=1e-10, atol=1e-12)
        assert torch.equal(g, kept[0]) and torch.equal(u, kept[1])

    def test_the_pullback_is_that_of_autograd(self, bound, z):
        u = torch.randn(z.shape, generator=torch.Generator().manual_seed(12), dtype=z.dtype)
        tensors = [tensor.clone().requires_grad_() for tensor in bound.tensors]
        truth = torch.autograd.grad(bound.with_tensors(tensors)(z), tensors, u)
        pulled = bound.linearize(z).pullback(u)
        assert len(pulled) == len(tensors)
        for got, expected in zip(pulled, truth, strict=True):
            assert got.dtype == expected.dtype and not got.requires_grad
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)

    def test_rows_of_the_map_are_those_of_its_values(self, bound, z):
        flat = z.reshape(-1, *z.shape[z.dim() - bound.sample_dims :])
        values = bound(z).reshape(flat.shape)
        for index in (torch.tensor([1]), torch.tensor([1, 0]), torch.arange(len(flat)), slice(1, None), slice(0, 1)):
            part = bound.rows(index)
            torch.testing.assert_close(part(flat[index]), values[index], rtol=1e-14, atol=0)
            assert part.state_shape == flat[index].shape and part.start().shape == flat[index].shape

    def test_rows_of_the_jacobian_are_those_of_its_products(self, bound, z):
        jacobian = bound.linearize(z)
        v, u = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(13), dtype=z.dtype)
        shape = (-1, *z.shape[z.dim() - bound.sample_dims :])
        for index in (torch.tensor([1]), torch.tensor([1, 0]), slice(1, 2), slice(None)):
            part, (a, b) = jacobian.rows(index), (w.reshape(shape)[index] for w in (v, u))
            alone = bound.rows(index).linearize(z.reshape(shape)[index])
            torch.testing.assert_close(part.value, alone.value, rtol=1e-14, atol=0)
            for got, expected in ((part.jvp(a), alone.jvp(a)), (part.vjp(b), alone.vjp(b))):
                torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
            for got, expected in zip(part.pullback(b), alone.pullback(b), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
