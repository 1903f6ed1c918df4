"""The settings of a training run, and the model they describe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, unknown_name
from ..integration import SubDEQ
from ..layers import SubhomConv2d, SubhomLayer, SubhomLinear

__all__ = ["ImageClassifier", "TrainConfig", "build_model"]

# Where a data set asks for settings other than the defaults of `TrainConfig`.
_SUITED: dict[str, dict[str, Any]] = {
    "mnist": {"epochs": 12, "batch_size": 128, "lr": 3e-3, "weight_decay": 0.3},
}
_INJECTION_GAIN = 0.8  # standard deviation of the random features, times the root of their number of inputs
_POOLED = 4  # side of the pooled image before the linear head of the convolutional model


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run; JSON-compatible.

    Attributes:
        dataset: name of the data set.
        kind: "dense" or "conv".
        units: state features, or state channels.
        activation, shift, power, normalize, weight, nonneg, injection: of the layer; see `SubhomLayer`.
        f_solver, b_solver, f_tol, b_tol, warm_start: of `SubDEQ`.
        epochs, batch_size, lr, weight_decay, seed: of the optimisation (AdamW, cosine schedule per step).
    """

    dataset: str = "digits"
    kind: str = "dense"
    units: int = 87
    activation: str = "tanh"
    shift: float = 0.1
    power: float = 1.0
    normalize: float | str | None = None
    weight: str = "nonneg"
    nonneg: str = "abs"
    injection: str = "outside"
    f_solver: str = "subdeq:auto"
    b_solver: str = "subdeq:auto"
    f_tol: float = 1e-4
    b_tol: float = 1e-4
    warm_start: str | None = None
    epochs: int = 40
    batch_size: int = 32
    lr: float = 5e-3
    weight_decay: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("units", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)!r}.")
        if not self.lr > 0:
            raise OptionError(f"lr must be positive, got {self.lr!r}.")
        if self.kind not in ("dense", "conv"):
            raise unknown_name("kind", self.kind, ("dense", "conv"))

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plain dict."""
        return asdict(self)

    @classmethod
    def for_dataset(cls, dataset: str, **given: Any) -> TrainConfig:
        """The settings that suit a data set, with those given in their place.

        Raises:
            OptionError: an unknown setting.
        """
        return cls.from_dict({**_SUITED.get(dataset, {}), "dataset": dataset, **given})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Settings from a dict.

        Raises:
            OptionError: an unknown entry.
        """
        names = [entry.name for entry in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name("training setting", name, names)
        return cls(**values)


class ImageClassifier(nn.Module):
    """An equilibrium layer and a linear head: `(B, channels, height, width) -> (B, classes)` logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, layer: SubhomLayer, features: int, classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.deq = SubDEQ(
            layer,
            f_solver=config.f_solver,
            b_solver=config.b_solver,
            f_tol=config.f_tol,
            b_tol=config.b_tol,
            warm_start=config.warm_start,
        )
        self._numbered = config.warm_start == "sample"
        self.flat_input = config.kind == "dense"
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.pool = nn.Identity() if self.flat_input else nn.AdaptiveAvgPool2d(_POOLED)
        self.head = nn.Linear(features, classes)

    def layer_input(self, images: Tensor) -> Tensor:
        """What the equilibrium layer is given for a batch of images: standardised, flat for a dense layer."""
        standard = (images.to(self.mean.dtype) - self.mean) / self.std
        return standard.flatten(1) if self.flat_input else standard

    def standardize(self, images: Tensor) -> None:
        """Take mean and standard deviation over all pixels of `images`; they are stored with the weights."""
        self.mean.copy_(images.mean())
        self.std.copy_(images.std())

    def forward(self, images: Tensor, samples: Tensor | None = None) -> Tensor:
        """Logits `(B, classes)`; `samples (B,)` numbers the images for warm starts, and may always be given."""
        state = self.deq(self.layer_input(images), samples=samples if self._numbered else None)
        logits: Tensor = self.head(self.pool(state).flatten(1))
        return logits


def build_model(config: TrainConfig, image_shape: tuple[int, int, int], classes: int) -> ImageClassifier:
    """The model of a configuration.

    Args:
        config: the settings.
        image_shape: channels, height, width.
        classes: number of classes.

    Raises:
        OptionError, DomainError: settings that describe no layer.
    """
    channels, height, width = image_shape
    common: dict[str, Any] = {
        "activation": config.activation,
        "shift": config.shift,
        "power": config.power,
        "normalize": config.normalize,
        "weight": config.weight,
        "nonneg": config.nonneg,
        "injection": config.injection,
    }
    layer: SubhomLinear | SubhomConv2d
    if config.kind == "dense":
        layer, features = SubhomLinear(channels * height * width, config.units, **common), config.units
    else:
        layer, features = SubhomConv2d(channels, config.units, 3, **common), config.units * _POOLED**2
    # Small random features: the state starts out close to that of an input of zero, and generalises better.
    weight = layer.injection.weight
    nn.init.normal_(weight, std=_INJECTION_GAIN * weight[0].numel() ** -0.5)
    return ImageClassifier(layer, features, classes, config)
