"""The operators as matrices: entries, diagonal, absolute values, signs."""

from __future__ import annotations

import itertools

import pytest
import torch

from subdeq_plugin.errors import OptionError
from subdeq_plugin.layers.operators import ConvOperator, DenseOperator, GraphOperator, Operator, Propagation, csr

STATES = {"dense": (3, 4), "conv": (2, 2, 3, 4), "dilated": (2, 2, 5, 3), "graph": (2, 4, 3), "mixing": (2, 4, 3)}


def propagation(dtype: torch.dtype = torch.float64) -> Propagation:
    rows, columns = torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([0, 2, 0, 1, 3, 0])
    return Propagation.of(csr(rows, columns, torch.tensor([0.5, -1.5, 0.3, -0.7, 2.0, 0.1], dtype=dtype), 4))


def operator(name: str, dtype: torch.dtype = torch.float64) -> Operator:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    if name == "dense":
        return DenseOperator(draw(4, 4))
    if name == "conv":
        return ConvOperator(draw(2, 2, 3, 5))
    if name == "dilated":
        return ConvOperator(draw(2, 2, 3, 1), (2, 3))
    return GraphOperator(propagation(dtype), draw(3, 3) if name == "mixing" else None)


def by_hand(name: str, op: Operator, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix, entry by entry from its definition."""
    cells = list(itertools.product(*(range(size) for size in shape)))
    out = torch.zeros(len(cells), len(cells), dtype=torch.float64)
    for (i, to), (j, of) in itertools.product(enumerate(cells), enumerate(cells)):
        if isinstance(op, DenseOperator):
            out[i, j] = op.weight[to[0], of[0]]
        elif isinstance(op, ConvOperator):
            height, width = op.weight.shape[-2:]
            row, rest = divmod(of[1] - to[1], op.dilation[0])
            column, remainder = divmod(of[2] - to[2], op.dilation[1])
            row, column = row + height // 2, column + width // 2
            if rest == remainder == 0 and 0 <= row < height and 0 <= column < width:
                out[i, j] = op.weight[to[0], of[0], row, column]
        else:
            assert isinstance(op, GraphOperator)
            spread = op.propagation.matrix.to_dense().double()[to[0], of[0]]
            mix = float(to[1] == of[1]) if op.weight is None else op.weight.double()[to[1], of[1]]
            out[i, j] = spread * mix
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", STATES)
def test_the_matrix_has_the_coefficients_as_entries(name, dtype):
    op, shape = operator(name, dtype), torch.Size(STATES[name])
    matrix = op.matrix(shape)
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, by_hand(name, op, shape[1:]), rtol=0, atol=0)
    torch.testing.assert_close(op.matrix(shape[1:]), matrix, rtol=0, atol=0)


@pytest.mark.parametrize("name", STATES)
def test_the_matrix_maps_states_as_the_operator_and_its_transpose_do(name):
    op, shape = operator(name), torch.Size(STATES[name])
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = z.reshape(shape[0], -1)
    torch.testing.assert_close(op(z).reshape(flat.shape), flat @ op.matrix(shape).t())
    torch.testing.assert_close(op.transpose(z).reshape(flat.shape), flat @ op.matrix(shape))


@pytest.mark.parametrize("name", STATES)
def test_the_diagonal_is_that_of_the_matrix(name):
    op, shape = operator(name), torch.Size(STATES[name])
    diagonal = op.diagonal(shape)
    assert diagonal.dim() == op.sample_dims
    torch.testing.assert_close(diagonal.expand(shape[1:]).flatten(), op.matrix(shape).diagonal(), rtol=0, atol=0)


@pytest.mark.parametrize("name", STATES)
def test_the_absolute_operator_has_the_absolute_matrix(name):
    op, shape = operator(name), torch.Size(STATES[name])
    magnitude = op.absolute()
    torch.testing.assert_close(magnitude.matrix(shape), op.matrix(shape).abs(), rtol=0, atol=0)
    z = torch.ones(shape, dtype=torch.float64)
    torch.testing.assert_close(
        magnitude.transpose(z).reshape(shape[0], -1), z.reshape(shape[0], -1) @ op.matrix(shape).abs()
    )
    assert magnitude.nonnegative and not op.nonnegative


@pytest.mark.parametrize("name", ["dense", "conv", "mixing"])
def test_nan_is_not_nonnegative_and_zero_is(name):
    op = operator(name)
    (weight,) = op.tensors
    bad = weight.abs()
    bad.view(-1)[-1] = torch.nan
    assert not op.absolute().with_tensors((bad,)).nonnegative
    assert op.absolute().with_tensors((torch.zeros_like(weight),)).nonnegative


def test_the_sign_of_the_propagation_counts():
    assert not GraphOperator(propagation(), torch.eye(3, dtype=torch.float64)).nonnegative
    assert GraphOperator(propagation().absolute(), torch.eye(3, dtype=torch.float64)).nonnegative


def test_the_absolute_propagation_is_not_the_one_a_layer_prepared():
    prepared = Propagation(propagation().matrix, propagation().transposed, ("sym", 0.1))
    assert prepared.absolute().settings == ()


@pytest.mark.parametrize("name", ["conv", "graph"])
def test_a_matrix_needs_the_shape_where_the_weights_do_not_tell_it(name):
    with pytest.raises(OptionError, match="pass state_shape"):
        operator(name).matrix(None)


@pytest.mark.parametrize("name", ["dense", "mixing"])
def test_a_matrix_needs_no_shape_where_the_weights_tell_it(name):
    op = operator(name)
    torch.testing.assert_close(op.matrix(None), op.matrix(torch.Size(STATES[name])), rtol=0, atol=0)
