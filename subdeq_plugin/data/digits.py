"""The 1,797 handwritten digits (8 x 8) that scikit-learn carries; nothing is downloaded.

E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI 1998 (doi:10.24432/C50P49).
"""

from __future__ import annotations

import torch

from ..errors import DataError
from .base import ImageData

__all__ = ["load_digits"]

_SPLIT_SEED = 0


def load_digits() -> ImageData:
    """The digits with a fixed, stratified fifth held out as the test part.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install 'subdeq-plugin[train]'.") from error
    bunch = sklearn_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        bunch.images, bunch.target, test_size=0.2, random_state=_SPLIT_SEED, stratify=bunch.target
    )

    def images(array: object) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.float32)[:, None] / 16

    return ImageData(
        "digits",
        images(train_x),
        torch.as_tensor(train_y, dtype=torch.int64),
        images(test_x),
        torch.as_tensor(test_y, dtype=torch.int64),
        10,
    )
