"""Whole runs on small problems, with backends that behave and backends that do not."""

from __future__ import annotations

import getpass
import json
import math
import platform
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.bench import Answer, Problem, make_problem, run
from subdeq_plugin.bench.tasks import make_task
from subdeq_plugin.errors import CertificateError, OptionError

from .synthetic import Scripted, exact, nan, plain, small

ONE = {"repetitions": 1, "sizes": [(6, 3)]}


def good(key="good"):
    return Scripted(key, lambda task, tol, call: plain(task, tol))


def test_a_run_has_a_row_for_everything():
    backends = ["subdeq:picard", "torchdeq:fixed_point_iter", "scipy:newton_krylov"]
    report = run(
        ["dense", "dense-normalised"], backends, works=["forward", "adjoint", "training"], errors=[1e-2, 1e-4], **ONE
    )
    assert len(report.cells) == 2 * 3 * 2
    for cell in report.cells:
        rows = report.of(cell)
        baselines = {row.backend for row in rows if row.baseline}
        assert baselines == {"bare products", "certificate"} | ({"error bound"} if cell.work == "forward" else set())
        solvers = [row for row in rows if not row.baseline]
        assert [row.backend for row in solvers] == backends
        (product,) = (row.seconds / row.evaluations for row in rows if row.backend == "bare products")
        fastest = min(row.seconds for row in solvers)
        for row in solvers:
            assert row.failure == "" and 0 < row.reached <= cell.error and row.tol > 0
            assert row.low <= row.seconds <= row.high and row.repetitions == 1
            assert row.evaluations > 0 and row.products is not None and row.memory > 0
            assert row.to_fastest == pytest.approx(row.seconds / fastest)
            assert row.to_bare == pytest.approx(row.seconds / (product * (row.evaluations + row.products)))
            assert row.entries == 18 and row.size == "6x3" and row.device == "cpu" and row.dtype == "float32"


def test_the_recorded_error_is_that_of_the_answer():
    seen = []

    def script(task, tol, call):
        seen.append(plain(task, tol))
        return seen[-1]

    report = run(["dense"], [Scripted("spy", script)], errors=[1e-5], **ONE)
    (row,) = (row for row in report.rows if row.backend == "spy")
    bound = make_problem("dense", (6, 3)).bound
    certificate = sd.certify(bound)
    errors = {float(certificate.error_bound(answer.value).max()) for answer in seen}
    assert row.reached in errors and row.reached <= 1e-5
    exact = bound.to("cpu", torch.float64)
    z = exact.start()
    for _ in range(100):
        z = exact(z)
    assert min(float((answer.value.double() / z).log().abs().max()) for answer in seen) <= row.reached


def failures(*backends, error=1e-6, **keywords):
    report = run([exact()], [good(), *backends], errors=[error], repetitions=3, max_iter=50, **keywords)
    rows = {row.backend: row for row in report.rows if not row.baseline}
    assert set(rows) == {"good", *(backend.key for backend in backends)}
    return rows


def test_nothing_that_fails_is_dropped():
    def raising(task, tol, call):
        raise RuntimeError("it broke")

    rows = failures(
        Scripted("nan", lambda task, tol, call: nan(task)),
        Scripted("raising", raising),
        Scripted("lying", lambda task, tol, call: Answer(task.start, 1, 0)),
        Scripted("lazy", lambda task, tol, call: Answer(task.function(task.start), 50, 0, True)),
        Scripted("negative", lambda task, tol, call: Answer(-task.start, 1, 0)),
        Scripted("shape", lambda task, tol, call: Answer(task.start[:1], 1, 0)),
    )
    assert rows["nan"].failure == "the answer has NaN or infinite entries"
    assert rows["raising"].failure == "RuntimeError: it broke"
    assert "is not small enough" in rows["lying"].failure and 0 < rows["lying"].reached < math.inf
    assert rows["lazy"].failure == "50 evaluations are not enough"
    assert "not positive" in rows["negative"].failure and "no state" in rows["shape"].failure
    for key, row in rows.items():
        assert (row.failure == "") == (key == "good")
        assert (row.seconds is None) == (row.tol is None) == (row.to_fastest is None) == (key != "good")
        assert row.repetitions == (3 if key == "good" else 0)
    assert all(rows[key].reached is None for key in ("nan", "raising", "negative", "shape"))


def test_an_answer_that_gets_worse_in_the_last_repetition_is_a_failure():
    def script(task, tol, call):
        answer = plain(task, tol)
        return answer if call <= calibrated + 3 else replace(answer, value=2 * answer.value)

    probe = good("probe")
    run([exact()], [probe], errors=[1e-6], repetitions=1, max_iter=50)
    calibrated = len(set(probe.calls))
    row = failures(Scripted("tired", script))["tired"]
    assert row.seconds is None and "the answer of the last repetition has a guaranteed error of" in row.failure
    assert row.reached <= 1e-6  # what it came to before


def test_a_backend_that_breaks_while_it_is_timed():
    probe = good("probe")
    run([exact()], [probe], errors=[1e-6], repetitions=1, max_iter=50)
    calibrated = len(set(probe.calls))

    def script(task, tol, call):
        if call > calibrated + 2:
            raise RuntimeError("too hot")
        return plain(task, tol)

    row = failures(Scripted("hot", script))["hot"]
    assert row.failure == "in a repetition: RuntimeError: too hot" and row.seconds is None


def test_slow_backends_are_repeated_less_and_say_so():
    def script(task, tol, call):
        time.sleep(0.02)
        return plain(task, tol)

    rows = failures(Scripted("slow", script), budget=0.01)
    assert rows["slow"].repetitions == 1 and rows["slow"].seconds >= 0.02


def test_a_backend_that_is_not_here_is_a_row():
    class Absent(Scripted):
        def missing(self):
            return "not installed: buy it"

    row = failures(Absent("absent"))["absent"]
    assert row.failure == "not available: not installed: buy it" and row.reached is None


def test_a_task_that_cannot_be_made_is_a_row_for_every_backend():
    own = Problem.of("mine", small().bound)
    report = run(
        [own], ["subdeq:auto", "torchdeq:anderson"], works=["training", "forward"], errors=[1e-4], repetitions=1
    )
    training = [row for row in report.rows if row.work == "training"]
    assert [row.backend for row in training] == ["subdeq:auto", "torchdeq:anderson"]
    assert all("needs a layer" in row.failure and row.error == 1e-4 for row in training)
    assert any(row.seconds is not None for row in report.rows if row.work == "forward")


def test_one_tolerance_for_two_errors_is_timed_once():
    backend = Scripted("jump", lambda task, tol, call: plain(task, 1e-12))
    report = run([exact()], [backend], errors=[1e-2, 1e-4], repetitions=2, max_iter=50)
    first, second = (row for row in report.rows if row.backend == "jump")
    assert (
        (first.tol, first.seconds, first.memory)
        == (second.tol, second.seconds, second.memory)
        == (0.1, first.seconds, first.memory)
    )
    # Once to calibrate, twice in each repetition, for the counts, and for the memory.
    assert len(backend.calls) == 1 + 2 * 2 + 1 + 1


def test_own_problems_and_solvers():
    layer = sd.SubhomLinear(3, 5).double()
    x = torch.rand(4, 3, dtype=torch.float64)

    def picard(func, x0, max_iter=50, tol=1e-3, stop_mode="abs", **rest):
        z = x0
        for _ in range(max_iter):
            z = func(z)
        return z, [], {}

    report = run(
        [(layer, x), layer.bind(x)],
        [picard, "subdeq:auto"],
        works=["forward", "training"],
        repetitions=1,
        dtype="float64",
    )
    assert [cell.problem for cell in report.cells] == ["problem 1", "problem 1", "problem 2", "problem 2"]
    rows = [row for row in report.rows if row.backend == "picard"]
    assert [row.failure == "" for row in rows] == [True, True, True, False] and rows[0].evaluations == 200
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_sizes_dtypes_and_the_environment():
    report = run(
        ["dense"],
        ["subdeq:auto"],
        sizes=[(4, 2), (5, 3), (4, 2)],
        dtype="float64",
        repetitions=1,
        seed=3,
        command="a b",
    )
    assert [(cell.size, cell.dtype) for cell in report.cells] == [("4x2", "float64"), ("5x3", "float64")]
    environment = report.environment
    assert environment["command"] == "a b" and environment["packages"]["subdeq-plugin"] == sd.__version__
    assert environment["packages"]["torch"] == torch.__version__ and environment["gpu"] is None
    assert (
        environment["threads"] == torch.get_num_threads()
        and environment["cpu"]
        and environment["date"].endswith("+00:00")
    )
    assert report.settings["seed"] == 3 and report.settings["backends"] == ["subdeq:auto"]
    text = json.dumps(report.to_dict())
    for secret in {platform.node(), str(Path.home()), str(Path.cwd()), f"/{getpass.getuser()}/"}:
        assert secret not in text


def test_threads_are_set_for_the_run_only():
    before = torch.get_num_threads()
    seen = []

    def script(task, tol, call):
        seen.append(torch.get_num_threads())
        return plain(task, tol)

    report = run([small()], [Scripted("spy", script)], errors=[1e-3], threads=before + 1, repetitions=1)
    assert set(seen) == {before + 1} and report.environment["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_progress_is_told():
    lines = []
    run([small()], [good()], errors=[1e-3], repetitions=1, progress=lines.append)
    assert lines[0] == "dense 6x3, forward: preparing" and "dense 6x3, forward: timing" in lines


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"problems": ["dens"]}, "did you mean 'dense'"),
        ({"problems": []}, "problems is empty"),
        ({"problems": [3]}, "problem 'problem 1' must be a BoundMap"),
        ({"backends": []}, "backends is empty"),
        ({"backends": ["subdeq:auto", "subdeq:auto"]}, "'subdeq:auto' is given 2 times"),
        ({"backends": ["subdeq:autos"]}, "did you mean 'subdeq:auto'"),
        ({"works": ["backward"]}, "unknown work 'backward'"),
        ({"works": []}, "works is empty"),
        ({"errors": [0.0]}, "error must be positive and finite, got 0.0"),
        ({"errors": [math.nan]}, "error must be positive"),
        ({"errors": []}, "errors is empty"),
        ({"sizes": [(3,)]}, "has sizes n x batch"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
        ({"repetitions": 0}, "repetitions must be a positive integer, got 0"),
        ({"max_iter": 2.5}, "max_iter must be a positive integer, got 2.5"),
        ({"threads": 0}, "threads must be a positive integer, got 0"),
        ({"budget": 0}, "budget must be a positive number of seconds, got 0"),
    ],
)
def test_errors(keywords, message):
    given = {"problems": ["dense"], "backends": ["subdeq:auto"], **ONE, **keywords}
    with pytest.raises(OptionError, match=message):
        run(given.pop("problems"), given.pop("backends"), **given)


def test_two_problems_of_one_name():
    with pytest.raises(OptionError, match="two problems are called 'dense' and have size 6x3"):
        run([small(), small()], [good()], repetitions=1, errors=[1e-2])


def test_a_problem_without_a_proof():
    weight = 3 * torch.eye(3, dtype=torch.float64) - 1
    spec = sd.MapSpec(
        {"weight": weight, "inner": torch.ones(1, 3, dtype=torch.float64)}, {"kind": "dense", "activation": "tanh"}
    )
    with pytest.raises(CertificateError, match="no error is guaranteed"):
        run([sd.BoundMap.from_spec(spec)], [good()])


def test_the_default_backends_are_all_that_are_here():
    report = run([make_problem("dense", (4, 2))], errors=[1e-2], repetitions=1)
    keys = [row.backend for row in report.rows if not row.baseline]
    assert {key.partition(":")[0] for key in keys} == {"subdeq", "torchdeq", "scipy"} and "subdeq:auto" in keys


def test_make_task_and_run_mean_the_same_problem():
    report = run([small()], ["subdeq:picard"], errors=[1e-4], repetitions=1)
    (row,) = (row for row in report.rows if row.backend == "subdeq:picard")
    task = make_task(small(), "forward")
    from subdeq_plugin.bench import make_backend

    answer = make_backend("subdeq:picard").prepare(task, row.tol, 200)()
    assert task.judge(answer.value).error == row.reached
