"""The same pairs, brackets and derivatives on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import subdeq_plugin as sd
from subdeq_plugin.layers.sparse import csr
from subdeq_plugin.perron import Chain, Geometric, Largest, Matrix, Sparse, h_eigen, hits, power_mean, z_eigen
from tests.perron.test_tensors import EDGES, random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def shares(a: torch.Tensor) -> torch.Tensor:
    return a / a.sum(dim=1, keepdim=True)


TARGETS = {
    "matrix": lambda a: a,
    "batch": lambda a: torch.stack([a, a.mT, a @ a]),
    "reducible": lambda a: torch.triu(a),
    "sparse": lambda a: csr(*(a > 0.5).nonzero().T, a[a > 0.5], len(a)),
    "harmonic": lambda a: power_mean(a, -1),
    "chain": lambda a: Chain((Geometric(shares(a)), Largest(a), Sparse.of(a.to_sparse()), Matrix(a))),
    "tensor": lambda a: h_eigen(a[:, :, None] * a[None]),
    "hits": lambda a: hits(a),
    "z": lambda a: z_eigen(a[:, :, None] * a[None] + 1),
    "function": lambda a: lambda z: z @ a.mT,
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("method", ["auto", "power", "newton"])
def test_a_gpu_finds_what_the_cpu_finds(name, method):
    matrix = random(6, 6)
    start = torch.ones(6, dtype=torch.float64) if name == "function" else None
    here = sd.perron(TARGETS[name](matrix), start, method=method)
    there = sd.perron(TARGETS[name](matrix.cuda()), None if start is None else start.cuda(), method=method)
    assert there.eigenvector.is_cuda
    torch.testing.assert_close(there.eigenvector.cpu(), here.eigenvector, rtol=1e-9, atol=1e-14)
    assert bool((there.lower.cpu() <= here.upper).all() and (here.lower <= there.upper.cpu()).all())
    assert there.status.cpu().tolist() == here.status.tolist()
    assert there.error_bound.cpu().isfinite().tolist() == here.error_bound.isfinite().tolist()


@pytest.mark.parametrize("name", ["matrix", "batch", "harmonic", "tensor", "hits", "z"])
def test_gradients_on_a_gpu(name):
    def pair(matrix):
        result = sd.perron(TARGETS[name](matrix))
        return result.eigenvalue, result.eigenvector

    assert gradcheck(pair, (random(3, 3).cuda().requires_grad_(),), atol=1e-6)


def test_a_hypergraph_moves_with_its_weights():
    chain = h_eigen(EDGES)
    there = chain.with_tensors([tensor.cuda() for tensor in chain.tensors])
    torch.testing.assert_close(there(random(5).cuda()).cpu(), chain(random(5)))
