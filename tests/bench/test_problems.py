"""The built-in problems, from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.bench import PROBLEMS, Problem, make_problem, parse_size
from subdeq_plugin.errors import CertificateError, OptionError, ShapeError

SIZES = {"dense": (8, 3), "conv": (2, 4, 2), "graph": (12, 3, 2)}


def tiny(name: str, **keywords) -> Problem:
    return make_problem(name, SIZES[name.partition("-")[0]], **keywords)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_proven_and_as_hard_as_it_says(name):
    problem = tiny(name)
    certificate = problem.certificate
    assert certificate.unique and certificate is problem.certificate
    assert certificate.metric == ("hilbert" if "normalised" in name else "thompson")
    hard = name.endswith("hard")
    assert problem.bound.dtype == (torch.float64 if hard else torch.float32)
    assert certificate.rate >= 0.99 if hard else certificate.rate < 0.5
    assert (problem.bound.normalizer is not None) == ("normalised" in name)
    assert problem.layer is not None and all(
        parameter.dtype == problem.bound.dtype for parameter in problem.layer.parameters()
    )


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name.endswith("hard")])
def test_plain_iteration_is_slow_on_hard_problems(name):
    bound = make_problem(name, {"dense": (40, 2), "conv": (3, 16, 1), "graph": (200, 5, 2)}[name.split("-")[0]]).bound
    z = bound.project(bound.start())
    steps = []
    for _ in range(60):
        image = bound(z)
        steps.append(float((image / z).log().abs().max()))
        z = image
    assert (steps[-1] / steps[39]) ** (1 / 20) > 0.9


def test_the_dense_easy_problem_is_the_one_that_is_documented():
    bound = make_problem("dense", (40, 300)).bound
    weight, y = (part.double().numpy() for part in (bound.operator.coefficients()[0], bound.outer))
    assert weight.shape == (40, 40) and y.shape == (300, 40)
    assert weight.min() >= 0 and weight.max() <= 2 / 40 and abs(weight.mean() - 1 / 40) < 1e-3
    assert y.min() >= 0 and y.max() <= 1 and abs(y.mean() - 0.5) < 0.01 and abs(y.var() - 1 / 12) < 0.003
    z = np.random.default_rng(0).uniform(0.5, 2, y.shape)
    expected = np.tanh(z @ weight.T) + y + 1.2
    np.testing.assert_allclose(bound(torch.from_numpy(z).float()).numpy(), expected, rtol=1e-6)


def test_a_hard_problem_has_row_sums_of_one_and_a_small_injection():
    bound = make_problem("dense-hard", (20, 4)).bound
    weight, inner = bound.operator.coefficients()[0], bound.inner
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(20, dtype=torch.float64))
    assert inner.min() >= 0 and inner.max() <= 1e-3
    z = torch.rand(4, 20, dtype=torch.float64) + 0.5
    torch.testing.assert_close(bound(z), (z @ weight.T + inner + 1e-3) ** 0.999)


def test_graphs_have_the_neighbours_asked_for():
    layer, (features, propagation) = (lambda p: (p.layer, p.x))(make_problem("graph", (50, 4, 3)))
    assert features.shape == (50, 3)
    rows = propagation.matrix.to_dense().double().sum(dim=1)
    torch.testing.assert_close(rows, torch.full((50,), 1 - layer.teleport, dtype=torch.float64), rtol=1e-6, atol=0)
    assert int(propagation.matrix.crow_indices()[-1]) <= 200


def test_seeds_and_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = tiny("conv"), tiny("conv"), tiny("conv", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.x, same.x) and not torch.equal(first.x, other.x)
    assert torch.equal(first.layer.weight, same.layer.weight) and not torch.equal(
        first.layer.weight, other.layer.weight
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_another_dtype_is_the_same_problem_up_to_rounding(name):
    problem = tiny(name)
    exact, coarse = problem.to("cpu", torch.float64), problem.to("cpu", torch.float32)
    assert (exact.bound.dtype, coarse.bound.dtype) == (torch.float64, torch.float32)
    z = exact.bound.start()
    torch.testing.assert_close(coarse.bound(z.float()).double(), exact.bound(z), rtol=1e-5, atol=0)
    assert problem.to("cpu", None).bound.dtype == problem.bound.dtype


def test_sizes():
    assert parse_size("87x512") == (87, 512) and parse_size("8X14x16") == (8, 14, 16)
    for text in ("", "x", "3x", "0x4", "-1x4", "axb", "3.5x2", "\u0662x2"):
        with pytest.raises(OptionError, match="size must be positive integers"):
            parse_size(text)
    assert tiny("graph").size == "12x3x2" and make_problem("dense").size == "x".join(map(str, PROBLEMS["dense"].size))
    with pytest.raises(OptionError, match=r"'conv' has sizes channels x side x batch, such as .*, got '3x4'"):
        make_problem("conv", (3, 4))
    with pytest.raises(OptionError, match="did you mean 'dense-hard'"):
        make_problem("dense-hrd")


def test_problems_of_ones_own():
    layer = sd.SubhomLinear(3, 5).double()
    x = torch.rand(4, 3, dtype=torch.float64)
    pair = Problem.of("mine", (layer, x))
    assert pair.size == "4x5" and pair.layer is layer and not pair.bound.start().requires_grad
    assert all(not tensor.requires_grad for tensor in pair.bound.tensors)
    bound = Problem.of("mine", layer.bind(x))
    assert (
        bound.layer is None and bound.size == "4x5" and not any(tensor.requires_grad for tensor in bound.bound.tensors)
    )
    assert bound.to("cpu", torch.float32).bound.dtype == torch.float32
    ready = Problem("other", bound.bound, "big")
    assert Problem.of("mine", ready) is ready
    for made in (3, (layer,), (torch.nn.Linear(3, 3), x), None):
        with pytest.raises(OptionError, match="problem 'mine' must be a BoundMap"):
            Problem.of("mine", made)
    without = sd.BoundMap.from_spec(
        sd.MapSpec({"weight": torch.ones(2, 2)}, {"kind": "dense", "activation": "tanh", "shift": 2.0})
    )
    with pytest.raises(ShapeError, match="no injection"):
        Problem.of("mine", without)


def test_a_problem_without_a_proof_is_refused():
    weight = 3 * torch.eye(3, dtype=torch.float64) - 1
    spec = sd.MapSpec(
        {"weight": weight, "inner": torch.ones(1, 3, dtype=torch.float64)}, {"kind": "dense", "activation": "tanh"}
    )
    with pytest.raises(CertificateError, match="problem 'mine' has no proof"):
        _ = Problem.of("mine", sd.BoundMap.from_spec(spec)).certificate
