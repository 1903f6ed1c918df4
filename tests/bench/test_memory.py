"""Peaks against bytes counted by hand; floats have 4 bytes here, doubles 8."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from subdeq_plugin.bench import peak_memory
from subdeq_plugin.layers.sparse import csr

X = torch.arange(1000, dtype=torch.float32)


def test_what_lives_at_the_same_time_is_added():
    def chain() -> torch.Tensor:
        a = X + 1  # 4000
        b = a * 2  # 8000
        del a  # 4000
        return torch.cat([b, b])  # 12000

    assert peak_memory(chain) == 12_000


def test_what_was_freed_makes_room():
    def loop() -> torch.Tensor:
        z = X + 1
        for _ in range(50):
            z = z * 0.5  # old and new for a moment
        return z

    assert peak_memory(loop) == 8_000


def test_inputs_views_and_changes_in_place_are_free():
    given = torch.ones(10, 100)

    def work() -> torch.Tensor:
        view = given.view(-1)[:500]
        view.add_(1)
        given.mul_(2)
        return given.t()

    assert peak_memory(work) == 0
    assert peak_memory(lambda: given.detach().reshape(100, 10).unbind()) == 0


def test_a_view_keeps_its_storage_alive():
    def work() -> torch.Tensor:
        a = (X + 1)[:1]  # all of 4000 stay
        return a + torch.zeros(250)  # 4000 + 1000 + 1000

    assert peak_memory(work) == 6_000


def test_fresh_constants_count_and_meta_tensors_do_not():
    assert peak_memory(lambda: torch.tensor([1.0, 2.0, 3.0])) == 12
    assert peak_memory(lambda: torch.empty(1000, dtype=torch.float64)) == 8_000
    assert peak_memory(lambda: torch.empty(1000, device="meta") + 1) == 0


def test_a_resized_storage():
    def work() -> torch.Tensor:
        a = torch.empty(10)
        a.resize_(100)
        a.resize_(50)  # torch keeps the memory
        return a

    assert peak_memory(work) == 400


def test_backward_passes_are_seen():
    weight = torch.ones(100, 100, requires_grad=True)

    def work() -> tuple[torch.Tensor, ...]:
        y = weight * 2  # 40000, freed by nobody
        return torch.autograd.grad(y.square().sum(), weight)

    forward = 2 * 40_000  # y and its square; the sum has 4 bytes
    assert peak_memory(lambda: (weight * 2).square()) == forward
    assert forward < peak_memory(work) <= 5 * 40_000


def test_a_sparse_matrix_is_its_three_arrays():
    rows, columns = torch.arange(5), torch.arange(5)

    def work() -> torch.Tensor:
        return csr(rows, columns, torch.ones(5, dtype=torch.float64), 5)

    matrix = work()
    kept = 8 * (6 + 5 + 5)  # row starts, columns, values
    assert sum(part.untyped_storage().nbytes() for part in (matrix.crow_indices(), matrix.values())) == 8 * 11
    assert peak_memory(work) >= kept
    assert peak_memory(lambda: matrix @ torch.ones(5, 3, dtype=torch.float64)) == 2 * 5 * 3 * 8


def test_numpy_is_seen_if_asked_for():
    ones = np.ones(100_000)

    def work() -> np.ndarray:
        a = ones * 2  # 800 kB
        return a + 1  # 1.6 MB

    assert peak_memory(work) == 0
    assert 0 <= peak_memory(work, numpy=True) - 1_600_000 < 50_000
    assert not tracemalloc.is_tracing()


def test_peaks_of_both_count_only_where_they_meet():
    def work() -> torch.Tensor:
        a = np.ones(100_000)  # 800 kB
        b = a * 2  # 1.6 MB
        del b
        t = torch.from_numpy(a) + 1  # NumPy's 800 kB, seen as a tensor, and torch's 800 kB
        del a
        return t * 2  # torch's alone: 1.6 MB

    assert 0 <= peak_memory(work, numpy=True) - 1_600_000 < 50_000


def test_an_exception_leaves_nothing_on():
    def fail() -> None:
        raise RuntimeError("no")

    for numpy in (False, True):
        with pytest.raises(RuntimeError, match="no"):
            peak_memory(fail, numpy=numpy)
    assert not tracemalloc.is_tracing()
    assert peak_memory(lambda: X + 1) == 4_000


def test_tracing_that_was_on_stays_on():
    tracemalloc.start()
    try:
        peak_memory(lambda: X + 1, numpy=True)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
