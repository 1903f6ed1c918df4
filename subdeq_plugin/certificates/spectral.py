"""Rigorous upper bounds on norms and on the numerical abscissa of the operators of a layer.

Each bound holds in exact arithmetic for the map that the stored coefficients define. With a state's shape it is that of
the map on one sample of this shape, without one, that of samples of every shape. NaN and infinite coefficients give
infinity. The coefficients are scaled by powers of two first, so that nothing over- or underflows but the result.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import flint
import torch
from torch import Tensor

from ..layers.operators import ConvOperator, DenseOperator, GraphOperator, Operator
from ..layers.sparse import Propagation
from .verified import UNDERFLOW, gamma, largest_eigenvalue, perron_bound, positive_definite, scaled_by_power, up

__all__ = ["column_norm", "numerical_abscissa", "perron_bound", "positive_definite", "row_norm", "two_norm"]

DENSE = 1500  # entries of a sample up to which an operator becomes a matrix
_STEPS = 60  # of the power iteration for graphs that do not
_CHUNK = 2**20  # entries of the matrices of a chunk of frequencies


def row_norm(operator: Operator, state_shape: torch.Size | None = None) -> float:
    """Upper bound on the operator norm for the maximum norm: the largest sum of absolute coefficients in a row."""
    return _sum_norm(operator, state_shape, transposed=False)


def column_norm(operator: Operator, state_shape: torch.Size | None = None) -> float:
    """Upper bound on the operator norm for the sum norm: the largest sum of absolute coefficients in a column."""
    return _sum_norm(operator, state_shape, transposed=True)


def two_norm(operator: Operator, state_shape: torch.Size | None = None) -> float:
    """Upper bound on the operator norm for the Euclidean norm of one sample.

    Matrices: the largest eigenvalue of the computed `A^T A`, verified, and the rounding of `A^T A`, at most
    `gamma_n || |A|^T |A| ||`. Graphs: `||P (x) W|| = ||P|| ||W||`; of a graph beyond `DENSE` nodes, the root of the
    spectral radius of `|P|^T |P|`. Convolutions on images beyond `DENSE` entries or of unknown size: see `_Symbol`.
    """
    return _unscaled(operator, lambda scaled: _two_norm(scaled, _sample(scaled, state_shape)))


def numerical_abscissa(operator: Operator, state_shape: torch.Size | None = None) -> float:
    """Upper bound on the largest eigenvalue of `(A + A^T) / 2`, which bounds `Re <z, A z>` for `||z|| = 1`.

    Matrices: verified, with the rounding of the sum. Convolutions on images beyond `DENSE` entries or of unknown size:
    see `_Symbol`. Graphs beyond `DENSE` entries: the spectral radius of `(|A| + |A|^T) / 2`, or the two norm.
    """
    return _unscaled(operator, lambda scaled: _abscissa(scaled, _sample(scaled, state_shape)))


def _scaled(operator: Operator) -> tuple[Operator, int] | None:
    """The operator in float64 with each of its factors scaled to a largest coefficient in [1/2, 1), and the exponent.

    None if a coefficient is NaN or infinite. What underflows in the scaling is below `UNDERFLOW` for each coefficient.
    """
    exact = operator.to(torch.device("cpu"), torch.float64)
    arrays, total = dict(exact.arrays()), 0
    for name, values in arrays.items():
        if values.is_floating_point() and values.numel():
            largest = float(values.abs().max())
            if not math.isfinite(largest):
                return None
            exponent = math.frexp(largest)[1]
            arrays[name] = scaled_by_power(values, -exponent)
            total += exponent
    return type(exact).restore(arrays, exact.options()), total


def _unscaled(operator: Operator, compute: Callable[[Operator], float]) -> float:
    """A bound that is proportional to the coefficients, computed for the scaled operator."""
    with torch.no_grad():
        found = _scaled(operator)
        if found is None:
            return math.inf
        scaled, exponent = found
        if not all(bool((part != 0).any()) for part in operator.coefficients()):
            return 0.0
        lost = UNDERFLOW * math.prod(part.numel() for part in scaled.coefficients())
        value = up(compute(scaled) + lost)
        try:
            return up(math.ldexp(value, exponent))
        except OverflowError:  # of a finite value; below the range of a double, its end still bounds from above
            return math.inf if value > 0 else -sys.float_info.max


def _sample(operator: Operator, state_shape: torch.Size | None) -> torch.Size | None:
    """The shape of one sample; None for a convolution on images of any size.

    Without a mixing weight the features of a graph do not meet, and one stands for all.
    """
    if isinstance(operator, DenseOperator):
        return operator.weight.shape[1:]
    if isinstance(operator, GraphOperator):
        features = 1 if operator.weight is None else operator.weight.shape[1]
        return torch.Size([operator.propagation.matrix.shape[0], features])
    return None if state_shape is None else state_shape[-operator.sample_dims :]


def _swapped(operator: GraphOperator) -> GraphOperator:
    """The transposed operator."""
    propagation = Propagation(operator.propagation.transposed, operator.propagation.matrix)
    return GraphOperator(propagation, None if operator.weight is None else operator.weight.t())


def _terms(operator: Operator) -> int:
    """Of how many products an entry of `A z` or `A^T z` is the sum, at most."""
    backward = _swapped(operator).terms() if isinstance(operator, GraphOperator) else 0
    return max(operator.terms(), backward)


def _sum_norm(operator: Operator, state_shape: torch.Size | None, *, transposed: bool) -> float:
    def compute(scaled: Operator) -> float:
        return _largest_sum(scaled, _sample(scaled, state_shape), transposed=transposed)

    return _unscaled(operator, compute)


def _largest_sum(operator: Operator, sample: torch.Size | None, *, transposed: bool) -> float:
    """Upper bound on the sums of absolute coefficients in the rows, or columns, of a scaled operator."""
    magnitude = operator.absolute()
    if sample is None:
        weight = magnitude.coefficients()[0]
        sums = weight.sum(dim=(0, 2, 3) if transposed else (1, 2, 3))
    else:
        ones = torch.ones(1, *sample, dtype=torch.float64, device="cpu")
        sums = magnitude.transpose(ones) if transposed else magnitude(ones)
    return float(sums.max()) * (1 + 2 * gamma(_terms(operator) + 2)) + _terms(operator) * UNDERFLOW


def _mean_sum(operator: Operator, sample: torch.Size | None) -> float:
    """`sqrt(||A||_1 ||A||_inf)`, which bounds the two norm."""
    rows = _largest_sum(operator, sample, transposed=False)
    return up(math.sqrt(up(rows * _largest_sum(operator, sample, transposed=True))))


def _two_norm(operator: Operator, sample: torch.Size | None) -> float:
    bound = _mean_sum(operator, sample)
    if isinstance(operator, GraphOperator):
        if operator.weight is not None:
            spread = GraphOperator(operator.propagation)
            mixed = DenseOperator(operator.weight)
            return up(_two_norm(spread, _sample(spread, None)) * _two_norm(mixed, operator.weight.shape[1:]))
        if operator.propagation.matrix.shape[0] > DENSE:
            return min(bound, up(math.sqrt(_perron(operator, symmetric_part=False))))
    if isinstance(operator, ConvOperator) and (sample is None or sample.numel() > DENSE):
        return min(bound, _symbol_norm(operator))
    return min(bound, _norm(iter([operator.matrix(sample)[None]])))


def _abscissa(operator: Operator, sample: torch.Size | None) -> float:
    large = sample is None or sample.numel() > DENSE
    if isinstance(operator, ConvOperator) and large:
        bound = _symbol_abscissa(operator)
    elif isinstance(operator, GraphOperator) and large:
        bound = _perron(operator, symmetric_part=True)
    else:
        # With a mixing weight the entries of a graph's matrix are rounded products.
        rounding = 2 * gamma(1) * _mean_sum(operator, sample) if isinstance(operator, GraphOperator) else 0.0
        bound = up(_upper_half(iter([operator.matrix(sample)[None]])) + rounding)
        if math.isfinite(bound):
            return bound
    return min(bound, _two_norm(operator, sample))


def _perron(operator: GraphOperator, *, symmetric_part: bool) -> float:
    """Upper bound on the spectral radius of `(|A| + |A|^T) / 2`, else of `|A|^T |A|`, for a scaled graph operator."""
    magnitude, sample = operator.absolute(), _sample(operator, None)
    assert sample is not None

    def product(u: Tensor) -> Tensor:
        z = u.reshape(-1, *sample)
        image = magnitude(z)
        return ((image + magnitude.transpose(z)) / 2 if symmetric_part else magnitude.transpose(image)).reshape(u.shape)

    start = torch.ones(1, sample.numel(), dtype=torch.float64, device="cpu")
    return float(perron_bound(product, start, 2 * _terms(operator) + 1, _STEPS)[0])


def _sums(blocks: Tensor) -> tuple[float, float]:
    """Upper bounds on the sums of absolute entries in the rows and in the columns of the blocks `(M, n, n)`."""
    magnitude, outward = blocks.abs(), 1 + 2 * gamma(blocks.shape[-1] + 1)
    return float(magnitude.sum(dim=-1).max()) * outward, float(magnitude.sum(dim=-2).max()) * outward


def _norm(chunks: Iterator[Tensor]) -> float:
    """Upper bound on the two norms of matrices `(M, n, n)` with entries of moderate size."""
    error = 0.0

    def grams() -> Iterator[Tensor]:
        nonlocal error
        for blocks in chunks:
            size, (rows, columns) = blocks.shape[-1], _sums(blocks)
            error = max(error, 2 * gamma(size) * rows * columns + size * size * UNDERFLOW)
            gram = (blocks.mT @ blocks).tril()
            yield gram + gram.tril(-1).mT  # products of libraries need not be symmetric; the lower half is as good

    top = largest_eigenvalue(grams())
    return up(math.sqrt(up(max(top, 0.0) + error)))


def _upper_half(chunks: Iterator[Tensor], sign: int = 1) -> float:
    """Upper bound on the eigenvalues of `sign (M + M^T) / 2` for matrices `(M, n, n)` with entries of moderate size."""
    error = 0.0

    def halves() -> Iterator[Tensor]:
        nonlocal error
        for blocks in chunks:
            error = max(error, 2 * gamma(1) * sum(_sums(blocks)) + blocks.shape[-1] * UNDERFLOW)
            yield sign * (blocks + blocks.mT) / 2

    return up(largest_eigenvalue(halves()) + error)


class _Symbol:
    """The symbol `S(w) = sum_k W_k exp(i k.w)` of a convolution with taps `W_k`, on a grid of frequencies.

    A zero-padded convolution is a compression of the one on the whole lattice, which the Fourier transform turns into
    the multiplication by `S`. So its two norm and numerical abscissa are at most the suprema of the norm of `S(w)` and
    of the largest eigenvalue of its Hermitian part. Dilation by `d` gives `S(d w)`, with the same suprema.

    Between grid points: for a real trigonometric polynomial `p` of degree `k` and `N > 2 k` equispaced points,
    `sup |p| <= max_grid |p| / cos(pi k / N)`. (H. Ehlich and K. Zeller, Schwankung von Polynomen zwischen
    Gitterpunkten, Math. Z. 86 (1964), 41-44. Proof: where `|p|` has its maximum, 1 say at `t = 0`, `p(t) >= cos(k t)`
    for `|t| <= pi / k` by a lemma of M. Riesz, and some grid point has `|t| <= pi / N`.) In two dimensions the factors
    of both multiply to `1 / margin`.
    - Norm: for fixed vectors and a fixed phase, `Re(c y* S(w) x)` is such a polynomial, and `||S||` the largest.
    - Largest eigenvalue of the Hermitian part `H`: so is `p = x* H(w) x`. With `top` and `-bottom` bounding the
      eigenvalues of `H` on the grid from above and below, `|p| <= s = max(top, bottom) / margin` everywhere; then
      `p + s >= 0`, and `sup (p + s) <= (top + s) / margin`.

    The weights are real, so `S(-w)` is the conjugate of `S(w)`, and half of the grid suffices. `X + i Y` is treated as
    the real matrix `[[X, -Y], [Y, X]]`, which has the same norm and the same eigenvalues. With a table of cosines and
    sines to `2 u` the phases are accurate to `12 u`, and both parts of the computed `S` to `gamma_{K+16} sum_k |W_k|`
    for `K` taps; `error` bounds the norm that belongs to these.
    """

    def __init__(self, weight: Tensor) -> None:
        channels, _, height, width = weight.shape
        self.channels = channels
        self.taps = weight.permute(2, 3, 0, 1).reshape(height * width, -1)
        self.degrees = (height // 2, width // 2)
        # Fine grids for small symbols: the factor 1 / margin is 1.0024 at 64 points per degree and 1.0097 at 32.
        cost = max(1, self.degrees[0]) * max(1, self.degrees[1]) * channels**3
        points = min(64, max(32, math.isqrt(200_000_000 // cost)))
        self.grid = (max(1, points * self.degrees[0]), max(1, points * self.degrees[1]))
        self.waves = tuple(_waves(degree, size) for degree, size in zip(self.degrees, self.grid, strict=True))
        self.margin = 1.0
        for degree, size in zip(self.degrees, self.grid, strict=True):
            if degree:
                cosine = float(flint.arb.cos_pi_fmpq(flint.fmpq(degree, size)).lower())
                self.margin = math.nextafter(self.margin * math.nextafter(cosine, 0.0), 0.0)
        self.total = weight.abs().sum(dim=(2, 3)) * (1 + 2 * gamma(height * width))
        rows, columns = _sums(self.total[None])
        self.error = up(2 * gamma(height * width + 16) * up(math.sqrt(up(rows * columns)))) + rows * UNDERFLOW

    def __iter__(self) -> Iterator[Tensor]:
        """The symbol as real matrices `(M, 2 C, 2 C)`, in chunks that are each spread over the whole grid."""
        (height, width), size = self.grid, 2 * self.channels
        frequencies = (height // 2 + 1) * width
        parts = -(-frequencies * size * size // _CHUNK)
        for part in range(parts):
            chosen = torch.arange(part, frequencies, parts, device="cpu")
            (c, s), (e, f) = self.waves
            c, s = c[chosen // width, :, None], s[chosen // width, :, None]
            e, f = e[chosen % width, None], f[chosen % width, None]
            shape = (-1, self.channels, self.channels)
            real = ((c * e - s * f).flatten(1) @ self.taps).reshape(shape)
            imaginary = ((s * e + c * f).flatten(1) @ self.taps).reshape(shape)
            yield torch.cat([torch.cat([real, -imaginary], dim=2), torch.cat([imaginary, real], dim=2)], dim=1)


def _waves(degree: int, points: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `2 pi j k / points`: row `j` of `points`, `k` from `-degree` to `degree` in the columns."""
    with flint.ctx.workprec(64):
        angles = [flint.fmpq(2 * j, points) for j in range(points)]
        cosines = [float(flint.arb.cos_pi_fmpq(angle)) for angle in angles]
        sines = [float(flint.arb.sin_pi_fmpq(angle)) for angle in angles]
    turns = torch.arange(points, device="cpu")[:, None] * torch.arange(-degree, degree + 1, device="cpu") % points
    table = torch.tensor([cosines, sines], dtype=torch.float64, device="cpu")
    return table[0][turns], table[1][turns]


def _symbol_norm(operator: ConvOperator) -> float:
    """Upper bound on the two norm of a scaled convolution on images of any size."""
    symbol = _Symbol(operator.weight)
    # |S(w)| <= S(0) of the absolute weights, entry by entry; for nonnegative weights that is S(0) itself.
    bound = _norm(iter([symbol.total[None]]))
    if operator.nonnegative:
        return bound
    return min(bound, up(up(_norm(iter(symbol)) + symbol.error) / symbol.margin))


def _symbol_abscissa(operator: ConvOperator) -> float:
    """Upper bound on the numerical abscissa of a scaled convolution on images of any size."""
    symbol = _Symbol(operator.weight)
    bound = _upper_half(iter([symbol.total[None]]))
    if operator.nonnegative:
        return bound
    top, bottom = (up(_upper_half(iter(symbol), sign) + symbol.error) for sign in (1, -1))
    shift = up(max(top, bottom, 0.0) / symbol.margin)
    return min(bound, up(up(up(top + shift) / symbol.margin) - shift))
