"""Random certified layers of every kind: the rate holds, the fixed point is one, the error bound contains the error."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from subdeq_plugin.layers import BoundMap
from tests.helpers import (
    GROUPS,
    LayerCase,
    certify_structure,
    group_dims,
    iterate,
    log_distance,
    p_norm,
    random_states,
    sample_dims,
)

SETTINGS = settings(deadline=None, max_examples=120, derandomize=True)
ACTIVATIONS = ("tanh", "sigmoid", "softplus", "softsign", "arctan", "erf", "relu", "leaky_relu", "relu6", "elu")


@st.composite
def cases(draw) -> tuple[LayerCase, float]:
    kind = draw(st.sampled_from(sorted(GROUPS)))
    normalize = draw(st.sampled_from([None, 1, 1.5, 2, 30, "inf"]))
    case = LayerCase(
        kind,
        normalize,
        "state" if normalize is None else draw(st.sampled_from(GROUPS[kind])),
        draw(st.sampled_from(["inside", "outside"])),
        draw(st.sampled_from(["abs", "softplus", "square", "exp"])),
        draw(st.sampled_from(ACTIVATIONS)),
        draw(st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.2, 50.0])),
        draw(st.sampled_from([1.0, 0.9, 0.5, 0.3, -0.3, -0.5, -0.9, 2.0])),
        draw(st.integers(0, 10**6)),
    )
    return case, draw(st.sampled_from([1e-6, 1e-2, 1.0, 1e2, 1e6]))


def build(case: LayerCase, scale: float) -> tuple[BoundMap, object]:
    layer = case.layer()
    if case.kind != "graph":
        generator = torch.Generator().manual_seed(case.seed)
        spread = torch.rand(layer.weight.shape, generator=generator, dtype=torch.float64)
        layer.weight = scale * torch.exp(8 * spread - 4)
    bound = layer.bind(case.input()).detach()
    return bound, certify_structure(bound)


def place(case: LayerCase, z: torch.Tensor) -> torch.Tensor:
    if case.normalize is None:
        return z
    return z / p_norm(z, case.normalize, group_dims(case.kind, case.over))


@SETTINGS
@given(cases(), st.floats(1e-6, 100.0), st.integers(0, 10**6))
def test_the_rate_is_never_exceeded(drawn, spread, seed):
    case, scale = drawn
    bound, proof = build(case, scale)
    assume(proof.unique)
    a = random_states(tuple(bound.state_shape), seed, spread)
    b = random_states(tuple(bound.state_shape), seed + 1, spread)
    if proof.metric == "hilbert":
        a, b = place(case, a), place(case, b)
    dims = sample_dims(case.kind)
    before = log_distance(proof.metric, a, b, dims)
    after = log_distance(proof.metric, bound(a), bound(b), dims)
    assert bool((after <= proof.rate * before * (1 + 1e-9) + 1e-11).all())


@SETTINGS
@given(cases())
def test_a_proof_needs_a_degree_below_its_threshold(drawn):
    case, scale = drawn
    bound, proof = build(case, scale)
    mu = bound.activation.degree().bound
    reversing = case.power < 0 or case.over != "state"
    factor = 2 if case.normalize is not None and reversing else 1
    assert proof.unique == (factor * mu < 1)
    assert proof.mu == mu
    if proof.unique:
        assert proof.rate == factor * mu
        assert proof.metric == ("hilbert" if case.normalize is not None and not reversing else "thompson")
    else:
        assert proof.reasons


@SETTINGS
@given(cases(), st.floats(1e-15, 30.0), st.integers(0, 10**6))
def test_the_error_bound_contains_the_error(drawn, spread, seed):
    case, scale = drawn
    bound, proof = build(case, scale)
    assume(proof.unique and proof.rate < 0.97)
    solution = iterate(bound, torch.ones(bound.state_shape, dtype=torch.float64))
    dims = sample_dims(case.kind)
    reference_error = 1e-13 / (1 - proof.rate)
    for z in (
        solution * random_states(tuple(solution.shape), seed, spread),
        random_states(tuple(solution.shape), seed, spread),
        bound(random_states(tuple(solution.shape), seed, spread)),
        solution * 10.0 ** (seed % 13 - 6),
    ):
        error = log_distance(proof.metric, z, solution, dims)
        assert bool((error <= proof.error_bound(z) + reference_error).all())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(cases(), st.integers(0, 10**6))
def test_random_starts_meet_in_one_point(drawn, seed):
    case, scale = drawn
    bound, proof = build(case, scale)
    assume(proof.unique and proof.rate < 0.97)
    found = [iterate(bound, random_states(tuple(bound.state_shape), seed + i, 20.0 * i)) for i in range(5)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12 / (1 - proof.rate), atol=0)
    assert bool((found[0] > 0).all())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(cases(), st.integers(0, 10**6))
def test_single_precision_weights_are_certified_as_they_are(drawn, seed):
    case, _ = drawn
    layer, x = case.layer(torch.float32), case.input(torch.float32)
    proof = certify_structure(layer, x)
    assume(proof.unique and proof.rate < 0.97)
    exact = layer.bind(x).detach().to("cpu", torch.float64)
    solution = iterate(exact, torch.ones(exact.state_shape, dtype=torch.float64))
    z = (solution * random_states(tuple(solution.shape), seed, 1e-3)).float()
    error = log_distance(proof.metric, z, solution, sample_dims(case.kind))
    assert bool((error <= proof.error_bound(z) + 1e-13 / (1 - proof.rate)).all())
