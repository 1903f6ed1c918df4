"""Products prepared for the inside of a solve, and gradients, against matrices written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from subdeq_plugin.layers.operators import ConvOperator, DenseOperator, GraphOperator, Operator, Propagation, csr
from subdeq_plugin.layers.sparse import multiply

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Rows, columns and values of matrices of 5 nodes: with self-loops and negative entries; with nodes that nobody reaches
# and that reach nobody; a single entry; none at all.
GRAPHS = {
    "full": ([0, 0, 1, 2, 3, 3, 4, 4], [0, 2, 0, 1, 3, 0, 4, 1], [0.5, -1.5, 0.3, -0.7, 2.0, 0.1, -0.2, 1.1]),
    "holes": ([1, 1, 4], [1, 3, 1], [0.5, -2.0, 3.0]),
    "single": ([2], [3], [-1.25]),
    "nothing": ([], [], []),
    "last row empty": ([0, 1, 1], [4, 0, 2], [1.0, 2.0, -3.0]),
}


def propagation(name: str, dtype: torch.dtype = torch.float64) -> Propagation:
    rows, columns, values = GRAPHS[name]
    index = (torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64))
    return Propagation.of(csr(*index, torch.tensor(values, dtype=dtype), 5))


def operators() -> dict[str, tuple[Operator, tuple[int, ...]]]:
    """Operators in float64 by name, each with the shape of a sample."""
    found: dict[str, tuple[Operator, tuple[int, ...]]] = {
        "dense": (DenseOperator(draw(5, 5)), (5,)),
        "dense-1": (DenseOperator(draw(1, 1)), (1,)),
        "dense-transposed": (DenseOperator(draw(4, 4).t()), (4,)),
    }
    for height, width, dilation in ((1, 1, (1, 1)), (3, 3, (1, 1)), (5, 5, (1, 1)), (3, 5, (2, 1)), (5, 1, (1, 3)),
                                    (3, 3, (2, 3))):  # fmt: skip
        name = f"conv-{height}x{width}-{dilation[0]}{dilation[1]}"
        found[name] = (ConvOperator(draw(2, 2, height, width), dilation), (2, 5, 4))
    found["conv-one-channel"] = (ConvOperator(draw(1, 1, 3, 3)), (1, 3, 4))
    found["conv-one-pixel"] = (ConvOperator(draw(3, 3, 3, 3)), (3, 1, 1))
    for graph in GRAPHS:
        found[f"graph-{graph}"] = (GraphOperator(propagation(graph)), (5, 3))
        found[f"mixing-{graph}"] = (GraphOperator(propagation(graph), draw(3, 3)), (5, 3))
    return found


OPERATORS = operators()


def expected(op: Operator, sample: tuple[int, ...], z: Tensor, factor: float, transposed: bool) -> tuple[Tensor, float]:
    """`factor A z` in float64 by a dense matrix, and a bound of the rounding of its entries in units of one."""
    matrix = factor * op.matrix(torch.Size(sample))
    matrix = matrix if transposed else matrix.t()
    flat = z.double().reshape(len(z), -1)
    size = float((flat.abs() @ matrix.abs()).max())
    return (flat @ matrix).reshape(z.shape), (op.terms() + 6) * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_products_are_what_they_say_and_change_nothing(name, dtype):
    wide, sample = OPERATORS[name]
    op = wide.to(torch.device("cpu"), dtype)
    before = [part.clone() for part in op.coefficients()]
    for batch in (1, 3):
        z, add = (draw(batch, *sample, seed=s).to(dtype).contiguous(memory_format=op.layout) for s in (1, 2))
        kept = z.clone(), add.clone()
        for factor in (1.0, 2.0, -0.5):
            for transposed in (False, True):
                product = op.product(factor, transposed=transposed)
                exact, units = expected(op, sample, z, factor, transposed)
                out = torch.full_like(z, torch.nan)
                for given in (None, add):
                    # A buffer that holds what an earlier call left there is as good as a fresh one.
                    result = product(z, out) if given is None else product(z, out, given)
                    assert result.shape == z.shape and result.dtype == dtype and not result.requires_grad
                    assert result.data_ptr() not in (z.data_ptr(), add.data_ptr())
                    truth = exact if given is None else exact + given.double()
                    slack = torch.finfo(dtype).eps * (units + 2 * float(truth.abs().max()))
                    torch.testing.assert_close(result.double(), truth, rtol=0, atol=slack + 1e-300)
                assert torch.equal(z, kept[0]) and torch.equal(add, kept[1])
    for part, old in zip(op.coefficients(), before, strict=True):
        assert torch.equal(part, old)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_states_of_any_layout(name, transposed):
    op, sample = OPERATORS[name]
    z = draw(2, *sample, seed=3)
    exact, units = expected(op, sample, z, 1.0, transposed)
    strided = torch.stack([z, z], dim=-1)[..., 1]
    turned = z.transpose(0, -1).contiguous().transpose(0, -1)
    for given in (strided, turned, z[:1].expand(2, *sample)):
        truth = exact if given.stride(0) else exact[:1].expand_as(exact)
        result = op.product(transposed=transposed)(given, torch.empty_like(z), given)
        torch.testing.assert_close(result, truth + given, rtol=0, atol=1e-15 * (units + 4) + 1e-300)


@pytest.mark.parametrize("name", OPERATORS)
def test_products_give_the_layout_that_they_want(name):
    op, sample = OPERATORS[name]
    z = draw(3, *sample, seed=4).contiguous(memory_format=op.layout)
    for transposed in (False, True):
        result = op.product(transposed=transposed)(z, torch.empty_like(z), z)
        assert result.is_contiguous(memory_format=op.layout), "every later step would pay for a copy"


def test_images_are_stepped_channels_last_on_a_cpu():
    assert OPERATORS["conv-3x3-11"][0].layout == torch.channels_last
    assert OPERATORS["dense"][0].layout == OPERATORS["graph-full"][0].layout == torch.contiguous_format


@pytest.mark.parametrize("name", OPERATORS)
def test_a_bad_sample_stays_by_itself(name):
    op, sample = OPERATORS[name]
    z = draw(3, *sample, seed=5)
    clean = op.product()(z, torch.empty_like(z), z)
    spoilt = z.clone()
    spoilt[1] = torch.nan
    result = op.product()(spoilt, torch.empty_like(z), spoilt)
    torch.testing.assert_close(result[::2], clean[::2], rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("lead", [(3,), (2, 3), (), (1, 1, 2)])
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_those_of_autograd_and_of_differences(name, lead):
    op, sample = OPERATORS[name]
    if isinstance(op, ConvOperator) and len(lead) != 1:
        return  # images come in batches
    z, c = draw(*lead, *sample, seed=6), draw(*lead, *sample, seed=7)
    gradients = op.gradients(z, c)
    assert [g.shape for g in gradients] == [tensor.shape for tensor in op.tensors]
    tensors = tuple(tensor.clone().requires_grad_() for tensor in op.tensors)
    if not tensors:
        return
    found = torch.autograd.grad((op.with_tensors(tensors)(z) * c).sum(), tensors)
    for got, truth, tensor in zip(gradients, found, op.tensors, strict=True):
        assert not got.requires_grad
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-13)
        # The operator is linear in its weight: a difference over any step is the derivative.
        v = draw(*tensor.shape, seed=8)
        difference = (op.with_tensors((tensor + v,))(z) * c).sum() - (op(z) * c).sum()
        torch.testing.assert_close((got * v).sum(), difference, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_strided_states(name):
    op, sample = OPERATORS[name]
    z, c = draw(2, *sample, seed=9), draw(2, *sample, seed=10)
    strided = [torch.stack([part, part], dim=-1)[..., 0] for part in (z, c)]
    for got, truth in zip(op.gradients(*strided), op.gradients(z, c), strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("columns", [1, 2, 7])
def test_sparse_products_are_the_dense_ones(graph, dtype, columns):
    matrix = propagation(graph, dtype).matrix
    dense = matrix.to_dense().double()
    x = draw(5, columns, seed=11).to(dtype)
    kept, units = x.clone(), 8 * float((dense.abs() @ x.double().abs()).max())
    truth = dense @ x.double()
    slack = torch.finfo(dtype).eps * (units + float(truth.abs().max()))
    for out in (None, torch.full_like(x, torch.nan)):
        result = multiply(matrix, x, out)
        assert result.dtype == dtype and result.shape == x.shape
        torch.testing.assert_close(result.double(), truth, rtol=0, atol=slack)
        assert torch.equal(x, kept) and result.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("graph", GRAPHS)
def test_sparse_products_of_strided_matrices(graph, dtype):
    matrix = propagation(graph, dtype).matrix
    x = draw(5, 4, seed=12).to(dtype)
    truth = (matrix.to_dense().double() @ x.double()).to(dtype)
    for given in (x.t().contiguous().t(), torch.stack([x, x], dim=-1)[..., 0]):
        for out in (None, torch.empty(5, 4, dtype=dtype), torch.empty(4, 5, dtype=dtype).t()):
            torch.testing.assert_close(multiply(matrix, given, out), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sparse_products_keep_infinities_and_nan_where_they_belong(dtype):
    matrix = propagation("holes", dtype).matrix
    x = torch.ones(5, 2, dtype=dtype)
    x[3, 0], x[0, 1] = torch.inf, torch.nan  # nobody looks at node 0
    result = multiply(matrix, x)
    assert result[:, 0].tolist() == [0.0, -torch.inf, 0.0, 0.0, 3.0]
    assert result[:, 1].tolist() == [0.0, -1.5, 0.0, 0.0, 3.0]
