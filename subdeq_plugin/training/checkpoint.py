"""Checkpoints: one safetensors file with weights, optimiser state and a JSON header. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import CheckpointError
from .config import TrainConfig

__all__ = ["Checkpoint", "load_checkpoint", "load_model_state", "load_optimizer_state", "save_checkpoint"]

_FORMAT = 1
_HEADER = "subdeq_checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A training run after a whole number of epochs.

    Attributes:
        config: its settings.
        image_shape, classes: of the data, to rebuild the model without it.
        epoch: epochs completed.
        history: one record per epoch.
        certificate: `Certificate.to_dict()` at the time of saving.
        model, optimizer: tensors by name.
    """

    config: TrainConfig
    image_shape: tuple[int, int, int]
    classes: int
    epoch: int
    history: list[dict[str, Any]] = field(default_factory=list)
    certificate: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors named `<parameter number>.<entry>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for number, entries in state.items()
        for name, value in entries.items()
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that `path` always holds a complete one, even if the process dies on the way.

    Raises:
        CheckpointError: the file cannot be written.
    """
    header = {
        "format": _FORMAT,
        "config": checkpoint.config.to_dict(),
        "image_shape": list(checkpoint.image_shape),
        "classes": checkpoint.classes,
        "epoch": checkpoint.epoch,
        "history": checkpoint.history,
        "certificate": checkpoint.certificate,
    }
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.items()}
    tensors |= {f"optimizer.{name}": tensor.contiguous() for name, tensor in checkpoint.optimizer.items()}
    content = save(tensors, metadata={_HEADER: json.dumps(header, allow_nan=False)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # there may be nothing to remove; the first error is the one to report
            temporary.unlink()
        raise CheckpointError(f"checkpoint {path} cannot be written: {error}.") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: there is no such file, or it is truncated, tampered with, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt: {error}; use an older one.") from error
    try:
        header = json.loads(metadata[_HEADER])
        if header["format"] != _FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {header['format']}, this version reads {_FORMAT}.")
        channels, height, width = header["image_shape"]
        return Checkpoint(
            config=TrainConfig.from_dict(header["config"]),
            image_shape=(int(channels), int(height), int(width)),
            classes=int(header["classes"]),
            epoch=int(header["epoch"]),
            history=list(header["history"]),
            certificate=dict(header["certificate"]),
            model=_part(tensors, "model."),
            optimizer=_part(tensors, "optimizer."),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of this package: {type(error).__name__} {error}.") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_model_state(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the checkpoint's weights into a model built from its configuration.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its configuration: {error}") from error


def load_optimizer_state(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put the checkpoint's optimiser state into a fresh optimiser over the same parameters.

    Raises:
        CheckpointError: the state does not fit.
    """
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in checkpoint.optimizer.items():
            number, _, entry = name.partition(".")
            state.setdefault(int(number), {})[entry] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's optimiser state does not fit: {error}") from error
