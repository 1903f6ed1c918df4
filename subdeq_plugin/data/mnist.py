"""MNIST from its IDX files, gzipped or not.

Y. LeCun, C. Cortes, C. Burges, *The MNIST database of handwritten digits*, 1998.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError
from .base import ImageData

__all__ = ["load_mnist", "read_idx"]

_FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> torch.Tensor:
    """An IDX file of unsigned bytes as a uint8 tensor.

    Args:
        path: the file; gzip is recognised by its first bytes.

    Raises:
        DataError: the file cannot be read, is no IDX file of bytes, or is truncated.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if len(content) < 4 or content[:2] != b"\x00\x00" or content[2] != 0x08:
        raise DataError(f"{path} is not an IDX file of unsigned bytes (it starts with {content[:4].hex()!r}).")
    dims = content[3]
    header = 4 + 4 * dims
    if len(content) < header:
        raise DataError(f"{path} ends within its header.")
    shape = struct.unpack(f">{dims}I", content[4:header])
    if len(content) - header != int(np.prod(shape)):
        raise DataError(
            f"{path} should hold {int(np.prod(shape))} bytes for shape {shape}, it has {len(content) - header}."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _find(root: Path, name: str) -> Path:
    for folder in (root, root / "MNIST" / "raw"):
        for candidate in (folder / f"{name}.gz", folder / name):
            if candidate.is_file():
                return candidate
    raise DataError(
        f"{name}[.gz] is not in {root}; give --data-root the folder with the four IDX files "
        f"({', '.join(_FILES.values())})."
    )


def load_mnist(root: Path) -> ImageData:
    """The 60,000 training and 10,000 test digits (28 x 28).

    Args:
        root: the folder with the four IDX files, or one with torchvision's `MNIST/raw` in it.

    Raises:
        DataError: a file is missing or malformed, or images and labels do not fit together.
    """
    part = {key: read_idx(_find(Path(root), name)) for key, name in _FILES.items()}
    for split in ("train", "test"):
        images, labels = part[f"{split}_x"], part[f"{split}_y"]
        if images.dim() != 3 or labels.dim() != 1 or images.shape[0] != labels.shape[0]:
            raise DataError(
                f"the {split} files in {root} do not fit together: images {tuple(images.shape)}, "
                f"labels {tuple(labels.shape)}."
            )
        if labels.numel() == 0 or int(labels.max()) > 9:
            raise DataError(
                f"the {split} labels in {root} must be digits from 0 to 9; they are not, or there are none."
            )
    return ImageData(
        "mnist",
        part["train_x"][:, None].float() / 255,
        part["train_y"].long(),
        part["test_x"][:, None].float() / 255,
        part["test_y"].long(),
        10,
    )
