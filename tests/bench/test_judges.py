"""What answers are worth: bounds against errors that are known because everything is small enough to solve directly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.bench import Problem, make_problem
from subdeq_plugin.bench.judges import adjoint_contraction, adjoint_judge, forward_judge, gradient_judge
from subdeq_plugin.bench.maps import AdjointMap
from subdeq_plugin.errors import CertificateError

NAMES = ("dense", "dense-hard", "dense-normalised", "dense-normalised-hard")


def exact(name: str, batch: int = 3) -> Problem:
    return make_problem(name, (6, batch)).to("cpu", torch.float64)


def jacobian(bound: sd.BoundMap, z: Tensor) -> Tensor:
    """`(B, n, n)` by autograd, row by row."""
    full = torch.autograd.functional.jacobian(bound, z)
    return torch.stack([full[k, :, k] for k in range(len(z))])


def fixed_point(bound: sd.BoundMap) -> Tensor:
    """By Newton's method with dense matrices."""
    z = bound.project(bound.start())
    for _ in range(60):
        matrix = torch.eye(z.shape[1], dtype=z.dtype) - jacobian(bound, z)
        z = z + torch.linalg.solve(matrix, (bound(z) - z)[..., None])[..., 0]
    assert float((bound(z) / z - 1).abs().max()) < 1e-14
    return z


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-1, 1e-4, 1e-8])
def test_forward_bounds_hold_and_are_not_absurd(name, size):
    problem = exact(name)
    z = fixed_point(problem.bound)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    state = z * (size * noise).exp()
    judge = forward_judge(problem.bound, problem.certificate)
    true = float((state / z).log().abs().max())
    found = judge(state)
    assert found.reason == "" and true <= found.error <= 5 * true / (1 - problem.certificate.rate)
    assert found.error >= float(problem.certificate.error_bound(state).max())


def test_a_state_of_the_wrong_length_is_noticed_where_hilberts_metric_is_blind():
    problem = exact("dense-normalised")
    z = fixed_point(problem.bound)
    assert float(problem.certificate.error_bound(2 * z).max()) < 1e-12
    assert forward_judge(problem.bound, problem.certificate)(2 * z).error == pytest.approx(math.log(2))


def test_what_is_no_state():
    problem = exact("dense-hard")
    judge, start = forward_judge(problem.bound, problem.certificate), problem.bound.start()
    hole, minus = start.clone(), start.clone()
    hole[1, 2], minus[0, 0] = torch.nan, 0.0
    for value, reason in (
        (hole, "NaN or infinite"),
        (start / 0, "NaN or infinite"),
        (minus, "not positive"),
        (start[:2], "no state"),
        ((start,), "no state: it must have shape .*, got tuple"),
        (None, "NoneType"),
    ):
        verdict = judge(value)
        assert math.isinf(verdict.error)
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(verdict.reason)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("off", [0.0, 1e-5])
def test_adjoint_bounds_hold(name, off):
    """Also where the Jacobian is taken a little off the fixed point, as rounding to float32 does."""
    problem = exact(name)
    generator = torch.Generator().manual_seed(1)
    z = fixed_point(problem.bound)
    z = z * (1 + off * torch.randn(z.shape, generator=generator, dtype=z.dtype))
    g = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    matrix = torch.eye(z.shape[1], dtype=z.dtype) - jacobian(problem.bound, z).mT
    u = torch.linalg.solve(matrix, g[..., None])[..., 0]
    equation = AdjointMap(g, problem.bound, z)
    torch.testing.assert_close(equation(u), u)
    judge, relative = (adjoint_judge(equation, problem.certificate, relative_to=to) for to in ("g", "u"))
    assert judge(u).error < 1e-9
    for size in (1e-2, 1e-6):
        guess = u + size * torch.randn(z.shape, generator=generator, dtype=z.dtype)
        true = (z * (guess - u).abs()).sum(dim=1)
        assert float((true / (z * g.abs()).sum(dim=1)).max()) <= judge(guess).error < math.inf
        assert float((true / (z * guess.abs()).sum(dim=1)).max()) <= relative(guess).error < math.inf
    assert math.isinf(judge(u * torch.nan).error) and "no state" in judge(u[:1]).reason


def test_a_state_too_far_from_the_fixed_point_bounds_nothing():
    for name in ("dense-hard", "dense-normalised-hard"):
        problem = exact(name)
        start = problem.bound.start()
        far = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype).exp()
        with pytest.raises(CertificateError, match="too far from the fixed point"):
            adjoint_judge(AdjointMap(start, problem.bound, far), problem.certificate)


def test_the_dual_norms_of_the_other_metrics():
    """Signed weights: the norm conditions bound the Jacobian everywhere, and its transpose in the dual norm."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    arrays = {"inner": torch.randn(2, 5, generator=generator, dtype=torch.float64)}
    duals = {
        "linf": (weight.abs().sum(dim=1).max(), lambda u, w: (w * u.abs()).sum(dim=1)),
        "l1": (weight.abs().sum(dim=0).max(), lambda u, w: u.abs().amax(dim=1)),
        "l2": (torch.linalg.matrix_norm(weight, ord=2), lambda u, w: torch.linalg.vector_norm(u, dim=1)),
    }
    seen = set()
    for metric, (norm, dual) in duals.items():
        spec = sd.MapSpec({**arrays, "weight": 0.9 * weight / norm}, {"kind": "dense", "activation": "tanh"})
        bound = sd.BoundMap.from_spec(spec)
        certificate = sd.certify(bound, conditions="norm")
        if certificate.metric != metric:
            continue
        seen.add(metric)
        z = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        g = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        u = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - jacobian(bound, z).mT, g[..., None])[..., 0]
        guess = u + 1e-3 * torch.randn(2, 5, generator=generator, dtype=torch.float64)
        weights = certificate.proofs[0].weights
        scale = torch.ones(1, 5, dtype=torch.float64) if weights is None else weights
        true = float((dual(guess - u, scale) / dual(g, scale)).max())
        found = adjoint_judge(AdjointMap(g, bound, z), certificate)(guess).error
        assert true <= found <= 40 * true
    assert len(seen) >= 2


def test_no_rate_no_bound_of_the_adjoint():
    weight = torch.tensor([[-3.0, 0.5], [0.5, -3.0]], dtype=torch.float64)
    spec = sd.MapSpec(
        {"weight": weight, "inner": torch.ones(1, 2, dtype=torch.float64)}, {"kind": "dense", "activation": "tanh"}
    )
    bound = sd.BoundMap.from_spec(spec)
    certificate = sd.certify(bound, conditions="matrix measure")
    assert certificate.unique and certificate.rate is None
    z = bound.start()
    with pytest.raises(CertificateError, match="follows from a proven rate, and theorem 'matrix measure' proves none"):
        adjoint_judge(AdjointMap(z, bound, z), certificate)
    assert adjoint_contraction(AdjointMap(z, bound, z), certificate) is None


@pytest.mark.parametrize("name", NAMES)
def test_the_contraction_that_solvers_are_told_holds(name):
    problem = exact(name)
    z = fixed_point(problem.bound)
    g = torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=z.dtype)
    equation = AdjointMap(g, problem.bound, z)
    contraction = adjoint_contraction(equation, problem.certificate)
    if name == "dense-normalised-hard":  # twice its rate is above 1
        assert contraction is None
        return
    u, v = (torch.randn(z.shape, generator=torch.Generator().manual_seed(k), dtype=z.dtype) for k in (4, 5))
    before, after = contraction.distance(u, v), contraction.distance(equation(u), equation(v))
    assert bool((after <= contraction.rate * before * (1 + 1e-12)).all())
    assert contraction.rate == (2 if "normalised" in name else 1) * problem.certificate.rate


def test_gradients_are_judged_by_their_relative_distance():
    reference = (torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]))
    judge = gradient_judge(reference)
    assert judge(reference).error == 0
    assert judge((torch.tensor([3.0, 0.3]), torch.tensor([[4.4]]))).error == pytest.approx(0.1, rel=1e-6)
    assert "no gradient" in judge(reference[:1]).reason and "no gradient" in judge(reference[0]).reason
    assert "NaN" in judge((reference[0] * torch.nan, reference[1])).reason
    assert gradient_judge((torch.zeros(2),))((torch.tensor([0.0, 2.0]),)).error == 2
