"""`run`: calibrate every backend on every task, time them all together, and write down what happened."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..certificates import certify
from ..errors import OptionError, SubdeqError
from .backends import Backend
from .calibrate import Calibration, Counts, calibrate, count, describe
from .environment import describe_environment
from .memory import peak_memory
from .problems import Problem, Size
from .report import BARE, Report, Row
from .request import Request, positive
from .tasks import Equation, Task, make_task
from .timing import Timing, interleave

__all__ = ["run"]

_PRODUCTS = 10  # applications of the linear part that are timed together: one may be too short for the clock

Progress = Callable[[str], object]


@dataclass(frozen=True)
class _Settings:
    """How everything is measured; see `run`."""

    errors: tuple[float, ...]
    repetitions: int
    max_iter: int
    seed: int
    budget: float
    progress: Progress


def run(
    problems: Sequence[str | Problem | Any] = ("dense",),
    backends: Sequence[str | Callable[..., Any] | Backend] | None = None,
    *,
    works: Sequence[str] = ("forward",),
    sizes: Sequence[Size] = (),
    errors: Sequence[float] = (1e-6,),
    dtype: str | None = None,
    device: str = "cpu",
    repetitions: int = 20,
    max_iter: int = 200,
    seed: int = 0,
    threads: int | None = None,
    budget: float = 10.0,
    progress: Progress | None = None,
    command: str = "subdeq_plugin.bench.run",
) -> Report:
    """Time solver backends to a guaranteed error.

    Args:
        problems: names of built-in problems (`PROBLEMS`), or problems of your own: a `Problem`, a `BoundMap`, or a
            pair `(layer, x)`.
        backends: keys (`backend_keys()`), options allowed for `subdeq:` and `julia:`; functions with torchdeq's calling
            convention; or `Backend`s. If left out, all of this package's solvers in torch, torchdeq's and SciPy's.
        works: "forward", "adjoint", "training"; see `make_task`.
        sizes: of the built-in problems, in the order of their `Recipe.layout`; the default ones if left out.
        errors: guaranteed errors to reach.
        dtype: "float32" or "float64"; if left out, what each problem brings.
        device: of torch, such as "cpu" or "cuda".
        repetitions: timed runs of each work.
        max_iter: the largest number of evaluations of a solve.
        seed: of the problems' random numbers, and of the order of the repetitions.
        threads: of torch, for this run; as they are if left out.
        budget: seconds; a work whose timed runs have taken longer is not repeated further.
        progress: called with a line of text before every step.
        command: for the report.

    Returns:
        A `Report`. What a backend fails to do is in its row, with the reason; nothing is dropped.

    Raises:
        OptionError: an unknown name, a value out of range, or a size of another layout.
        CertificateError: a problem that is not proven to have exactly one fixed point.
    """
    request = Request.of(problems, backends, works, sizes, errors, dtype, device, seed)
    settings = _Settings(
        request.errors,
        positive("repetitions", repetitions),
        positive("max_iter", max_iter),
        seed,
        _budget(budget),
        progress or (lambda text: None),
    )
    rows: list[Row] = []
    with _threads(threads):
        for problem in request.problems():
            for work in request.works:
                rows += _measure(problem, work, request.backends, settings)
        environment = describe_environment(request.device, command)
    asked = {
        "problems": list(dict.fromkeys(row.problem for row in rows)),
        "backends": [backend.key for backend in request.backends],
        "works": list(request.works),
        "errors": list(request.errors),
        "repetitions": repetitions,
        "max_iter": max_iter,
        "seed": seed,
        "budget": budget,
    }
    return Report(tuple(rows), environment, asked)


def _budget(value: float) -> float:
    if not value > 0:
        raise OptionError(f"budget must be a positive number of seconds, got {value!r}.")
    return value


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many threads of torch's, for a block."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(positive("threads", number))
        yield
    finally:
        torch.set_num_threads(before)


def _measure(problem: Problem, work: str, backends: tuple[Backend, ...], settings: _Settings) -> list[Row]:
    """The rows of one task, for every error."""
    place = problem.bound.start()
    blank = Row(
        problem=problem.name,
        size=problem.size,
        work=work,
        dtype=str(place.dtype).removeprefix("torch."),
        device=str(place.device),
        error=math.nan,
        backend="",
        entries=place.numel(),
    )
    settings.progress(f"{problem.name} {problem.size}, {work}: preparing")
    try:
        task = make_task(problem, work, seed=settings.seed, error=min(settings.errors))
    except SubdeqError as error:
        lost = replace(blank, failure=describe(error))
        return [replace(lost, error=wanted, backend=b.key) for wanted in settings.errors for b in backends]
    with warnings.catch_warnings():
        # Solvers overflow on their way where they fail; what comes of it is judged.
        warnings.simplefilter("ignore")
        return _Bench(problem, task, blank, backends, settings).rows()


class _Bench:
    """One task with its backends."""

    def __init__(
        self, problem: Problem, task: Task, blank: Row, backends: tuple[Backend, ...], settings: _Settings
    ) -> None:
        self._problem, self._task, self._blank, self._settings = problem, task, blank, settings
        self._backends = {backend.key: backend for backend in backends}

    def rows(self) -> list[Row]:
        """Calibrate one by one, time all together, and look again at what came out."""
        found = {key: self._calibrated(backend) for key, backend in self._backends.items()}
        # Several errors may have the same tolerance: it is timed once.
        jobs = {(key, cal.tol) for key, cals in found.items() for cal in cals.values() if cal.tol is not None}
        solves = {self._name(job): self._guarded(*job) for job in sorted(jobs)}
        self._settings.progress(f"{self._title}: timing")
        synchronize = torch.cuda.synchronize if self._blank.device.startswith("cuda") else None
        timings, results = interleave(
            {**solves, **self._baselines()},
            self._settings.repetitions,
            seed=self._settings.seed,
            budget=self._settings.budget,
            synchronize=synchronize,
        )
        details = {self._name(job): self._details(*job, results[self._name(job)]) for job in sorted(jobs)}
        rows: list[Row] = []
        for error in self._settings.errors:
            cell = [self._row(key, error, cals[error], timings, details) for key, cals in found.items()]
            cell += [self._baseline(name, error, timings[name]) for name in self._baselines()]
            rows += _with_ratios(cell)
        return rows

    @property
    def _title(self) -> str:
        return f"{self._blank.problem} {self._blank.size}, {self._blank.work}"

    @staticmethod
    def _name(job: tuple[str, float]) -> str:
        return f"{job[0]} at {job[1]!r}"

    def _calibrated(self, backend: Backend) -> dict[float, Calibration]:
        self._settings.progress(f"{self._title}: {backend.key}")
        missing = backend.missing()
        if missing:
            return dict.fromkeys(self._settings.errors, Calibration(None, math.inf, f"not available: {missing}"))
        return calibrate(backend, self._task, self._settings.errors, self._settings.max_iter)

    def _guarded(self, key: str, tol: float) -> Callable[[], Any]:
        """The work to time; an exception is its result."""
        try:
            solve = self._backends[key].prepare(self._task, tol, self._settings.max_iter)
        except Exception as error:
            failure = error
            return lambda: failure

        def work() -> Any:
            try:
                return solve()
            except Exception as error:
                return error

        return work

    def _baselines(self) -> dict[str, Callable[[], Any]]:
        product, problem = self._task.bare(), self._problem

        def bare() -> None:
            with torch.no_grad():
                for _ in range(_PRODUCTS):
                    product()

        works: dict[str, Callable[[], Any]] = {BARE: bare, "certificate": lambda: certify(problem.bound)}
        if isinstance(self._task, Equation) and self._task.function is problem.bound:
            start = self._task.start
            works["error bound"] = lambda: problem.certificate.error_bound(start)
        return works

    def _details(self, key: str, tol: float, result: Any) -> tuple[float, str, Counts, int | None]:
        """Of the timed solve: what its last answer is worth, or why nothing; its counts and its memory."""
        self._settings.progress(f"{self._title}: {key}, counts and memory")
        backend, limit = self._backends[key], self._settings.max_iter
        try:
            if isinstance(result, Exception):
                raise result
            verdict = self._task.judge(result.value)
            counts = count(backend, self._task, tol, limit)
            solve = backend.prepare(self._task, tol, limit)
            memory = None if backend.memory is None else peak_memory(solve, numpy=backend.memory == "numpy")
        except Exception as error:
            return math.inf, f"in a repetition: {describe(error)}", Counts(), None
        return verdict.error, verdict.reason, counts, memory

    def _row(
        self,
        key: str,
        error: float,
        cal: Calibration,
        timings: dict[str, Timing],
        details: dict[str, tuple[float, str, Counts, int | None]],
    ) -> Row:
        row = replace(self._blank, error=error, backend=key)
        if cal.tol is None:
            return replace(row, reached=_finite(cal.error), failure=cal.failure)
        name = self._name((key, cal.tol))
        reached, reason, counts, memory = details[name]
        if not reached <= error:
            failure = reason or f"the answer of the last repetition has a guaranteed error of {reached:.3g}"
            return replace(row, reached=_finite(min(reached, cal.error)), failure=failure)
        return replace(
            _timed(row, timings[name]),
            tol=cal.tol,
            reached=reached,
            evaluations=counts.evaluations,
            products=counts.products,
            counts=counts.source,
            memory=memory,
        )

    def _baseline(self, name: str, error: float, timing: Timing) -> Row:
        row = replace(_timed(self._blank, timing), error=error, backend=name, baseline=True)
        return replace(row, evaluations=_PRODUCTS) if name == BARE else row


def _timed(row: Row, timing: Timing) -> Row:
    low, high = timing.quartiles
    return replace(row, seconds=timing.median, low=low, high=high, repetitions=len(timing.seconds))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_ratios(cell: list[Row]) -> list[Row]:
    """The rows of a cell with their times in units of the fastest backend and of bare products."""
    times = [row.seconds for row in cell if row.seconds is not None and not row.baseline]
    fastest = min(times, default=None)
    product = next(row.seconds for row in cell if row.backend == BARE) or 0.0
    rows = []
    for row in cell:
        if row.seconds is not None and not row.baseline:
            uses = None if row.evaluations is None else row.evaluations + (row.products or 0)
            row = replace(
                row,
                to_fastest=row.seconds / fastest if fastest else None,
                to_bare=row.seconds * _PRODUCTS / (uses * product) if uses and product else None,
            )
        rows.append(row)
    return rows
