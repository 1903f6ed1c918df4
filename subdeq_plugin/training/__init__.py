"""Training of equilibrium models on images."""

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import ImageClassifier, TrainConfig, build_model
from .loop import TrainResult, evaluate, guaranteed_error, train
from .picture import convergence, draw

__all__ = [
    "Checkpoint",
    "ImageClassifier",
    "TrainConfig",
    "TrainResult",
    "build_model",
    "convergence",
    "draw",
    "evaluate",
    "guaranteed_error",
    "load_checkpoint",
    "save_checkpoint",
    "train",
]
