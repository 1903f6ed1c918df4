"""`solve(..., certified_tol=eps)`: what it calls converged must be within `eps` of the true fixed point."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin import Status
from subdeq_plugin import solvers as plain
from subdeq_plugin.errors import CertificateError, OptionError
from subdeq_plugin.layers import BoundMap
from tests.helpers import LayerCase, iterate, log_distance
from tests.problems import RecordedStepper

SOLVERS = ("picard", "anderson", "newton_krylov", "halpern", "gmres", "auto")
REFERENCE = 1e-13


def solver(key: str) -> Any:
    """The solver behind a key."""
    return sd.parse_solver(f"subdeq:{key}")


@dataclass(frozen=True)
class Counting(BoundMap):
    """A bound map that counts its evaluations."""

    calls: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, bound: BoundMap) -> Counting:
        return cls(bound.operator, bound.activation, bound.inner, bound.outer, bound.normalizer, bound.positive)

    def __call__(self, z: Tensor) -> Tensor:
        self.calls.append(z.clone())
        return super().__call__(z)

    def stepper(self) -> RecordedStepper:
        return RecordedStepper(super().stepper(), self.calls, self.state_shape)


def newton(bound: BoundMap, z: Tensor, steps: int = 60) -> Tensor:
    """The fixed point of a small map in float64, by damped iteration and dense Newton steps."""
    for _ in range(400):
        z = 0.5 * z + 0.5 * bound(z)
    count, size = z.shape
    for _ in range(steps):
        rows = []
        for row in range(count):
            part = bound.with_tensors(
                [t[row : row + 1] if t.shape[:1] == (count,) and i else t for i, t in enumerate(bound.tensors)]
            )
            at = z[row : row + 1]
            jacobian = torch.autograd.functional.jacobian(lambda v, part=part: part(v), at).reshape(size, size)
            system = torch.eye(size, dtype=z.dtype) - jacobian
            rows.append(at - torch.linalg.solve(system, (at - part(at)).reshape(size)).reshape(1, size))
        fresh = torch.cat(rows)
        if bool(((fresh - z).abs() <= 1e-15 * (1 + fresh.abs())).all()):
            return fresh
        z = fresh
    return z


def distance(metric: str, z: Tensor, exact: Tensor, dims: int) -> Tensor:
    """The distance of each sample in any of the certificates' metrics; the weighted maximum norm is left to bounds."""
    if metric in ("thompson", "hilbert"):
        return log_distance(metric, z, exact, dims)
    order = {"linf": math.inf, "l1": 1, "l2": 2}[metric]
    gap = (z.double() - exact.double()).reshape(-1, z.shape[z.dim() - dims :].numel())
    return torch.linalg.vector_norm(gap, ord=order, dim=1)


CASES = (
    LayerCase("dense", seed=1),
    LayerCase("conv", seed=2, injection="inside"),
    LayerCase("graph", seed=3),
    LayerCase("mixing graph", seed=4),
    LayerCase("dense", 2, seed=5),
    LayerCase("conv", 1, "state", seed=6),
    LayerCase("dense", "inf", seed=7),
    LayerCase("conv", 2, "pixel", shift=3.0, seed=8),
)


@pytest.mark.parametrize("key", SOLVERS)
@pytest.mark.parametrize("case", CASES, ids=str)
class TestEverySolver:
    """Nonnegative layers, plain and normalised."""

    def test_converged_means_within_eps(self, case, key):
        layer, x = case.layer(), case.input()
        bound = layer.bind(x).detach()
        exact = iterate(bound, bound.start())
        metric = sd.certify(bound).metric
        counts = []
        # Halpern's steps shrink like 1/k: it gets what it can afford.
        for eps in (0.5, 3e-2) if key == "halpern" else (0.5, 1e-3, 1e-9):
            found = sd.solve(bound, bound.start(), solver(key), certified_tol=eps, max_iter=400)
            assert found.converged
            error = distance(metric, found.value, exact, bound.sample_dims)
            assert found.error_bound.shape == error.shape and found.error_bound.dtype == torch.float64
            assert bool((error <= found.error_bound + REFERENCE).all()) and bool((found.error_bound <= eps).all())
            counts.append(found.evaluations)
            assert found.abs_trace.shape == found.rel_trace.shape and found.abs_trace.shape[0] == len(found.status)
        assert counts == sorted(counts) and counts[0] < counts[-1]

    def test_the_limit_is_kept(self, case, key):
        layer, x = case.layer(), case.input()
        bound = Counting.of(layer.bind(x).detach())
        proof = sd.certify(layer, x)
        exact = iterate(layer.bind(x).detach(), bound.start())
        for limit in (1, 2, 3, 7):
            bound.calls.clear()
            found = sd.solve(bound, bound.start(), solver(key), certified_tol=1e-11, max_iter=limit, certificate=proof)
            assert len(bound.calls) <= limit and found.evaluations == len(bound.calls)
            error = distance(proof.metric, found.value, exact, bound.sample_dims)
            assert bool((error <= found.error_bound + REFERENCE).all())
            good = found.status == Status.CONVERGED
            assert torch.equal(good, found.error_bound <= 1e-11)
            assert bool((found.iterations <= found.evaluations).all())


@pytest.mark.parametrize("key", SOLVERS)
class TestRounding:
    """Tolerances that a dtype cannot meet."""

    @pytest.mark.parametrize("case", [LayerCase("dense", seed=11), LayerCase("graph", seed=12)], ids=str)
    def test_single_precision_ends_at_its_floor(self, key, case):
        bound = case.layer(torch.float32).bind(case.input(torch.float32)).detach()
        found = sd.solve(bound, bound.start(), solver(key), certified_tol=1e-12, max_iter=500)
        assert bool((found.error_bound > 1e-12).all()) and bool((found.error_bound < 1e-5).all())
        if key != "halpern":  # its steps shrink too slowly to reach any floor
            assert found.evaluations < 500
            assert all(status == Status.ROUNDING_FLOOR for status in found.statuses)

    def test_samples_are_judged_one_by_one(self, key):
        """A sample that is done stays done while another is at its floor or out of its domain."""
        layer = LayerCase("dense", seed=13).layer()
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x[1] = math.nan
        bound = layer.bind(x).detach()
        clean = torch.tensor([0, 2, 3])
        found = sd.solve(bound, bound.start(), solver(key), certified_tol=3e-2, max_iter=300)
        assert found.statuses[1] not in (Status.CONVERGED, Status.ROUNDING_FLOOR)
        assert bool(found.error_bound[1].isinf())
        alone = layer.bind(x[clean]).detach()
        exact = iterate(alone, alone.start())
        error = log_distance("thompson", found.value[clean], exact, 1)
        assert bool((found.status[clean] == Status.CONVERGED).all())
        assert bool((error <= found.error_bound[clean] + REFERENCE).all())
        assert bool((found.error_bound[clean] <= 3e-2).all())

    def test_an_infinite_tolerance_proves_nothing_of_a_lost_sample(self, key):
        layer = LayerCase("dense", seed=14).layer()
        x = torch.full((2, 3), 0.5, dtype=torch.float64)
        x[0, 0] = math.nan
        bound = layer.bind(x).detach()
        try:
            found = sd.solve(bound, bound.start(), solver(key), certified_tol=math.inf, max_iter=50)
        except OptionError:
            return
        assert found.statuses[0] != Status.CONVERGED


def signed(size: int, scale: float, seed: int, *, skew: bool = False, **more: Any) -> sd.SubhomLinear:
    """A dense layer with signed weights of a given two-norm; `skew`: antisymmetric ones."""
    torch.manual_seed(seed)
    keywords = {"activation": "tanh", "shift": 0.0, "weight": "signed", "injection": "inside", **more}
    layer = sd.SubhomLinear(3, size, injection_map="identity", dtype=torch.float64, **keywords)
    with torch.no_grad():
        weight = torch.randn(size, size, dtype=torch.float64)
        weight = weight - weight.T if skew else weight
        layer.weight.copy_(weight * (scale / torch.linalg.matrix_norm(weight, 2)))
    return layer


SIGNED = {
    "norm l2": (lambda: signed(6, 0.9, 1), "norm", "l2"),
    "norm linf": (lambda: signed(6, 0.5, 2), "norm", None),
    "monotone": (lambda: signed(5, 1.6, 3, skew=True), "monotone", None),
    "spectral radius": (lambda: signed(6, 0.6, 4), "spectral radius", None),
    "enclosure": (lambda: signed(4, 0.8, 5), "enclosure", None),
    "interval newton": (lambda: signed(5, 1.2, 6, skew=True), "interval newton", None),
}


@pytest.mark.parametrize("name", SIGNED)
class TestSigned:
    """Maps without positivity, proven in several ways."""

    def _problem(self, name: str) -> tuple[BoundMap, sd.Certificate, Tensor]:
        build, condition, metric = SIGNED[name]
        layer = build()
        x = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        bound = layer.bind(x).detach()
        proof = sd.certify(bound, conditions=condition)
        assert proof.unique and (metric is None or proof.metric == metric)
        return bound, proof, newton(bound, torch.zeros_like(bound.start()))

    @pytest.mark.parametrize("key", ["picard", "anderson", "newton_krylov", "auto"])
    def test_converged_means_within_eps(self, name, key):
        bound, proof, exact = self._problem(name)
        assert bool(((bound(exact) - exact).abs() <= 1e-14).all())
        for eps in (0.3, 1e-3, 1e-10):
            found = sd.solve(bound, bound.start(), solver(key), certified_tol=eps, max_iter=300, certificate=proof)
            weights = proof.proofs[0].weights
            gap = (found.value - exact).abs()
            error = (
                (gap / weights).amax(dim=1)
                if weights is not None
                else distance(proof.metric, found.value, exact, bound.sample_dims)
            )
            assert bool((error <= found.error_bound + REFERENCE).all())
            good = found.status == Status.CONVERGED
            assert torch.equal(good, found.error_bound <= eps)
            # Plain steps need not converge where uniqueness alone is proven.
            if key in ("newton_krylov", "auto") or proof.rate is not None:
                assert bool(good.all())

    def test_a_monotone_proof_has_no_rate(self, name):
        _, proof, _ = self._problem(name)
        if name in ("monotone", "interval newton"):
            assert proof.rate is None and proof.contraction is None


class TestPartial:
    """Batches of which some samples are proven only."""

    def _batch(self) -> tuple[BoundMap, sd.Certificate]:
        """`z = tanh(3 z + b)` twice: three fixed points at `b = 0`, one at `b = 9`."""
        layer = sd.SubhomLinear(
            1, 1, "tanh", 0.0, weight="signed", injection="inside", injection_map="identity", dtype=torch.float64
        )
        with torch.no_grad():
            layer.weight.fill_(3.0)
            layer.injection.weight.fill_(1.0)
            layer.injection.bias.zero_()
        bound = layer.bind(torch.tensor([[0.0], [9.0], [0.01]], dtype=torch.float64)).detach()
        return bound, sd.certify(bound)

    @pytest.mark.parametrize("key", SOLVERS)
    def test_only_proven_samples_converge(self, key):
        bound, proof = self._batch()
        assert proof.proven.tolist() == [False, True, False] and not proof.unique
        for start in (0.0, 0.5, 1.0):
            found = sd.solve(
                bound, torch.full((3, 1), start, dtype=torch.float64), solver(key), certified_tol=1e-3, max_iter=60
            )
            assert found.statuses[0] != Status.CONVERGED and found.statuses[2] != Status.CONVERGED
            assert bool(found.error_bound[[0, 2]].isinf().all())
            with mp.workdps(40):
                exact = mp.mpf(1)
                for _ in range(50):
                    exact = mp.tanh(3 * exact + 9)
                error = abs(mp.mpf(float(found.value[1])) - exact)
                assert error <= mp.mpf(float(found.error_bound[1]))
            if key != "halpern":
                assert found.statuses[1] == Status.CONVERGED

    def test_nothing_proven_is_an_error(self):
        bound, _ = self._batch()
        single = bound.with_tensors([bound.tensors[0], bound.tensors[1][:1]])
        with pytest.raises(CertificateError, match="no error is guaranteed"):
            sd.solve(single, torch.ones(1, 1, dtype=torch.float64), certified_tol=0.1)


def test_the_error_bound_holds_to_forty_digits():
    """`z = tanh(w z + b) + 1.2` in one dimension, at every tolerance, where float64 itself is the limit."""
    layer = sd.SubhomLinear(1, 1, "tanh", 1.2, injection="inside", dtype=torch.float64)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    bound = layer.bind(x).detach()
    weight, inner = (mp.mpf(float(layer.weight.detach())), [mp.mpf(float(v)) for v in bound.inner])
    with mp.workdps(40):
        exact = []
        for b in inner:
            z = mp.mpf(1)
            for _ in range(200):
                z = mp.tanh(weight * z + b) + mp.mpf(1.2)
            exact.append(z)
        for eps in (1.0, 1e-2, 1e-6, 1e-12, 1e-14, 1e-16, 1e-20):
            found = sd.solve(bound, bound.start(), certified_tol=eps, max_iter=100)
            for value, limit, status, z in zip(
                found.value.flatten().tolist(), found.error_bound.tolist(), found.statuses, exact, strict=True
            ):
                assert abs(mp.log(mp.mpf(value) / z)) <= mp.mpf(limit)
                assert (status == Status.CONVERGED) == (limit <= eps)
            if eps >= 1e-12:
                assert found.converged
            if eps <= 1e-16:
                assert all(status == Status.ROUNDING_FLOOR for status in found.statuses)


class TestArguments:
    """What is passed on, and what is refused."""

    @pytest.fixture
    def bound(self) -> BoundMap:
        case = LayerCase("dense", seed=21)
        return case.layer().bind(case.input()).detach()

    def test_a_given_certificate_is_used(self, bound, monkeypatch):
        proof = sd.certify(bound)
        # One with a larger factor: the bounds must be those of this certificate, not of one made on the side.
        worse = replace(proof, proofs=tuple(replace(part, factor=part.factor * 1e5) for part in proof.proofs))
        picard = solver("picard")
        first = sd.solve(bound, bound.start(), picard, certified_tol=1e-3, certificate=proof)
        second = sd.solve(bound, bound.start(), picard, certified_tol=1e-3, certificate=worse)
        assert first.converged and second.converged and second.evaluations > first.evaluations
        torch.testing.assert_close(second.error_bound, worse.error_bound(second.value), rtol=0, atol=0)
        torch.testing.assert_close(first.error_bound, proof.error_bound(first.value), rtol=0, atol=0)
        module = __import__("subdeq_plugin.integration.solve", fromlist=["certify"])
        monkeypatch.setattr(module, "certify", lambda *_: pytest.fail("a certificate was given"))
        sd.solve(bound, bound.start(), certified_tol=1e-6, certificate=proof)

    def test_a_certificate_of_the_layer_with_this_input_is_one(self):
        case = LayerCase("dense", seed=22)
        layer, x = case.layer(), case.input()
        bound = layer.bind(x).detach()
        found = sd.solve(bound, bound.start(), certified_tol=1e-8, certificate=sd.certify(layer, x))
        assert found.converged
        with pytest.raises(CertificateError, match="input"):
            sd.solve(bound, bound.start(), certified_tol=1e-8, certificate=sd.certify(layer))

    @pytest.mark.parametrize("key", SOLVERS)
    def test_without_a_certified_tolerance_it_is_the_plain_solve(self, bound, key):
        options = {"tol": 1e-5, "max_iter": 30, "stop_mode": "abs", "indexing": (2, 4)}
        contraction = sd.certify(bound).contraction
        mine = sd.solve(bound, bound.start(), solver(key), contraction=contraction, **options)
        other = plain.solve(bound, bound.start(), solver(key), contraction=contraction, **options)
        for name in ("value", "status", "abs_residual", "rel_residual", "iterations", "abs_trace", "rel_trace"):
            assert torch.equal(getattr(mine, name), getattr(other, name))
        assert mine.evaluations == other.evaluations and mine.error_bound is None
        assert mine.linear_evaluations == other.linear_evaluations
        assert all(torch.equal(a, b) for a, b in zip(mine.trajectory, other.trajectory, strict=True))
        assert len(mine.trajectory) == 2
        default = sd.solve(bound, bound.start())
        assert torch.equal(default.value, plain.solve(bound, bound.start()).value)

    def test_a_plain_callable_is_solved_but_never_certified(self, bound):
        assert sd.solve(lambda z: z / 2 + 1, torch.ones(2, 2)).converged
        with pytest.raises(OptionError, match="bind"):
            sd.solve(lambda z: z / 2, torch.ones(2, 2), certified_tol=0.1)

    @pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, -math.inf])
    def test_bad_tolerances_are_refused(self, bound, eps):
        with pytest.raises(OptionError, match="certified_tol"):
            sd.solve(bound, bound.start(), certified_tol=eps)

    def test_indexing_is_refused(self, bound):
        with pytest.raises(OptionError, match="indexing"):
            sd.solve(bound, bound.start(), certified_tol=0.1, indexing=(1,))

    @pytest.mark.parametrize("limit", [0, -3, 2.5])
    def test_bad_limits_are_refused(self, bound, limit):
        with pytest.raises(OptionError, match="max_iter"):
            sd.solve(bound, bound.start(), certified_tol=0.1, max_iter=limit)

    def test_products_and_traces_are_summed_over_the_rounds(self, bound, monkeypatch):
        proof = sd.certify(bound)
        module = __import__("subdeq_plugin.integration.solve", fromlist=["solve_residual"])
        rounds, original = [], module.solve_residual

        def record(*args: Any, **options: Any) -> Any:
            rounds.append(original(*args, **options))
            return rounds[-1]

        monkeypatch.setattr(module, "solve_residual", record)
        # Its residuals promise far too much: several rounds are needed.
        worse = replace(proof, proofs=tuple(replace(part, factor=part.factor * 1e8) for part in proof.proofs))
        found = sd.solve(bound, bound.start(), solver("newton_krylov"), certified_tol=1e-4, certificate=worse)
        assert found.converged and len(rounds) > 1
        assert found.evaluations == sum(part.evaluations for part in rounds)
        assert found.linear_evaluations == sum(part.linear_evaluations for part in rounds) > 0
        assert found.abs_trace.shape[1] == sum(part.abs_trace.shape[1] for part in rounds) <= found.evaluations
        assert found.rel_trace.shape == found.abs_trace.shape

    def test_iterations_count_from_the_first_round(self, bound):
        """The evaluation at which the value was tested, among all that were spent."""
        proof = sd.certify(bound)
        worse = replace(proof, proofs=tuple(replace(part, factor=part.factor * 1e5) for part in proof.proofs))
        counting = Counting.of(bound)
        found = sd.solve(counting, bound.start(), solver("picard"), certified_tol=1e-4, certificate=worse)
        assert len(counting.calls) == found.evaluations
        for row, number in enumerate(found.iterations.tolist()):
            image = bound(counting.calls[number - 1])[row]  # to which the proof applies
            torch.testing.assert_close(found.value[row], image, rtol=0, atol=0)

    @pytest.mark.parametrize("limit", [1, 2, 4, 6, 9])
    @pytest.mark.parametrize("key", SOLVERS)
    def test_the_limit_covers_all_rounds_together(self, bound, key, limit):
        proof = sd.certify(bound)
        worse = replace(proof, proofs=tuple(replace(part, factor=part.factor * 1e7) for part in proof.proofs))
        counting = Counting.of(bound)
        found = sd.solve(counting, bound.start(), solver(key), certified_tol=1e-5, max_iter=limit, certificate=worse)
        assert len(counting.calls) == found.evaluations <= limit

    def test_the_limit_covers_slow_rounds_too(self):
        """`z = relu(0.97 z + 0.01)`: every round takes some 75 evaluations."""
        layer = sd.SubhomLinear(
            1, 1, "relu", 0.0, weight="signed", injection="inside", injection_map="identity", dtype=torch.float64
        )
        with torch.no_grad():
            layer.weight.fill_(0.97)
            layer.injection.weight.zero_()
            layer.injection.bias.fill_(0.01)
        bound = Counting.of(layer.bind(torch.zeros(1, 1, dtype=torch.float64)).detach())
        proof = sd.certify(bound, conditions="norm")
        worse = replace(proof, proofs=tuple(replace(part, factor=part.factor * 1e7) for part in proof.proofs))
        for limit in (60, 100, 150, 200):
            bound.calls.clear()
            found = sd.solve(
                bound, bound.start(), solver("picard"), certified_tol=0.3, max_iter=limit, certificate=worse
            )
            assert len(bound.calls) == found.evaluations == limit
            assert found.statuses[0] == Status.MAX_ITERATIONS

    @pytest.mark.parametrize("key", SOLVERS)
    def test_a_start_that_is_no_number_is_never_converged(self, bound, key):
        start = bound.start()
        start[0, 0] = math.nan
        found = sd.solve(bound, start, solver(key), certified_tol=0.1, max_iter=60)
        if not bool(found.value[0].isfinite().all()):
            assert bool(found.error_bound[0].isinf()) and found.statuses[0] != Status.CONVERGED
        exact = iterate(bound, bound.start())
        assert float(log_distance("thompson", found.value[1:], exact[1:], 1)) <= float(found.error_bound[1]) + REFERENCE
        assert found.statuses[1] == Status.CONVERGED

    def test_a_contraction_reaches_the_solver(self, bound, monkeypatch):
        module = __import__("subdeq_plugin.integration.solve", fromlist=["solve_residual"])
        seen = []
        original = module.solve_residual

        def record(*args: Any, **options: Any) -> Any:
            seen.append(options)
            return original(*args, **options)

        monkeypatch.setattr(module, "solve_residual", record)
        contraction = sd.certify(bound).contraction
        sd.solve(bound, bound.start(), contraction=contraction, tol=1e-3, stop_mode="thompson")
        assert seen[-1]["contraction"] is contraction and seen[-1]["stop_mode"] == "thompson"
        sd.solve(bound, bound.start(), certified_tol=1e-3)
        assert seen[-1]["contraction"].rate == contraction.rate and seen[-1]["stop_mode"] == "certified"
