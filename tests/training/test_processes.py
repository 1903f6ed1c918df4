"""Two processes train one model: they share the work and report once."""

import json
import os
import subprocess
import sys


def test_two_processes_report_once_and_learn(tmp_path):
    command = [sys.executable, "-m", "subdeq_plugin", "train", "digits", "--epochs", "2", "--units", "16"]
    command += ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--precision", "64-true"]
    command += ["--out", str(tmp_path), "--json", str(tmp_path / "result.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("PROVEN") == 1
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["certificate"]["unique"]
    assert content["history"][-1]["loss"] < content["history"][0]["loss"]
    assert content["test_accuracy"] > 0.6
    assert (tmp_path / "picture.png").is_file()
