"""The piece contract for all pieces that the package has."""

from __future__ import annotations

import itertools

import mpmath as mp
import pytest
import torch

from subdeq_plugin.perron import (
    BlockPowers,
    Contractions,
    Geometric,
    Hyperedges,
    Largest,
    Matrix,
    Powers,
    Sparse,
    TensorForm,
    h_eigen,
)
from tests.contracts.piece_contract import PieceContract, positive
from tests.perron.test_tensors import EDGES, adjacency

MATRIX = positive(4, 3, seed=20)
FEW = MATRIX * torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
EXPONENTS = MATRIX / MATRIX.sum(dim=1, keepdim=True) * 0.7
EXPONENTS[:, 2] = 0.7 - EXPONENTS[:, 0] - EXPONENTS[:, 1]
CUBE, BOX = positive(3, 3, 3, seed=21), positive(2, 3, 2, seed=22)
SPARSE_BOX = BOX * (BOX > 0.7) + 0.1 * torch.eye(2, 3, dtype=torch.float64)[:, :, None] + 0.01 * (BOX[:1, 2:] > 0)
HYPER = h_eigen(EDGES).pieces[0]
assert isinstance(HYPER, Hyperedges)
ADJACENCY = adjacency(EDGES, 5, 4)


def rows(matrix, combine):
    """Each row of a matrix combined with the entries of a vector."""
    return lambda z: [combine([(mp.mpf(float(a)), x) for a, x in zip(row, z, strict=True)]) for row in matrix]


def linear(matrix):
    return rows(matrix, lambda pairs: mp.fsum(a * x for a, x in pairs))


def form(tensor):
    """`T z^(m-1)`, the first index left."""
    indices = list(itertools.product(*(range(size) for size in tensor.shape)))

    def value(z):
        result = [mp.mpf(0)] * tensor.shape[0]
        for index in indices:
            if float(tensor[index]):
                result[index[0]] += mp.mpf(float(tensor[index])) * mp.fprod(z[i] for i in index[1:])
        return result

    return value


def contractions(tensor):
    starts = [0, *itertools.accumulate(tensor.shape)]
    indices = list(itertools.product(*(range(size) for size in tensor.shape)))

    def value(z):
        result = [mp.mpf(0)] * starts[-1]
        for index in indices:
            places = [start + i for start, i in zip(starts, index, strict=False)]
            for place in places:
                others = mp.fprod(z[other] for other in places if other != place)
                result[place] += mp.mpf(float(tensor[index])) * others
        return result

    return value


def powers(exponents):
    return lambda z: [x ** mp.mpf(p) for x, p in zip(z, exponents, strict=True)]


# Piece, sizes of the blocks of arguments and of values, and the function of exact numbers.
CASES = {
    "Matrix": (Matrix(MATRIX), ((3,), (4,)), linear(MATRIX)),
    "Sparse": (Sparse.of(FEW.to_sparse()), ((3,), (4,)), linear(FEW)),
    "Largest": (Largest(MATRIX), ((3,), (4,)), rows(MATRIX, lambda pairs: max(a * x for a, x in pairs))),
    "Geometric": (Geometric(EXPONENTS), ((3,), (4,)), rows(EXPONENTS, lambda pairs: mp.fprod(x**a for a, x in pairs))),
    "Powers": (Powers(0.3), ((5,), (5,)), powers([0.3] * 5)),
    "Powers, negative": (Powers(-1.7), ((5,), (5,)), powers([-1.7] * 5)),
    "TensorForm": (TensorForm(CUBE), ((3,), (3,)), form(CUBE)),
    "Hyperedges": (HYPER, ((5,), (5,)), form(ADJACENCY)),
    "Contractions": (Contractions.of(BOX), ((2, 3, 2), (2, 3, 2)), contractions(BOX)),
    "Contractions, sparse": (Contractions.of(SPARSE_BOX), ((2, 3, 2), (2, 3, 2)), contractions(SPARSE_BOX)),
    "BlockPowers": (BlockPowers((0.3, 2.0), (2, 3)), ((2, 3), (2, 3)), powers([0.3, 0.3, 2.0, 2.0, 2.0])),
}


@pytest.mark.parametrize("name", CASES)
class TestPieces(PieceContract):
    @pytest.fixture
    def piece(self, name):
        return CASES[name][0]

    @pytest.fixture
    def sizes(self, name):
        return CASES[name][1]

    @pytest.fixture
    def exact(self, name):
        return CASES[name][2]
