"""Proven contraction rates, and the distance to the true eigenvector that they guarantee."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.perron import Chain, Largest, Matrix, Powers, TensorForm, p_norms, power_mean


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


def test_birkhoffs_ratio_is_that_of_its_definition():
    matrices = random(4, 5, 5)
    rates = sd.perron(matrices).rate
    for matrix, rate in zip(matrices, rates, strict=True):
        diameter = max(
            math.log(float(matrix[i, k] * matrix[j, m] / (matrix[j, k] * matrix[i, m])))
            for i, j, k, m in itertools.product(range(5), repeat=4)
        )
        assert float(rate) >= math.tanh(diameter / 4)
        assert float(rate) == pytest.approx(math.tanh(diameter / 4), abs=1e-9)


def test_large_matrices_have_a_bound_too():
    matrix = random(300, 300)
    logs = matrix.log()
    most = torch.stack([(logs - row).amax(dim=1) for row in logs])
    exact = math.tanh(float((most + most.mT).max()) / 4)
    assert exact <= float(sd.perron(matrix).rate) < 1


MAPS = {
    "matrix": lambda a: Chain((Matrix(a),)),
    "harmonic": lambda a: power_mean(a, -1),
    "cubes": lambda a: power_mean(a, 3),
    "norms": lambda a: p_norms(a, 3, 3),
    "roots": lambda a: Chain((Matrix(a), Powers(0.4))),
    "mixed": lambda a: Chain((Largest(a), Powers(0.5), Matrix(a))),
}


@pytest.mark.parametrize("order", [2, 3, 4])
def test_tensors_contract_as_proven(order):
    piece = TensorForm(random(*[4] * order))
    for seed in range(200):
        x, y = (random(1, 4, seed=2 * seed + k) ** 4 for k in (0, 1))
        assert float(sd.hilbert(piece(x), piece(y))) <= piece.rate() * float(sd.hilbert(x, y)) * (1 + 1e-12)
    assert piece.rate() < order - 1


@pytest.mark.parametrize("name", MAPS)
def test_maps_contract_hilberts_metric_as_proven(name):
    chain = MAPS[name](random(6, 6))
    rate = float(sd.perron(chain).rate)
    for seed in range(200):
        x, y = (random(1, 6, seed=2 * seed + k) ** 4 for k in (0, 1))
        before, after = float(sd.hilbert(x, y)), float(sd.hilbert(chain(x), chain(y)))
        assert after <= rate * before * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("steps", [2, 4, 8, 200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_error_bound_holds(steps, dtype):
    targets = [random(6, 6, seed=seed).to(dtype) for seed in range(10)]
    targets += [MAPS[name](random(6, 6).to(dtype)) for name in MAPS]
    targets.append(sd.SubhomLinear(3, 6, shift=0.1).to(dtype).bind(random(4, 3).to(dtype)).detach())
    for target in targets:
        result = sd.perron(target, max_iter=steps, method="power")
        exact = sd.perron(target.to("cpu", torch.float64) if not isinstance(target, Chain) else target).eigenvector
        if isinstance(target, Chain):
            wide = Chain(target.pieces).with_tensors([tensor.double() for tensor in target.tensors])
            exact = sd.perron(wide).eigenvector
        bound = result.error_bound.reshape(-1)
        vector, exact = (v.detach().double().reshape(len(bound), -1) for v in (result.eigenvector, exact))
        assert bool((bound < torch.inf).all())
        assert bool((sd.hilbert(vector, exact) <= bound + 1e-11).all())
        if steps == 200:
            assert float(bound.max()) < (1e-10 if dtype == torch.float64 else 1e-5)


def test_where_nothing_is_proven():
    for target in (torch.eye(3, dtype=torch.float64) + 0.0, Chain((Largest(random(3, 3)),))):
        result = sd.perron(target)
        assert bool((result.rate == 1).all())
        assert bool(result.error_bound.isinf().all())
