"""Perron pairs inside networks: eigenvector centrality as a layer, spectral pooling."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from ..errors import ConvergenceError, ConvergenceWarning, OptionError, unknown_name
from ..result import Status
from .result import PerronResult
from .solve import perron

__all__ = ["Perron"]

_OUTPUTS = ("eigenvector", "eigenvalue", "both")
_OPTIONS = ("method", "backend", "side", "tol", "max_iter", "normalize")
_REACTIONS = ("raise", "warn", "ignore")


class Perron(nn.Module):
    """A matrix or map in, its Perron pair out; without parameters of its own.

    Args:
        output: "eigenvector" `(..., N)`, "eigenvalue" `(...)`, or "both", a pair of them, the eigenvalue first.
        on_failure: "raise", "warn" or "ignore" where the bounds are not as close as `tol` asks.
        options: of `perron`: `method`, `backend`, `side`, `tol`, `max_iter`, `normalize`.

    Attributes:
        result: the `PerronResult` of the last call, detached; None before the first.

    Raises:
        OptionError: an unknown output, reaction or option.
    """

    def __init__(self, output: str = "eigenvector", *, on_failure: str = "warn", **options: Any) -> None:
        super().__init__()
        if output not in _OUTPUTS:
            raise unknown_name("output", output, _OUTPUTS)
        if on_failure not in _REACTIONS:
            raise unknown_name("on_failure", on_failure, _REACTIONS)
        for name in options:
            if name not in _OPTIONS:
                raise unknown_name("option", name, _OPTIONS)
        if options.get("side") == "both":
            raise OptionError("side must be 'right' or 'left' in a module; use two of them, or sd.perron.")
        self.output, self.on_failure, self.options = output, on_failure, options
        self.result: PerronResult | None = None

    def forward(self, target: Any, start: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The pair of `target`, anything that `perron` takes.

        Raises:
            ConvergenceError: the bounds are not as close as asked, and `on_failure="raise"`.
        """
        result = perron(target, start, **self.options)
        self.result = result.detach()
        if self.on_failure != "ignore" and bool((result.status > Status.ROUNDING_FLOOR).any()):
            failed = {message for message, status in zip(result.messages, result.status.flatten().tolist(), strict=True)
                      if status > Status.ROUNDING_FLOOR}  # fmt: skip
            text = f"Perron pairs are not as accurate as asked: {' '.join(sorted(failed))}"
            if self.on_failure == "raise":
                raise ConvergenceError(text)
            warnings.warn(text, ConvergenceWarning, stacklevel=2)
        pair = (result.eigenvalue, result.eigenvector)
        return pair if self.output == "both" else pair[self.output == "eigenvector"]

    def extra_repr(self) -> str:
        """For printing."""
        return ", ".join(
            [repr(self.output), f"on_failure={self.on_failure!r}", *(f"{k}={v!r}" for k, v in self.options.items())]
        )
