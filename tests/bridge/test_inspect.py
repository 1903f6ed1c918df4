"""What doctor finds, of Julias that only look like it and, where there is one, of a real one."""

import os
import re
import sys
import time
import types
from pathlib import Path

import pytest

from subdeq_plugin.bridge import inspect as module
from subdeq_plugin.bridge.inspect import Finding, Report, allows, inspect
from subdeq_plugin.errors import BridgeError

from .fakes import answers, fake_julia, ours

ROOT = Path(__file__).parents[2]


def found(report: Report) -> dict[str, Finding]:
    """Findings by name; no name twice."""
    result = {finding.name: finding for finding in report.findings}
    assert len(result) == len(report.findings)
    return result


def faults(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if not finding.ok]


def forbidden():
    raise AssertionError("Julia must not be started")


@pytest.fixture
def asked(environ, tmp_path):
    """Inspects with a Julia that says this."""

    def run(says: str, then: str = "exit 0", **options) -> Report:
        environ.update(ours(tmp_path))
        fake_julia(tmp_path / "ours", says, then)
        return inspect(environ=environ, **{"starter": forbidden, **options})

    return run


def test_a_julia_that_has_everything(asked, tmp_path):
    facts = {"seconds": 3.21, "threads": 1, "blas_threads": 2, "cuda": "not loaded"}
    report = asked(answers(), starter=lambda: facts)
    assert report.ok and faults(report) == []
    assert {name: finding.value for name, finding in found(report).items()} == {
        "route": "chosen by SUBDEQ_JULIA_EXE and SUBDEQ_JULIA_PROJECT",
        "juliacall": "0.9.30",
        "SubDEQ": str(ROOT / "julia" / "SubDEQ"),
        "executable": str(tmp_path / "ours" / "julia"),
        "project": str(tmp_path / "ours-project"),
        "Julia": "1.10.8",
        "CPU threads": "8",
        "BLAS": "libopenblas64_.so, 2 threads",
        "PythonCall": "0.9.30",
        "Krylov": "0.10.3",
        "CUDA": "not in the project",
        "start": "3.2 s, threads 1, blas threads 2, cuda not loaded",
    }
    assert report.to_dict()["ok"] is True and report.to_dict()["started"] == facts
    assert report.to_dict()["findings"][0] == {
        "name": "route",
        "ok": True,
        "value": report.findings[0].value,
        "remedy": "",
    }


def test_julia_is_asked_once_without_the_network_and_about_our_package(asked, tmp_path):
    asked(answers(), start=False)
    arguments = (tmp_path / "ours" / "arguments").read_text().splitlines()
    assert arguments[:3] == ["--startup-file=no", f"--project={tmp_path / 'ours-project'}", "-e"]
    assert arguments[-1] == str(ROOT / "julia" / "SubDEQ" / "Project.toml")
    environment = (tmp_path / "ours" / "environment").read_text().splitlines()
    assert {"JULIA_PKG_OFFLINE=true", "JULIA_CONDAPKG_BACKEND=Null"} <= set(environment)


def test_nothing_is_started_where_that_is_not_wanted(asked):
    report = asked(answers(), start=False)
    assert report.ok and report.started is None and "start" not in found(report)
    report = asked(answers(), starter=None)
    assert report.ok and report.started is None and "start" not in found(report)


def test_cuda_in_the_project_is_told(asked):
    report = asked(answers(optional="CUDA\t5.8.2\t5\tlisted"), start=False)
    assert found(report)["CUDA"].value == "5.8.2; whether it works is not tried"


def test_missing_packages_come_with_the_command(asked, tmp_path):
    report = asked(answers("package\tKrylovKit\t\t0.10\t", package="Krylov\t\t0.10\t"))
    (fault,) = faults(report)
    assert fault.name == "packages" and fault.value == "missing: Krylov, KrylovKit"
    assert fault.remedy == (
        f"{tmp_path / 'ours' / 'julia'} --project={tmp_path / 'ours-project'} "
        '-e \'using Pkg; Pkg.add(["Krylov", "KrylovKit"])\''
    )
    assert not report.ok and report.started is None


def test_a_missing_pythoncall_is_added_in_the_version_of_juliacall(asked):
    (fault,) = faults(asked(answers(pythoncall="PythonCall\t\t\t")))
    assert fault.value == "missing: PythonCall"
    assert fault.remedy.endswith('-e \'using Pkg; Pkg.add(name="PythonCall", version="0.9.30")\'')


def test_what_is_listed_but_not_installed_is_installed(asked):
    (fault,) = faults(asked(answers(package="Krylov\t\t0.10\tlisted")))
    assert fault.value == "in the project, but not installed: Krylov"
    assert fault.remedy.endswith("-e 'using Pkg; Pkg.instantiate()'")
    # If one of them is not even listed, adding it installs the others.
    (fault,) = faults(asked(answers("package\tNNlib\t\t0.9\t", package="Krylov\t\t0.10\tlisted")))
    assert fault.value == "missing: Krylov, NNlib" and 'Pkg.add(["Krylov", "NNlib"])' in fault.remedy


def test_a_package_of_the_wrong_version(asked):
    (fault,) = faults(asked(answers(package="Krylov\t0.9.10\t0.8, 0.10\tlisted")))
    assert fault.name == "Krylov" and fault.value == "0.9.10, but SubDEQ needs 0.8, 0.10"
    assert 'Pkg.add(name="Krylov", version="0.10")' in fault.remedy


def test_a_pythoncall_of_another_version_than_juliacall(asked):
    (fault,) = faults(asked(answers(pythoncall="PythonCall\t0.9.37\t\tlisted")))
    assert fault.name == "versions" and "PythonCall.jl is 0.9.37 and juliacall 0.9.30" in fault.value
    assert "pip install 'juliacall==0.9.37'" in fault.remedy and 'version="0.9.30")' in fault.remedy


def test_a_julia_that_is_too_old(asked):
    (fault,) = faults(asked(answers(julia="1.9.4")))
    assert fault.value == "Julia 1.9.4 is too old" and "1.10" in fault.remedy


@pytest.mark.parametrize(
    ("says", "then", "value"),
    [
        ("", "echo oops >&2; echo 'ERROR: no TOML' >&2; exit 3", "ended with exit code 3: ERROR: no TOML"),
        ("", "echo oops >&2; exit 1", "ended with exit code 1: oops"),
        (answers(), "exit 1", "ended with exit code 1: subdeq\tjulia\t1.10.8"),
        ("hello\n", "exit 0", "is not Julia; it said: hello"),
        ("", "exit 0", "is not Julia; it said: nothing"),
    ],
)
def test_what_does_not_answer_as_julia_does(asked, tmp_path, says, then, value):
    (fault,) = faults(asked(says, then))
    assert fault.name == "Julia" and fault.value == f"{tmp_path / 'ours' / 'julia'} {value}"
    assert "println(VERSION)" in fault.remedy and "subdeq doctor --use-julia EXE --project DIR" in fault.remedy


def test_noise_among_the_answers_does_not_matter(asked):
    assert asked("A new version is available!\n\n" + answers() + "bye\n", start=False).ok


def test_what_is_no_program_is_reported(environ, tmp_path):
    environ |= ours(tmp_path)
    (tmp_path / "ours" / "julia").write_bytes(b"\x7fELF nonsense")
    (fault,) = faults(inspect(environ=environ, starter=forbidden))
    assert fault.name == "Julia" and "cannot be run" in fault.value


def test_a_julia_that_hangs_is_killed_with_its_children(asked, tmp_path):
    begun = time.monotonic()
    report = asked("", f"sleep 60 & echo $! > '{tmp_path / 'child'}'; wait", timeout=1.0)
    assert time.monotonic() - begun < 30
    (fault,) = faults(report)
    assert "gave no answer within 1 s" in fault.value
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if ended(child):
            break
        time.sleep(0.1)
    assert ended(child)


def ended(process: int) -> bool:
    """Whether it has ended; on Linux, also if nobody has collected it yet."""
    try:
        os.kill(process, 0)
        stat = Path(f"/proc/{process}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_no_way_to_a_julia_is_a_finding(environ, monkeypatch):
    monkeypatch.setitem(sys.modules, "juliacall", None)
    report = inspect(environ=environ, starter=forbidden)
    (fault,) = report.findings
    assert fault.name == "route" and not report.ok and "pip install 'subdeq-plugin[julia]'" in fault.value


def test_missing_sources_are_a_finding(environ, monkeypatch):
    def missing():
        raise BridgeError("the Julia package SubDEQ is nowhere")

    monkeypatch.setattr(module, "sources", missing)
    (fault,) = faults(inspect(environ=environ, starter=forbidden))
    assert (fault.name, fault.value) == ("SubDEQ", "the Julia package SubDEQ is nowhere")


def test_a_failed_start_is_a_finding(asked):
    def fail():
        raise BridgeError("PythonCall did not load")

    report = asked(answers(), starter=fail)
    assert faults(report) == [Finding("start", False, "PythonCall did not load")] and report.started is None


def test_an_error_of_another_kind_is_not_hidden(asked):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asked(answers(), starter=fail)


# juliapkg.


def fake_juliapkg(monkeypatch, meta: Path, resolve, julia: Path | None = None) -> None:
    package = types.ModuleType("juliapkg")
    package.resolve = resolve
    package.executable = lambda: str(julia)
    package.project = lambda: str(julia.parent)
    state = types.ModuleType("juliapkg.state")
    state.STATE = {"meta": str(meta)}
    monkeypatch.setitem(sys.modules, "juliapkg", package)
    monkeypatch.setitem(sys.modules, "juliapkg.state", state)


def test_without_an_environment_juliapkg_is_not_even_asked(environ, monkeypatch, tmp_path):
    def resolve(**_):
        raise AssertionError("juliapkg makes a folder, or downloads")

    fake_juliapkg(monkeypatch, tmp_path / "absent.json", resolve)
    report = inspect(environ=environ, starter=forbidden)
    assert report.ok and report.started is None
    assert found(report)["Julia"].value == "will be found or downloaded at first use, with its packages"


def test_an_environment_out_of_date_is_not_brought_up_to_date(environ, monkeypatch, tmp_path):
    calls = []
    (tmp_path / "meta.json").touch()
    fake_juliapkg(monkeypatch, tmp_path / "meta.json", lambda **options: calls.append(options) or False)
    report = inspect(environ=environ, starter=forbidden)
    assert "downloaded at first use" in found(report)["Julia"].value and calls == [{"dry_run": True}]


def test_an_environment_that_is_there_is_looked_at(environ, monkeypatch, tmp_path):
    (tmp_path / "meta.json").touch()
    julia = fake_julia(tmp_path / "env", answers())
    fake_juliapkg(monkeypatch, tmp_path / "meta.json", lambda **_: True, julia)
    report = inspect(environ=environ, starter=lambda: {"seconds": 1.0})
    values = {finding.name: finding.value for finding in report.findings}
    assert report.ok and values["executable"] == str(julia) and values["start"] == "1.0 s"
    assert "JULIA_PKG_OFFLINE" not in (tmp_path / "env" / "environment").read_text()


def test_trouble_in_juliapkg_is_a_finding(environ, monkeypatch, tmp_path):
    def resolve(**_):
        raise PermissionError("lock.pid")

    (tmp_path / "meta.json").touch()
    fake_juliapkg(monkeypatch, tmp_path / "meta.json", resolve)
    (fault,) = faults(inspect(environ=environ, starter=forbidden))
    assert fault.name == "juliapkg" and "PermissionError: lock.pid" in fault.value


# Versions that a package allows.


@pytest.mark.parametrize(
    ("compat", "version", "allowed"),
    [
        ("", "0.0.1", True),
        ("1.2", "1.2.0", True),
        ("1.2", "1.9.0", True),
        ("1.2", "1.1.9", False),
        ("1.2", "2.0.0", False),
        ("2", "2.7.0", True),
        ("0.10", "0.10.3", True),
        ("0.10", "0.11.0", False),
        ("0.2.4", "0.2.3", False),
        ("0.2.4", "0.2.10", True),
        ("0.0.3", "0.0.3", True),
        ("0.0.3", "0.0.4", False),
        ("0", "0.9.0", True),
        ("0.0", "0.0.9", True),
        ("0.0", "0.1.0", False),
        ("0.8, 0.9, 0.10", "0.9.5", True),
        ("0.8, 0.9, 0.10", "0.7.9", False),
        ("1", "1.11.0-DEV.3", True),
        ("5", "5.0.1+2", True),
    ],
)
def test_versions_are_allowed_by_the_rule_of_julia(compat, version, allowed):
    assert allows(compat, version) is allowed


def test_signs_of_another_rule_are_not_guessed_at():
    with pytest.raises(ValueError):
        allows("~1.2", "1.2.0")


def test_every_entry_of_our_package_can_be_read():
    text = (ROOT / "julia" / "SubDEQ" / "Project.toml").read_text()
    entries = re.findall(r'^\w+ = "(.*)"$', text.partition("[compat]\n")[2].partition("\n[")[0], re.M)
    assert len(entries) > 5
    for entry in entries:
        newest = entry.split(",")[-1].strip()
        assert allows(entry, newest + ".0") and not allows(entry, "99.0.0")


# A real one.


@pytest.mark.julia
def test_a_real_julia_answers():
    report = inspect(start=False)
    assert report.ok, [(finding.name, finding.value, finding.remedy) for finding in faults(report)]
    facts = found(report)
    assert re.fullmatch(r"1\.\d+\.\d+.*", facts["Julia"].value)
    assert int(facts["CPU threads"].value) >= 1 and re.search(r", \d+ threads?$", facts["BLAS"].value)
    for name in ("PythonCall", "NonlinearSolve", "Krylov", "LinearAlgebra"):
        assert re.match(r"\d+\.\d+\.\d+", facts[name].value), name


@pytest.mark.julia
def test_a_real_julia_says_what_an_empty_project_lacks(tmp_path, monkeypatch):
    executable = found(inspect(start=False))["executable"].value
    (tmp_path / "Project.toml").touch()
    environ = {**os.environ, "SUBDEQ_JULIA_EXE": executable, "SUBDEQ_JULIA_PROJECT": str(tmp_path)}
    # Neither the user's default project nor any other may help.
    environ["JULIA_LOAD_PATH"] = "@:@stdlib"
    report = inspect(environ=environ, starter=forbidden)
    packages = found(report)["packages"]
    assert "PythonCall" in packages.value and "NonlinearSolve" in packages.value
    assert "LinearAlgebra" not in packages.value and found(report)["LinearAlgebra"].ok
    assert os.listdir(tmp_path) == ["Project.toml"]
