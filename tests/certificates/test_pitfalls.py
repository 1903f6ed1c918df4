"""Where floating point, aliasing or a mixture of proofs could turn a certificate into a false statement."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.errors import CertificateError, SubdeqError
from tests.helpers import EDGES, iterate, log_distance

D = torch.float64


def bound_map(activation: str, shift: float = 0.0, power: float = 1.0, normalize=None, **arrays) -> sd.BoundMap:
    tensors = {name: torch.tensor(value, dtype=D) for name, value in arrays.items()}
    options = {"kind": "dense", "activation": activation, "shift": shift, "power": power, "normalize": normalize}
    return sd.BoundMap.from_spec(sd.MapSpec(tensors, options))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, "inf"])
@pytest.mark.parametrize("scale", [1e-220, 1e-162, 1e-100, 1.0, 1e100, 1e155, 1e200, 1e220])
def test_norms_neither_overflow_nor_underflow(p, scale):
    """The quotient does not depend on the scale, nor do its three fixed points; the entries' powers leave the range."""
    weight = [[4.0, -4.0], [-4.0, 4.0]]
    plain = bound_map("relu", 1.0, 1.0, p, weight=weight, inner=[[0.0, 0.0]])
    middle = torch.ones(1, 2, dtype=D) / plain.normalizer.norm(torch.ones(1, 2, dtype=D))
    asymmetric = iterate(plain, torch.tensor([[1.0, 1e-3]], dtype=D))
    torch.testing.assert_close(plain(middle), middle, rtol=1e-13, atol=0)
    assert float((asymmetric - middle).abs().max()) > 0.1
    scaled = [[scale * entry for entry in row] for row in weight]
    proof = sd.certify(bound_map("relu", scale, 1.0, p, weight=scaled, inner=[[0.0, 0.0]]), conditions="all")
    assert not proof.unique
    box = proof.enclosure
    for point in (middle, asymmetric, asymmetric.flip(1)):
        assert bool(((box.lo <= point * (1 + 1e-13)) & (point * (1 - 1e-13) <= box.hi)).all())


def test_a_power_that_underflows_does_not_cut_off_a_fixed_point():
    v = 0.5 * math.sqrt(1.55) * math.sqrt(5e-324)
    f = bound_map("relu", 1e-170, 1.0, 2, weight=[[0.0, -0.5], [0.0, 0.0]], inner=[[0.475, -1.0]], outer=[[0.0, v]])

    def image(z):
        first = max(mp.mpf(0.475) - z[1] / 2, 0) + mp.mpf(1e-170)
        second = mp.mpf(1e-170) + mp.mpf(v)
        size = mp.sqrt(first**2 + second**2)
        return [first / size, second / size]

    found = []
    with mp.workdps(400):
        for start in ([mp.mpf("1e-8"), mp.mpf(1)], [mp.mpf(1), mp.mpf("1e-162")]):
            z = start
            for _ in range(400):
                z = image(z)
            found.append(z)
        proof = sd.certify(f, conditions="all")
        if abs(found[0][1] - found[1][1]) > mp.mpf("0.1"):
            assert not proof.unique
        box = proof.enclosure
        for z in found:
            for entry, lo, hi in zip(z, box.lo[0].tolist(), box.hi[0].tolist(), strict=True):
                assert mp.mpf(lo) <= entry <= mp.mpf(hi)


def test_a_certificate_holds_on_to_the_weights_and_the_input_it_was_made_with():
    layer = sd.SubhomLinear(2, 3, shift=0.5, dtype=D)
    x = torch.rand(2, 2, dtype=D)
    proof = sd.certify(layer, x)  # no bound is asked for before the layer changes
    old = iterate(layer.bind(x).detach(), torch.ones(2, 3, dtype=D))
    with torch.no_grad():
        layer.injection.bias.add_(3.0)
        layer.weight = layer.weight * 2
        x.mul_(50)
    assert bool((proof.error_bound(old) < 1e-11).all())
    lo, hi = proof.error_interval(old)
    assert bool((lo <= old * (1 + 1e-14)).all() and (old * (1 - 1e-14) <= hi).all())


def test_a_certificate_holds_on_to_its_graph():
    layer = sd.SubhomGraph(1, 2, dtype=D)
    graph = layer.prepare(EDGES, 5)
    x = (torch.rand(5, 1, dtype=D), graph)
    proof = sd.certify(layer, x)
    old = iterate(layer.bind(x).detach(), torch.ones(5, 2, dtype=D))
    graph.matrix.values().mul_(3)
    assert bool((proof.error_bound(old) < 1e-11).all())


def test_no_rate_is_claimed_that_does_not_cover_every_sample():
    f = bound_map(
        "tanh",
        1.2,
        weight=[[1.5, -30.0], [0.0, 0.0]],
        outer=[[9.0, 9.0], [8.0, 7.0], [0.3, 0.0]],
        inner=[[0.0, 0.0]] * 3,
    )
    proof = sd.certify(f, conditions="enclosure")
    assert proof.unique
    if len(proof.proofs) > 1 and not bool(proof.proofs[0].proven.all()):
        assert proof.rate is None and proof.mu is None and proof.contraction is None
        with pytest.raises(CertificateError):
            proof.iterations_for(1e-6)
    z = iterate(f, torch.full((3, 2), 1.5, dtype=D))
    assert bool((proof.error_bound(z) < 1e-6).all())


def test_bounds_near_underflow_still_bound():
    f = bound_map("tanh", 0.0, weight=[[0.3, -0.9], [0.9, 0.3]], outer=[[0.0, 0.0]])
    proof = sd.certify(f, conditions="norm")
    assert proof.metric == "l2"
    for size in (1e-160, 1e-170, 1e-300, 5e-324):
        z = torch.full((1, 2), size, dtype=D)
        assert float(proof.error_bound(z)[0]) >= math.sqrt(2) * size
        lo, hi = proof.error_interval(z)
        assert bool((lo <= 0).all() and (hi >= 0).all())


@pytest.mark.parametrize("where", ["weight", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("conditions", [None, "all", "norm", "monotone", "box", "matrix measure", "spectral radius"])
def test_a_broken_injection_defines_no_map(where, value, conditions):
    layer = sd.SubhomLinear(1, 2, weight="signed", shift=1.2, injection="inside")
    with torch.no_grad():
        layer.weight.mul_(1e-3)
        getattr(layer.injection, where).view(-1)[0] = value
    proof = sd.certify(layer, conditions=conditions)
    assert (
        not proof.unique and not proof.proofs and any("parameters of the injection" in text for text in proof.reasons)
    )


def test_an_adjacency_that_overflows_the_layers_dtype_is_refused():
    graph = torch.sparse_coo_tensor(EDGES, torch.full((7,), 1e300, dtype=D), (5, 5), check_invariants=True)
    with pytest.raises(SubdeqError, match="infinite"):
        sd.SubhomGraph(1, 2).prepare(graph, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_no_bound(dtype):
    t = torch.linspace(-3, 3, 25, dtype=D)
    expected = [part.clone() for part in sd.Activation("leaky_relu").enclose_slope(t, t)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = sd.Activation("leaky_relu").enclose_slope(t, t)
        slope = sd.Activation("leaky_relu").derivative(t)
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert bool(((found[0] <= slope) & (slope <= found[1])).all()) and slope.dtype == D


@pytest.mark.parametrize("size", [1.0, 1e-100, 1e-170, 1e-200])
def test_radii_with_tiny_weights(size):
    layer = sd.SubhomLinear(2, 1, injection_map="identity", dtype=D)
    with torch.no_grad():
        layer.injection.weight.copy_(torch.tensor([[3 * size, 4 * size]], dtype=D))
        layer.injection.bias.zero_()
    lo, hi = layer.injection_interval(torch.zeros(1, 2, dtype=D), 1.0, 2)
    assert float(lo) <= -5 * size and 5 * size <= float(hi) <= 5.001 * size + 1e-290


def test_convolutions_without_an_image_size_still_tell_solvers_their_rate():
    layer = sd.SubhomConv2d(1, 2, 3, weight="signed", shift=1.2)
    with torch.no_grad():
        layer.weight.mul_(0.2)
    proof = sd.certify(layer, conditions="spectral radius")
    assert proof.unique
    contraction, bound = proof.contraction, layer.bind(torch.rand(1, 1, 5, 6)).detach()
    one, other = torch.rand(1, 2, 5, 6), torch.rand(1, 2, 5, 6)
    before = contraction.distance(one.flatten(1), other.flatten(1))
    after = contraction.distance(bound(one).flatten(1), bound(other).flatten(1))
    assert float(after) <= contraction.rate * float(before) * (1 + 1e-5)


def test_inference_mode():
    layer = sd.SubhomLinear(2, 3, dtype=D)
    with torch.inference_mode():
        x = torch.rand(2, 2, dtype=D)
        proof = sd.certify(layer, x)
        z = iterate(layer.bind(x), torch.ones(2, 3, dtype=D))
        bounds = proof.gradient_bound(z, torch.ones(2, 3, dtype=D))
    assert bounds.finite and bool((proof.error_bound(z) < 1e-11).all())


def test_a_graph_without_edges_has_gradient_bounds():
    layer = sd.SubhomGraph(1, 2, shift=1.2, self_loops=False, weight="signed", dtype=D)
    x = (torch.rand(3, 1, dtype=D), torch.empty(2, 0, dtype=torch.int64))
    proof = sd.certify(layer, x)
    assert proof.unique
    z = layer.bind(x).detach()(torch.ones(3, 2, dtype=D))
    assert proof.gradient_bound(z, torch.ones(3, 2, dtype=D)).finite


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": [[0.1, 0.2]], "outer": [[1.0, 1.0]]}, "square"),
        ({"weight": [[0.1]], "outer": [[1.0]], "inner": [[1.0], [2.0]]}, "different shapes"),
    ],
)
@pytest.mark.parametrize("conditions", [None, "norm", "enclosure", "monotone"])
def test_a_map_of_shapes_that_do_not_fit_is_no_map(arrays, message, conditions):
    tensors = {name: torch.tensor(value, dtype=D) for name, value in arrays.items()}
    good = bound_map("tanh", 1.2, weight=[[0.1]], outer=[[1.0]], inner=[[1.0]])
    operator = type(good.operator)(tensors["weight"])
    f = sd.BoundMap(operator, good.activation, tensors.get("inner"), tensors["outer"])
    proof = sd.certify(f, conditions=conditions)
    assert not proof.unique and any(message in reason for reason in proof.reasons)


def test_an_empty_batch_is_no_map():
    good = bound_map("tanh", 1.2, weight=[[0.1]], outer=[[1.0]])
    f = sd.BoundMap(good.operator, good.activation, None, torch.empty(0, 1, dtype=D))
    proof = sd.certify(f)
    assert not proof.unique and any("empty" in reason for reason in proof.reasons)


def test_a_default_device_without_numbers_does_no_harm():
    layer, x = sd.SubhomLinear(2, 3, weight="signed", shift=1.2), torch.rand(2, 2)
    with torch.no_grad():
        layer.weight.mul_(0.3)
    z = torch.ones(2, 3)
    expected = sd.certify(layer, x, conditions="all")
    error = expected.error_bound(z)
    torch.set_default_device("meta")
    try:
        proof = sd.certify(layer, x, conditions="all")
        found = proof.error_bound(z)
    finally:
        torch.set_default_device("cpu")
    assert proof.theorem == expected.theorem and proof.unique
    torch.testing.assert_close(found, error, rtol=0, atol=0)


def test_a_norm_does_not_make_an_unknown_injection_harmless():
    """With a negative injection outside, both signs are fixed points of this map."""
    layer = sd.SubhomLinear(
        1, 2, "tanh", 1.603, normalize=2, weight="signed", injection="outside", injection_map="identity", dtype=D
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.04, 0.02], [0.02, 0.04]]))
        layer.injection.weight.fill_(1.0)
        layer.injection.bias.zero_()
    assert not sd.certify(layer, conditions="all").unique


@pytest.mark.parametrize(
    ("activation", "shift", "arrays"),
    [
        ("tanh", 1.2, {"weight": [[0.1]], "outer": [[-3.0]]}),
        ("tanh", 0.0, {"weight": [[0.5]], "inner": [[-3.0]]}),
        ("sigmoid", 0.0, {"weight": [[-0.1]], "outer": [[0.5], [-1.0]]}),
    ],
)
@pytest.mark.parametrize("conditions", ["norm", "enclosure", "interval newton", "monotone", "all"])
def test_fixed_points_that_are_not_positive_lie_in_their_intervals(activation, shift, arrays, conditions):
    f = bound_map(activation, shift, **arrays)
    z = iterate(f, torch.ones(f.state_shape, dtype=D))
    proof = sd.certify(f, conditions=conditions)
    lo, hi = proof.error_interval(torch.ones_like(z))
    assert proof.unique and bool(((lo <= z + 1e-15) & (z - 1e-15 <= hi)).all())


def test_the_scope_of_a_normalised_enclosure_is_nonnegative_states():
    f = bound_map("tanh", 1.603, 1.0, 1, weight=[[1.0]], outer=[[-1.0]])
    proof = sd.certify(f, conditions="enclosure")
    assert not proof.unique or "nonnegative" in proof.scope


def test_ratios_of_a_hilbert_proof_on_a_box_hold_off_the_slice():
    f = bound_map("tanh", 1.0, 1.0, 2, weight=[[0.5, 0.2], [0.1, 0.9]], inner=[[-0.4, 0.1]])
    proof = sd.certify(f, conditions="enclosure")
    assert proof.unique and proof.metric == "hilbert"
    z = iterate(f, torch.ones(1, 2, dtype=D))
    for factor in (1e-3, 0.5, 1.0, 40.0):
        for other in (z, torch.tensor([[1.0, 2.0]], dtype=D), torch.tensor([[5.0, 0.1]], dtype=D)):
            error = log_distance("hilbert", factor * other, z, 1)
            assert bool((error <= proof.error_bound(factor * other) + 1e-13).all())
