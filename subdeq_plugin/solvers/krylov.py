"""GMRES for many small systems at once: one Krylov space per sample, one batched product per step.

Y. Saad, M. Schultz, *GMRES*, SIAM J. Sci. Stat. Comput. 7 (1986), doi:10.1137/0907058. Classical Gram-Schmidt, done
twice, so that a step costs a fixed number of batched products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gmres"]


def gmres(product: Callable[[Tensor], Tensor], right: Tensor, *, rtol: float, krylov_dim: int) -> tuple[Tensor, int]:
    """Solve `(I - J) d = right` for every sample.

    Args:
        product: `v -> J v` on `(B, N)`.
        right: `(B, N)`; rows with NaN come back as NaN and disturb no other row.
        rtol: stop when every sample's residual is below this fraction of its right-hand side.
        krylov_dim: the largest dimension of the Krylov space; there is no restart.

    Returns:
        `d (B, N)` and the number of batched products taken.
    """
    batch, size = right.shape
    steps = min(krylov_dim, size)
    norm = torch.linalg.vector_norm(right, dim=1)
    basis = right.new_zeros(batch, steps + 1, size)
    triangle = right.new_zeros(batch, steps, steps)
    # The accumulated rotations: their first column times |right| is the rotated right-hand side.
    rotations = torch.eye(steps + 1, dtype=right.dtype, device=right.device).expand(batch, -1, -1).clone()
    basis[:, 0] = right / torch.where(norm > 0, norm, 1.0)[:, None]
    used = 0
    for j in range(steps):
        v = basis[:, j]
        w = v - product(v)
        span = basis[:, : j + 1]
        column = torch.einsum("bkn,bn->bk", span, w)
        w = w - torch.einsum("bk,bkn->bn", column, span)
        again = torch.einsum("bkn,bn->bk", span, w)
        w = w - torch.einsum("bk,bkn->bn", again, span)
        column = column + again
        length = torch.linalg.vector_norm(w, dim=1)
        scale = torch.linalg.vector_norm(column, dim=1) + length
        # A breakdown means that the space already holds the solution: the next vector is then zero, not noise.
        alive = length > 8 * torch.finfo(right.dtype).eps * scale
        basis[:, j + 1] = torch.where(alive[:, None], w / torch.where(alive, length, 1.0)[:, None], 0.0 * w)
        hessenberg = torch.cat([column, torch.where(alive, length, 0.0 * length)[:, None]], dim=1)
        rotated = torch.einsum("bij,bj->bi", rotations[:, : j + 2, : j + 2], hessenberg)
        a, b = rotated[:, j], rotated[:, j + 1]
        radius = torch.hypot(a, b)
        safe = torch.where(radius > 0, radius, 1.0)
        cosine, sine = torch.where(radius > 0, a / safe, 1.0)[:, None], torch.where(radius > 0, b / safe, 0.0)[:, None]
        upper, lower = rotations[:, j].clone(), rotations[:, j + 1].clone()
        rotations[:, j] = cosine * upper + sine * lower
        rotations[:, j + 1] = cosine * lower - sine * upper
        triangle[:, :j, j] = rotated[:, :j]
        triangle[:, j, j] = torch.where(radius > 0, radius, 1.0)
        used = j + 1
        unfinished = rotations[:, j + 1, 0].abs() > rtol
        if not bool(unfinished.any()):
            break
        # A finished sample takes no further part, so that its solution does not depend on its neighbours.
        basis[:, j + 1] = torch.where(unfinished[:, None], basis[:, j + 1], 0.0)
    goal = rotations[:, :used, 0:1] * norm[:, None, None]
    wide = torch.promote_types(right.dtype, torch.float32)  # torch solves no systems in half precision
    y = torch.linalg.solve_triangular(triangle[:, :used, :used].to(wide), goal.to(wide), upper=True).to(right.dtype)
    return torch.einsum("bk,bkn->bn", y[:, :, 0], basis[:, :used]), used
