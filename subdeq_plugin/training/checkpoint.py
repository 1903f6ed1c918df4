"""Checkpoints: one safetensors file with weights, optimiser state and a JSON header. Nothing is ever unpickled.

A file's certificate is a claim about its weights: whoever can write the file can write any claim. So it is compared
with the one that the loaded weights really have, and two digests tell whether weights or header were changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..certificates import Certificate, certify
from ..errors import CheckpointError
from .config import ImageClassifier, TrainConfig

__all__ = [
    "Checkpoint",
    "StoredVerdict",
    "load_checkpoint",
    "load_model_state",
    "load_optimizer_state",
    "save_checkpoint",
    "verify_certificate",
]

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
        claim: `Certificate.to_dict()` at the time of saving. Read from a file it is no more than what the file says;
            `verify_certificate` says whether it is true.
        model, optimizer: tensors by name.
        digest: SHA-256 of the model's tensors that the file gives (`tensors_digest`); None in older files.
        header_intact: whether the header has the digest that the file gives; None in older files.
    """

    config: TrainConfig
    image_shape: tuple[int, int, int]
    classes: int
    epoch: int
    history: list[dict[str, Any]] = field(default_factory=list)
    claim: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    digest: str | None = None
    header_intact: bool | None = None


@dataclass(frozen=True)
class StoredVerdict:
    """What a checkpoint's certificate is worth, and the one that its weights have now.

    Attributes:
        certificate: recomputed from the model's weights, for every input: the only one to rely on.
        differing: entries of the stored certificate that do not agree with it.
        weights_intact, header_intact: whether the digests agree; None where the file has none.
    """

    certificate: Certificate
    differing: tuple[str, ...] = ()
    weights_intact: bool | None = None
    header_intact: bool | None = None

    @property
    def void(self) -> bool:
        """Whether the stored certificate says nothing about these weights: any disagreement makes it so."""
        return bool(self.differing) or self.weights_intact is False or self.header_intact is False

    @property
    def message(self) -> str:
        """The outcome in one sentence."""
        if not self.void:
            if self.weights_intact is None:
                return "the checkpoint has no digest; its certificate was computed again from the weights, and agrees."
            return "the stored certificate was verified: weights and header are unchanged, and certify finds the same."
        if self.weights_intact is False:
            why = "the weights were changed since"
        elif self.header_intact is False:
            why = "the header was edited since"
        else:
            why = f"it disagrees with the weights in {', '.join(self.differing)}"
        return f"the stored certificate is void: {why}; what counts is the one computed now."


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names; hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape), len(data)])
        digest.update(head.encode() + b"\n" + data)
    return digest.hexdigest()


def _header_digest(header: dict[str, Any]) -> str:
    """SHA-256 of a header without its digests; hexadecimal."""
    rest = {name: value for name, value in header.items() if name != "digests"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


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
        "certificate": checkpoint.claim,
    }
    header["digests"] = {"model": tensors_digest(checkpoint.model), "header": _header_digest(header)}
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
    """Read a checkpoint; what it claims of its weights is not verified (`verify_certificate` does that).

    Raises:
        CheckpointError: there is no such file, or it is truncated, corrupt, or not one of ours.
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
        digests = header.get("digests")
        return Checkpoint(
            config=TrainConfig.from_dict(header["config"]),
            image_shape=(int(channels), int(height), int(width)),
            classes=int(header["classes"]),
            epoch=int(header["epoch"]),
            history=list(header["history"]),
            claim=dict(header["certificate"]),
            model=_part(tensors, "model."),
            optimizer=_part(tensors, "optimizer."),
            digest=None if digests is None else str(digests["model"]),
            header_intact=None if digests is None else digests["header"] == _header_digest(header),
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


def verify_certificate(model: ImageClassifier, checkpoint: Checkpoint) -> StoredVerdict:
    """Certify a model that holds the checkpoint's weights anew, and compare that with what the checkpoint claims.

    Args:
        model: with the weights loaded (`load_model_state`).
        checkpoint: as it was read.
    """
    certificate = certify(model.deq.layer)
    fresh = certificate.to_dict()
    names = ("unique", "theorem", "mu", "rate", "metric", "scope")
    return StoredVerdict(
        certificate,
        tuple(name for name in names if not _agree(checkpoint.claim.get(name, "absent"), fresh[name])),
        None if checkpoint.digest is None else tensors_digest(model.state_dict()) == checkpoint.digest,
        checkpoint.header_intact,
    )


def _agree(stored: object, fresh: object) -> bool:
    """Equality; of numbers up to what another machine's arithmetic may change."""
    if isinstance(stored, float) and isinstance(fresh, float):
        return math.isclose(stored, fresh, rel_tol=1e-9)
    return type(stored) is type(fresh) and stored == fresh


def require_intact(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is not as it was written; older files, without digests, pass.

    Raises:
        CheckpointError: the model's weights, or the header, do not have the digests in the file.
    """
    what = ""
    if checkpoint.digest is not None and tensors_digest(model.state_dict()) != checkpoint.digest:
        what = "weights were"
    elif checkpoint.header_intact is False:
        what = "header was"
    if what:
        raise CheckpointError(
            f"the checkpoint's {what} changed since it was written, so an uninterrupted run is not continued by it; "
            "resume from an unchanged copy, or train anew."
        )


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
