"""What every piece of a chain must satisfy. A concrete suite supplies the fixtures `piece`, `sizes` and `exact`."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import subdeq_plugin as sd
from subdeq_plugin.certificates.verified import gamma
from subdeq_plugin.perron import Piece

Exact = Callable[[list[mp.mpf]], list[mp.mpf]]


def positive(*shape: int, seed: int, spread: float = 2.0) -> Tensor:
    """Random numbers over `exp(-spread)` to `exp(spread)`."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1)).exp()


class PieceContract:
    """Degrees, order, derivatives, rates, curvature and rounding errors."""

    @pytest.fixture
    def piece(self) -> Piece:
        """The piece under test, with float64 tensors."""
        raise NotImplementedError

    @pytest.fixture
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the blocks of its arguments, and of its values."""
        raise NotImplementedError

    @pytest.fixture
    def exact(self) -> Exact:
        """The same function of numbers of mpmath."""
        raise NotImplementedError

    def vectors(self, sizes, count: int, seed: int, spread: float = 2.0) -> Tensor:
        return positive(count, sum(sizes[0]), seed=seed, spread=spread)

    def test_values_are_right_to_as_many_roundings_as_it_says(self, piece, sizes, exact):
        for z in self.vectors(sizes, 20, seed=0, spread=20.0):
            with mp.workdps(60):
                true = exact([mp.mpf(float(entry)) for entry in z])
                errors = [abs(mp.mpf(float(a)) / b - 1) for a, b in zip(piece(z), true, strict=True)]
                assert max(errors) <= gamma(piece.roundings(0))

    def test_batches_of_any_shape(self, piece, sizes):
        z = self.vectors(sizes, 6, seed=1)
        image = piece(z)
        assert image.shape == (6, sum(sizes[1]))
        torch.testing.assert_close(piece(z.view(2, 3, -1)), image.view(2, 3, -1))
        torch.testing.assert_close(piece(z[0]), image[0])

    def test_the_degrees(self, piece, sizes):
        z, scale = self.vectors(sizes, 1, seed=2), positive(len(sizes[0]), seed=3)
        sign = -1 if piece.reverses else 1
        powers = (sign * piece.degrees @ scale.log()).exp()
        stretched = piece(z * scale.repeat_interleave(torch.tensor(sizes[0])))
        torch.testing.assert_close(stretched, piece(z) * powers.repeat_interleave(torch.tensor(sizes[1])))

    def test_it_preserves_the_order_or_reverses_it(self, piece, sizes):
        z = self.vectors(sizes, 30, seed=4)
        larger = z * (1 + positive(*z.shape, seed=5))
        below, above = (piece(larger), piece(z)) if piece.reverses else (piece(z), piece(larger))
        assert bool((below <= above).all())

    def test_derivatives(self, piece, sizes):
        z = self.vectors(sizes, 2, seed=6)
        assert gradcheck(piece, (z.clone().requires_grad_(),), atol=1e-5, rtol=1e-4)
        jacobian, image = piece.linearize(z), piece(z)
        v, u = positive(*z.shape, seed=7), positive(*image.shape, seed=8)
        size = 1e-6
        quotient = (piece(z + size * v) - piece(z - size * v)) / (2 * size)
        torch.testing.assert_close(jacobian.jvp(v), quotient, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close((jacobian.vjp(u) * v).sum(), (jacobian.jvp(v) * u).sum())

    def test_elasticities(self, piece, sizes):
        z = self.vectors(sizes, 2, seed=9)
        image = piece(z)
        elasticity = piece.elasticity(z, image)
        w = positive(*z.shape, seed=10)
        torch.testing.assert_close((elasticity @ w[:, :, None])[:, :, 0], piece.linearize(z).jvp(z * w) / image)
        sign = -1 if piece.reverses else 1
        assert bool((sign * elasticity >= 0).all())
        rows = piece.degrees.sum(dim=1).repeat_interleave(torch.tensor(sizes[1]))
        torch.testing.assert_close((sign * elasticity).sum(dim=2), rows.expand(2, -1))

    def test_hilbert_distances_grow_by_its_rates_at_most(self, piece, sizes):
        for seed in range(60):
            x, y = (self.vectors(sizes, 1, seed=100 + 2 * seed + k, spread=6.0) for k in (0, 1))
            before, after = (
                torch.stack([sd.hilbert(a, b)[0] for a, b in zip(u.split(parts, 1), v.split(parts, 1), strict=True)])
                for u, v, parts in ((x, y, list(sizes[0])), (piece(x), piece(y), list(sizes[1])))
            )
            assert bool((after <= piece.rates @ before * (1 + 1e-12) + 1e-12).all())

    def test_elasticities_change_by_its_curvature_at_most(self, piece, sizes):
        if piece.curvature == math.inf:
            return  # it has kinks, and says so
        z = self.vectors(sizes, 1, seed=11)
        before = piece.elasticity(z, piece(z)).abs()
        for seed, radius in enumerate((1e-3, 0.1, 1.0)):
            moved = z * positive(*z.shape, seed=12 + seed, spread=radius)
            after = piece.elasticity(moved, piece(moved)).abs()
            most = math.exp(piece.curvature * radius) * (1 + 1e-12)
            assert bool((after <= before * most).all() and (before <= after * most).all())

    def test_its_tensors_can_be_replaced_and_are_differentiable(self, piece, sizes):
        z = self.vectors(sizes, 2, seed=15)
        same = piece.with_tensors([tensor.clone() for tensor in piece.tensors])
        torch.testing.assert_close(same(z), piece(z), rtol=0, atol=0)
        if piece.tensors:
            parameters = tuple(tensor.clone().requires_grad_() for tensor in piece.tensors)
            assert gradcheck(lambda *tensors: piece.with_tensors(tensors)(z), parameters, atol=1e-5, rtol=1e-4)

    def test_defects(self, piece):
        assert piece.defect == ""
        for value in (-1.0, math.nan, math.inf):
            for index, tensor in enumerate(piece.tensors):
                broken = tensor.clone()
                broken.view(-1)[0] = value
                others = list(piece.tensors)
                others[index] = broken
                assert piece.with_tensors(others).defect
