"""The error bound and the count of iterations, against exact arithmetic where floating point could fool them."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subdeq_plugin.certificates import certify
from subdeq_plugin.errors import CertificateError, DomainError, OptionError, ShapeError
from subdeq_plugin.layers import BoundMap, MapSpec, SubhomLinear
from tests.helpers import SCALARS, iterate, log_distance, silence_injection


def scalar_map(activation: str, shift: float, power: float, weight: float, inner: float, outer: float) -> BoundMap:
    arrays = {
        name: torch.tensor([[value]], dtype=torch.float64)
        for name, value in (("weight", weight), ("inner", inner), ("outer", outer))
    }
    return BoundMap.from_spec(
        MapSpec(arrays, {"kind": "dense", "activation": activation, "shift": shift, "power": power})
    )


def exact_fixed_point(activation: str, shift: float, power: float, weight: float, inner: float, outer: float) -> mp.mpf:
    s = SCALARS[activation][0]
    z = mp.mpf(1)
    for _ in range(3000):
        new = (s(mp.mpf(weight) * z + mp.mpf(inner)) + mp.mpf(shift)) ** mp.mpf(power) + mp.mpf(outer)
        if abs(new - z) <= mp.mpf(10) ** -40 * new:
            return new
        z = new
    return z


@settings(deadline=None, max_examples=120, derandomize=True)
@given(
    st.sampled_from(["tanh", "sigmoid", "softplus", "softsign", "arctan", "erf", "relu", "elu"]),
    st.sampled_from([0.0, 0.1, 1.2]),
    st.sampled_from([1.0, 0.5, -0.5, 0.9]),
    st.floats(-8, 8).map(lambda e: 10.0**e),
    st.sampled_from([0.0, 1e-9, 0.3, 25.0]),
    st.sampled_from([0.0, 1e-12, 0.7]),
    st.sampled_from([0.0, 1e-15, 1e-10, 1e-3, -2.0, 40.0]),
)
def test_scalar_maps_against_forty_digits(activation, shift, power, weight, inner, outer, offset):
    bound = scalar_map(activation, shift, power, weight, inner, outer)
    proof = certify(bound)
    if not proof.unique:
        assert proof.reasons
        return
    with mp.workdps(50):
        exact = exact_fixed_point(activation, shift, power, weight, inner, outer)
        start = torch.tensor([[float(exact * mp.exp(offset))]], dtype=torch.float64)
        for z in (start, iterate(bound, start), bound(start)):
            point = mp.mpf(float(z))
            error = abs(mp.log(point / exact)) if proof.metric == "thompson" else abs(point - exact)
            eps = float(proof.error_bound(z)[0])
            assert error <= mp.mpf(eps)
            lo, hi = proof.error_interval(z)
            assert mp.mpf(float(lo)) <= exact <= mp.mpf(float(hi))
        if proof.metric == "thompson" and proof.rate is not None:
            assert float(proof.error_bound(iterate(bound, start))[0]) <= 1e-9 / (1 - proof.rate)


@pytest.mark.parametrize("argument", [19.9, 20.0, 20.0001, 20.5, 24.0, 33.0])
def test_softplus_where_torch_replaces_it_by_the_identity(argument):
    weight = argument / math.sqrt(argument)
    bound = scalar_map("softplus", 0.0, 0.5, weight, 0.0, 0.0)
    z = iterate(bound, torch.ones(1, 1, dtype=torch.float64))
    with mp.workdps(50):
        exact = exact_fixed_point("softplus", 0.0, 0.5, weight, 0.0, 0.0)
        assert abs(mp.log(mp.mpf(float(z)) / exact)) <= mp.mpf(float(certify(bound).error_bound(z)[0])) <= 1e-12


def test_underflow_gives_no_bound_rather_than_a_wrong_one():
    """The fixed point of `sqrt(w z)` is `w`; with `w = 3e-162` the product is a denormal and rounds badly."""
    bound = scalar_map("relu", 0.0, 0.5, 3e-162, 0.0, 0.0)
    z = torch.tensor([[3.1434555694052576e-162]], dtype=torch.float64)
    torch.testing.assert_close(bound(z), z, rtol=1e-15, atol=0)
    error = abs(math.log(float(z) / 3e-162))
    assert error > 0.04 and float(certify(bound).error_bound(z)[0]) >= error


def two_units(normalize) -> tuple[SubhomLinear, torch.Tensor]:
    layer = SubhomLinear(1, 2, "tanh", 0.1, 1.0, normalize, dtype=torch.float64)
    layer.weight = torch.tensor([[3.0, 0.1], [0.2, 0.5]], dtype=torch.float64)
    silence_injection(layer, 0.0)
    with torch.no_grad():
        layer.injection.bias[1] = 0.7
    return layer, torch.zeros(1, 1, dtype=torch.float64)


@pytest.mark.parametrize("normalize", [1, 2, "inf"])
@pytest.mark.parametrize("length", [1e-3, 0.2, 20.0, 1e4])
def test_hilbert_bound_off_the_slice(normalize, length):
    """A state with `G(z)` on its own ray, but of another length than the slice, is not the fixed point."""
    layer, x = two_units(normalize)
    proof, bound = certify(layer, x), layer.bind(x).detach()
    assert proof.metric == "hilbert"
    solution = iterate(bound, torch.ones(1, 2, dtype=torch.float64))
    z = torch.ones(1, 2, dtype=torch.float64)
    for _ in range(2000):
        z = length * bound(z)
    error = log_distance("hilbert", z, solution, 1)
    assert float(error) > 0.01
    assert bool((error <= proof.error_bound(z) + 1e-13).all())
    torch.testing.assert_close(proof.error_bound(z), proof.error_bound(7.0 * z), rtol=1e-9, atol=1e-13)
    assert float(proof.error_bound(length * solution)) < 1e-11


@pytest.mark.parametrize("normalize", [1, 2, "inf"])
@pytest.mark.parametrize("eps", [0.5, 0.05, 1e-3, 1e-7])
def test_iterations_from_ones_off_the_slice(normalize, eps):
    layer, x = two_units(normalize)
    proof, bound = certify(layer, x), layer.bind(x).detach()
    solution = iterate(bound, torch.ones(1, 2, dtype=torch.float64))
    z = torch.ones(1, 2, dtype=torch.float64)
    for _ in range(proof.iterations_for(eps)):
        z = bound(z)
    assert float(log_distance("hilbert", z, solution, 1)) <= eps
    assert certify(layer).iterations_for(eps, x=x) == proof.iterations_for(eps)


def test_a_first_step_out_of_range_is_an_error():
    layer = SubhomLinear(1, 2, "relu", 0.0, 0.5, dtype=torch.float64)
    layer.weight = torch.full((2, 2), 1.7e308, dtype=torch.float64)
    silence_injection(layer)
    with pytest.raises(CertificateError, match="range of a double"):
        certify(layer, torch.zeros(1, 1, dtype=torch.float64)).iterations_for(1e-6)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.floats(1e-9, 10.0), st.floats(1e-6, 1e3), st.sampled_from([0.01, 0.1, 0.5, 1.2]))
def test_the_count_satisfies_banachs_inequality_and_no_smaller_one_does(eps, step, shift):
    proof = certify(SubhomLinear(1, 1, "tanh", shift))
    count = proof.iterations_for(eps, first_step=step)
    rate, target = Fraction(proof.rate), Fraction(eps) * (1 - Fraction(proof.rate))
    assert rate**count * Fraction(step) <= target * (1 + Fraction(1, 10**12))
    assert count == 0 or rate ** (count - 1) * Fraction(step) >= target * (1 - Fraction(1, 10**12))


def test_the_count_without_an_input_is_relative_to_the_start():
    proof = certify(SubhomLinear(1, 1))
    count = proof.iterations_for(1e-3)
    assert proof.rate**count <= 1e-3 < proof.rate ** (count - 1)
    assert proof.iterations_for(1.5) == 0
    assert proof.iterations_for(1e-3, first_step=0.0) == 0
    for eps in (0.0, -1.0, math.nan):
        with pytest.raises(OptionError, match="eps must be positive"):
            proof.iterations_for(eps)


@pytest.mark.parametrize("step", [math.nan, math.inf, -1.0])
def test_a_senseless_first_step_is_refused(step):
    with pytest.raises(OptionError, match="first_step must be finite and nonnegative"):
        certify(SubhomLinear(1, 1)).iterations_for(1e-3, first_step=step)


def test_states_are_checked():
    proof = certify(SubhomLinear(1, 2), torch.ones(3, 1))
    with pytest.raises(ShapeError, match=r"\(3, 2\)"):
        proof.error_bound(torch.ones(2, 2))
    with pytest.raises(ShapeError, match="floating-point"):
        proof.error_bound(torch.ones(3, 2).int())
    with pytest.raises(DomainError):
        proof.error_bound(torch.zeros(3, 2))
    with pytest.raises(DomainError):
        proof.error_bound(torch.full((3, 2), math.inf))


def test_one_lost_sample_does_not_spoil_the_others_with_a_negative_shift():
    layer, x = SubhomLinear(1, 2, "sigmoid", -0.3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    z = torch.ones(3, 2, dtype=torch.float64)
    z[1, 0] = math.nan
    eps = certify(layer, x).error_bound(z)
    assert eps.isinf().tolist() == [False, True, False]
