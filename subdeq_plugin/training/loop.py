"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..certificates import Certificate, certify
from ..data import ImageData
from ..errors import CheckpointError, OptionError
from .checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_model_state,
    load_optimizer_state,
    optimizer_tensors,
    require_intact,
    save_checkpoint,
)
from .config import ImageClassifier, TrainConfig, build_model

__all__ = ["CHECKPOINT_NAME", "EpochRecord", "TrainResult", "evaluate", "guaranteed_error", "summarize", "train"]

CHECKPOINT_NAME = "checkpoint.safetensors"
_EVAL_BATCH = 1024

EpochRecord = dict[str, Any]  # numbers by name; `mu` is None where no degree is proven


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves behind.

    Attributes:
        model: the trained model.
        certificate: of its layer, for every input.
        history: one record per epoch: loss, train_accuracy, test_accuracy, forward_iterations, backward_iterations,
            mu, seconds.
        config: the settings.
        checkpoint: the file with the final state.
        is_main: whether this process is the one that reports, among several.
    """

    model: ImageClassifier
    certificate: Certificate
    history: list[EpochRecord]
    config: TrainConfig
    checkpoint: Path
    is_main: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-compatible values."""
        return {
            "dataset": self.config.dataset,
            **summarize(self.history),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "certificate": self.certificate.to_dict(),
            "config": self.config.to_dict(),
            "history": self.history,
            "checkpoint": str(self.checkpoint),
        }


def summarize(history: list[EpochRecord]) -> dict[str, float]:
    """What a run's records come down to: accuracy and iterations of the last epoch, mean seconds per epoch."""
    last = history[-1]
    return {
        "test_accuracy": last["test_accuracy"],
        "epochs": len(history),
        "seconds_per_epoch": sum(record["seconds"] for record in history) / len(history),
        "forward_iterations": last["forward_iterations"],
        "backward_iterations": last["backward_iterations"],
    }


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int, rank: int, ranks: int) -> Iterator[Tensor]:
    """Index tensors of one epoch for one rank: a permutation that depends on seed and epoch alone.

    Every rank gets the same number of batches, so that collective operations match.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    share = order[: count - count % ranks][rank::ranks]
    yield from share.split(max(1, batch_size // ranks))


def _cosine(lr: float, step: int, steps: int) -> float:
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def evaluate(model: ImageClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images that the model classifies correctly."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in zip(images.split(_EVAL_BATCH), labels.split(_EVAL_BATCH), strict=True):
            correct += int((model(x.to(device)).argmax(dim=1).cpu() == y).sum())
    model.train(was_training)
    return correct / len(labels)


def guaranteed_error(model: ImageClassifier, images: Tensor) -> Tensor:
    """The proven distance of the model's equilibrium for each image to the true one: `(n,)` float64, on the CPU.

    Infinite where nothing is proven. See `Certificate.error_bound`.
    """
    device = next(model.parameters()).device
    bounds = []
    with torch.no_grad():
        for x in images.split(_EVAL_BATCH):
            inputs = model.layer_input(x.to(device))
            bounds.append(certify(model.deq.layer, inputs).error_bound(model.deq(inputs)).cpu())
    return torch.cat(bounds)


def train(
    config: TrainConfig,
    data: ImageData,
    out: Path,
    *,
    resume: Path | None = None,
    devices: int | str = 1,
    accelerator: str = "auto",
    strategy: str = "auto",
    precision: str = "32-true",
    on_epoch: Callable[[int, EpochRecord], None] | None = None,
) -> TrainResult:
    """Train a classifier with an equilibrium layer; a checkpoint is written after every epoch.

    Args:
        config: the settings.
        data: the images.
        out: folder of the checkpoint.
        resume: a checkpoint to go on from; the result is the one an uninterrupted run gives, but with a warm start up
            to the tolerance of the solves.
        devices, accelerator, strategy, precision: as in Lightning Fabric.
        on_epoch: called after each epoch with its number, counted from 1, and its record.

    Raises:
        OptionError: Lightning Fabric is not installed, or the settings do not fit the checkpoint.
        CheckpointError: the checkpoint to resume from is corrupt or was changed since it was written, or the new one
            cannot be written.
    """
    fabric = _fabric(devices, accelerator, strategy, precision)
    channels, height, width = data.train_x.shape[1:]
    shape = (int(channels), int(height), int(width))
    torch.manual_seed(config.seed)
    model = build_model(config, shape, data.classes)
    model.standardize(data.train_x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    history: list[EpochRecord] = []
    if resume is not None:
        history = _restore(load_checkpoint(resume), config, model, optimizer)
    wrapped, optimizer = fabric.setup(model, optimizer)
    images, labels = data.train_x.to(fabric.device), data.train_y.to(fabric.device)
    path = out / CHECKPOINT_NAME

    per_epoch = sum(1 for _ in epoch_batches(len(labels), config.batch_size, 0, 0, 0, fabric.world_size))
    for epoch in range(len(history), config.epochs):
        begin = time.perf_counter()
        record = _run_epoch(fabric, wrapped, model, optimizer, images, labels, config, epoch, per_epoch)
        record["seconds"] = time.perf_counter() - begin
        record["test_accuracy"] = evaluate(model, data.test_x, data.test_y)
        certificate = certify(model.deq.layer)
        record["mu"] = certificate.mu
        history.append(record)
        if fabric.is_global_zero:
            save_checkpoint(path, _snapshot(config, shape, data.classes, history, certificate, model, optimizer))
        if on_epoch is not None and fabric.is_global_zero:
            on_epoch(epoch + 1, record)
    if not path.exists() and fabric.is_global_zero:  # resumed from a finished run into another folder
        save_checkpoint(
            path, _snapshot(config, shape, data.classes, history, certify(model.deq.layer), model, optimizer)
        )
    return TrainResult(model, certify(model.deq.layer), history, config, path, fabric.is_global_zero)


def _fabric(devices: int | str, accelerator: str, strategy: str, precision: str) -> Any:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise OptionError("training needs Lightning Fabric: pip install 'subdeq-plugin[train]'.") from error
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def _run_epoch(
    fabric: Any,
    wrapped: Any,
    model: ImageClassifier,
    optimizer: Any,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    epoch: int,
    per_epoch: int,
) -> EpochRecord:
    model.train()
    total = correct = seen = forward = backward = 0.0
    batches = epoch_batches(len(labels), config.batch_size, config.seed, epoch, fabric.global_rank, fabric.world_size)
    for number, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = _cosine(config.lr, epoch * per_epoch + number, config.epochs * per_epoch)
        x, y = images[index.to(images.device)], labels[index.to(labels.device)]
        optimizer.zero_grad()
        logits = wrapped(x, index)
        loss = F.cross_entropy(logits, y)
        fabric.backward(loss)
        optimizer.step()
        total += float(loss.detach()) * len(y)
        correct += float((logits.detach().argmax(dim=1) == y).sum())
        seen += len(y)
        stats = model.deq.stats
        forward += stats.forward.evaluations if stats.forward else 0
        backward += stats.backward.evaluations + stats.backward.linear_evaluations if stats.backward else 0
    sums = torch.tensor([total, correct, seen, forward, backward], dtype=torch.float64, device=fabric.device)
    total, correct, seen, forward, backward = fabric.all_reduce(sums, reduce_op="sum").tolist()
    steps = per_epoch * fabric.world_size
    return {
        "loss": total / seen,
        "train_accuracy": correct / seen,
        "forward_iterations": forward / steps,
        "backward_iterations": backward / steps,
    }


def _snapshot(
    config: TrainConfig,
    shape: tuple[int, int, int],
    classes: int,
    history: list[EpochRecord],
    certificate: Certificate,
    model: ImageClassifier,
    optimizer: Any,
) -> Checkpoint:
    return Checkpoint(
        config=config,
        image_shape=shape,
        classes=classes,
        epoch=len(history),
        history=history,
        claim=certificate.to_dict(),
        model=model.state_dict(),
        optimizer=optimizer_tensors(optimizer),
    )


def _restore(
    checkpoint: Checkpoint, config: TrainConfig, model: ImageClassifier, optimizer: torch.optim.Optimizer
) -> list[EpochRecord]:
    """Load the checkpoint into model and optimiser and return its history."""
    same = replace(checkpoint.config, epochs=config.epochs)
    if same != config:
        stored = same.to_dict()
        differing = [name for name, value in config.to_dict().items() if stored[name] != value]
        raise OptionError(f"the checkpoint was trained with other settings: {', '.join(differing)}; leave them out.")
    if checkpoint.epoch > config.epochs:
        raise OptionError(f"epochs={config.epochs}, but the checkpoint has {checkpoint.epoch} epochs behind it.")
    if checkpoint.epoch != len(checkpoint.history):
        raise CheckpointError("the checkpoint's history does not match its number of epochs.")
    load_model_state(model, checkpoint)
    require_intact(model, checkpoint)
    load_optimizer_state(optimizer, checkpoint)
    return list(checkpoint.history)
