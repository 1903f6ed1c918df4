"""The modules that maps of one's own are written with: values, gradients, saving, copies, and refusals."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from subdeq_plugin import Inject, Normalize, Pointwise
from subdeq_plugin.errors import DomainError, OptionError, ShapeError
from tests.helpers import p_norm

F64 = torch.float64


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 3),
        Pointwise("softplus", 0.2, 0.5),
        Inject(torch.rand(1, 3)),
        Inject(nn.Parameter(torch.rand(3))),
        Normalize(3),
    ).double()


def test_values():
    z = torch.rand(2, 3, 4, dtype=F64) + 0.1
    assert torch.allclose(Pointwise("tanh", 0.3, -0.5)(z), (torch.tanh(z) + 0.3) ** -0.5)
    assert torch.equal(Inject(torch.full((3, 1), 2.0, dtype=F64))(z), z + 2)
    for p in (1, 2, 3.5, "inf"):
        for dims, axes in ((None, (-2, -1)), (-1, (-1,)), (2, (-1,)), ((1, -1), (-2, -1)), ((-2, 1), (-2,))):
            assert torch.allclose(Normalize(p, dims)(z), z / p_norm(z, p, axes)), (p, dims)


def test_whole_states_are_recognised():
    assert Normalize(1).normalizer(3).whole_state and Normalize(1, (1, 2)).normalizer(3).whole_state
    assert not Normalize(1, -1).normalizer(3).whole_state and Normalize(1, -1).normalizer(2).whole_state


def test_gradients():
    module = make()
    z = (torch.rand(2, 3, dtype=F64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(module, (z,))
    module(z)[:, 0].sum().backward()
    assert len(list(module.parameters())) == 3
    assert all(bool((p.grad != 0).any()) for p in module.parameters())


def test_gradients_flow_through_an_assigned_injection():
    inject = Inject(torch.zeros(2, 3))
    weight = torch.ones(3, 3, requires_grad=True)
    inject.y = torch.relu(torch.ones(2, 3) @ weight)
    inject(torch.ones(2, 3)).sum().backward()
    assert bool((weight.grad == 2).all()) and set(inject.state_dict()) == {"y"}


def test_saved_copied_and_pickled():
    module, z = make(), torch.ones(2, 3, dtype=F64)
    expected = module(z)
    other = make()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert set(module.state_dict()) == {"0.weight", "0.bias", "2.y", "3.y"}
    for same in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same(z), expected)
    assert make().float()(z.float()).dtype == torch.float32


def test_shown():
    text = str(make())
    for part in ("'softplus', shift=0.2, power=0.5", "y of shape (1, 3)", "p=3, dims=all but the batch"):
        assert part in text


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Pointwise("tanhh"), OptionError, "did you mean 'tanh'"),
        (lambda: Pointwise("tanh", power=0), OptionError, "power must not be 0"),
        (lambda: Inject(torch.tensor([1.0, -0.5])), DomainError, "-0.5"),
        (lambda: Inject(torch.tensor([float("nan")])), DomainError, "1 entries"),
        (lambda: Inject(torch.tensor([1])), ShapeError, "floating-point"),
        (lambda: Inject([1.0]), ShapeError, "torch.Tensor"),
        (lambda: Inject(torch.ones(4, 3))(torch.ones(1, 3)), ShapeError, "broadcast to the shape"),
        (lambda: Normalize(0.5), OptionError, "p >= 1"),
        (lambda: Normalize(None), OptionError, "leave the piece out"),
        (lambda: Normalize(2, 0), OptionError, "other than 0"),
        (lambda: Normalize(2, ()), OptionError, "other than 0"),
        (lambda: Normalize(2, ("x",)), OptionError, "other than 0"),
        (lambda: Normalize(2, -3)(torch.ones(1, 2, 3)), ShapeError, "the batch"),
        (lambda: Normalize(2, 3)(torch.ones(1, 2, 3)), ShapeError, "has 3 dimensions"),
        (lambda: Normalize(2)(torch.ones(3)), ShapeError, "has 1 dimensions"),
    ],
)
def test_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_parameter_stays_one_and_another_tensor_a_buffer():
    parameter = nn.Parameter(torch.ones(2))
    assert Inject(parameter).y is parameter and not list(Inject(torch.ones(2)).parameters())
    value: Tensor = Inject(torch.ones(2)).to(F64).y
    assert value.dtype == F64
