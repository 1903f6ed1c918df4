"""The search for a second fixed point: what it finds, what it must not claim, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import subdeq_plugin as sd
from subdeq_plugin.errors import OptionError, ShapeError

F64 = torch.float64
SIGNED = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=F64)


def first(z: Tensor) -> Tensor:
    return torch.tanh(z @ SIGNED.to(z)) + 1.2


def second(z: Tensor) -> Tensor:
    value = torch.tanh(z @ (2 * SIGNED.to(z))) + 1.603
    return value / value.amax(dim=1, keepdim=True)


def third(z: Tensor) -> Tensor:
    return torch.tanh(6 * z - 5) + 1.05


COUNTEREXAMPLES = {
    "signed": (first, [(1.2, 1.2), (2.15750402, 0.24249598), (0.24249598, 2.15750402)]),
    "normalised": (second, [(1.0, 1.0), (1.0, 0.28517961), (0.28517961, 1.0)]),
    "negative bias": (third, [(0.0502,), (0.7888,), (2.05,)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", list(COUNTEREXAMPLES))
def test_three_fixed_points(name, dtype):
    function, solutions = COUNTEREXAMPLES[name]
    evidence = sd.falsify(function, torch.full((1, len(solutions[0])), 0.9, dtype=dtype))
    assert evidence.refuted and evidence.solutions.dtype == dtype
    assert sorted(map(tuple, evidence.solutions.tolist())) == [
        pytest.approx(row, abs=1e-4) for row in sorted(solutions)
    ]
    again = (function(evidence.solutions) - evidence.solutions).abs().amax(dim=1)
    assert bool((again <= 1e-5).all()) and evidence.residuals.shape == (3,)
    assert evidence.gap > 0.2 and "3 different fixed points" in str(evidence)
    assert bool((evidence.residuals.diff() >= 0).all())


def test_the_seed_decides():
    a, b, c = (sd.falsify(first, torch.ones(1, 2, dtype=F64), seed=seed, starts=16) for seed in (0, 0, 1))
    assert torch.equal(a.solutions, b.solutions) and a.starts == 16
    assert not torch.equal(a.solutions, c.solutions) or not torch.equal(a.residuals, c.residuals) or c.refuted


@pytest.mark.parametrize("rate", [0.3, 0.9, 0.99, 0.997])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_a_slow_contraction_is_not_accused(rate, dtype):
    evidence = sd.falsify(lambda z: rate * z + 1, torch.ones(2, 3, dtype=dtype))
    assert len(evidence.solutions) <= 1 and not evidence.refuted and "proves nothing" in evidence.message


def test_sublinear_convergence_is_not_accused():
    for dtype in (torch.float32, F64):
        assert not sd.falsify(lambda z: z - z**3, torch.ones(1, 1, dtype=dtype)).refuted
        assert not sd.falsify(lambda z: z / (1 + z.abs()), torch.ones(1, 2, dtype=dtype)).refuted


def test_proven_layers_are_not_accused():
    torch.manual_seed(0)
    for options in ({}, {"normalize": 2}, {"activation": "relu", "shift": 0.0, "power": 0.9}):
        layer = sd.SubhomLinear(2, 4, **options).double()
        x = torch.randn(3, 2, dtype=F64)
        bound = layer.bind(x)
        assert sd.certify(layer, x).unique
        evidence = sd.falsify(bound, torch.ones(3, 4, dtype=F64), positive=True)
        assert len(evidence.solutions) == 1, str(evidence)


def test_a_continuum_of_fixed_points():
    assert sd.falsify(lambda z: z, torch.ones(1, 2)).refuted


def test_no_fixed_point():
    evidence = sd.falsify(lambda z: z + 1, torch.ones(1, 2))
    assert evidence.solutions.shape == (0, 2) and "no fixed point found from 256 starts" in str(evidence)


def test_signed_solutions_unless_states_are_positive():
    def roots(z: Tensor) -> Tensor:
        return z - 0.2 * (z - 1) * (z + 2)

    start = torch.ones(1, 1, dtype=F64)
    assert sorted(sd.falsify(roots, start).solutions.flatten().tolist()) == pytest.approx([-2, 1])
    assert sd.falsify(roots, start, positive=True).solutions.tolist() == [[pytest.approx(1)]]
    # sqrt(z) has the fixed points 0 and 1; the first is no positive state, and negative starts give NaN.
    assert sd.falsify(torch.sqrt, start, positive=True).solutions.tolist() == [[pytest.approx(1)]]
    assert sd.falsify(torch.sqrt, start).refuted
    assert not sd.falsify(lambda z: 0.5 * z, -start).refuted


def test_each_sample_by_itself():
    slope = torch.tensor([[0.5], [6.0], [0.1]], dtype=F64)

    def function(z: Tensor) -> Tensor:  # of a batch of three only
        assert z.shape == (3, 1)
        return torch.tanh(slope * z - slope + 1) + 1.05

    evidence = sd.falsify(function, torch.ones(3, 1, dtype=F64), starts=32, max_iter=200)
    assert evidence.refuted and evidence.sample == 1 and len(evidence.solutions) == 3


def test_a_map_that_broadcasts_over_the_batch_is_not_stacked():
    """`y` has one row for each of the two samples; stacking 256 starts would fail, and 2 of them mix the rows."""
    y = torch.tensor([[0.1], [5.0]], dtype=F64)
    evidence = sd.falsify(lambda z: 0.5 * z + y, torch.ones(2, 1, dtype=F64), starts=8, max_iter=100)
    assert len(evidence.solutions) == 1 and float(evidence.solutions) in (pytest.approx(0.2), pytest.approx(10))


def test_a_map_that_knows_its_batch_is_not_stacked():
    evidence = sd.falsify(lambda z: (z + 1) / z.shape[0], torch.ones(1, 1, dtype=F64), starts=8, max_iter=50)
    assert len(evidence.solutions) == 0


def test_images_and_maps_that_work_in_place():
    torch.manual_seed(0)
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 1, 3, padding=1), nn.Tanh())
    start = -torch.ones(1, 1, 3, 3)
    evidence = sd.falsify(module, start)
    assert evidence.solutions.shape == (1, 1, 3, 3) and bool((start == -1).all())
    assert not evidence.solutions.requires_grad


def test_random_maps_find_nothing():
    evidence = sd.falsify(nn.Dropout(0.5).train(), torch.ones(1, 50, dtype=F64), starts=8, max_iter=20, positive=True)
    assert not evidence.refuted


def test_refused():
    start = torch.ones(1, 2)
    for keywords, message in (
        ({"starts": 0}, "starts must be a positive integer, got 0"),
        ({"max_iter": 1.5}, "max_iter"),
        ({"starts": True}, "starts"),
        ({"tol": 0.0}, "tol must be between"),
        ({"tol": float("nan")}, "tol must be between"),
    ):
        with pytest.raises(OptionError, match=message):
            sd.falsify(first, start, **keywords)
    for bad, message in ((torch.ones(2), "at least 2"), (torch.ones(0, 2), "empty"), (None, "torch.Tensor")):
        with pytest.raises(ShapeError, match=message):
            sd.falsify(first, bad)
    for function in (lambda z: z[:, :1], lambda z: (z, z), lambda z: 1.0):
        with pytest.raises(ShapeError, match="function must return"):
            sd.falsify(function, start)
    with pytest.raises(ZeroDivisionError):
        sd.falsify(lambda z: z / (1 // 0), start)
