"""The Perron pair as a module."""

from __future__ import annotations

import copy

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.errors import ConvergenceError, ConvergenceWarning, OptionError


def random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.05


def test_what_comes_out():
    matrices = random(3, 6, 6)
    expected = sd.perron(matrices, side="left", normalize=2)
    vector = sd.layers.Perron(side="left", normalize=2)(matrices)
    torch.testing.assert_close(vector, expected.eigenvector, rtol=0, atol=0)
    value, vector = sd.layers.Perron("both", side="left", normalize=2)(matrices)
    torch.testing.assert_close(value, expected.eigenvalue, rtol=0, atol=0)
    assert sd.layers.Perron("eigenvalue")(matrices).shape == (3,)


def test_training_through_it():
    torch.manual_seed(0)
    logits = torch.nn.Parameter(torch.randn(6, 6))
    target = torch.softmax(torch.arange(6.0), dim=0)
    module = sd.layers.Perron()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (module(logits.exp()) - target).square().sum()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-2 * losses[0]
    assert module.result is not None
    assert not module.result.eigenvector.requires_grad
    copy.deepcopy(module)


def test_failures():
    path = torch.diag(torch.ones(99, dtype=torch.float64), 1) + torch.diag(torch.ones(99, dtype=torch.float64), -1)
    options = {"method": "power", "max_iter": 3}
    with pytest.raises(ConvergenceError, match="raise max_iter"):
        sd.layers.Perron(on_failure="raise", **options)(path)
    with pytest.warns(ConvergenceWarning, match="not as accurate"):
        sd.layers.Perron(**options)(path)
    sd.layers.Perron(on_failure="ignore", **options)(path)
    for keywords, message in (
        ({"output": "eigenvectr"}, "did you mean 'eigenvector'"),
        ({"on_failure": "stop"}, "unknown on_failure"),
        ({"toll": 1e-3}, "did you mean 'tol'"),
        ({"side": "both"}, "use two of them"),
    ):
        with pytest.raises(OptionError, match=message):
            sd.layers.Perron(**keywords)
    with pytest.raises(AttributeError, match="no attribute 'Peron'"):
        sd.layers.Peron  # noqa: B018
