"""`subdeq certify-map` on maps written in a file of the user's own."""

import json
import os
import subprocess
import sys

import pytest

MAPS = """
import torch
from torch import nn
import subdeq_plugin as sd

def proven():
    first = nn.Linear(3, 3)
    with torch.no_grad():
        first.weight.abs_(); first.bias.zero_()
    return nn.Sequential(first, sd.Pointwise("tanh", 0.1), sd.Inject(torch.ones(3))), torch.ones(2, 3)

def several():
    weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    return (lambda z: torch.tanh(z @ weight.T) + 1.2), torch.ones(1, 2, dtype=torch.float64)

def layer():
    return sd.SubhomLinear(2, 3), torch.rand(4, 2)

def alone():
    return 3

NUMBER = 7
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    (folder / "my_maps.py").write_text(MAPS)
    return folder


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "subdeq_plugin", "certify-map", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )


@pytest.mark.parametrize("name", ["proven", "layer"])
def test_a_proof(folder, name):
    result = run(folder, f"my_maps:{name}", "--json", folder / "out.json")
    assert result.returncode == 0, result.stderr
    assert "PROVEN: exactly one fixed point (theorem A)" in result.stdout
    assert json.loads((folder / "out.json").read_text())["certificate"]["unique"] is True


def test_evidence_against_uniqueness(folder):
    result = run(folder, "my_maps:several", "--starts", 64, "--json", folder / "several.json")
    assert result.returncode == 1, result.stderr
    assert "NOT PROVEN" in result.stdout and "3 different fixed points found" in result.stdout
    search = json.loads((folder / "several.json").read_text())["search"]
    assert search["refuted"] is True and len(search["solutions"]) == 3
    assert "search" not in run(folder, "my_maps:several", "--starts", 0).stdout.split("\n")[-2]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_maps", "MODULE:FUNCTION"),
        ("my_maps:not there", "MODULE:FUNCTION"),
        ("no_such_module:f", "cannot be imported"),
        ("my_maps:absent", "no function 'absent'"),
        ("my_maps:NUMBER", "no function 'NUMBER'"),
        ("my_maps:alone", "must return a pair"),
    ],
)
def test_errors(folder, target, message):
    result = run(folder, target)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
