"""What a data set of images is to the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["ImageData"]


@dataclass(frozen=True)
class ImageData:
    """Images in memory, split into training and test parts.

    Attributes:
        name: of the data set.
        train_x, test_x: `(n, channels, height, width)` float32 in `[0, 1]`.
        train_y, test_y: `(n,)` int64 class numbers.
        classes: how many there are.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
