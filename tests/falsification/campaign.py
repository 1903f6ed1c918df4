"""One chunk of the hunt: certify, attack, confirm, check the bounds, and count."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from subdeq_plugin.certificates import CONDITIONS, certify
from subdeq_plugin.layers import BoundMap, MapSpec

from .attack import SOLVED, Finding, Target, attack, confirm, in_map_order
from .buckets import Bucket
from .claims import Claim, contradictions, outside, probes
from .exact import Balls, ExactMap, enclose
from .families import generate
from .specs import Flat, dump, flats, with_arrays

__all__ = ["Certifier", "Chunk", "Settings", "Tally", "hunt", "run_chunk"]

Certifier = Callable[..., Any]
PUZZLES = 3  # undecided maps kept of each chunk


@dataclass(frozen=True)
class Settings:
    """How much of everything.

    Attributes:
        alone: share of the maps that are also certified by one condition alone.
        bounds: share of the certified maps whose error bounds are checked.
        frontier: share of the refused maps with several fixed points that are scaled down until they are certified.
        probes: states at which a bound is checked.
    """

    alone: float = 0.5
    bounds: float = 0.15
    frontier: float = 0.3
    probes: int = 6


@dataclass
class Tally:
    """Counts by name, and every violation in full."""

    counts: Counter[str] = field(default_factory=Counter)
    theorems: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    unsolved: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take over another tally's content."""
        self.counts.update(other.counts)
        self.theorems.update(other.theorems)
        self.violations += other.violations
        self.unsolved += other.unsolved

    def violation(self, kind: str, spec: MapSpec, claim: Claim | None, **details: Any) -> None:
        """Record a violation so that it can be replayed."""
        self.counts[f"violations: {kind}"] += 1
        record: dict[str, Any] = {"kind": kind, **details, "spec": dump(spec)}
        if claim is not None:
            record |= {"theorem": claim.label, "asked": claim.asked, "scope": claim.certificate.scope}
        self.violations.append(record)

    def puzzle(self, kind: str, spec: MapSpec, theorem: str, **details: Any) -> None:
        """Record a map that could not be decided, unless there are some already."""
        if len(self.unsolved) < PUZZLES:
            self.unsolved.append({"kind": kind, "theorem": theorem, **details, "spec": dump(spec)})


def run_chunk(
    family: str, seed: int, count: int, certifier: Certifier = certify, settings: Settings | None = None
) -> Tally:
    """Generate `count` maps of a family and hunt for violations among them."""
    return hunt(generate(family, seed, count), seed, certifier, settings)


def hunt(
    specs: Sequence[MapSpec], seed: int = 0, certifier: Certifier = certify, settings: Settings | None = None
) -> Tally:
    """Certify, attack and check these maps, then those between the refused and the certified ones."""
    settings = settings or Settings()
    rng = np.random.default_rng([seed, len(specs), 1])
    tally = Tally()
    chunk = Chunk(list(specs), certifier, tally, rng)
    chunk.certify(settings.alone)
    chunk.attack(seed)
    chunk.check_bounds(settings.bounds, settings.probes)
    edge = chunk.frontier(settings.frontier)
    if edge:
        tally.counts["frontier"] += len(edge)
        second = Chunk(edge, certifier, tally, rng)
        second.certify(settings.alone)
        second.attack(seed + 1)
        second.check_bounds(settings.bounds, settings.probes)
    return tally


class Chunk:
    """Maps on their way through the stages."""

    def __init__(self, specs: list[MapSpec], certifier: Certifier, tally: Tally, rng: np.random.Generator) -> None:
        self.specs, self.certifier, self.tally, self.rng = specs, certifier, tally, rng
        self.bounds = [BoundMap.from_spec(spec) for spec in specs]
        self.samples: list[list[Flat]] = [flats(spec) for spec in specs]
        self.claims: list[Claim] = []
        self.found: dict[tuple[int, int, bool], tuple[Target, Finding]] = {}
        self.refused: list[int] = []
        self.injected: dict[tuple[int, int], tuple[Balls, Balls]] = {}
        tally.counts["maps"] += len(specs)
        tally.counts["samples"] += sum(len(part) for part in self.samples)

    def _certificate(self, index: int, asked: str) -> Claim | None:
        options = {"conditions": asked} if asked else {}
        try:
            return Claim(index, asked, self.certifier(self.bounds[index], **options))
        except Exception:
            self.tally.violation("exception", self.specs[index], None, asked=asked, trace=traceback.format_exc())
            return None

    def certify(self, alone: float) -> None:
        """Ask for the default certificate, and for some that rest on one condition alone."""
        names = [*CONDITIONS, "all"]
        for index in range(len(self.specs)):
            first = self._certificate(index, "")
            claims = [first]
            if self.rng.random() < alone:
                claims.append(self._certificate(index, names[self.rng.integers(len(names))]))
            if first is not None and not bool(first.certificate.proven.any()):
                self.refused.append(index)
            for claim in claims:
                if claim is None:
                    continue
                if claim.certificate.unique != bool(claim.certificate.proven.all()):
                    self.tally.violation("unique and proven disagree", self.specs[index], claim)
                if bool(claim.certificate.proven.any()):
                    self.claims.append(claim)
                    self.tally.theorems[claim.label] += 1
                    self.tally.counts["certified" if not claim.asked else "certified alone"] += 1

    def attack(self, seed: int) -> None:
        """Look for several fixed points of every sample, and prove them where none may be."""
        wanted: dict[tuple[int, int, bool], list[Claim]] = {}
        for claim in self.claims:
            for sample in range(len(self.samples[claim.spec])):
                if claim.proves(sample):
                    place = claim.spec, sample, claim.signed(self.bounds[claim.spec])
                    wanted.setdefault(place, []).append(claim)
        claimed = {(index, sample) for index, sample, _ in wanted}
        for index, bound in enumerate(self.bounds):
            for sample in range(len(self.samples[index])):
                if (index, sample) not in claimed:
                    wanted[index, sample, bound.normalizer is None and not bound.positive] = []
        places = sorted(wanted)
        targets = [Target(self.samples[index][sample], signed) for index, sample, signed in places]
        for place, target, finding in zip(places, targets, attack(targets, seed), strict=True):
            self.found[place] = target, finding
            self._judge(place, target, finding, wanted[place])

    def _judge(self, place: tuple[int, int, bool], target: Target, finding: Finding, claims: list[Claim]) -> None:
        counts = self.tally.counts
        if not claims:
            counts["not certified"] += 1
            counts["not certified: several found"] += finding.multiple
            return
        counts["attacked"] += 1
        solved = Bucket([target.flat], signed=target.signed).residual(finding.candidates[None, :1])[0, 0] < SOLVED
        counts["attacked: no fixed point found"] += not solved
        spec, theorem = self.specs[place[0]], claims[0].label
        if not solved:
            self.tally.puzzle("no fixed point found", spec, theorem, sample=place[1])
        if not finding.multiple:
            return
        counts["attacked: suspicious"] += 1
        boxes, lost = confirm(target, finding)
        if len(boxes) < 2:
            counts["attacked: undecided" if lost else "attacked: refuted"] += 1
            if lost:
                candidates = finding.candidates.tolist()
                self.tally.puzzle("undecided", spec, theorem, sample=place[1], candidates=candidates)
        else:
            points = [[ball.str(17, radius=False) for ball in in_map_order(target.flat, box)] for box in boxes]
            for claim in claims:
                self.tally.violation("false certificate", self.specs[place[0]], claim, sample=place[1], points=points)

    def _truths(self, claim: Claim) -> tuple[list[Balls | None], torch.Tensor]:
        """Proven fixed points of the samples, and the states they were found from."""
        bound = self.bounds[claim.spec]
        signed = claim.signed(bound)
        truths: list[Balls | None] = []
        states = []
        for sample, flat in enumerate(self.samples[claim.spec]):
            place = claim.spec, sample, signed
            if place not in self.found:  # not proven by this claim, but known all the same
                place = claim.spec, sample, bound.normalizer is None and not bound.positive
            box = None
            state = np.ones(flat.size)
            if place in self.found:
                state = self.found[place][1].candidates[0]
                exact = ExactMap(flat, self.injected.get((claim.spec, sample)))
                box = enclose(exact, state, positive=not place[2])
            states.append(flat.unflatten(state))
            truths.append(None if box is None else in_map_order(flat, box))
        assert bound.state_shape is not None
        return truths, torch.from_numpy(np.stack(states)).reshape(bound.state_shape)

    def check_bounds(self, share: float, most: int) -> None:
        """Compare error bounds and intervals with proven fixed points."""
        for claim in self.claims:
            if self.rng.random() >= share:
                continue
            truths, solution = self._truths(claim)
            if all(truth is None for truth in truths):
                self.tally.counts["bounds: no proven fixed point"] += 1
                continue
            bound, spec = self.bounds[claim.spec], self.specs[claim.spec]
            states = list(probes(bound, solution, self.rng))
            chosen = [states[i] for i in sorted(self.rng.permutation(len(states))[:most])]
            for name, state in chosen:
                self.tally.counts["bounds checked"] += 1
                try:
                    for kind, sample, details in contradictions(claim, bound, state, truths):
                        values = [value.hex() for value in state.double().flatten().tolist()]
                        self.tally.violation(kind, spec, claim, sample=sample, probe=name, state=values, **details)
                except Exception:
                    values = [value.hex() for value in state.double().flatten().tolist()]
                    trace = traceback.format_exc()
                    self.tally.violation("exception", spec, claim, probe=name, state=values, trace=trace)
            self._check_enclosure(claim, truths)

    def _check_enclosure(self, claim: Claim, truths: list[Balls | None]) -> None:
        """The box that is said to hold every fixed point holds the proven one."""
        box = claim.certificate.enclosure
        if box is None:
            return
        lo, hi = (part.reshape(len(truths), -1).numpy() for part in (box.lo, box.hi))
        for sample, truth in enumerate(truths):
            if truth is not None and outside(lo[sample], hi[sample], truth):
                details = {"lo": lo[sample].tolist(), "hi": hi[sample].tolist()}
                self.tally.violation("enclosure", self.specs[claim.spec], claim, sample=sample, **details)

    def frontier(self, share: float) -> list[MapSpec]:
        """Refused maps, their weights scaled down until they are just certified.

        One known fixed point is kept where it is, so that the second one does not go before the certificate comes.
        """
        edge = []
        for index in self.refused:
            if self.rng.random() >= share:
                continue
            for scale in _bisected(lambda s, i=index: self._scaled(i, s), self._holds):  # type: ignore[misc]
                edge.append(self._scaled(index, scale))
        return edge

    def _holds(self, spec: MapSpec) -> bool:
        try:
            return bool(self.certifier(BoundMap.from_spec(spec)).unique)
        except Exception:
            self.tally.violation("exception", spec, None, asked="", trace=traceback.format_exc())
            return False

    def _scaled(self, index: int, scale: float) -> MapSpec:
        spec = self.specs[index]
        name = "weight" if "weight" in spec.arrays else "values"
        weight = spec.arrays[name]
        given = spec.arrays["inner"] if "inner" in spec.arrays else torch.zeros_like(spec.arrays["outer"])
        rows = given.double().reshape(len(given), -1).clone()
        for sample, flat in enumerate(self.samples[index]):
            for signed in (True, False):
                if (index, sample, signed) in self.found:
                    state = self.found[index, sample, signed][1].candidates[-1]
                    with np.errstate(all="ignore"):
                        kept = flat.unflatten(flat.matrix @ state)
                    if np.isfinite(kept).all():
                        rows[sample] += (1 - scale) * torch.from_numpy(kept)
        return with_arrays(spec, **{name: weight * scale, "inner": rows.reshape(given.shape).to(given.dtype)})


def _bisected(scaled: Callable[[float], MapSpec], holds: Callable[[MapSpec], bool]) -> Iterator[float]:
    """The largest scale found at which the certificate holds."""
    low, high = 0.0, 1.0
    for scale in (0.5, 0.1, 0.01):
        if holds(scaled(scale)):
            low = scale
            break
        high = scale
    if low == 0.0:
        return
    for _ in range(3):
        middle = (low + high) / 2
        if holds(scaled(middle)):
            low = middle
        else:
            high = middle
    yield low
