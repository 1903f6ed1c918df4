"""Numbers of samples on the host: NumPy's arrays are read and compared far faster than small tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Mask", "Rows", "on_host"]

Rows = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def on_host(rows: Tensor) -> Rows:
    """A tensor of real numbers as an array, in its own precision or, for half precisions, single."""
    rows = rows.cpu()
    return rows.numpy() if rows.element_size() >= 4 else rows.float().numpy()
