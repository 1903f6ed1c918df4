"""The maps that solvers are given, and the same maps counting how often they are used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any, TypeVar

from torch import Tensor

from ..layers import BoundMap, SubhomLayer
from ..layers.bound import Linearization

__all__ = ["AdjointMap", "Map", "Tally", "counted", "counted_layer"]


@dataclass(frozen=True)
class AdjointMap:
    """`u -> g + J^T u`, the adjoint equation of a fixed point, for the Jacobian `J` of `primal` at `state`.

    Attributes:
        g: the cotangent, of the state's shape.
        primal: the map.
        state: where its Jacobian is taken.
    """

    g: Tensor
    primal: BoundMap
    state: Tensor
    positive: bool = False
    affine: bool = True

    @cached_property
    def _jacobian(self) -> Linearization:
        return self.primal.linearize(self.state)

    @property
    def sample_dims(self) -> int:
        """How many trailing dimensions form one sample."""
        return self.primal.sample_dims

    def __call__(self, u: Tensor) -> Tensor:
        return self.g + self._jacobian.vjp(u)

    @property
    def stepper(self) -> Callable[[], Any]:
        """Makes the map ready for the inside of a solve; see `solvers.base.Stepper`."""
        return partial(self._jacobian.adjoint_stepper, self.g)

    def linearize(self, u: Tensor) -> Products:
        """The Jacobian of this affine map, the same everywhere."""
        return Products(self._jacobian.vjp, self._jacobian.jvp)


Map = BoundMap | AdjointMap


@dataclass(frozen=True)
class Products:
    """A Jacobian given by its products with tangents and with cotangents."""

    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]


@dataclass
class Tally:
    """How often a map was used.

    Attributes:
        evaluations: of the map, on the whole batch.
        products: with its Jacobian or the transpose, on the whole batch; also those that autograd made.
    """

    evaluations: int = 0
    products: int = 0

    def one_evaluation(self) -> None:
        """Count an evaluation."""
        self.evaluations += 1

    def one_product(self, _: object = None) -> None:
        """Count a product with the Jacobian."""
        self.products += 1

    def counting(self, product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same product, counted."""

        def count(v: Tensor) -> Tensor:
            self.one_product()
            return product(v)

        return count


class _CountedStepper:
    """A map made ready for a solve, whose calls are counted."""

    def __init__(self, stepper: Any, count: Callable[[], None]) -> None:
        self._stepper, self._count = stepper, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stepper, name)

    def __call__(self, z: Tensor, out: Tensor) -> Tensor:
        self._count()
        image: Tensor = self._stepper(z, out)
        return image


@dataclass(frozen=True)
class _CountedBound(BoundMap):
    tally: Tally = field(default_factory=Tally)
    rows = None  # type: ignore[assignment]  # taken in parts, a batch would be counted once for each

    def __call__(self, z: Tensor) -> Tensor:
        self.tally.one_evaluation()
        value = super().__call__(z)
        if value.requires_grad:  # what flows back through it is a product with the transposed Jacobian
            value.register_hook(self.tally.one_product)
        return value

    def stepper(self) -> Any:
        return _CountedStepper(super().stepper(), self.tally.one_evaluation)

    def linearize(self, z: Tensor) -> Any:
        plain = super().linearize(z)
        jacobian: Any = copy.copy(plain)
        step, tally = plain.adjoint_stepper, self.tally
        jacobian.jvp, jacobian.vjp = tally.counting(jacobian.jvp), tally.counting(jacobian.vjp)
        jacobian.rows = None
        jacobian.adjoint_stepper = lambda g: _CountedStepper(step(g), tally.one_product)
        return jacobian


@dataclass(frozen=True)
class _CountedAdjoint(AdjointMap):
    tally: Tally = field(default_factory=Tally)

    def __call__(self, u: Tensor) -> Tensor:
        self.tally.one_evaluation()
        return super().__call__(u)

    @property
    def stepper(self) -> Callable[[], Any]:
        prepare = super().stepper
        return lambda: _CountedStepper(prepare(), self.tally.one_evaluation)

    def linearize(self, u: Tensor) -> Products:
        products = super().linearize(u)
        return Products(self.tally.counting(products.jvp), self.tally.counting(products.vjp))


M = TypeVar("M", BoundMap, AdjointMap)


def counted(function: M, tally: Tally) -> M:
    """The same map, keeping `tally`."""
    kind: Any = _CountedBound if isinstance(function, BoundMap) else _CountedAdjoint
    result: M = kind(**{part.name: getattr(function, part.name) for part in fields(function)}, tally=tally)
    return result


def counted_layer(layer: SubhomLayer, tally: Tally) -> SubhomLayer:
    """The same layer, parameters shared, whose bound maps keep `tally`."""
    kind: Any = type(layer)
    spy: SubhomLayer = kind.__new__(kind)  # a parametrized module refuses `copy.copy`
    spy.__dict__.update(layer.__dict__)
    spy.__dict__["bind"] = lambda x: counted(layer.bind(x), tally)
    return spy
