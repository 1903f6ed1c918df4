"""Norms, numerical abscissae and spectral radii: never below the truth, and close to it.

The truth is checked in rational arithmetic: `c` bounds the eigenvalues of a symmetric `M` if and only if the pivots of
`c I - M` are nonnegative, and `c > rho(K)` for `K >= 0` if and only if the pivots of `c I - K` are positive.
"""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subdeq_plugin.certificates.spectral import (
    column_norm,
    numerical_abscissa,
    perron_bound,
    positive_definite,
    row_norm,
    two_norm,
)
from subdeq_plugin.certificates.verified import largest_eigenvalue
from subdeq_plugin.layers.operators import ConvOperator, DenseOperator, GraphOperator, Propagation, csr

Rows = list[list[Fraction]]
BOUNDS = [row_norm, column_norm, two_norm, numerical_abscissa]


def exact(matrix: torch.Tensor) -> Rows:
    return [[Fraction(value) for value in row] for row in matrix.double().tolist()]


def pivots_positive(rows: Rows) -> bool:
    """Whether elimination without exchanges meets positive pivots only."""
    rows = [list(row) for row in rows]
    for k in range(len(rows)):
        if rows[k][k] <= 0:
            return False
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / rows[k][k]
            if factor:
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return True


def exceeds(bound: float | Fraction, rows: Rows) -> bool:
    """Whether the bound is above all eigenvalues of a symmetric, or the spectral radius of a nonnegative matrix."""
    gap = [[(Fraction(bound) if i == j else 0) - value for j, value in enumerate(row)] for i, row in enumerate(rows)]
    return pivots_positive(gap)


def gram(rows: Rows) -> Rows:
    columns = list(zip(*rows, strict=True))
    return [[sum(a * b for a, b in zip(left, right, strict=True)) for right in columns] for left in columns]


def half(rows: Rows) -> Rows:
    return [[(rows[i][j] + rows[j][i]) / 2 for j in range(len(rows))] for i in range(len(rows))]


def check_bounds(operator, rows: Rows, shape=None, slack: float = 1e-6) -> None:
    """All four bounds hold for the exact matrix, and shrunk by `slack` of the norm they do not."""
    sums = max(sum(abs(value) for value in row) for row in rows)
    columns = max(sum(abs(row[j]) for row in rows) for j in range(len(rows)))
    assert sums <= row_norm(operator, shape) <= float(sums) * (1 + 1e-12)
    assert columns <= column_norm(operator, shape) <= float(columns) * (1 + 1e-12)
    norm, abscissa = two_norm(operator, shape), numerical_abscissa(operator, shape)
    assert exceeds(Fraction(norm) ** 2, gram(rows))
    assert not exceeds((Fraction(norm) * (1 - Fraction(slack))) ** 2, gram(rows))
    assert exceeds(abscissa, half(rows))
    assert not exceeds(Fraction(abscissa) - Fraction(slack) * Fraction(norm), half(rows))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_dense_bounds_hold_and_are_tight(size, dtype):
    weight = random(size, size, seed=size).to(dtype)
    check_bounds(DenseOperator(weight), exact(weight), slack=1e-12)


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 1e8], [1e-12, 1.0]], dtype=torch.float64),
        torch.diag(torch.ones(5), 1),
        -torch.eye(4) - torch.ones(4, 4),
        torch.tensor([[0.0, 1.0], [-1.0, 0.0]]),
        torch.diag(torch.tensor([1e150, 1.0, 1e-150], dtype=torch.float64)),
        torch.tensor([[1e-150, 1e150], [3.0, -1e-150]], dtype=torch.float64),
        torch.full((3, 3), 1e-150, dtype=torch.float64),
        torch.tensor([[1e300, -1e300], [1e299, 1e290]], dtype=torch.float64),
        torch.tensor([[0.1]], dtype=torch.float64),
        torch.tensor([[-0.1]], dtype=torch.float64),
    ],
)
def test_awkward_matrices(weight):
    check_bounds(DenseOperator(weight), exact(weight), slack=1e-12)


def test_denormal_coefficients():
    weight = torch.tensor([[5e-324, 1e-310], [2e-322, 5e-324]], dtype=torch.float64)
    operator, rows = DenseOperator(weight), exact(weight)
    assert exceeds(Fraction(two_norm(operator)) ** 2, gram(rows)) and two_norm(operator) < 1.001e-310
    assert exceeds(numerical_abscissa(operator), half(rows)) and numerical_abscissa(operator) < 0.51e-310


def test_overflow_of_the_result_is_infinity():
    operator = DenseOperator(torch.full((4, 4), 1e308, dtype=torch.float64))
    assert [bound(operator) for bound in BOUNDS] == [math.inf] * 4
    negative = numerical_abscissa(DenseOperator(torch.diag(torch.full((2,), -1.7e308, dtype=torch.float64))))
    assert -1.7e308 < negative < -1.69e308


def graph(size: int = 4, features: int | None = None) -> GraphOperator:
    weight = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        weight[i, (i + 1) % size], weight[i, (3 * i) % size], weight[i, i] = 0.5, -0.25, 0.125
    rows, columns = weight.nonzero().unbind(1)
    mixing = None if features is None else random(features, features, seed=3)
    return GraphOperator(Propagation.of(csr(rows, columns, weight[rows, columns], size)), mixing)


def conv(channels: int, *kernel: int, dilation: tuple[int, int] = (1, 1), seed: int = 0) -> ConvOperator:
    return ConvOperator(random(channels, channels, *kernel, seed=seed), dilation)


EVERY = {"dense": DenseOperator(random(3, 3)), "conv": conv(2, 3, 3), "graph": graph(), "mixing": graph(4, 2)}
SHAPES = {
    "dense": [None],
    "conv": [None, torch.Size([1, 2, 4, 4]), torch.Size([1, 2, 40, 40])],
    "graph": [None],
    "mixing": [None],
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("bound", BOUNDS)
def test_no_bound_for_coefficients_that_are_not_finite(bound, name, shape, value):
    operator = EVERY[name]
    arrays = {key: part.clone() for key, part in operator.arrays().items()}
    for key, part in arrays.items():
        if part.is_floating_point():
            broken = part.clone()
            broken.view(-1)[0] = value
            assert bound(type(operator).restore({**arrays, key: broken}, operator.options()), shape) == math.inf


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("bound", BOUNDS)
def test_the_zero_operator_has_bound_zero(bound, name, shape):
    operator = EVERY[name]
    zeros = {key: part * 0 if part.is_floating_point() else part for key, part in operator.arrays().items()}
    assert bound(type(operator).restore(zeros, operator.options()), shape) == 0.0


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("exponent", [-500, -3, 500])
@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_scale_with_the_coefficients(bound, exponent, name, shape):
    operator = EVERY[name]
    key = "values" if name == "graph" else "weight"
    arrays = operator.arrays()
    scaled = type(operator).restore({**arrays, key: arrays[key] * 2.0**exponent}, operator.options())
    assert bound(scaled, shape) == pytest.approx(bound(operator, shape) * 2.0**exponent, rel=1e-13)


@pytest.mark.parametrize("bound", BOUNDS)
def test_parameters_with_gradients_are_accepted(bound):
    weight = random(3, 3).requires_grad_()
    assert bound(DenseOperator(weight)) == bound(DenseOperator(weight.detach()))


@pytest.mark.parametrize("features", [None, 2])
def test_graph_bounds(features):
    operator = graph(4, features)
    rows = exact(operator.propagation.matrix.to_dense())
    if features is not None:
        mix = exact(operator.weight)
        rows = [[p * w for p in left for w in right] for left in rows for right in mix]
    check_bounds(operator, rows, torch.Size([1, 4, features or 1]), slack=1e-12)


def test_both_factors_of_a_graph_are_scaled_back():
    operator = graph(4, 2)
    larger = operator.propagation.matrix * 1024
    for bound in BOUNDS:
        scaled = GraphOperator(Propagation.of(larger), operator.weight * 8)
        assert bound(scaled) == pytest.approx(8192 * bound(operator), rel=1e-13)


@pytest.mark.parametrize(
    ("operator", "image"),
    [
        (conv(1, 3, 3), (3, 3)),
        (conv(2, 3, 1), (3, 2)),
        (conv(1, 3, 5, dilation=(2, 1)), (4, 3)),
        (conv(1, 5, 5), (2, 2)),
        (conv(3, 1, 1), (1, 2)),
    ],
)
def test_convolutions_on_small_images(operator, image):
    shape = torch.Size([1, operator.weight.shape[0], *image])
    check_bounds(operator, exact(operator.matrix(shape)), shape, slack=1e-12)
    for bound in BOUNDS:
        assert bound(operator, shape) <= bound(operator, None) * (1 + 1e-12)


def spectra(operator: ConvOperator, shape: torch.Size) -> tuple[float, float]:
    matrix = operator.matrix(shape)
    return float(torch.linalg.matrix_norm(matrix, 2)), float(torch.linalg.eigvalsh((matrix + matrix.t()) / 2)[-1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_the_symbol_bounds_convolutions_of_any_size(seed, dilation):
    operator = conv(2, 3, 3, dilation=dilation, seed=seed)
    bounds = two_norm(operator), numerical_abscissa(operator)
    for size in (3, 8, 17):
        norm, abscissa = spectra(operator, torch.Size([1, 2, size, size]))
        assert norm <= bounds[0] and abscissa <= bounds[1]


@pytest.mark.parametrize("operator", [conv(1, 3, 3, seed=1), conv(1, 3, 3).absolute(), conv(2, 1, 3, seed=2)])
def test_the_symbol_is_within_two_percent_of_a_big_image(operator):
    size = torch.Size([1, 1, 38, 38] if operator.weight.shape[0] == 1 else [1, 2, 1, 300])
    norm, abscissa = spectra(operator, size)
    assert norm <= two_norm(operator) <= norm * 1.02
    assert abscissa <= numerical_abscissa(operator) <= abscissa + 0.02 * norm


def test_a_known_symbol():
    # 1 - 2 cos w has the norm 3, at a frequency of the grid; the Hermitian part is largest there too.
    taps = torch.tensor([-1.0, 1.0, -1.0]).reshape(1, 1, 1, 3)
    for bound in (two_norm, numerical_abscissa):
        assert 3 <= bound(ConvOperator(taps)) <= 3 * (1 + 1e-12)  # the sum of the absolute taps
    assert numerical_abscissa(ConvOperator(-taps)) == pytest.approx(1, rel=1e-2)
    # An even grid of four points, or coarser, would miss the maximum of sin(2 w) + sin(w) between its points.
    odd = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]).reshape(1, 1, 1, 5)
    top = mpmath.fabs(mpmath.sin(2 * mpmath.mpf("0.9359")) + mpmath.sin(mpmath.mpf("0.9359")))
    assert 2 * top <= two_norm(ConvOperator(odd)) <= 2 * top * 1.005
    assert 0 <= numerical_abscissa(ConvOperator(odd)) <= 0.02


def test_the_symbol_covers_peaks_between_grid_points():
    # cos(w - a) style symbols whose peak lies anywhere: |sup| is known, the grid rarely hits it.
    for k in range(1, 40):
        angle = 0.0123 * k
        rotation = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).double()
        weight = torch.zeros(2, 2, 1, 3, dtype=torch.float64)
        weight[:, :, 0, 0], weight[:, :, 0, 2] = rotation / 2, rotation.t() / 2
        assert 1 - 1e-15 <= two_norm(ConvOperator(weight)) <= 1.0025
        assert 1 - 1e-15 <= numerical_abscissa(ConvOperator(weight)) <= 1.005
        weight[:, :, 0, 1] = -0.9 * torch.eye(2)
        assert 0.1 - 1e-15 <= numerical_abscissa(ConvOperator(weight)) <= 0.106


@pytest.mark.parametrize("features", [None, 2])
def test_graphs_too_big_for_a_matrix(features, monkeypatch):
    operator = graph(12, features)
    dense = two_norm(operator), numerical_abscissa(operator)
    magnitude = two_norm(operator.absolute()), numerical_abscissa(operator.absolute())
    monkeypatch.setattr("subdeq_plugin.certificates.spectral.DENSE", 5)
    assert dense[0] <= two_norm(operator) <= magnitude[0] * (1 + 1e-4)
    assert dense[1] <= numerical_abscissa(operator) <= magnitude[1] * (1 + 1e-4)


def test_the_abscissa_of_a_big_chain_is_that_of_its_symmetric_part(monkeypatch):
    monkeypatch.setattr("subdeq_plugin.certificates.spectral.DENSE", 5)
    chain = torch.arange(11)
    operator = GraphOperator(Propagation.of(csr(chain, chain + 1, torch.ones(11, dtype=torch.float64), 12)))
    truth = math.cos(math.pi / 13)
    assert truth <= numerical_abscissa(operator) <= truth * 1.001
    assert 1 <= two_norm(operator) <= 1 + 1e-12


def test_a_big_sparse_graph():
    nodes = 4000
    ring = torch.arange(nodes)
    matrix = csr(torch.cat([ring, ring]), torch.cat([ring, (ring + 1) % nodes]), torch.full((2 * nodes,), 0.5), nodes)
    operator = GraphOperator(Propagation.of(matrix))
    for bound in BOUNDS:
        assert 1 <= bound(operator) <= 1 + 1e-9


# Definiteness


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_singular_and_slightly_indefinite_matrices_are_refused(size):
    generator = torch.Generator().manual_seed(size)
    wide = torch.randint(-9, 10, (size, max(size - 1, 1)), generator=generator).double()
    singular = wide @ wide.t() if size > 1 else torch.zeros(1, 1, dtype=torch.float64)
    assert not positive_definite(singular)
    for tiny in (1e-14, 1e-10, 1e-3):
        assert not positive_definite(singular - tiny * torch.eye(size, dtype=torch.float64))
    assert positive_definite(singular + 1e-6 * torch.eye(size, dtype=torch.float64) * (1 + singular.max()))


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150, 1e300])
def test_definiteness_does_not_depend_on_the_scale(scale):
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    assert positive_definite(matrix * scale)
    assert not positive_definite(torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64) * scale)
    assert not positive_definite(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64) * scale)


@pytest.mark.parametrize(
    "matrix",
    [
        [[math.nan]],
        [[math.inf]],
        [[1.0, math.nan], [math.nan, 1.0]],
        [[2.0, 1.0], [0.5, 2.0]],
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[1.0, 0.0], [0.0, 1e-300]],
    ],
)
def test_what_is_not_verified(matrix):
    assert not positive_definite(torch.tensor(matrix, dtype=torch.float64))


ENTRIES = st.integers(-6, 6)


@st.composite
def squares(draw, entries=ENTRIES, largest=5):
    size = draw(st.integers(1, largest))
    flat = draw(st.lists(entries, min_size=size * size, max_size=size * size))
    return torch.tensor(flat, dtype=torch.float64).reshape(size, size)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(squares(), st.integers(-40, 2))
def test_definite_only_if_definite(matrix, exponent):
    symmetric = (matrix @ matrix.t() * 2.0**exponent) - torch.diag(matrix.diagonal()) * 2.0 ** (exponent - 30)
    if positive_definite(symmetric):
        assert pivots_positive(exact(symmetric))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(squares(st.floats(-1e3, 1e3, allow_subnormal=False)))
def test_bounds_of_any_matrix(matrix):
    if bool((matrix != 0).any()):
        check_bounds(DenseOperator(matrix), exact(matrix))


def test_agreement_with_mpmath_to_fifty_digits():
    weight = random(6, 6, seed=11)
    with mpmath.workdps(50):
        matrix = mpmath.matrix(weight.tolist())
        top = mpmath.sqrt(max(mpmath.eigsy(matrix.T * matrix, eigvals_only=True)))
        abscissa = max(mpmath.eigsy((matrix + matrix.T) / 2, eigvals_only=True))
        assert top <= two_norm(DenseOperator(weight)) <= top * (1 + mpmath.mpf("1e-12"))
        assert abscissa <= numerical_abscissa(DenseOperator(weight)) <= abscissa * (1 + mpmath.mpf("1e-12"))


def test_the_largest_of_many_chunks_counts():
    chunks = [torch.eye(2, dtype=torch.float64).expand(3, 2, 2) * scale for scale in (1.0, 3.0, 2.0)]
    assert 3 <= largest_eigenvalue(chunks) <= 3 + 1e-12
    chunks[1] = chunks[1] * math.nan
    assert largest_eigenvalue(chunks) == math.inf


def test_a_wrong_approximate_eigenvalue_does_not_make_a_wrong_bound(monkeypatch):
    weight = random(6, 6)
    right, values = two_norm(DenseOperator(weight)), torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda blocks: values(blocks) * (1 - 1e-6))
    assert right * (1 - 1e-12) <= two_norm(DenseOperator(weight)) <= right * 1.001

    def fail(blocks):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    fallback = math.sqrt(row_norm(DenseOperator(weight)) * column_norm(DenseOperator(weight)))
    assert two_norm(DenseOperator(weight)) == pytest.approx(fallback)
    assert numerical_abscissa(DenseOperator(weight)) == pytest.approx(fallback)


# Spectral radii


def radius(matrix: torch.Tensor, steps: int = 60) -> tuple[float, torch.Tensor]:
    bound, u = perron_bound(
        lambda z: z @ matrix.t(), torch.ones(1, len(matrix), dtype=torch.float64), len(matrix), steps
    )
    assert bound.shape == (1,) and u.shape == (1, len(matrix)) and bool((u > 0).all())
    if math.isfinite(float(bound)):
        assert float(((u @ matrix.t()) / u).max()) <= float(bound)
    return float(bound), u


@settings(derandomize=True, deadline=None, max_examples=150)
@given(squares(st.sampled_from([0, 0, 0, 1, 2, 1e-8, 1e8]), largest=6))
def test_spectral_radii_of_nonnegative_matrices(matrix):
    bound, _ = radius(matrix)
    assert exceeds(bound, exact(matrix))
    assert bound <= float(matrix.sum(dim=1).max()) * (1 + 1e-12) + 1e-100


@pytest.mark.parametrize(
    ("matrix", "truth", "slack"),
    [
        ([[0.0]], 0.0, 1e-100),
        ([[0.0, 1.0], [0.0, 0.0]], 0.0, 1e-10),
        ([[0.0, 5.0, 7.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], 0.0, 1e-6),
        ([[0.0, 1.0], [1.0, 0.0]], 1.0, 1e-12),
        ([[0.0, 4.0], [1.0, 0.0]], 2.0, 1e-6),
        ([[0.0, 8.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], 2.0, 1e-6),
        ([[2.0, 1.0], [1.0, 2.0]], 3.0, 1e-12),
        ([[0.5, 100.0], [0.0, 1.0]], 1.0, 1e-6),
        ([[1.0, 100.0], [0.0, 0.5]], 1.0, 1e-6),
        ([[1.0, 0.0], [0.0, 0.0]], 1.0, 1e-12),
        ([[1.0, 1e6], [1e-6, 1.0]], 2.0, 1e-9),
    ],
)
def test_known_spectral_radii(matrix, truth, slack):
    bound, _ = radius(torch.tensor(matrix, dtype=torch.float64))
    assert truth <= bound <= truth + slack


@pytest.mark.parametrize("size", [5, 50, 300])
def test_positive_matrices_converge_quickly(size):
    matrix = torch.rand(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    truth = float(torch.linalg.eigvals(matrix).abs().max())
    assert truth * (1 - 1e-12) <= radius(matrix, steps=30)[0] <= truth * (1 + 1e-10)


def test_rows_of_a_batch_are_bounded_by_themselves():
    maps = torch.stack([torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[0.0, 4.0], [1.0, 0.0]]), torch.eye(2)])
    bad = torch.tensor([math.nan, 1e308], dtype=torch.float64)[:, None, None].expand(2, 2, 2)
    maps = torch.cat([maps.double(), bad])
    start = torch.tensor([[1.0, 1.0], [1e-3, 1.0], [1e300, 1e-300], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    bound, u = perron_bound(lambda z: torch.einsum("bij,bj->bi", maps, z), start, 2, 60)
    assert bound[:3].tolist() == pytest.approx([3, 2, 1], rel=1e-6)
    assert bound[3:].tolist() == [math.inf, math.inf] and bool((u > 0).all())
    for row in range(3):
        assert exceeds(float(bound[row]), exact(maps[row]))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_start_that_is_not_positive_gives_no_bound(bad):
    start = torch.tensor([[1.0, bad], [1.0, 1.0]], dtype=torch.float64)
    bound, _ = perron_bound(lambda z: z, start, 1)
    assert bound[0] == math.inf and 1 <= bound[1] <= 1 + 1e-12


def test_a_negative_entry_in_a_product_gives_no_bound():
    assert radius(torch.tensor([[1.0, -2.0], [0.0, 1.0]], dtype=torch.float64))[0] == math.inf


def test_a_good_start_needs_one_step():
    matrix = torch.rand(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound, u = radius(matrix, steps=40)
    again, _ = perron_bound(lambda z: z @ matrix.t(), u, 20, 1)
    assert float(again) == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_spectral_radii_of_extreme_size(scale):
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) * scale
    bound, _ = radius(matrix)
    assert exceeds(bound, exact(matrix)) and bound <= 3 * scale * (1 + 1e-9)


def test_underflow_in_a_product_does_not_lower_the_bound():
    # The spectral radius is 1e-160, from products of 1e-320 that underflow where the vector is small.
    matrix = torch.tensor([[0.0, 1e-320], [1.0, 0.0]], dtype=torch.float64)
    assert radius(matrix)[0] >= 1e-160


def test_no_entries():
    bound, u = perron_bound(lambda z: z, torch.ones(2, 0, dtype=torch.float64), 1)
    assert bound.tolist() == [0.0, 0.0] and u.shape == (2, 0)
