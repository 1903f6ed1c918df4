"""The commands as a user runs them: in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def subdeq(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "subdeq_plugin", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("run")
    result = subdeq(
        "train", "digits", "--epochs", 3, "--units", 30, "--out", out, "--json", out / "deep" / "result.json"
    )
    return out, result


def test_train_prints_the_proof_and_writes_everything(run):
    out, result = run
    assert result.returncode == 0, result.stderr
    assert "PROVEN: exactly one fixed point (theorem A)" in result.stdout
    assert (out / "checkpoint.safetensors").is_file() and (out / "picture.png").is_file()
    content = json.loads((out / "deep" / "result.json").read_text())
    for key in ("test_accuracy", "epochs", "seconds_per_epoch", "forward_iterations", "backward_iterations"):
        assert content[key] > 0, key
    assert content["epochs"] == 3 and content["certificate"]["unique"] is True
    assert content["largest_guaranteed_error"] < 2e-4


def test_certify_and_its_exit_codes(run, tmp_path):
    out, _ = run
    proven = subdeq("certify", out / "checkpoint.safetensors", "--json", tmp_path / "c.json")
    assert proven.returncode == 0, proven.stderr
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["certificate"]["theorem"] == "A" and content["largest_guaranteed_error"] < 2e-4

    signed = subdeq(
        "train", "digits", "--epochs", 3, "--units", 16, "--weight", "signed", "--shift", 1.2, "--out", tmp_path / "s"
    )
    assert signed.returncode == 0, signed.stderr
    assert "NOT PROVEN" in signed.stdout and "smallest weight" in signed.stdout
    assert subdeq("certify", tmp_path / "s" / "checkpoint.safetensors").returncode == 1

    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    corrupt = subdeq("certify", tmp_path / "x.safetensors")
    assert corrupt.returncode == 2
    assert "CheckpointError" in corrupt.stderr and "Traceback" not in corrupt.stderr


def test_resume_takes_the_settings_of_the_checkpoint(run, tmp_path):
    out, _ = run
    longer = subdeq(
        "train", "digits", "--resume", out / "checkpoint.safetensors", "--epochs", 4, "--out", tmp_path, "--json",
        tmp_path / "r.json",
    )  # fmt: skip
    assert longer.returncode == 0, longer.stderr
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["epochs"] == 4 and content["config"]["units"] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "digit"), "did you mean 'digits'"),
        (("train", "mnist"), "--data-root"),
        (("train", "digits", "--activation", "tanhh"), "did you mean 'tanh'"),
        (("train", "digits", "--shift", "-0.5"), "shift=-0.5"),
        (("train", "digits", "--normalize", "two"), "--normalize"),
        (("train", "digits", "--f-solver", "subdeq:andersen"), "did you mean 'subdeq:anderson'"),
        (("train", "digits", "--f-solver", "subdeq:anderson?memry=3"), "did you mean 'memory'"),
        (("train", "digits", "--devices", "none"), "--devices"),
        (("train", "digits", "--epochs", "0"), "epochs must be at least 1"),
        (("certify", "absent.safetensors"), "no checkpoint"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(arguments, message, tmp_path):
    extra = ("--out", tmp_path) if arguments[0] == "train" else ()
    result = subdeq(*arguments, *extra)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_the_commands():
    result = subdeq("--help")
    assert result.returncode == 0
    assert "train" in result.stdout and "certify" in result.stdout


def test_messages_are_printed_as_they_are(tmp_path):
    for name in ("[/foo]", "x[train]y"):
        result = subdeq("certify", tmp_path / name)
        assert result.returncode == 2 and name in result.stderr and "Traceback" not in result.stderr


def test_a_missing_matplotlib_costs_the_picture_only(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "from subdeq_plugin.cli.main import run\n"
        f"sys.argv = ['subdeq', 'train', 'digits', '--epochs', '1', '--units', '8', '--out', {str(tmp_path)!r}, "
        f"'--json', {str(tmp_path / 'r.json')!r}]\n"
        "run()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "PROVEN" in result.stdout and "no picture" in result.stdout and "[plot]" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["certificate"]["unique"]


def test_certify_json_carries_the_run(run, tmp_path):
    out, _ = run
    subdeq("certify", out / "checkpoint.safetensors", "--json", tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    trained = json.loads((out / "deep" / "result.json").read_text())
    for key in ("test_accuracy", "epochs", "seconds_per_epoch", "forward_iterations", "backward_iterations"):
        assert content[key] == trained[key], key
