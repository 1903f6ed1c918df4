"""No certificate may be wrong; and the hunt that says so must be able to find a wrong one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb, ctx

from subdeq_plugin.layers import BoundMap

from .attack import Target, attack, confirm, fixed_points, true_fixed_point
from .buckets import Bucket
from .campaign import Settings, hunt, run_chunk
from .exact import BITS, ExactMap
from .families import FAMILIES, generate
from .layers import run_layers
from .specs import dense_spec, dump, flats, load

SIGNS = np.array([[1.0, -1.0], [-1.0, 1.0]])
COUNTEREXAMPLES = {
    "signed weights": (
        dense_spec(SIGNS, activation="tanh", shift=1.2),
        [(1.2, 1.2), (2.15750402, 0.24249598), (0.24249598, 2.15750402)],
    ),
    # At (1, 1) two entries attain the norm; no derivative exists there, and nothing is proven about it.
    "normalised": (
        dense_spec(2 * SIGNS, activation="tanh", shift=1.603, normalize="inf"),
        [(1.0, 0.28517961), (0.28517961, 1.0)],
    ),
    "negative bias": (
        dense_spec([[6.0]], [-5.0], activation="tanh", shift=1.05),
        [(0.05016576,), (0.78876025,), (2.04999911,)],
    ),
}
LAYERS = 40  # of each family


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_certificate_is_wrong(family):
    tally = run_chunk(family, seed=2024, count=LAYERS)
    shown = [{name: value for name, value in entry.items() if name != "spec"} for entry in tally.violations]
    assert not tally.violations, shown
    assert tally.counts["maps"] >= 0.9 * LAYERS
    assert tally.counts["attacked"] + tally.counts["not certified"] >= tally.counts["maps"]
    assert tally.counts["attacked: no fixed point found"] <= 0.05 * tally.counts["attacked"] + 1


def test_no_certificate_of_a_layer_is_wrong():
    tally = run_layers(seed=2024, count=3 * LAYERS)
    shown = [{name: value for name, value in entry.items() if name != "spec"} for entry in tally.violations]
    assert not tally.violations, shown
    assert tally.counts["attacked"] >= 3 * LAYERS


@pytest.mark.parametrize("name", sorted(COUNTEREXAMPLES))
def test_the_counterexamples_are_found(name):
    spec, known = COUNTEREXAMPLES[name]
    boxes = fixed_points(BoundMap.from_spec(spec))[0]
    found = sorted(tuple(float(ball) for ball in box) for box in boxes)
    np.testing.assert_allclose(found, sorted(known), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "share"),
    [("counterexamples", 0.6), ("two_points", 0.6), ("bifurcations", 0.4), ("near_degree", 0.02), ("near_norm", 0.15)],
)
def test_maps_with_several_fixed_points_are_caught(family, share):
    """With a certificate that believes everything, a good part of these layers turns out false, with proof."""
    specs = generate(family, 5, 60)
    settings = Settings(alone=0.0, bounds=0.0, frontier=0.0)
    tally = hunt(specs, 5, lambda bound, **options: Believer(bound), settings)
    assert tally.counts["violations: false certificate"] >= share * len(specs)
    for entry in tally.violations:
        assert len(entry["points"]) > 1


def test_the_gradient_search_reaches_several_fixed_points():
    specs = [spec for seed in range(6) for spec in generate("ascended", seed, 44)]
    targets = [Target(flat, True) for spec in specs for flat in flats(spec)]
    findings = attack(targets)
    proven = [len(confirm(t, f)[0]) > 1 for t, f in zip(targets, findings, strict=True) if f.multiple]
    assert sum(proven) >= 10


@dataclass
class Believer:
    """A certificate that claims everything; `error` and `width` are what it says about errors."""

    bound: BoundMap
    error: float = float("inf")
    width: float = float("inf")
    metric: str = "linf"
    unique: bool = True
    theorem: str = "faith"
    scope: str = "every state on which the map is defined"
    enclosure: Any = None
    proven: torch.Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.bool))

    def error_bound(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full((len(z),), self.error, dtype=torch.float64)

    def error_interval(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z.double() - self.width, z.double() + self.width


EASY = dense_spec([[0.3, -0.2], [0.1, 0.4]], [0.5, -0.3], activation="tanh", shift=1.2)
ALL = Settings(alone=0.0, bounds=1.0, frontier=0.0, probes=99)


@pytest.mark.parametrize("metric", ["thompson", "hilbert", "linf", "l1", "l2"])
def test_an_error_bound_that_is_too_small_is_caught(metric):
    tally = hunt([EASY], 0, lambda bound, **options: Believer(bound, error=1e-16, metric=metric), ALL)
    kinds = {entry["kind"] for entry in tally.violations}
    assert kinds == {"error bound"}
    assert len(tally.violations) >= 5
    tally = hunt([EASY], 0, lambda bound, **options: Believer(bound, error=1e8, metric=metric), ALL)
    assert not tally.violations and tally.counts["bounds checked"] >= 5


def test_an_interval_that_is_too_narrow_is_caught():
    tally = hunt([EASY], 0, lambda bound, **options: Believer(bound, width=1e-17), ALL)
    assert {entry["kind"] for entry in tally.violations} == {"interval"}
    tally = hunt([EASY], 0, lambda bound, **options: Believer(bound, error=float("nan")), ALL)
    assert {entry["kind"] for entry in tally.violations} == {"error bound"}


def test_a_crash_is_a_violation():
    def broken(bound: BoundMap, **options: Any) -> Any:
        raise RuntimeError("no")

    tally = hunt([EASY], 0, broken, ALL)
    assert [entry["kind"] for entry in tally.violations] == ["exception"]


# Huge numbers cancel in the other two, and float64 has nothing to compare with.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"biases", "ill_scaled"}))
def test_the_maps_under_attack_are_those_of_the_package(family):
    rng = np.random.default_rng(0)
    with ctx.workprec(BITS):
        for spec in generate(family, 1, 12):
            bound = BoundMap.from_spec(spec).to("cpu", torch.float64)
            z = torch.from_numpy(rng.uniform(0.2, 2.0, tuple(bound.state_shape)))
            value = bound(z).reshape(len(z), -1).numpy()
            tangent = torch.from_numpy(rng.standard_normal(tuple(z.shape)))
            slope = bound.jvp(z, tangent).reshape(len(z), -1).numpy()
            for sample, flat in enumerate(flats(spec)):
                state, along = (part[sample].flatten().numpy()[flat.order] for part in (z, tangent))
                bucket = Bucket([flat], signed=True)
                ours, jacobian = (part[0, 0] for part in bucket.jacobian(state[None, None]))
                exact, exact_jacobian = ExactMap(flat).linearise([arb(entry) for entry in state.tolist()])
                theirs = value[sample][flat.order]
                if not np.isfinite(theirs).all() or (bound.normalizer is not None and (theirs <= 0).any()):
                    continue
                scale = np.abs(theirs).max()
                np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7 * scale)
                np.testing.assert_allclose([float(e.mid()) for e in exact], theirs, rtol=1e-7, atol=1e-7 * scale)
                product = jacobian @ along
                mid = np.array([[float(entry.mid()) for entry in row] for row in exact_jacobian.tolist()])
                reach = 1e-6 * (1 + (np.abs(jacobian) @ np.abs(along)).max())
                if np.isfinite(product).all() and not _at_kink(flat, state):
                    np.testing.assert_allclose(product, slope[sample][flat.order], atol=reach)
                    np.testing.assert_allclose(mid @ along, product, atol=reach)


def _at_kink(flat: Any, state: np.ndarray) -> bool:
    t = flat.matrix @ state + flat.inner
    top = flat.p == np.inf
    return top or bool((np.abs(t[:, None] - np.array([0.0, 6.0, 1.0, -1.0])) < 1e-9).any())


def test_an_enclosure_holds_the_solution():
    """`z = tanh(z / 2) + 1`, by bisection in exact arithmetic."""
    bound = BoundMap.from_spec(dense_spec([[0.5]], activation="tanh", shift=1.0))
    (box,) = true_fixed_point(bound, np.array([[1.7]]))
    assert box is not None
    with ctx.workprec(200):
        low, high = arb(1), arb(3)
        for _ in range(150):
            middle = (low + high) / 2
            low, high = (middle, high) if (middle / 2).tanh() + 1 > middle else (low, middle)
        assert box[0].overlaps(low.union(high))
        assert float(box[0].rad()) < 1e-40
    assert true_fixed_point(bound, np.array([[float("nan")]])) == [None]


def test_the_same_seed_gives_the_same_maps_and_json_keeps_every_bit():
    for family in FAMILIES:
        first, second = generate(family, 3, 6), generate(family, 3, 6)
        for a, b in zip(first, second, strict=True):
            assert dump(a) == dump(b) == dump(load(dump(a)))
        assert [dump(a) for a in first] != [dump(c) for c in generate(family, 4, 6)]
