"""What `run` is asked for, checked before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..errors import OptionError, unknown_name
from .backends import Backend, backend_keys, make_backend
from .problems import Problem, Size, check_problem, make_problem
from .tasks import WORKS

__all__ = ["DTYPES", "Request", "positive"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


def positive(name: str, value: object) -> int:
    """A positive integer, or `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} must be a positive integer, got {value!r}.")
    return value


@dataclass(frozen=True)
class Request:
    """The tasks and the backends of a run; see `run`.

    Attributes:
        makers: make the problems, one by one: several large ones need not fit into memory together.
        backends: all of different keys.
        works, errors: without repetitions.
        device: it can be used.
        dtype: of all problems, or None.
    """

    makers: tuple[Callable[[], Problem], ...]
    backends: tuple[Backend, ...]
    works: tuple[str, ...]
    errors: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def of(
        cls,
        problems: Sequence[Any],
        backends: Sequence[Any] | None,
        works: Sequence[str],
        sizes: Sequence[Size],
        errors: Sequence[float],
        dtype: str | None,
        device: str,
        seed: int,
    ) -> Request:
        """The arguments of `run`, checked.

        Raises:
            OptionError: an unknown name, a value out of range, a size of another layout, or nothing to measure.
        """
        for work in works:
            if work not in WORKS:
                raise unknown_name("work", work, WORKS)
        for error in errors:
            if not (isinstance(error, int | float) and error > 0 and math.isfinite(error)):
                raise OptionError(f"error must be positive and finite, got {error!r}.")
        if dtype is not None and dtype not in DTYPES:
            raise unknown_name("dtype", dtype, DTYPES)
        targets = backend_keys(usual=True) if backends is None else backends
        request = cls(
            tuple(_makers(problems, tuple(dict.fromkeys(sizes)), seed)),
            _distinct([make_backend(target) for target in targets]),
            tuple(dict.fromkeys(works)),
            tuple(dict.fromkeys(float(error) for error in errors)),
            _device(device),
            None if dtype is None else DTYPES[dtype],
        )
        for name in ("makers", "backends", "works", "errors"):
            if not getattr(request, name):
                raise OptionError(f"nothing to measure: {'problems' if name == 'makers' else name} is empty.")
        return request

    def problems(self) -> Iterator[Problem]:
        """The problems, on their device and in their dtype.

        Raises:
            CertificateError: one is not proven to have exactly one fixed point.
            OptionError: two have the same name and size.
        """
        seen = set()
        for make in self.makers:
            problem = make().to(self.device, self.dtype)
            if (problem.name, problem.size) in seen:
                raise OptionError(f"two problems are called {problem.name!r} and have size {problem.size}: rename one.")
            seen.add((problem.name, problem.size))
            _ = problem.certificate
            yield problem


def _makers(problems: Sequence[Any], sizes: tuple[Size, ...], seed: int) -> Iterator[Callable[[], Problem]]:
    """What makes each problem; names and sizes are checked before the first is made."""
    for number, problem in enumerate(problems, start=1):
        if not isinstance(problem, str):
            yield partial(Problem.of, f"problem {number}", problem)
            continue
        for size in sizes or (None,):
            check_problem(problem, size)
            yield partial(make_problem, problem, size, seed=seed)


def _distinct(backends: list[Backend]) -> tuple[Backend, ...]:
    keys = [backend.key for backend in backends]
    for key in keys:
        if keys.count(key) > 1:
            raise OptionError(f"backend {key!r} is given {keys.count(key)} times: rows could not be told apart.")
    return tuple(backends)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name!r} cannot be used: {str(error).splitlines()[0]} Use 'cpu'.") from error
    return device
