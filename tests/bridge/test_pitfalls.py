"""Ways in which the bridge was broken once: lifetimes, interruptions, limits, and what torch would broadcast."""

from __future__ import annotations

import subprocess
import textwrap

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.bridge import get_runtime
from subdeq_plugin.bridge.native import is_native
from subdeq_plugin.bridge.solver import SOLVERS
from subdeq_plugin.errors import BridgeError, ShapeError
from subdeq_plugin.layers import BoundMap
from subdeq_plugin.result import Status
from subdeq_plugin.solvers import Problem
from tests.bridge import process
from tests.problems import bound_map, make_input, make_layer, ones_for, residuals

NEWTON = sd.parse_solver("julia:newton_krylov")

# A solve that goes on for minutes unless it is told to end.
LONG = """
    import atexit, gc, os, signal, sys, threading, time, torch
    import subdeq_plugin as sd
    from subdeq_plugin.bridge import get_runtime
    torch.manual_seed(0)
    layer = sd.SubhomLinear(3, 400, activation="relu", shift=0.001, power=0.999)
    bound = layer.double().bind(torch.rand(200, 3).double()).detach()
    def long(native, max_iter=10**9):
        solver = sd.parse_solver(f"julia:dfsane?native={native}")
        return sd.solve(bound, bound.start(), solver, tol=0.0, max_iter=max_iter)
    def small():
        return sd.solve(torch.cos, torch.ones(2, 3), sd.parse_solver("julia:newton_krylov"), tol=1e-5).converged
"""


def python(code: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    return process.python(textwrap.dedent(LONG) + textwrap.dedent(code), timeout, **environment)


def words(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, (result.returncode, result.stdout, result.stderr[-3000:])
    return result.stdout.split()


@pytest.mark.julia
class TestMemory:
    def test_an_injection_that_torch_would_broadcast(self):
        layer = make_layer("dense", 1)
        bound = layer.bind(make_input("dense", 1)[:1]).detach()
        start = torch.ones(6, 5, dtype=torch.float64)
        assert not is_native(Problem.of(bound, start), start)
        found = sd.solve(bound, start, NEWTON, tol=1e-10)
        assert found.converged and float(residuals(bound, found.value)[1].max()) <= 1e-10

    @pytest.mark.parametrize("shape", [(4, 9), (8, 5), (3, 4)])
    def test_a_start_that_does_not_fit_reads_no_foreign_memory(self, shape):
        bound = bound_map("dense", 1)
        start = torch.ones(shape, dtype=torch.float64)
        assert not is_native(Problem.of(bound, start), start)
        with pytest.raises((RuntimeError, ShapeError)):
            sd.solve(bound, start, NEWTON)

    def test_a_graph_with_32_bit_indices(self):
        bound = bound_map("graph", 1)
        spec = bound.spec
        arrays = {
            name: part if part.is_floating_point() else part.to(torch.int32) for name, part in spec.arrays.items()
        }
        small = BoundMap.from_spec(sd.MapSpec(arrays, spec.options))
        found = sd.solve(small, ones_for(small), NEWTON, tol=1e-11)
        assert found.converged
        torch.testing.assert_close(found.value, sd.solve(bound, ones_for(bound), NEWTON, tol=1e-11).value)

    def test_inference_mode_first_and_training_after(self):
        start = torch.ones(2, 7)
        with torch.inference_mode():
            assert sd.solve(torch.cos, start, NEWTON, tol=1e-5).converged
            assert sd.solve(torch.cos, start, sd.parse_solver("julia:trust_region"), tol=1e-5).converged
        assert sd.solve(torch.cos, start, NEWTON, tol=1e-5).converged

    def test_two_interruptions_while_julia_is_busy_for_another_thread(self):
        result = python("""
            start = torch.full((4, 100000), 0.75).double()
            one = sd.parse_solver("julia:dfsane")
            sd.solve(torch.cos, start, one, tol=1e-3)
            long("true", 3)
            busy = threading.Thread(target=lambda: long("true", 400))
            busy.start()
            time.sleep(0.3)
            for delay in (0.3, 0.6):
                threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                sd.solve(torch.cos, start, one, tol=1e-3)
            except KeyboardInterrupt:
                print("interrupted")
            try:
                time.sleep(1)
            except KeyboardInterrupt:
                print("again")
            gc.collect()
            others = [torch.full((4, 100000), 7.0).double() for _ in range(8)]
            busy.join()
            get_runtime().call(lambda julia: None)
            print(all(bool((other == 7).all()) for other in others), small())
        """)
        found = words(result)
        assert found[0] == "interrupted" and found[-2:] == ["True", "True"]

    def test_failing_again_and_again_keeps_nothing(self):
        result = python(
            """
            import traceback
            lengths = []
            for _ in range(30):
                try:
                    sd.solve(torch.cos, torch.ones(2, 3), sd.parse_solver("julia:auto"))
                except sd.errors.BridgeError as error:
                    lengths.append(len(traceback.extract_tb(error.__traceback__)))
            print(max(lengths) == min(lengths))
        """,
            SUBDEQ_JULIA_EXE="/nonexistent/julia",
            SUBDEQ_JULIA_PROJECT="/nonexistent",
        )
        assert words(result) == ["True"]

    def test_sessions_kept_inside_julia_are_bounded_in_bytes(self):
        limit = get_runtime().call(lambda julia: int(julia.ask("SubDEQ._MOST_BYTES")))
        for entries in (300, 310, 320, 330, 340, 350):
            torch.manual_seed(0)
            bound = sd.SubhomLinear(2, entries).double().bind(torch.rand(128, 2).double()).detach()
            assert sd.solve(bound, bound.start(), sd.parse_solver("julia:broyden"), tol=1e-6, max_iter=60).converged
            kept = get_runtime().call(lambda julia: int(julia.ask("sum(last, SubDEQ._POOL)")))
            assert kept <= limit

    def test_more_samples_than_coroutines(self):
        with pytest.raises(BridgeError, match="20000 samples in as many coroutines"):
            sd.solve(torch.cos, torch.ones(20000), NEWTON)


@pytest.mark.julia
class TestInterruptions:
    def test_ctrl_c_during_the_start(self):
        result = python("""
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                sd.start_julia()
            except KeyboardInterrupt:
                print("interrupted")
            print(small())
        """)
        assert words(result) == ["interrupted", "True"]

    def test_an_exception_of_a_signal_handler_ends_a_native_solve(self):
        result = python("""
            class TooLong(Exception):
                pass
            def stop(*_):
                raise TooLong
            long("true", 3)
            signal.signal(signal.SIGALRM, stop)
            signal.alarm(1)
            try:
                long("true")
            except TooLong:
                begun = time.perf_counter()
                get_runtime().call(lambda julia: None)
                print(time.perf_counter() - begun < 30, small())
        """)
        assert words(result) == ["True", "True"]

    @pytest.mark.parametrize("native", ["true", "false"])
    def test_the_process_ends_while_another_thread_solves(self, native):
        result = python(f"""
            long("{native}", 3)
            threading.Thread(target=lambda: long("{native}"), daemon=True).start()
            time.sleep(1)
            print("over", flush=True)
        """)
        assert words(result) == ["over"]

    def test_the_process_waits_for_a_map_that_another_thread_evaluates(self):
        result = python("""
            def slow(z):
                time.sleep(2)
                print("evaluated", flush=True)
                return torch.cos(z)
            def solve():
                try:
                    sd.solve(slow, torch.ones(2, 3), sd.parse_solver("julia:dfsane"), tol=0.0, max_iter=10**9)
                except sd.errors.BridgeError:
                    pass  # Julia was shut down
            small()
            threading.Thread(target=solve, daemon=True).start()
            time.sleep(1)
            print("over", flush=True)
        """)
        assert words(result) == ["over", "evaluated"]

    def test_a_solve_after_the_end_is_refused(self):
        result = python("""
            def last():
                try:
                    small()
                except sd.errors.BridgeError as error:
                    print("shut", "down" in str(error))
            atexit.register(last)
            sd.start_julia()
        """)
        assert words(result) == ["shut", "True"]

    def test_an_error_that_julia_cannot_show(self):
        def fail(julia):
            julia.ask('struct Ugly <: Exception end; Base.showerror(io::IO, ::Ugly) = error("cannot show")')
            julia.ask("throw(Ugly())")

        with pytest.raises(BridgeError, match="Julia raised: an error that cannot be shown"):
            get_runtime().call(fail)
        assert get_runtime().call(lambda julia: int(julia.ask("1 + 1"))) == 2

    def test_exit_handlers_of_other_threads_stay_theirs(self):
        result = python("""
            seen = []
            def register():
                while not seen:
                    atexit.register(print, end="")
                    time.sleep(0.01)
            other = threading.Thread(target=register)
            other.start()
            sd.start_julia()
            seen.append(True)
            other.join()
            print("fine")
        """)
        assert words(result) == ["fine"]

    def test_other_threads_go_on_while_julia_computes(self):
        result = python("""
            import torch
            sd.start_julia()
            ticks, over = [], []
            def tick():
                while not over:
                    ticks.append(time.perf_counter())
                    time.sleep(0.005)
            threading.Thread(target=tick).start()
            matrix = torch.randn(1500, 1500, dtype=torch.float64) / 100
            start, solver = torch.ones(2, 1500, dtype=torch.float64), sd.parse_solver("julia:newton_raphson")
            f = lambda z: torch.tanh(z @ matrix.T) + 1
            ticks.clear()
            sd.solve(f, start, solver, max_iter=3)
            over.append(True)
            print(len(ticks) > 50)
        """)
        assert words(result) == ["True"]


@pytest.mark.julia
@pytest.mark.parametrize("key", [f"julia:{name}" for name in SOLVERS])
@pytest.mark.parametrize("native", ["true", "false"])
@pytest.mark.parametrize("normalize", [None, "inf"])
@pytest.mark.parametrize("max_iter", [1, 2, 3, 6, 9])
def test_limits_are_kept_and_statuses_true(key, native, normalize, max_iter):
    for seed in range(3):
        bound = bound_map("dense", seed, power=0.9, shift=1.2, normalize=normalize)
        solver = sd.parse_solver(f"{key}?native={native}")
        found = sd.solve(bound, ones_for(bound), solver, tol=1e-7, max_iter=max_iter)
        assert found.evaluations <= max_iter
        assert bool((found.iterations <= found.evaluations).all())
        relative = residuals(bound, found.value)[1]
        solved = found.status == Status.CONVERGED
        assert bool((relative[solved] <= 1.001e-7).all())
        torch.testing.assert_close(found.rel_residual, relative, rtol=1e-6, atol=1e-14)


@pytest.mark.julia
@pytest.mark.parametrize("native", ["true", "false"])
def test_normalised_states_are_not_given_up_with_evaluations_left(native):
    for seed in range(12):
        torch.manual_seed(seed)
        layer = sd.SubhomConv2d(2, 2, 3, activation="relu", shift=0.1, power=0.9, normalize="inf")
        bound = layer.bind(torch.rand(7, 2, 5, 4)).detach()
        solver = sd.parse_solver(f"julia:newton_krylov?native={native}")
        found = sd.solve(bound, bound.start(), solver, tol=1e-3, max_iter=300, stop_mode="abs")
        assert found.converged, (seed, found.describe_failures())


@pytest.mark.julia
def test_the_numbers_of_both_sides_agree():
    from subdeq_plugin.bridge.callback import MEASURES, Request

    def numbers(name: str) -> dict[str, int]:
        pairs = f'join((string(x, "=", Int(x)) for x in instances(SubDEQ.{name})), " ")'
        text = get_runtime().call(lambda julia: str(julia.ask(pairs)))
        return {key: int(value) for key, value in (pair.split("=") for pair in text.split())}

    assert numbers("Outcome") == {status.name: int(status) for status in Status}
    assert {request.name: int(request) for request in Request}.items() <= numbers("Request").items()
    names = {"abs": "ABSOLUTE", "rel": "RELATIVE", "thompson": "THOMPSON", "hilbert": "HILBERT"}
    assert {names[mode]: number for mode, number in MEASURES.items()} == numbers("Measure")
