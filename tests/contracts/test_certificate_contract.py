"""The certificate contract for every kind, normalisation, grouping, injection and parametrization."""

from __future__ import annotations

import pytest

from subdeq_plugin.activations import register_activation
from tests.contracts.cases import FromCase
from tests.contracts.certificate_contract import CertificateContract
from tests.helpers import LayerCase, layer_cases

register_activation("certificate_swish", lambda t: t * t.sigmoid())
register_activation("certificate_falling", lambda t: (-t).sigmoid())


class TestEveryLayer(FromCase, CertificateContract):
    @pytest.fixture(params=list(layer_cases()), ids=str)
    def case(self, request) -> LayerCase:
        return request.param

    def test_theorem_metric_and_factor(self, case, certificate):
        whole = case.over == "state"
        if case.normalize is None:
            expected = ("A", "thompson", 1)
        elif whole:
            expected = ("B", "hilbert", 1)
        else:
            expected = ("B", "thompson", 2)
        factor = certificate.rate / certificate.mu
        assert (certificate.theorem, certificate.metric, factor) == expected


class TestOtherActivations(FromCase, CertificateContract):
    @pytest.fixture(
        params=[
            LayerCase("dense", None, activation="softplus", shift=0.0, power=0.5),
            LayerCase("dense", None, activation="softplus", shift=-0.5, power=0.5),
            LayerCase("dense", "inf", activation="relu", shift=0.0, power=0.9),
            LayerCase("dense", 2, activation="relu", shift=0.0, power=-0.4),
            LayerCase("dense", 1, activation="elu", shift=0.0, power=0.8, injection="inside"),
            LayerCase("conv", None, activation="hardtanh", shift=0.2),
            LayerCase("conv", 2, activation="sigmoid", shift=-0.3, injection="inside"),
            LayerCase("graph", None, activation="leaky_relu", shift=0.0, power=-0.9, injection="inside"),
            LayerCase("mixing graph", 3, "node", activation="erf", shift=0.4, power=0.6),
            LayerCase("mixing graph", 1, activation="softsign", shift=0.01),
        ],
        ids=lambda case: f"{case}-{case.activation}",
    )
    def case(self, request) -> LayerCase:
        return request.param


class TestUserActivations(FromCase, CertificateContract):
    @pytest.fixture(
        params=[
            LayerCase("dense", None, activation="certificate_swish", shift=0.3, power=0.6),
            LayerCase("dense", 2, activation="certificate_swish", shift=0.3, power=0.6),
            LayerCase("dense", "inf", activation="certificate_falling", shift=1.0),
        ],
        ids=lambda case: f"{case}-{case.activation}",
    )
    def case(self, request) -> LayerCase:
        return request.param
