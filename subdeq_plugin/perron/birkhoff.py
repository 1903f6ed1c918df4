"""Birkhoff's contraction ratio of positive matrices.

A positive matrix contracts Hilbert's metric by the factor `tanh(D / 4)`, where `D`, its projective diameter, is the
largest Hilbert distance of two of its rows (G. Birkhoff, Trans. Amer. Math. Soc. 85, 1957,
doi:10.1090/S0002-9947-1957-0087058-6; E. Seneta, *Non-negative Matrices and Markov Chains*, 2nd ed., Springer 1981,
section 3.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..certificates.verified import UNIT

__all__ = ["birkhoff_ratio"]

_EXACT = 256  # rows up to which all pairs are compared
_CHUNK = 2**24  # entries of a comparison
_MOST = 2**31  # entries of all of them
_OUTWARD = 1 + 256 * UNIT  # elementary functions are accurate to 32 units


def birkhoff_ratio(matrices: Tensor) -> Tensor:
    """Upper bounds `(B,)` on the contraction ratios of nonnegative float64 matrices `(B, M, N)`; 1 where one has zeros.

    All pairs of rows are compared where there are few; of more rows, the triangle inequality over the first one makes
    at most twice the diameter of them.
    """
    logs = matrices.log()
    rows = matrices.shape[1]
    if rows * matrices[0].numel() <= _CHUNK:
        width = _CHUNK // (rows * matrices[0].numel())
        diameter = torch.cat([_diameters(part) for part in logs.split(width)])
    elif rows <= _EXACT and rows * matrices[0].numel() <= _MOST:
        most = torch.stack([(logs - logs[:, i : i + 1]).amax(dim=2) for i in range(rows)], dim=1)
        diameter = (most + most.mT).flatten(1).amax(dim=1)
    else:
        beside = logs - logs[:, :1]
        diameter = 2 * (beside.amax(dim=2) - beside.amin(dim=2)).amax(dim=1)
    # Logarithms of doubles are below 746 in size, and off by at most 32 units each; four of them meet.
    outward = diameter * _OUTWARD + 4 * 746 * 40 * UNIT
    ratio = torch.tanh(outward / 4) * _OUTWARD
    return torch.where(diameter.isfinite(), ratio.clamp(max=1.0), 1.0)


def _diameters(logs: Tensor) -> Tensor:
    """The largest Hilbert distances of two rows `(B,)`, from their logarithms `(B, M, N)`."""
    most = (logs[:, :, None, :] - logs[:, None, :, :]).amax(dim=3)
    return (most + most.mT).flatten(1).amax(dim=1)
