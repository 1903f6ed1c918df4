"""The one thread that owns Julia; the only file that imports juliacall.

Julia called from a second Python thread hangs for ever as soon as its garbage collector runs (PythonCall.jl #578), and
torch runs backward passes on threads of its own. So one thread starts Julia and makes every call; all others post jobs
to it and wait. A job never calls back: where Julia needs a map of the caller's, the job ends with that request, and the
caller answers it on its own thread with the next job (reverse communication).
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from ..errors import BridgeError
from .config import check_versions, find_route, import_order_problems, looked_for, prepare, sources

__all__ = ["CancelFlag", "Julia", "Runtime", "get_runtime", "probe", "start_julia"]

T = TypeVar("T")
_BLINK = 0.2  # seconds
_PARTING = 5.0  # seconds
_SILENT = 2.0  # seconds of starting after which the user is told what takes so long


class Julia:
    """What jobs are given: the functions of `SubDEQ.Bridge`, and what this Julia is. Used on the owner thread only."""

    def __init__(self, main: Any) -> None:
        self._main = main
        self.bridge = main.SubDEQ.Bridge
        self._methods: dict[tuple[Any, ...], Any] = {}
        # Looked up once, since every evaluation calls it. Other Python threads go on while Julia works.
        self.advance: Callable[[int], int] = self.bridge.advance_session._jl_call_nogil

    def method(self, method: tuple[str, tuple[tuple[str, Any], ...]]) -> Any:
        """Julia's object for a name and its options, made once."""
        if method not in self._methods:
            self._methods[method] = self.bridge.solver(*method)
        return self._methods[method]

    def ask(self, code: str) -> Any:
        """The value of a Julia expression; never of anything a user wrote."""
        return self._main.seval(code)


class _Job(Generic[T]):
    def __init__(self, work: Callable[[Julia], T]) -> None:
        self.work: Callable[[Julia], T] | None = work
        self.result: T
        self.error: BaseException | None = None
        self.finished = threading.Lock()
        self.finished.acquire()


class Runtime:
    """Julia behind a queue of jobs. Started by the first of them."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._failure = ""
        self._forked = self._stopped = False
        self._flags: set[CancelFlag] = set()
        self.seconds = 0.0
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._poison)

    @property
    def running(self) -> bool:
        """Whether Julia has been started and can be used."""
        return self._ready.is_set() and not (self._failure or self._forked or self._stopped)

    def call(self, work: Callable[[Julia], T]) -> T:
        """`work(julia)` on the owner thread; its exceptions are raised here.

        Whatever the job creates in Julia must not leave it: return numbers, strings and tensors only. An exception
        that reaches the waiting thread, such as Ctrl-C, leaves the job in the queue or at work: every tensor whose
        address it gives to Julia must be held by its closure.

        Raises:
            BridgeError: Julia cannot be found, started or used here, or it raised.
        """
        job = self._put(work)
        # With a timeout, or a Ctrl-C that the system hands to another thread would not wake this one.
        while not job.finished.acquire(timeout=_BLINK):
            continue
        if job.error is not None:
            raise job.error
        return job.result

    def post(self, work: Callable[[Julia], object]) -> None:
        """Have `work(julia)` done after all jobs so far, without waiting for it or for its exceptions.

        Raises:
            BridgeError: Julia cannot be used here.
        """
        self._put(work)

    def _put(self, work: Callable[[Julia], T]) -> _Job[T]:
        if threading.current_thread() is self._thread:
            raise BridgeError("a job on Julia's thread posted another job and would wait for itself.")
        self._start()
        job = _Job(work)
        self._jobs.put(job)
        return job

    @contextmanager
    def solving(self) -> Iterator[CancelFlag]:
        """A solve, with a flag that is set where the caller leaves by an exception and where the process ends.

        The process waits then, for at most `_PARTING` seconds, until its solves have noticed: a daemon thread that is
        still in torch's C++ code when the interpreter goes away takes the process down with it.
        """
        flag = CancelFlag()
        self._flags.add(flag)
        try:
            yield flag
        except BaseException:
            flag.set()
            raise
        finally:
            self._flags.discard(flag)

    def _start(self) -> None:
        if self._forked:
            raise BridgeError(
                "this process was forked from one in which Julia was running, and Julia does not survive a fork. Start "
                'worker processes with multiprocessing.get_context("spawn").'
            )
        if self._stopped:
            raise BridgeError("Julia was shut down with the interpreter; solve before the process ends.")
        with self._lock:
            # A start that failed before juliacall was imported may succeed once the cause is mended.
            if self._thread is None or (self._failure and "juliacall" not in sys.modules):
                self._failure, self._ready = "", threading.Event()
                self._thread = threading.Thread(target=self._own, args=(self._ready,), name="subdeq-julia", daemon=True)
                self._thread.start()
        if not self._ready.is_set():
            self._wait()
        if self._failure:
            raise BridgeError(self._failure)

    def _wait(self) -> None:
        """Until Julia is ready, with a word to the user where that takes long. Ctrl-C leaves it starting."""
        begun = time.perf_counter()
        if not self._ready.wait(_SILENT):
            print("subdeq: starting Julia; the very first start compiles for minutes.", file=sys.stderr, flush=True)
            while not self._ready.wait(_BLINK):
                continue
            print(f"subdeq: Julia is ready after {time.perf_counter() - begun:.0f} s.", file=sys.stderr, flush=True)

    def _poison(self) -> None:
        self._forked = self._thread is not None
        self._lock = threading.Lock()  # it may have been held by a thread that does not exist here

    def _stop(self) -> None:
        self._stopped = True
        for flag in tuple(self._flags):
            flag.set()
        self._jobs.put(None)
        if self._thread is not None and not self._forked:
            self._thread.join(timeout=60)
        deadline = time.monotonic() + _PARTING
        while self._flags and time.monotonic() < deadline:
            time.sleep(_BLINK / 10)

    def _own(self, ready: threading.Event) -> None:
        begun = time.perf_counter()
        try:
            julia, shut_down = _start_julia()
        except BridgeError as error:
            self._failure = str(error)
            return
        except Exception as error:
            self._failure = f"Julia could not be started: {type(error).__name__}: {error}"
            return
        else:
            self.seconds = time.perf_counter() - begun
            atexit.register(self._stop)
        finally:
            ready.set()
        while (job := self._jobs.get()) is not None:
            _do(job, julia)
            del job
        while not self._jobs.empty():
            if (late := self._jobs.get()) is not None:
                late.error = BridgeError("Julia was shut down with the interpreter; solve before the process ends.")
                late.finished.release()
        shut_down()


class CancelFlag:
    """An integer that Julia looks at between the steps of a long solve; 1 ends it."""

    def __init__(self) -> None:
        self._value = torch.zeros(1, dtype=torch.int64, device="cpu")

    @property
    def address(self) -> int:
        """Of the integer; the flag must be held until the job is over."""
        return self._value.data_ptr()

    def set(self) -> None:
        """End the solve at its next step."""
        self._value.fill_(1)


def _do(job: _Job[Any], julia: Julia) -> None:
    """A job, whatever it raises. Julia's own errors hold Julia objects, which must not be freed on another thread."""
    from juliacall import JuliaError

    try:
        job.result = job.work(julia)  # type: ignore[misc]
    except JuliaError as error:
        job.error = BridgeError(f"Julia raised: {_text(error)}")
        job.error.__suppress_context__ = True
        error.__traceback__ = None
    except BaseException as error:
        job.error = error
    finally:
        job.work = None
        job.finished.release()


def _text(error: BaseException) -> str:
    """What an error of Julia says; Julia writes it, and may fail at that too."""
    try:
        return str(error)
    except Exception as failure:
        return f"an error that cannot be shown ({type(failure).__name__})"


def _start_julia() -> tuple[Julia, Callable[[], None]]:
    """Import juliacall on this thread; returns Julia and what ends it."""
    route = find_route()
    problems = import_order_problems(route=route)
    if problems:
        raise BridgeError(f"{' '.join(problems)} Call subdeq_plugin.start_julia() before anything imports juliacall.")
    prepare(route, os.environ)
    exits: list[Callable[[], Any]] = []
    register, owner = atexit.register, threading.get_ident()

    def collect(function: Callable[..., Any], *args: Any, **keywords: Any) -> Callable[..., Any]:
        if threading.get_ident() != owner:
            return register(function, *args, **keywords)
        exits.append(partial(function, *args, **keywords))
        return function

    try:
        # Julia must be shut down by the thread that owns it; juliacall would do it on the main thread.
        atexit.register = collect  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch was imported before juliacall")
            import juliacall
    except Exception as error:
        if route.offline:
            raise
        reason = f"juliapkg could neither find nor download a Julia: {type(error).__name__}: {error}."
        raise BridgeError(f"no Julia can be used; {reason} {looked_for(os.environ)}") from error
    finally:
        atexit.register = register
    main = juliacall.Main
    versions = main.seval("(string(VERSION), string(pkgversion(PythonCall)), Threads.nthreads())")
    threads = int(versions[2])
    check_versions(juliacall.__version__, str(versions[1]), str(versions[0]), threads)
    if threads > 1:
        print(f"subdeq: Julia has {threads} threads and takes Ctrl-C for itself.", file=sys.stderr, flush=True)
    _load(main)
    julia = Julia(main)
    julia.bridge.blas_threads(torch.get_num_threads())

    def shut_down() -> None:
        for function in reversed(exits):
            function()

    return julia, shut_down


def _load(main: Any) -> None:
    """`import SubDEQ`, from the active project where it has it, else from our own sources."""
    folder = str(sources())
    try:
        main.seval(f'push!(LOAD_PATH, raw"{folder}")')
        main.seval("import SubDEQ")
    except Exception as error:
        raise BridgeError(
            f"Julia cannot load the package SubDEQ from {folder}: {str(error).splitlines()[0]} "
            "Run `subdeq doctor` to see which packages are missing."
        ) from None


_RUNTIME = Runtime()


def get_runtime() -> Runtime:
    """Julia in this process; there can be only one."""
    return _RUNTIME


def start_julia() -> None:
    """Start Julia now instead of at the first solve that needs it; nothing where it runs already.

    Worth calling before anything else imports juliacall: Julia belongs to the thread that starts it, and that is the
    bridge's. Importing juliacall afterwards does no harm; calling Julia with it hangs at the next garbage collection.

    Raises:
        BridgeError: Julia cannot be found or started; the message says what was looked for and the remedy.
    """
    _RUNTIME.call(lambda julia: None)


def probe() -> dict[str, Any]:
    """Start Julia and say what it is: for `subdeq doctor`.

    Returns:
        `julia`, `threads`, `blas`, `blas_threads`, `cuda`, and the `seconds` the start took.

    Raises:
        BridgeError: it cannot be started.
    """

    def look(julia: Julia) -> dict[str, Any]:
        libraries = 'join((basename(l.libname) for l in SubDEQ.LinearAlgebra.BLAS.get_config().loaded_libs), ", ")'
        extension = 'isnothing(Base.get_extension(SubDEQ, :SubDEQCUDAExt)) ? "not loaded" : "loaded"'
        return {
            "julia": str(julia.ask("string(VERSION)")),
            "threads": int(julia.ask("Threads.nthreads()")),
            "blas": str(julia.ask(libraries)),
            "blas_threads": int(julia.ask("SubDEQ.LinearAlgebra.BLAS.get_num_threads()")),
            "cuda": str(julia.ask(extension)),
        }

    found = _RUNTIME.call(look)
    return {**found, "seconds": round(_RUNTIME.seconds, 1)}
