"""An environment in which no Julia is chosen."""

import os
import sys

import pytest

from .fakes import use_juliacall


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """No Julia is chosen, and juliacall 0.9.30 and juliapkg are installed."""
    use_juliacall(monkeypatch, tmp_path / "site")
    for option in ("exe", "project", "home", "threads", "handle-signals"):
        monkeypatch.delitem(sys._xoptions, f"juliacall-{option}", raising=False)
    return {"PATH": os.defpath, "SUBDEQ_CONFIG": str(tmp_path / "config.json")}
