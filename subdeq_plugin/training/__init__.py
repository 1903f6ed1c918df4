"""Training of equilibrium models on images."""

from .checkpoint import Checkpoint, StoredVerdict, load_checkpoint, save_checkpoint, verify_certificate
from .config import ImageClassifier, TrainConfig, build_model
from .gradients import GradientError, gradient_errors
from .loop import TrainResult, evaluate, guaranteed_error, train
from .page import Report, facts, write_page
from .picture import convergence, draw
from .radii import robust_radii
from .survey import Survey, certify_images, quantiles

__all__ = [
    "Checkpoint",
    "GradientError",
    "ImageClassifier",
    "Report",
    "StoredVerdict",
    "Survey",
    "TrainConfig",
    "TrainResult",
    "build_model",
    "certify_images",
    "convergence",
    "draw",
    "evaluate",
    "facts",
    "gradient_errors",
    "guaranteed_error",
    "load_checkpoint",
    "quantiles",
    "robust_radii",
    "save_checkpoint",
    "train",
    "verify_certificate",
    "write_page",
]
