"""Tests marked `julia` run where a Julia was chosen, and say why they are skipped where none was."""

from __future__ import annotations

import functools

import pytest

from subdeq_plugin.bridge.config import find_route
from subdeq_plugin.errors import BridgeError


@functools.cache
def _missing_julia() -> str:
    """Why there is no Julia, or nothing. A Julia that was chosen but does not work is no reason to skip."""
    try:
        route = find_route()
    except BridgeError as error:
        return f"no Julia: {str(error).splitlines()[0]}"
    return "" if route.offline else "no Julia was chosen (juliapkg would download one): subdeq doctor --use-julia"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("julia") and _missing_julia():
        pytest.skip(_missing_julia())
