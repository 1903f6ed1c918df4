"""`subdeq bench`, mostly in this process; where modules of the user's are imported, in one of its own."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from subdeq_plugin.cli.main import app
from subdeq_plugin.errors import CertificateError, DataError, OptionError

QUICK = ("--size", "6x3", "--repetitions", "1", "--backend", "subdeq:auto")


def bench(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_everything_is_written(tmp_path):
    out = tmp_path / "deep"
    output = bench(
        *QUICK, "--backend", "torchdeq:anderson", "--problem", "dense", "--problem", "dense-hard", "--work", "all",
        "--error", "1e-3", "--error", "1e-4", "--json", out / "r.json", "--csv", out / "r.csv", "--plot", out / "plots",
    )  # fmt: skip
    assert "dense 6x3, training, float32 on cpu, error 0.001" in output and "bare products (10)" in output
    content = json.loads((out / "r.json").read_text())
    assert len(content["rows"]) == 2 * 2 * (3 * 2 + 3 + 2 + 2)  # problems, errors, backends and baselines of each work
    assert str(tmp_path) not in json.dumps(content)
    command = content["environment"]["command"]
    assert command.startswith("subdeq bench --problem dense --problem dense-hard --work all --size 6x3 --error 0.001")
    assert "--json r.json --csv r.csv --plot plots" in command
    with (out / "r.csv").open(newline="") as file:
        assert [line["backend"] for line in csv.DictReader(file)] == [row["backend"] for row in content["rows"]]
    names = {path.name for path in (out / "plots").iterdir()}
    assert "profile.png" in names and "work-precision-dense-6x3-adjoint-float32.png" in names
    assert all(f"{name}" in output.replace("\n", "") for name in names)


def test_several_sizes_and_the_other_settings(tmp_path):
    bench(
        "--sizes", "4x2,5x2", "--size", "6x2", "--problem", "dense", "--backend", "subdeq:anderson?memory=3",
        "--dtype", "float64", "--repetitions", 2, "--threads", 1, "--seed", 4, "--max-iter", 77, "--device", "cpu",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    content = json.loads((tmp_path / "r.json").read_text())
    assert {row["size"] for row in content["rows"]} == {"4x2", "5x2", "6x2"}
    assert {row["dtype"] for row in content["rows"]} == {"float64"}
    assert content["settings"] == {
        "problems": ["dense"], "backends": ["subdeq:anderson?memory=3"], "works": ["forward"], "errors": [1e-6],
        "repetitions": 2, "max_iter": 77, "seed": 4, "budget": 10.0,
    }  # fmt: skip
    assert content["environment"]["threads"] == 1


def test_list():
    output = " ".join(bench("--list").split())
    parts = "dense-normalised-hard, subdeq:auto, torchdeq:broyden, scipy:anderson, julia:newton_krylov, jax:fixed_point"
    for part in (*parts.split(", "), "forward, adjoint, training", "8x14x8"):
        assert part in output


def scaled(path, factor, target):
    """The same report with all times of one backend multiplied."""
    content = json.loads(path.read_text())
    for row in content["rows"]:
        if row["backend"] == target:
            row |= {name: factor * row[name] for name in ("seconds", "low", "high")}
    changed = path.with_name(f"{factor}.json")
    changed.write_text(json.dumps(content))
    return changed


def test_compare_and_its_exit_codes(tmp_path):
    new = tmp_path / "new.json"
    bench(*QUICK, "--problem", "dense", "--error", "1e-3", "--json", new)
    assert "0 of 1 became slower" in bench("--report", new, "--compare", new)
    old = scaled(new, 0.5, "subdeq:auto")
    output = bench("--report", new, "--compare", old, "--json", tmp_path / "compared.json", code=1)
    assert "1 of 1 became slower by more than 1.5" in output
    (change,) = json.loads((tmp_path / "compared.json").read_text())["comparison"]
    assert change["ratio"] == pytest.approx(2.0) and change["flag"] == "slower"
    bench("--report", new, "--compare", old, "--slower", 2.5)
    # As slow a machine as the old times say: nothing has changed.
    bench("--report", new, "--compare", scaled(old, 0.25, "bare products"), "--slower", 2.5)
    # A report that was compared is a report.
    bench("--report", tmp_path / "compared.json")


def test_a_machine_twice_as_slow_makes_no_loss(tmp_path):
    new = tmp_path / "new.json"
    bench(*QUICK, "--problem", "dense", "--error", "1e-3", "--json", new)
    old = scaled(scaled(new, 0.5, "subdeq:auto"), 0.5, "bare products")
    assert "0 of 1 became slower" in bench("--report", new, "--compare", old)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--problem", "dens"), OptionError, "did you mean 'dense'"),
        (("--backend", "subdeq:anto"), OptionError, "did you mean 'subdeq:auto'"),
        (("--backend", "subdeq:anderson?memry=1"), OptionError, "did you mean 'memory'"),
        (("--work", "fwd"), OptionError, "unknown work"),
        (("--size", "3y4"), OptionError, "size must be positive integers"),
        (("--size", "3x4x5"), OptionError, "has sizes n x batch"),
        (("--error", "0"), OptionError, "error must be positive"),
        (("--dtype", "half"), OptionError, "unknown dtype"),
        (("--device", "moon"), OptionError, "device 'moon' cannot be used"),
        (("--repetitions", "0"), OptionError, "repetitions must be"),
        (("--threads", "0"), OptionError, "threads must be"),
        (("--max-iter", "0"), OptionError, "max_iter must be"),
        (("--compare", "absent.json"), DataError, "cannot be read"),
        (("--report", "absent.json"), DataError, "cannot be read"),
        (("--problem", "my problem:f"), OptionError, "a problem of your own must be given as MODULE:FUNCTION"),
        (("--backend", "no_such_module:f"), OptionError, "cannot be imported"),
        (("--backend", "math:pi"), OptionError, "module 'math' has no function 'pi'"),
        (("--backend", ".relative:f"), OptionError, "MODULE:FUNCTION"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        bench("--problem", "dense", "--repetitions", 1, *arguments)


MODULE = """
import torch
import subdeq_plugin as sd
from subdeq_plugin.bench import Problem

def pair():
    torch.manual_seed(0)
    return sd.SubhomLinear(3, 5).double(), torch.rand(4, 3, dtype=torch.float64)

def bound():
    layer, x = pair()
    return layer.bind(x)

def named():
    return Problem("a name of its own", bound().detach(), "tiny")

def unproven():
    arrays = {"weight": 3 * torch.eye(2) - 1, "inner": torch.ones(1, 2)}
    spec = sd.MapSpec(arrays, {"kind": "dense", "activation": "tanh"})
    return sd.BoundMap.from_spec(spec)

def nonsense():
    return 3

def solver(func, x0, max_iter=50, tol=1e-3, stop_mode="abs", **rest):
    z = x0
    for _ in range(max_iter):
        image = func(z)
        done = float((image - z).norm() / image.norm()) <= tol
        z = image
        if done:
            break
    return z, [], {}

def broken(func, x0, **rest):
    raise RuntimeError("no [luck]")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The user's folder, and none of his modules left behind."""
    (tmp_path / "my_bench_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_bench_module", None)


def test_modules_of_the_users_own(here):
    output = bench(
        "--problem", "my_bench_module:pair", "--problem", "my_bench_module:bound", "--problem", "my_bench_module:named",
        "--backend", "my_bench_module:solver", "--backend", "my_bench_module:broken", "--backend", "subdeq:auto",
        "--work", "forward", "--work", "training", "--repetitions", 1, "--error", "1e-5", "--json", "r.json",
    )  # fmt: skip
    rows = [row for row in json.loads((here / "r.json").read_text())["rows"] if not row["baseline"]]
    assert {row["problem"] for row in rows} == {"my_bench_module:pair", "my_bench_module:bound", "a name of its own"}
    found = {(row["problem"].partition(":")[2], row["work"], row["backend"]): row["failure"] for row in rows}
    assert (
        found["pair", "forward", "my_bench_module:solver"] == found["pair", "training", "my_bench_module:solver"] == ""
    )
    assert found["bound", "forward", "my_bench_module:solver"] == ""
    assert "needs a layer" in found["bound", "training", "my_bench_module:solver"]
    assert found["pair", "forward", "my_bench_module:broken"] == "RuntimeError: no [luck]"
    assert "no [luck]" in output


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("unproven", CertificateError, "has no proof"), ("nonsense", OptionError, "must be a BoundMap")],
)
def test_problems_that_cannot_be_used(here, name, error, message):
    with pytest.raises(error, match=f"'my_bench_module:{name}' {message}"):
        bench("--problem", f"my_bench_module:{name}", "--backend", "subdeq:auto", "--repetitions", 1)


def test_the_example_in_the_documentation(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    module, calls = re.findall(r"```python[^\n]*\n(.*?)```", text, re.S)
    (tmp_path / "mine.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    bench("--problem", "mine:problem", "--backend", "mine:solver", "--work", "all", "--repetitions", 1)
    lines: list[tuple[object, ...]] = []
    exec(compile(calls, "bench.md", "exec"), {"print": lambda *parts: lines.append(parts)})
    sys.modules.pop("mine")
    assert {line[0] for line in lines} >= {"solver", "subdeq:auto"} and all(line[3] == "" for line in lines)


def test_as_a_user_runs_it(here):
    """With warnings as errors: solvers may warn on their way, users are told by the table."""
    arguments = ("--problem", "my_bench_module:pair", "--backend", "my_bench_module:solver", "--repetitions", "2")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "subdeq_plugin", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=here,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert result.returncode == 0 and "my_bench_module:solver" in result.stdout, result.stderr
