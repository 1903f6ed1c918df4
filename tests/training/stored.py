"""Small checkpoints, made without training, and files changed behind the package's back."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from subdeq_plugin.certificates import certify
from subdeq_plugin.training import Checkpoint, ImageClassifier, TrainConfig, build_model, save_checkpoint

SHAPE, CLASSES = (1, 8, 8), 10


def make(path: Path, scale: float = 1.0, gain: float = 1.0, **settings: Any) -> ImageClassifier:
    """Write a checkpoint of an untrained model and return the model.

    `scale` multiplies its state weight, `gain` that of the injection: a large one saturates the activation.
    """
    torch.manual_seed(0)
    config = TrainConfig.for_dataset("digits", **{"units": 8, **settings})
    model = build_model(config, SHAPE, CLASSES)
    with torch.no_grad():
        for name, parameter in model.deq.layer.named_parameters():
            parameter.mul_(gain if name.startswith("injection.") else scale)
    save(path, model, config, certify(model.deq.layer).to_dict())
    return model


def save(path: Path, model: ImageClassifier, config: TrainConfig, claim: dict[str, Any]) -> None:
    """Write a checkpoint with any claim."""
    state = model.state_dict()
    save_checkpoint(path, Checkpoint(config, SHAPE, CLASSES, 0, [], claim, state, {}))


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the package's own header of a file in place, and nothing else."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    outer = json.loads(raw[8 : 8 + size])
    header = json.loads(outer["__metadata__"]["subdeq_checkpoint"])
    change(header)
    outer["__metadata__"]["subdeq_checkpoint"] = json.dumps(header)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def weight_bytes(path: Path, name: str) -> tuple[int, int]:
    """Where a tensor's bytes lie in a file: begin and end."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    begin, end = json.loads(raw[8 : 8 + size])[name]["data_offsets"]
    return 8 + size + begin, 8 + size + end
