"""Fixtures that build the layer and the input of a `LayerCase`, for the contracts that run over many of them."""

from __future__ import annotations

import pytest


class FromCase:
    """Mixed in before a contract; the class supplies the fixture `case`."""

    @pytest.fixture
    def layer(self, case):
        return case.layer()

    @pytest.fixture
    def x(self, layer, case):
        return case.input()
