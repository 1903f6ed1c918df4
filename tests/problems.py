"""The fixed-point problems of the solver, gradient and integration suites. Nothing here calls a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from subdeq_plugin.layers import BoundMap, SubhomConv2d, SubhomGraph, SubhomLayer, SubhomLinear
from subdeq_plugin.layers.stepper import Stepper

Map = Callable[[Tensor], Tensor]

EDGES = torch.tensor([[0, 1, 2, 3, 0, 4, 2], [1, 2, 3, 4, 2, 0, 1]])


def seeded(seed: int) -> torch.Generator:
    """A generator of its own, so that problems do not depend on the order of the tests."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same in every dtype up to rounding."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def make_layer(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64, **keywords: Any) -> SubhomLayer:
    """A small layer: "dense" (3 -> 5), "conv" (2 -> 2 channels) or "graph" (3 -> 2 features)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "dense":
            return SubhomLinear(3, 5, dtype=dtype, **keywords)
        if kind == "conv":
            return SubhomConv2d(2, 2, 3, dtype=dtype, **keywords)
        return SubhomGraph(3, 2, 0.2, dtype=dtype, **keywords)


def make_input(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64, batch: int | None = 3) -> Any:
    """An input for `make_layer(kind)`; `batch=None` gives a single graph without a batch dimension."""
    lead = () if batch is None else (batch,)
    shape = {"dense": (*lead, 3), "conv": (*lead, 2, 3, 4)}.get(kind, (*lead, 5, 3))
    features = normal(*shape, seed=seed + 1000, dtype=dtype)
    return features if kind in ("dense", "conv") else (features, EDGES)


def bound_map(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64, **keywords: Any) -> BoundMap:
    """A detached map of a small layer on three samples."""
    return make_layer(kind, seed, dtype, **keywords).bind(make_input(kind, seed, dtype)).detach()


def ones_for(bound: BoundMap) -> Tensor:
    """The start of ones in the shape and dtype of the state."""
    like = bound.inner if bound.inner is not None else bound.outer
    assert like is not None
    return torch.ones_like(like)


def signed_bound(dtype: torch.dtype = torch.float64, size: float = 0.5) -> BoundMap:
    """A positive map that no structural certificate covers: small signed weights, rows of different difficulty."""
    layer = make_layer("dense", 7, dtype, weight="signed", shift=1.2)
    with torch.no_grad():
        layer.weight.copy_(size * torch.sign(normal(5, 5, seed=8, dtype=dtype)) / 5**0.5)
    bound = layer.bind(make_input("dense", 7, dtype)).detach()
    scale = torch.tensor([0.0, 1.0, 30.0], dtype=dtype)[:, None]
    assert bound.outer is not None
    return bound.with_tensors([*bound.operator.tensors, scale * (bound.outer + 0.1)])


@dataclass(frozen=True)
class RecordedBound(BoundMap):
    """A `BoundMap` that keeps a copy of every state it is evaluated at."""

    states: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, bound: BoundMap) -> RecordedBound:
        return cls(**{part.name: getattr(bound, part.name) for part in fields(bound)})

    def __call__(self, z: Tensor) -> Tensor:
        self.states.append(z.clone())
        return super().__call__(z)

    def stepper(self) -> RecordedStepper:
        return RecordedStepper(super().stepper(), self.states, ones_for(self).shape)


@dataclass(frozen=True)
class Whole(RecordedBound):
    """A recorded map that does not say what its samples are."""

    rows = None  # type: ignore[assignment]


@dataclass(frozen=True)
class RecordedStepper:
    """A `Stepper` that keeps a copy of every state it is evaluated at, in the shape of the problem."""

    stepper: Stepper
    states: list[Tensor]
    shape: torch.Size

    @property
    def error(self) -> float:
        return self.stepper.error

    def enter(self, z: Tensor) -> Tensor:
        return self.stepper.enter(z)

    def leave(self, z: Tensor, shape: torch.Size) -> Tensor:
        return self.stepper.leave(z, shape)

    def __call__(self, z: Tensor, out: Tensor) -> Tensor:
        self.states.append(self.leave(z.clone(), self.shape))
        return self.stepper(z, out)


@dataclass(frozen=True)
class Affine:
    """`z -> A z + c`, per sample, that tells its Jacobian and keeps the states it is evaluated at."""

    matrix: Tensor
    constant: Tensor
    states: list[Tensor] = field(default_factory=list)
    sample_dims: int = 1
    positive: bool = False
    affine: bool = True

    def __call__(self, z: Tensor) -> Tensor:
        self.states.append(z.clone())
        return self._apply(z) + self.constant

    def _apply(self, v: Tensor) -> Tensor:
        return (self.matrix @ v[..., None])[..., 0]

    def linearize(self, z: Tensor) -> Affine:
        return self

    def jvp(self, v: Tensor) -> Tensor:
        return self._apply(v)

    def vjp(self, u: Tensor) -> Tensor:
        return (self.matrix.mT @ u[..., None])[..., 0]

    def solution(self) -> Tensor:
        """From numpy's point of view: a direct solve in float64."""
        matrix = torch.eye(self.matrix.shape[-1], dtype=torch.float64) - self.matrix.double()
        return torch.linalg.solve(matrix.expand(*self.constant.shape, -1), self.constant.double())


def plain(function: Map) -> Map:
    """The same map as a bare callable."""
    return lambda z: function(z)


def with_norm(matrix: Tensor, size: float) -> Tensor:
    """The matrix scaled to a spectral norm."""
    return matrix * (size / torch.linalg.matrix_norm(matrix, ord=2))


def rotation(size: float, dtype: torch.dtype = torch.float64, angle: float = 1.0) -> Tensor:
    """A plane rotation times `size`."""
    c, s = float(torch.tensor(angle).cos()), float(torch.tensor(angle).sin())
    return size * torch.tensor([[c, -s], [s, c]], dtype=dtype)


def residuals(function: Map, z: Tensor, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """Absolute and relative two-norm residuals of every sample, from their definition, in float64."""
    with torch.no_grad():
        image = function(z)
    samples = z.shape[0] if samples is None else samples
    gap = (image.double() - z.double()).reshape(samples, -1)
    absolute = gap.square().sum(dim=1).sqrt()
    size = image.double().reshape(samples, -1).square().sum(dim=1).sqrt()
    return absolute, absolute / size


@dataclass(frozen=True)
class Case:
    """One fixed-point problem with exactly one solution."""

    name: str
    make: Callable[[], tuple[Map, Tensor]]
    samples: int = 3

    def __str__(self) -> str:
        return self.name


def _layer_case(name: str, kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, **keywords: Any) -> Case:
    def make() -> tuple[Map, Tensor]:
        bound = bound_map(kind, seed, dtype, **keywords)
        return bound, ones_for(bound)

    return Case(name, make)


def _single_graph() -> tuple[Map, Tensor]:
    bound = make_layer("graph", 5, shift=0.3, mix_features=True).bind(make_input("graph", 5, batch=None)).detach()
    return bound, ones_for(bound)


def _slow_dense() -> tuple[Map, Tensor]:
    """`tanh` near its linear part with row sums of one: the observed rate is close to the proven one."""
    layer = make_layer("dense", 6, shift=0.02)
    with torch.no_grad():
        layer.weight = torch.softmax(normal(5, 5, seed=6), dim=1)  # type: ignore[assignment]
        layer.injection.weight.mul_(0.05)  # type: ignore[union-attr, operator]
        layer.injection.bias.zero_()  # type: ignore[union-attr, operator]
    bound = layer.bind(make_input("dense", 6)).detach()
    return bound, ones_for(bound)


def _signed_tanh() -> tuple[Map, Tensor]:
    matrix, bias = with_norm(normal(6, 6, seed=15), 0.9), normal(3, 6, seed=16)
    return (lambda z: torch.tanh(z @ matrix.T + bias)), torch.zeros(3, 6, dtype=torch.float64)


def _cosine() -> tuple[Map, Tensor]:
    return torch.cos, torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)


def _image_map() -> tuple[Map, Tensor]:
    bias = normal(3, 2, 2, 3, seed=20, dtype=torch.float32)
    return (lambda z: 0.6 * torch.sin(z.flip(-1) + 0.3 * z.mean(dim=(1, 2, 3), keepdim=True)) + bias), bias


def _affine(matrix: Tensor, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Map, Tensor]:
    n = matrix.shape[0]
    return plain(Affine(matrix.to(dtype), normal(3, n, seed=seed, dtype=dtype))), torch.zeros(3, n, dtype=dtype)


def _symmetric() -> Tensor:
    basis = torch.linalg.qr(normal(6, 6, seed=17))[0]
    return basis @ torch.diag(torch.linspace(-0.8, 0.95, 6, dtype=torch.float64)) @ basis.T


def non_normal(n: int = 5) -> Tensor:
    """Spectral radius 0.5 but a norm above 2: residuals grow before they shrink."""
    return torch.diag(torch.full((n,), 0.5, dtype=torch.float64)) + torch.diag(
        torch.full((n - 1,), 2.0, dtype=torch.float64), 1
    )


PROBLEMS: tuple[Case, ...] = (
    _layer_case("dense-tanh", "dense", shift=1.2),
    _layer_case("dense-tanh-float32", "dense", torch.float32, 1, shift=0.1),
    _layer_case("dense-sigmoid-inside", "dense", activation="sigmoid", shift=0.0, injection="inside"),
    _layer_case("dense-softplus-root", "dense", activation="softplus", shift=0.1, power=0.5),
    _layer_case("dense-relu-power-0.9", "dense", activation="relu", shift=0.05, power=0.9),
    _layer_case("dense-tanh-norm-inf", "dense", shift=1.603, normalize="inf"),
    _layer_case("dense-softplus-norm-2", "dense", activation="softplus", shift=0.05, power=0.95, normalize=2),
    _layer_case("dense-antitone", "dense", activation="relu", shift=0.5, power=-0.7),
    _layer_case("conv-tanh", "conv", shift=0.1),
    _layer_case(
        "conv-softsign-channel-norm",
        "conv",
        torch.float32,
        activation="softsign",
        shift=1.2,
        normalize=1,
        normalize_over="channel",
    ),
    _layer_case("conv-relu6-inside", "conv", activation="relu6", shift=1.2, injection="inside"),
    _layer_case("graph-tanh-float32", "graph", torch.float32, shift=0.05),
    _layer_case("graph-mixing-node-norm", "graph", shift=1.603, mix_features=True, normalize=2, normalize_over="node"),
    Case("graph-single", _single_graph, 1),
    Case("dense-slow", _slow_dense),
    Case("plain-signed-tanh", _signed_tanh),
    Case("plain-cosine-vector", _cosine),
    Case("plain-image-float32", _image_map),
    Case("affine-symmetric", lambda: _affine(_symmetric(), 18)),
    Case("affine-non-normal", lambda: _affine(non_normal(), 19)),
)
assert len(PROBLEMS) == 20
