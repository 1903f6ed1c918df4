"""The layer contract for every kind, normalisation, grouping, injection and parametrization."""

from __future__ import annotations

import pytest

from tests.contracts.cases import FromCase
from tests.contracts.layer_contract import LayerContract, StepperContract
from tests.helpers import LayerCase, layer_cases


class TestEveryLayer(FromCase, LayerContract):
    @pytest.fixture(params=list(layer_cases()), ids=str)
    def case(self, request) -> LayerCase:
        return request.param


OTHERS = [
    LayerCase("dense", 2, activation="softplus", shift=0.0, power=0.5),
    LayerCase("conv", "inf", "pixel", "inside", activation="sigmoid", shift=0.0),
    LayerCase("graph", 1.5, "node", "inside", activation="arctan", shift=0.3, power=-0.5),
    LayerCase("mixing graph", 7, "channel", "outside", activation="relu6", shift=0.5, power=2.0),
]


class TestOtherActivations(TestEveryLayer):
    @pytest.fixture(params=OTHERS, ids=lambda case: f"{case}-{case.activation}")
    def case(self, request):
        return request.param


class TestSteppers(FromCase, StepperContract):
    @pytest.fixture(params=[*(case for case in layer_cases() if case.nonneg == "abs"), *OTHERS], ids=str)
    def case(self, request) -> LayerCase:
        return request.param


def test_the_cases_cover_every_combination():
    cases = {str(case) for case in layer_cases()}
    assert len(cases) == len(list(layer_cases())) == 8 * (5 + 3 * 13)
