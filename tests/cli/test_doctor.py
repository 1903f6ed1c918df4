"""`subdeq doctor`, with Julias that only look like it."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from subdeq_plugin.cli.main import run
from subdeq_plugin.errors import BridgeError

from ..bridge.fakes import answers, fake_julia, fake_juliacall, fake_project, use_juliacall

ROOT = Path(__file__).parents[2]
VARIABLES = ("SUBDEQ_JULIA_EXE", "SUBDEQ_JULIA_PROJECT", "PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT")


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """Runs the command in this process: its exit code, what it prints, and how often it started Julia."""
    use_juliacall(monkeypatch, tmp_path / "site")
    for name in (*VARIABLES, "PYTHON_JULIACALL_BINDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUBDEQ_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("COLUMNS", "60")
    starts = []

    def command(*arguments, probe=lambda: {"seconds": 2.0, "threads": 1}):
        runtime = types.ModuleType("subdeq_plugin.bridge.runtime")
        runtime.probe = lambda: starts.append(1) or probe()
        monkeypatch.setitem(sys.modules, "subdeq_plugin.bridge.runtime", runtime)
        monkeypatch.setattr(sys, "argv", ["subdeq", "doctor", *map(str, arguments)])
        starts.clear()
        with pytest.raises(SystemExit) as caught:
            run()
        out, err = capsys.readouterr()
        return types.SimpleNamespace(code=caught.value.code, out=out, err=err, starts=len(starts))

    return command


@pytest.fixture
def julia(tmp_path):
    """Executable and project of a Julia that has everything."""
    return fake_julia(tmp_path / "julia", answers()), fake_project(tmp_path / "project")


def test_a_choice_is_saved_used_and_forgotten(doctor, julia, tmp_path):
    exe, project = julia
    first = doctor("--use-julia", exe, "--project", project)
    assert first.code == 0 and first.starts == 1 and first.err == ""
    assert first.out.splitlines()[0] == f"saved in {tmp_path / 'config.json'}"
    lines = first.out.splitlines()[1:]
    assert all(line.startswith("[ok] ") for line in lines)
    assert "[ok] route        chosen with `subdeq doctor --use-julia`" in lines
    assert f"[ok] executable   {exe}" in lines and lines[-1] == "[ok] start        2.0 s, threads 1"

    later = doctor("--no-start")
    assert later.code == 0 and later.starts == 0 and f"[ok] project      {project}" in later.out.splitlines()

    gone = doctor("--forget")
    assert gone.out.splitlines()[0] == f"forgotten in {tmp_path / 'config.json'}"
    assert "left to juliapkg" in gone.out and not (tmp_path / "config.json").exists()
    assert doctor("--forget").out.splitlines()[0] == f"nothing is saved in {tmp_path / 'config.json'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--use-julia", "julia"], "OptionError: --use-julia needs --project: give --use-julia EXE --project DIR."),
        (["--project", "."], "OptionError: --project needs --use-julia: give --use-julia EXE --project DIR."),
        (["--use-julia", "julia", "--project", ".", "--forget"], "--forget and --use-julia contradict each other"),
        (["--use-julia", "/absent/julia", "--project", "."], "BridgeError: --use-julia is '/absent/julia', which does"),
    ],
)
def test_wrong_arguments_end_in_one_line(doctor, tmp_path, arguments, message):
    result = doctor(*arguments)
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1
    assert result.out == "" and not (tmp_path / "config.json").exists()


def test_what_is_not_well_has_its_remedy_below_and_stops_the_start(doctor, julia):
    exe, project = julia
    fake_julia(exe.parent, answers(package="Krylov\t\t0.10\t"))
    result = doctor("--use-julia", exe, "--project", project)
    lines = result.out.splitlines()
    place = lines.index("[NO] packages     missing: Krylov")
    assert lines[place + 1].strip() == f"remedy: {exe} --project={project} -e 'using Pkg; Pkg.add([\"Krylov\"])'"
    assert result.code == 1 and result.starts == 0


def test_a_failed_start_is_reported(doctor, julia):
    def fail():
        raise BridgeError("no [PythonCall] here")

    exe, project = julia
    result = doctor("--use-julia", exe, "--project", project, probe=fail)
    assert result.code == 1 and result.out.splitlines()[-1] == "[NO] start        no [PythonCall] here"


def test_a_damaged_file_is_reported(doctor, tmp_path):
    (tmp_path / "config.json").write_text("{")
    result = doctor()
    assert result.code == 1 and "config.json is not JSON" in result.out
    assert doctor("--forget").code == 2


def test_json_is_one_object(doctor, julia):
    exe, project = julia
    result = doctor("--use-julia", exe, "--project", project, "--json")
    content = json.loads(result.out)
    assert result.code == 0 and content["ok"] is True and content["started"] == {"seconds": 2.0, "threads": 1}
    assert {"name": "executable", "ok": True, "value": str(exe), "remedy": ""} in content["findings"]
    assert result.err.startswith("saved in ")

    fake_julia(exe.parent, answers(julia="1.9.0"))
    result = doctor("--json")
    content = json.loads(result.out)
    assert result.code == 1 and content["ok"] is False and content["started"] is None
    assert [finding["value"] for finding in content["findings"] if not finding["ok"]] == ["Julia 1.9.0 is too old"]


def test_json_stays_clean_whatever_is_printed_meanwhile(julia, tmp_path):
    exe, project = julia
    site = fake_juliacall(tmp_path / "site")
    code = (
        "import os, sys, types\n"
        "runtime = types.ModuleType('subdeq_plugin.bridge.runtime')\n"
        "runtime.probe = lambda: (os.write(1, b'precompiling\\n'), print('resolving'), {'seconds': 1.0})[2]\n"
        "from subdeq_plugin.cli.main import run\n"
        "sys.modules['subdeq_plugin.bridge.runtime'] = runtime\n"
        "sys.argv = ['subdeq', 'doctor', '--json']\n"
        "run()\n"
    )
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "SUBDEQ_JULIA_EXE": str(exe), "SUBDEQ_JULIA_PROJECT": str(project), "PYTHONPATH": path}
    env["PYTHONUNBUFFERED"] = ""  # what is printed late must not end up in the output either
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["started"] == {"seconds": 1.0}
    assert "precompiling" in result.stderr and "resolving" in result.stderr


def test_help_is_given_without_looking_for_julia(doctor):
    result = doctor("--help")
    assert result.code == 0 and "--use-julia" in result.out and result.starts == 0


@pytest.mark.julia
def test_a_real_julia_is_started(tmp_path):
    command = [sys.executable, "-m", "subdeq_plugin", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    content = json.loads(result.stdout)
    assert result.returncode == 0, (content, result.stderr)
    assert content["started"]["threads"] >= 1 and content["started"]["seconds"] > 0
