"""What a proof must be worth. A concrete suite supplies the fixtures `layer` and `x`; the layer must be provable."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from subdeq_plugin.certificates import Certificate, certify
from subdeq_plugin.layers import BoundMap, SubhomLayer
from tests.helpers import iterate, log_distance, p_norm, random_states

SPREADS = (0.1, 2.0, 15.0, 60.0)
# What the reference itself, an iteration in float64, may be off by.
REFERENCE_ERROR = 2e-13


def on_slice(bound: BoundMap, z: Tensor) -> Tensor:
    """`z / phi(z)` where there is a norm."""
    if bound.normalizer is None:
        return z
    p = "inf" if bound.normalizer.p == float("inf") else bound.normalizer.p
    return z / p_norm(z, p, bound.normalizer.dims)


class CertificateContract:
    """A proof, tried on random states: the rate, the uniqueness, the error bound, the count of iterations."""

    @pytest.fixture
    def layer(self) -> SubhomLayer:
        """A provable layer with float64 parameters."""
        raise NotImplementedError

    @pytest.fixture
    def x(self, layer: SubhomLayer) -> Any:
        """An input for it."""
        raise NotImplementedError

    @pytest.fixture
    def bound(self, layer, x) -> BoundMap:
        return layer.bind(x).detach()

    @pytest.fixture
    def certificate(self, layer, x) -> Certificate:
        return certify(layer, x)

    @pytest.fixture
    def solution(self, bound) -> Tensor:
        return iterate(bound, torch.ones(bound.state_shape, dtype=torch.float64))

    def _distance(self, certificate: Certificate, bound: BoundMap, a: Tensor, b: Tensor) -> Tensor:
        assert certificate.metric is not None
        return log_distance(certificate.metric, a, b, bound.sample_dims)

    def test_proven_with_every_hypothesis_listed(self, certificate, layer, bound):
        for proof in (certificate, certify(layer), certify(bound)):
            assert proof.unique and proof.reasons == () and all(check.passed for check in proof.checks)
            assert (proof.rate, proof.metric, proof.theorem) == (
                certificate.rate,
                certificate.metric,
                certificate.theorem,
            )
            assert 0 < proof.rate < 1 and proof.mu <= proof.rate
            assert str(proof).startswith("PROVEN") and proof.scope in str(proof)

    def test_the_rate_is_never_exceeded(self, certificate, bound):
        for seed, spread in enumerate(SPREADS):
            a = random_states(tuple(bound.state_shape), 20 + seed, spread)
            b = random_states(tuple(bound.state_shape), 40 + seed, spread)
            if certificate.metric == "hilbert":
                a, b = on_slice(bound, a), on_slice(bound, b)
            before = self._distance(certificate, bound, a, b)
            after = self._distance(certificate, bound, bound(a), bound(b))
            assert bool((after <= certificate.rate * before * (1 + 1e-10) + 1e-12).all())

    def test_nearby_states_contract_as_well(self, certificate, bound, solution):
        near = on_slice(bound, solution * random_states(tuple(solution.shape), 3, 1e-3))
        before = self._distance(certificate, bound, near, solution)
        after = self._distance(certificate, bound, bound(near), solution)
        assert bool((after <= certificate.rate * before * (1 + 1e-6) + 1e-12).all())

    def test_every_start_leads_to_the_same_fixed_point(self, bound, solution):
        for seed, spread in enumerate(SPREADS):
            other = iterate(bound, random_states(tuple(bound.state_shape), 60 + seed, spread))
            torch.testing.assert_close(other, solution, rtol=1e-12, atol=0)
        torch.testing.assert_close(bound(solution), solution, rtol=1e-14, atol=0)

    def test_error_bound_contains_the_error(self, certificate, bound, solution):
        for seed, spread in enumerate((1e-14, 1e-9, *SPREADS)):
            for scale in (1.0, 1e-6, 1e6):
                z = scale * solution * random_states(tuple(solution.shape), 80 + seed, spread)
                error = self._distance(certificate, bound, z, solution)
                eps = certificate.error_bound(z)
                assert eps.shape == error.shape and eps.dtype == torch.float64
                assert bool((error <= eps + REFERENCE_ERROR).all())

    def test_error_bound_is_small_at_the_solution(self, certificate, solution):
        assert bool((certificate.error_bound(solution) < 1e-11).all())

    def test_error_bound_holds_for_single_precision_states(self, certificate, bound, solution):
        z = (solution * random_states(tuple(solution.shape), 90, 1e-4)).float()
        error = self._distance(certificate, bound, z, solution)
        assert bool((error <= certificate.error_bound(z) + REFERENCE_ERROR).all())

    def test_error_bound_is_infinite_for_nan_samples_only(self, certificate, bound, solution):
        z = solution.contiguous().clone()
        z.view(-1)[0] = float("nan")
        eps = certificate.error_bound(z)
        assert bool(eps[0].isinf()) and bool(eps[1:].isfinite().all())

    def test_the_promised_iterations_suffice(self, certificate, bound, solution):
        for eps in (1.0, 1e-2, 1e-8):
            z = torch.ones(bound.state_shape, dtype=torch.float64)
            for _ in range(certificate.iterations_for(eps)):
                z = bound(z)
            assert bool((self._distance(certificate, bound, z, solution) <= eps * (1 + 1e-12)).all())

    def test_json_round_trip(self, certificate):
        data = json.loads(certificate.to_json())
        assert data == certificate.to_dict()
        assert data["unique"] is True and data["rate"] == certificate.rate and data["reasons"] == []
        assert [check["name"] for check in data["checks"]] == [check.name for check in certificate.checks]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_bad_coefficient_voids_the_proof(self, bound, value):
        broken = self._with_coefficient(bound, value)
        if broken is None:
            return
        proof = certify(broken)
        assert not proof.unique and proof.rate is None and proof.metric is None and proof.mu is None
        assert any("weight" in reason for reason in proof.reasons)
        assert proof.contraction is None and str(proof).startswith("NOT PROVEN")
        json.loads(proof.to_json())
        assert bool(proof.error_bound(torch.ones(bound.state_shape, dtype=torch.float64)).isinf().all())

    def test_a_negative_coefficient_voids_theorems_a_and_b(self, bound):
        broken = self._with_coefficient(bound, -1e-30)
        if broken is None:
            return
        proof = certify(broken, conditions="subhomogeneous")
        assert not proof.unique and any("smallest weight" in reason for reason in proof.reasons)
        other = certify(broken)  # what is proven in another way is about signed weights
        assert other.theorem not in ("A", "B")
        if other.unique:
            solution = iterate(broken, torch.ones(bound.state_shape, dtype=torch.float64))
            lo, hi = other.error_interval(solution)
            assert bool(
                (lo <= solution * (1 + REFERENCE_ERROR)).all() and (hi >= solution * (1 - REFERENCE_ERROR)).all()
            )

    @staticmethod
    def _with_coefficient(bound: BoundMap, value: float) -> BoundMap | None:
        """The map with one weight replaced; None for a fixed propagation, whose entries are tested with the graph."""
        if not bound.operator.tensors:
            return None
        weight = bound.operator.tensors[0].clone()
        weight.view(-1)[-1] = value
        return bound.with_tensors([weight, *bound.tensors[1:]])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_bad_injection_voids_the_proof(self, bound, value):
        injected = bound.tensors[-1].clone()
        injected.view(-1)[-1] = value
        proof = certify(bound.with_tensors([*bound.tensors[:-1], injected]), conditions="all")
        assert not proof.unique and any("injection" in reason for reason in proof.reasons)

    def test_a_negative_injection_voids_theorems_a_and_b(self, bound):
        injected = bound.tensors[-1].clone()
        injected.view(-1)[-1] = -1e-30
        proof = certify(bound.with_tensors([*bound.tensors[:-1], injected]), conditions="subhomogeneous")
        assert not proof.unique and any("injection" in reason for reason in proof.reasons)
