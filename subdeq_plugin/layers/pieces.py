"""Small modules to write a map of your own with, as an `nn.Sequential` that `certify` can read.

Torch's `nn.Linear`, `nn.Conv2d`, pooling and activations are pieces as well; see `docs/any-map.md` for the list.
"""

from __future__ import annotations

from torch import Tensor, nn

from .._shapes import check_floating
from ..activations import Activation
from ..errors import DomainError, OptionError, ShapeError
from .normalize import Normalizer, parse_norm

__all__ = ["Inject", "Normalize", "Pointwise"]


class Pointwise(nn.Module):
    """`t -> (s(t) + shift) ** power`, entrywise.

    Args:
        name: of the scalar function `s`; see `activation_names()`.
        shift: added to it.
        power: nonzero exponent of the sum.

    Raises:
        OptionError: an unknown name, or a shift or power that is not finite, or power 0.
    """

    def __init__(self, name: str, shift: float = 0.0, power: float = 1.0) -> None:
        super().__init__()
        self.activation = Activation(name, shift, power)

    def forward(self, t: Tensor) -> Tensor:
        """The activation of `t`, any shape and floating dtype."""
        return self.activation(t)

    def extra_repr(self) -> str:
        return f"{self.activation.name!r}, shift={self.activation.shift:g}, power={self.activation.power:g}"


class Inject(nn.Module):
    """`z -> z + y` with a nonnegative `y`, through which an input enters the map.

    Args:
        y: what is added, of a shape that broadcasts to the state's. An `nn.Parameter` is registered as one and can be
            trained; any other tensor becomes a buffer. Assign `inject.y` to change it: to `U x + c` computed from
            another input, say, through which gradients flow.

    Raises:
        ShapeError: `y` is not a floating-point tensor.
        DomainError: `y` has a negative entry, or one that is not finite. What is assigned later is for `certify` to
            check.
    """

    y: Tensor

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        given = check_floating("y", y).detach()
        bad = ~((given >= 0) & given.isfinite())
        if bool(bad.any()):
            raise DomainError(
                f"y must be nonnegative and finite, but {int(bad.sum())} entries are not, for instance "
                f"{float(given[bad][0]):g}; pass torch.relu(y)."
            )
        if isinstance(y, nn.Parameter):
            self.y = y
        else:
            self.register_buffer("y", y)

    def forward(self, z: Tensor) -> Tensor:
        """`z + y`, of the shape of `z`.

        Raises:
            ShapeError: `y` does not broadcast to that shape.
        """
        value = z + self.y
        if value.shape != z.shape:
            raise ShapeError(f"y must broadcast to the shape of z, {tuple(z.shape)}, got {tuple(self.y.shape)}.")
        return value

    def extra_repr(self) -> str:
        return f"y of shape {tuple(self.y.shape)}"


class Normalize(nn.Module):
    """Division by a p-norm of each sample, or of each of its groups.

    Args:
        p: exponent of the norm, a number >= 1 or "inf".
        dims: the dimensions that form one group, as torch counts them; None for all but the first, the batch.

    Raises:
        OptionError: an exponent below 1, or dimensions that are no integers, none, or the batch's.
    """

    def __init__(self, p: float | str = 2, dims: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        exponent = parse_norm(p)
        if exponent is None:
            raise OptionError('p must be "inf" or a number p >= 1, got None; leave the piece out instead.')
        self.p = exponent
        if dims is not None:
            dims = (dims,) if isinstance(dims, int) else tuple(dims)
            if not dims or 0 in dims or not all(isinstance(dim, int) for dim in dims):
                raise OptionError(f"dims must name dimensions other than 0, the batch, got {dims!r}.")
        self.dims = dims

    def normalizer(self, dim: int) -> Normalizer:
        """The normalisation of a state with `dim` dimensions.

        Raises:
            ShapeError: the state has no such dimensions besides its batch.
        """
        wanted = tuple(range(1, dim)) if self.dims is None else self.dims
        found = tuple(sorted({index - dim if index >= 0 else index for index in wanted}))
        if not found or found[0] <= -dim or found[-1] >= 0:
            raise ShapeError(
                f"dims={self.dims} must name dimensions of the state other than 0, the batch; it has {dim} dimensions."
            )
        whole = len(found) == dim - 1
        return Normalizer(self.p, "state" if whole else "group", found)

    def forward(self, z: Tensor) -> Tensor:
        """`z / phi(z)`, of the shape of `z (B, ...)`.

        Raises:
            ShapeError: the state has no such dimensions besides its batch.
        """
        return self.normalizer(z.dim())(z)

    def extra_repr(self) -> str:
        return f"p={self.p:g}, dims={'all but the batch' if self.dims is None else self.dims}"
