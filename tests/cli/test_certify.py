"""`subdeq certify`: what it looks at, its exit codes, its JSON, and what it says of a checkpoint that was changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from subdeq_plugin.cli.main import app
from subdeq_plugin.errors import CheckpointError, DataError, OptionError
from tests.training.stored import make, rewrite, weight_bytes

SIGNED = {"weight": "signed", "shift": 1.2}


def certify(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["certify", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def proven(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("proven") / "a.safetensors"
    make(path)
    return path


@pytest.fixture(scope="module")
def partly(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("partly") / "a.safetensors"
    make(path, 2.8, 10.0, **SIGNED)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """Not proven for every input, but for each of the images."""
    path = tmp_path_factory.mktemp("single") / "a.safetensors"
    make(path, 1.4, 10.0, **SIGNED)
    return path


def content(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_proven_for_every_input(proven, tmp_path):
    result = certify(proven, "--limit", 40, "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    assert "the stored certificate was verified" in result.output
    assert "PROVEN: exactly one fixed point (theorem A)" in result.output
    found = content(tmp_path / "c.json")
    assert found["proven"] is True and found["certificate"]["unique"] and found["advice"] == []
    assert found["stored_certificate"]["void"] is False
    assert found["survey"]["samples"] == found["survey"]["samples_proven"] == 40
    assert found["survey"]["conditions"] == {"A": 40}
    assert found["largest_guaranteed_error"] == found["survey"]["errors"]["thompson"]["1"]
    assert 0 <= found["test_accuracy"] <= 1


def test_proven_for_every_image_looked_at(single, tmp_path):
    result = certify(single, "--limit", 40, "--json", tmp_path / "c.json")
    found = content(tmp_path / "c.json")
    assert found["certificate"]["unique"] is False
    assert found["survey"]["samples_proven"] == 40
    assert result.exit_code == 0 and found["proven"] is True
    assert "every test image: distance of the computed state" in result.output
    assert "to prove it for every input, one of:" in result.output


def test_not_proven_for_some_images(partly, tmp_path):
    result = certify(partly, "--limit", 60, "--json", tmp_path / "c.json")
    found = content(tmp_path / "c.json")
    assert result.exit_code == 1 and found["proven"] is False
    counted = found["survey"]
    assert 0 < counted["samples_proven"] < counted["samples"] == 60
    assert sum(counted["conditions"].values()) == 60
    assert counted["conditions"]["not proven"] == 60 - counted["samples_proven"] == counted["without_bound"]
    assert "largest_guaranteed_error" not in found
    assert f"{counted['samples_proven']} of 60 test images proven" in result.output
    assert found["advice"] and all(item["text"] in result.output for item in found["advice"])


def test_without_data_the_advice_is_printed(partly, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(partly.read_bytes())
    rewrite(path, lambda header: header["config"].update(dataset="mnist"))
    result = certify(path)
    assert result.exit_code == 1
    assert "single images may be provable: give --data-root" in result.output
    assert "multiply the state weight by" in result.output


def test_the_conditions_can_be_chosen(single, tmp_path):
    result = certify(single, "--limit", 5, "--conditions", "norm, monotone", "--json", tmp_path / "c.json")
    checks = content(tmp_path / "c.json")["certificate"]["checks"]
    assert {check["condition"] for check in checks} == {"norm", "monotone"}
    assert result.exit_code in (0, 1)
    certify(single, "--limit", 5, "--conditions", "all", "--json", tmp_path / "c.json")
    found = content(tmp_path / "c.json")["certificate"]
    assert found["skipped"] == [] and len({check["condition"] for check in found["checks"]}) >= 9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--limit", 0), OptionError, "--limit must be at least 1, got 0"),
        (("--conditions", "nrm"), OptionError, "did you mean 'norm'"),
        (("--data", "digit"), OptionError, "did you mean 'digits'"),
        (("--data", "mnist"), DataError, "--data-root"),
        (("--json", "{file}/c.json"), DataError, "cannot be written"),
        (("--report", "{file}/c.html"), DataError, "cannot be written"),
    ],
)
def test_bad_arguments(proven, tmp_path, arguments, error, message):
    (tmp_path / "file").write_text("not a folder")
    given = [str(part).replace("{file}", str(tmp_path / "file")) for part in arguments]
    result = certify(proven, *given, *(() if "--limit" in given else ("--limit", 3)))
    assert isinstance(result.exception, error) and message in str(result.exception)


def test_data_that_do_not_fit(tmp_path):
    path = tmp_path / "a.safetensors"
    make(path)
    rewrite(path, lambda header: header.update(image_shape=[1, 4, 16]))
    result = certify(path, "--data", "digits")
    assert isinstance(result.exception, OptionError) and "images of shape (1, 8, 8)" in str(result.exception)


def test_changed_weights_void_the_stored_certificate(proven, tmp_path):
    path = tmp_path / "a.safetensors"
    raw = bytearray(proven.read_bytes())
    raw[weight_bytes(proven, "model.deq.layer.injection.weight")[0]] ^= 1
    path.write_bytes(raw)
    result = certify(path, "--limit", 3, "--json", tmp_path / "c.json")
    assert "the stored certificate is void: the weights were changed since" in result.output
    assert "PROVEN: exactly one fixed point" in result.output and result.exit_code == 0
    assert content(tmp_path / "c.json")["stored_certificate"]["void"] is True


def test_a_false_claim_does_not_reach_the_verdict(partly, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(partly.read_bytes())
    rewrite(path, lambda header: header["certificate"].update(unique=True, theorem="A", rate=0.5))
    result = certify(path, "--limit", 60, "--json", tmp_path / "c.json")
    assert result.exit_code == 1 and "void" in result.output and "NOT PROVEN" in result.output
    assert content(tmp_path / "c.json")["certificate"]["unique"] is False


@pytest.mark.filterwarnings("ignore::subdeq_plugin.errors.ConvergenceWarning")
def test_weights_that_are_no_numbers(proven, tmp_path):
    path = tmp_path / "a.safetensors"
    raw = bytearray(proven.read_bytes())
    begin, _ = weight_bytes(proven, "model.deq.layer.parametrizations.weight.original")
    raw[begin : begin + 4] = torch.tensor([float("nan")]).numpy().tobytes()
    path.write_bytes(raw)
    result = certify(path, "--limit", 3, "--report", tmp_path / "c.html", "--json", tmp_path / "c.json")
    assert result.exit_code == 1 and "NaN" in result.output
    assert content(tmp_path / "c.json")["survey"]["samples_proven"] == 0
    assert "<!DOCTYPE html>" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_a_truncated_file(proven, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(proven.read_bytes()[:-20])
    result = certify(path)
    assert isinstance(result.exception, CheckpointError) and "a.safetensors" in str(result.exception)


def test_exit_codes_of_the_process(proven, partly, tmp_path):
    """As the shell sees them; and without matplotlib only the report is refused."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from subdeq_plugin.cli.main import run\n"
        "sys.argv = ['subdeq', 'certify', *sys.argv[1:]]\nrun()\n"
    )

    def process(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )

    assert process(proven, "--limit", 5).returncode == 0
    assert process(partly, "--limit", 60).returncode == 1
    refused = process(proven, "--limit", 5, "--report", tmp_path / "r.html")
    assert refused.returncode == 2 and "subdeq-plugin[plot]" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "r.html").exists()


def test_gradients_and_radii(proven, tmp_path):
    """What the command prints is in the JSON; nothing is promised without images or in an unknown norm."""
    path = tmp_path / "g.json"
    result = certify(proven, "--limit", 12, "--gradients", 8, "--robust", "l2", "--json", path)
    assert result.exit_code == 0, result.output
    assert "gradient of the mean loss over 8 images, weight: off by at most" in result.output
    assert "of 12 images have a certified l2 radius" in result.output
    found = content(path)
    assert [item["tensor"] for item in found["gradients"]] == ["weight", "injection"]
    assert all(0 < item["error"] < 0.05 * item["largest"] + 1e-4 for item in found["gradients"])
    assert 0 < found["robustness"]["certified"] <= 12 and found["robustness"]["radii"]["1"] > 0
    assert isinstance(certify(proven, "--limit", 2, "--robust", "l7").exception, OptionError)
