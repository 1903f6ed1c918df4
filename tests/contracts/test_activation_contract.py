"""The activation contract for the whole catalogue and for functions that a user brings."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
from mpmath import mpf

from subdeq_plugin.activations import Activation, activation_names, register_activation
from tests.contracts.activation_contract import ActivationContract
from tests.helpers import SCALARS

CATALOGUE = sorted(SCALARS)
SHIFTS = (0.0, 0.01, 0.1, 1.01, 1.2, 1.603, 10.0)
POWERS = (1.0, 0.5, -0.5, 3.0)

register_activation("contract_swish", lambda t: t * t.sigmoid())
register_activation("contract_falling", lambda t: (-t).sigmoid())
register_activation(
    "contract_pieces", pieces=[(-math.inf, 0.0, lambda t: 0 * t), (0.0, math.inf, lambda t: t / (1 + t))]
)
USER = {
    "contract_swish": (
        lambda t: t / (1 + mp.exp(-t)),
        lambda t: 1 / (1 + mp.exp(-t)) + t * mp.exp(-t) / (1 + mp.exp(-t)) ** 2,
        (),
    ),
    "contract_falling": (lambda t: 1 / (1 + mp.exp(t)), lambda t: -mp.exp(t) / (1 + mp.exp(t)) ** 2, ()),
    "contract_pieces": (
        lambda t: t / (1 + t) if t > 0 else mpf(0),
        lambda t: 1 / (1 + t) ** 2 if t > 0 else mpf(0),
        (0.0,),
    ),
}


def test_the_contract_covers_the_whole_catalogue():
    assert {name for name in activation_names() if lookup_is_builtin(name)} == set(CATALOGUE)


def lookup_is_builtin(name: str) -> bool:
    return Activation(name).function.accurate


class TestCatalogue(ActivationContract):
    def real_sharpness(self, activation):
        # softsign approaches -1 slowly; the tail lemma pairs its slope at -64 with that limit.
        return 1.0 if (activation.name, activation.shift) == ("softsign", 1.01) else self.sharp_real

    @pytest.fixture(params=[(n, c, p) for n in CATALOGUE for c in SHIFTS for p in (POWERS if c == 0.1 else (1.0,))])
    def activation(self, request):
        return Activation(*request.param)

    @pytest.fixture
    def scalar(self, activation):
        return SCALARS[activation.name]


class TestNegativeShift(ActivationContract):
    @pytest.fixture(params=[("sigmoid", -0.4), ("softplus", -0.6)])
    def activation(self, request):
        return Activation(*request.param)

    @pytest.fixture
    def scalar(self, activation):
        return SCALARS[activation.name]


class TestUserFunctions(ActivationContract):
    # Without a tail lemma the boxes reach to 2**1022, and the search stops before they are all narrow.
    sharp_positive = sharp_real = 0.02

    @pytest.fixture(
        params=[
            ("contract_swish", 0.5, 0.5),
            ("contract_swish", 1.0, -0.3),
            ("contract_falling", 0.2, 1.0),
            ("contract_pieces", 0.3, 1.0),
        ]
    )
    def activation(self, request):
        return Activation(*request.param)

    @pytest.fixture
    def scalar(self, activation):
        return USER[activation.name]
