"""Perron roots to 50 digits, by Noda's iteration and the bracket of Collatz and Wielandt in ball arithmetic."""

from __future__ import annotations

import numpy as np
from flint import arb, arb_mat, ctx

BITS = 400


def perron_root(matrix: np.ndarray, start: np.ndarray) -> tuple[arb, arb]:
    """Lower and upper bounds, 50 digits apart, on the spectral radius of an irreducible nonnegative matrix.

    Args:
        matrix: `(n, n)`.
        start: `(n,)`; any positive vector gives true bounds, a good one saves steps.
    """
    n = matrix.shape[0]
    with ctx.workprec(BITS):
        a = arb_mat([[arb(float(entry)) for entry in row] for row in matrix])
        eye = arb_mat([[arb(int(i == j)) for j in range(n)] for i in range(n)])
        x = arb_mat([[arb(float(entry)).max(arb(1e-300))] for entry in start])
        for _ in range(60):
            image = a * x
            quotients = [image[i, 0] / x[i, 0] for i in range(n)]
            low = high = quotients[0]
            for quotient in quotients:
                low, high = low.min(quotient), high.max(quotient)
            if (high - low).mid() <= high.mid() * arb(10) ** -50:
                return low, high
            solved = (eye * high.upper() - a).solve(x)
            size = sum((abs(solved[i, 0]) for i in range(n)), arb(0)).mid()
            x = arb_mat([[(abs(solved[i, 0]) / size).mid()] for i in range(n)])
    raise AssertionError("no reference: the iteration did not converge")
