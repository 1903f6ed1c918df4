"""Layers rather than maps: claims for every input, and claims about the exact value of the injection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flint import arb, ctx
from torch import Tensor

from subdeq_plugin.certificates import CONDITIONS, certify
from subdeq_plugin.layers import BoundMap, MapSpec, SubhomConv2d, SubhomGraph, SubhomLayer, SubhomLinear

from .campaign import Chunk, Settings, Tally
from .claims import Claim
from .exact import BITS, Balls

__all__ = ["EVERY_INPUT", "run_layers"]

EVERY_INPUT = "every input"
_EDGES = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]])


def _layer(rng: np.random.Generator) -> SubhomLayer:
    kind = rng.integers(5)
    signed = bool(rng.random() < 0.6)
    dtype = torch.float32 if rng.random() < 0.3 else torch.float64
    keywords: dict[str, Any] = {
        "activation": str(rng.choice(["tanh", "sigmoid", "softplus", "relu", "arctan", "erf", "softsign", "elu"])),
        "shift": float(rng.choice([0.1, 1.2, 1.603])),
        "weight": "signed" if signed else "nonneg",
        "injection": str(rng.choice(["inside", "outside"])),
        "injection_map": str(rng.choice(["relu", "abs", "square", "identity", "identity"])),
        "dtype": dtype,
    }
    if not signed and rng.random() < 0.3:
        keywords["power"] = float(rng.choice([0.5, 0.9, -0.4]))
    if rng.random() < 0.25:
        keywords["normalize"] = (1, 2, "inf")[rng.integers(3)]
    try:
        if kind == 3:
            layer: SubhomLayer = SubhomConv2d(1, 2, 3, **keywords)
        elif kind == 4:
            layer = SubhomGraph(2, 2, 0.2, mix_features=bool(rng.random() < 0.7), **keywords)
        else:
            size = int(rng.integers(1, 5))
            layer = SubhomLinear(size, size, **keywords)
    except ValueError:  # a combination that layers refuse: not positive
        return _layer(rng)
    with torch.no_grad():
        scale = 10.0 ** rng.uniform(-2, 0.7)
        for name, parameter in layer.named_parameters():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape))).to(dtype)
            parameter.copy_(noise * (1.0 if "injection" in name else scale))
    return layer


def _input(layer: SubhomLayer, rng: np.random.Generator) -> Any:
    """Random inputs of several scales; for a dense layer also some made so that the injection all but cancels."""
    dtype = next(layer.parameters()).dtype
    shape: tuple[int, ...] = {"conv2d": (4, 1, 2, 3), "graph": (4, 3, 2)}.get(layer.operator_kind.kind, ())
    if isinstance(layer, SubhomLinear):
        shape = (4, layer.in_features)
    scales = 10.0 ** rng.uniform(-3, 2, (4, *[1] * (len(shape) - 1)))
    x = torch.from_numpy(scales * rng.standard_normal(shape)).to(dtype)
    if isinstance(layer, SubhomLinear):
        return torch.cat([x, _cancelling(layer, rng).to(dtype)])
    return (x, _EDGES) if isinstance(layer, SubhomGraph) else x


def _cancelling(layer: SubhomLinear, rng: np.random.Generator) -> Tensor:
    """Inputs whose injection makes a chosen state, often a tiny one, a fixed point of the map without its norm."""
    size = layer.state_features
    state = torch.from_numpy(10.0 ** rng.uniform(-3, 0.5, (8, 1)) * rng.standard_normal((8, size)))
    state[::2] = state[::2].abs()
    with torch.no_grad():
        product = state @ layer.weight.double().T
        if layer.injection_place == "inside":
            wanted = torch.from_numpy(rng.standard_normal((8, size))) - product
        else:
            wanted = state - layer.activation(product)
        if layer.injection_map == "square":
            wanted = wanted.clamp(min=0).sqrt()
        wanted = wanted.nan_to_num(1.0, 1.0, 1.0) - layer.injection.bias.double()
        found: Tensor = torch.linalg.lstsq(layer.injection.weight.double(), wanted.T).solution.T
        return found


def _exact_injections(layer: SubhomLinear, x: Tensor) -> list[Balls]:
    """`injection_map(U x + c)` of each sample, from the stored numbers."""
    weight, constant = layer.injection.weight.tolist(), layer.injection.bias.tolist()
    found = []
    with ctx.workprec(BITS):
        for row in x.tolist():
            sums = []
            for factors, start in zip(weight, constant, strict=True):
                total = sum((arb(a) * arb(b) for a, b in zip(factors, row, strict=True)), arb(start))
                if layer.injection_map == "relu":
                    total = total.max(arb(0))
                elif layer.injection_map == "abs":
                    total = abs(total)
                elif layer.injection_map == "square":
                    total = total**2
                sums.append(total)
            found.append(sums)
    return found


def run_layers(seed: int, count: int, settings: Settings | None = None) -> Tally:
    """Certify random layers without an input and with one, and attack what they bind to."""
    settings = settings or Settings()
    rng = np.random.default_rng([seed, count, 2])
    tally = Tally()
    layers = [_layer(rng) for _ in range(count)]
    inputs = [_input(layer, rng) for layer in layers]
    bounds = [layer.bind(x).detach() for layer, x in zip(layers, inputs, strict=True)]
    chunk = Chunk([_spec(bound) for bound in bounds], certify, tally, rng)
    chunk.bounds = bounds
    for index, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
        alone = list(CONDITIONS)[rng.integers(len(CONDITIONS))]
        options: dict[str, Any] = {} if rng.random() > settings.alone else {"conditions": alone}
        claims = [Claim(index, EVERY_INPUT, certify(layer, **options)), Claim(index, "its input", certify(layer, x))]
        for claim in claims:
            if bool(claim.certificate.proven.any()):
                chunk.claims.append(claim)
                tally.theorems[f"{claim.label}, {claim.asked}"] += 1
                tally.counts["certified"] += 1
        if isinstance(layer, SubhomLinear):
            place = 0 if layer.injection_place == "inside" else 1
            for sample, injected in enumerate(_exact_injections(layer, x)):
                none = [arb(0)] * len(injected)
                chunk.injected[index, sample] = (injected, none) if place == 0 else (none, injected)
    chunk.attack(seed)
    # Bounds of the others would be held against the rounded injection; those of no input have nothing to be asked for.
    chunk.claims = [
        claim for claim in chunk.claims if claim.asked != EVERY_INPUT and isinstance(layers[claim.spec], SubhomLinear)
    ]
    chunk.check_bounds(settings.bounds, settings.probes)
    return tally


def _spec(bound: BoundMap) -> MapSpec:
    spec = bound.spec
    return MapSpec({name: array.clone() for name, array in spec.arrays.items()}, spec.options)
