"""The thread that owns Julia: what passes through it, what it refuses, and that it survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import subdeq_plugin as sd
from subdeq_plugin.bridge import get_runtime
from subdeq_plugin.errors import BridgeError
from tests.bridge.process import python
from tests.problems import bound_map, ones_for, residuals

pytestmark = pytest.mark.julia

COLLECT = "GC.gc()"


def solve(seed: int = 0, solver: str = "julia:newton_krylov", **keywords) -> sd.Solution:
    bound = bound_map("dense", seed)
    return sd.solve(bound, ones_for(bound), sd.parse_solver(solver), tol=1e-10, max_iter=200, **keywords)


def test_a_job_runs_on_one_thread_and_returns():
    names = {get_runtime().call(lambda julia: threading.current_thread().name) for _ in range(3)}
    assert names == {"subdeq-julia"} and threading.current_thread().name not in names
    assert get_runtime().call(lambda julia: int(julia.ask("1 + 1"))) == 2
    assert get_runtime().running


def test_an_exception_of_a_job_is_raised_where_it_was_posted():
    class Odd(Exception):
        pass

    def fail(julia):
        raise Odd("here")

    with pytest.raises(Odd, match="here"):
        get_runtime().call(fail)
    with pytest.raises(BridgeError, match=r"Julia raised: .*DomainError"):
        get_runtime().call(lambda julia: julia.ask("sqrt(-1.0)"))
    assert get_runtime().call(lambda julia: int(julia.ask("2 + 2"))) == 4


def test_a_job_cannot_wait_for_itself():
    with pytest.raises(BridgeError, match="wait for itself"):
        get_runtime().call(lambda julia: get_runtime().call(lambda again: None))


@pytest.mark.parametrize("native", ["true", "false"])
def test_eight_threads_and_a_backward_worker_survive_garbage_collection(native):
    """Julia's collector, called from a second thread, would hang for ever."""
    problems = [bound_map("dense", seed) for seed in range(8)]
    found: dict[int, list[float]] = {index: [] for index in range(8)}
    key = f"julia:newton_krylov?native={native}"

    def collecting(bound):
        def f(z):
            get_runtime().call(lambda julia: julia.ask("GC.gc(false)") and None)
            return bound(z)

        return f

    def work(index: int) -> None:
        bound = problems[index]
        for _ in range(2):
            function = bound if native == "true" else collecting(bound)
            solution = sd.solve(function, ones_for(bound), sd.parse_solver(key), tol=1e-10, max_iter=200)
            get_runtime().call(lambda julia: julia.ask(COLLECT) and None)
            found[index].append(float(residuals(bound, solution.value)[1].max()))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert all(len(values) == 2 and max(values) < 1e-9 for values in found.values())


def test_a_backward_pass_on_another_thread_collects_and_finishes():
    torch.manual_seed(0)
    model = sd.SubDEQ(sd.SubhomLinear(3, 5), "julia:newton_krylov", "julia:newton_krylov").double()
    x = torch.rand(4, 3, dtype=torch.float64)
    z = model(x)
    done = []

    def backward() -> None:
        z.register_hook(lambda grad: get_runtime().call(lambda julia: julia.ask(COLLECT) and None))
        z.sum().backward()
        done.append(True)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join(timeout=120)
    assert done == [True]
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_an_error_in_the_map_leaves_the_bridge_usable():
    calls = []

    def broken(z):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("in the map")
        return torch.tanh(z) + 1

    with pytest.raises(ZeroDivisionError, match="in the map"):
        sd.solve(broken, torch.ones(2, 3), sd.parse_solver("julia:newton_krylov"))
    assert solve().converged
    assert sd.solve(torch.cos, torch.ones(2, 3), sd.parse_solver("julia:newton_krylov")).converged


@pytest.mark.parametrize("native", [True, False])
def test_ctrl_c_reaches_the_caller_and_leaves_the_bridge_usable(native):
    code = f"""
        import os, signal, threading, time, torch
        import subdeq_plugin as sd
        from subdeq_plugin.bridge import get_runtime
        get_runtime().call(lambda julia: None)
        torch.manual_seed(0)
        layer = sd.SubhomLinear(3, 400, activation="relu", shift=0.001, power=0.999)
        bound = layer.double().bind(torch.rand(200, 3).double()).detach()
        solver = sd.parse_solver("julia:dfsane?native={str(native).lower()}")
        sd.solve(bound, bound.start(), solver, tol=1e-3, max_iter=3)
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begun = time.perf_counter()
        try:
            while True:
                sd.solve(bound, bound.start(), solver, tol=0.0, max_iter=10**6)
        except KeyboardInterrupt:
            print("interrupted", time.perf_counter() - begun < 30)
        found = sd.solve(bound, bound.start(), sd.parse_solver("julia:newton_krylov"), tol=1e-8, max_iter=200)
        print("usable", found.converged)
    """
    result = python(code)
    assert result.stdout.split() == ["interrupted", "True", "usable", "True"], result.stderr[-2000:]


def test_a_forked_child_is_told_so():
    assert get_runtime().running or get_runtime().call(lambda julia: True)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            solve()
            message = "no error"
        except BridgeError as error:
            message = str(error)
        os.write(write, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    message = os.read(read, 1000).decode()
    os.close(read), os.close(write)
    assert "forked" in message and "spawn" in message
    assert solve().converged, "the parent goes on"


def test_spawned_processes_have_a_julia_each(tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing as mp
            import subdeq_plugin as sd, torch

            def work(seed):
                torch.manual_seed(seed)
                bound = sd.SubhomLinear(3, 5).double().bind(torch.rand(2, 3).double()).detach()
                return sd.solve(bound, bound.start(), sd.parse_solver("julia:newton_krylov"), tol=1e-9).converged

            if __name__ == "__main__":
                with mp.get_context("spawn").Pool(2) as pool:
                    print(pool.map(work, [0, 1]))
        """)
    )
    command = [sys.executable, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout.split() == ["[True,", "True]"], result.stderr[-2000:]


def test_juliacall_started_by_someone_else_is_refused_in_clear_words():
    code = """
        import sys, types
        sys.modules["juliacall"] = types.ModuleType("juliacall")
        import torch, subdeq_plugin as sd
        try:
            sd.solve(torch.cos, torch.ones(1, 2), sd.parse_solver("julia:newton_krylov"))
        except sd.errors.BridgeError as error:
            print(error)
    """
    result = python(code)
    assert "juliacall was imported before" in result.stdout and "start_julia" in result.stdout, result.stderr[-2000:]


def test_the_process_ends_in_peace():
    result = python("""
        import torch, subdeq_plugin as sd
        print(sd.solve(torch.cos, torch.ones(1, 2), sd.parse_solver("julia:newton_krylov")).converged)
    """)
    assert (result.returncode, result.stdout.split()) == (0, ["True"]), result.stderr[-2000:]
    assert "rror" not in result.stderr and "signal" not in result.stderr


def test_importing_the_package_never_starts_julia():
    result = python("""
        import sys, subdeq_plugin as sd
        sd.parse_solver("julia:auto"); sd.solver("julia:broyden?alpha=2.0")
        print("juliacall" in sys.modules, sd.bridge.get_runtime().running)
    """)
    assert result.stdout.split() == ["False", "False"], result.stderr[-2000:]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize("native", ["true", "false"])
def test_ten_thousand_solves_do_not_grow_memory(native):
    """In a process of its own: what other tests have left to be collected is not this one's business."""
    result = python(f"""
        import os, torch, subdeq_plugin as sd
        from subdeq_plugin.bridge import get_runtime
        torch.manual_seed(0)
        bound = sd.SubhomLinear(3, 5).double().bind(torch.rand(3, 3).double()).detach()
        solver = sd.parse_solver("julia:broyden?native={native}")
        def used():
            get_runtime().call(lambda julia: julia.ask("GC.gc(); GC.gc()") and None)
            live = get_runtime().call(lambda julia: int(julia.ask("Base.gc_live_bytes()")))
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), live
        def many(count):
            for _ in range(count):
                assert sd.solve(bound, bound.start(), solver, tol=1e-6, max_iter=100).converged
            return used()
        before, after = many(4000), many(10000)
        # 500 bytes a solve would be seen.
        print(after[0] - before[0] < 25 * 2**20, after[1] - before[1] < 5 * 2**20)
    """)
    assert result.stdout.split() == ["True", "True"], (result.stdout, result.stderr[-2000:])


def test_the_signal_handler_stays():
    before = signal.getsignal(signal.SIGINT)
    get_runtime().call(lambda julia: None)
    assert signal.getsignal(signal.SIGINT) is before
    result = python("""
        import signal, subdeq_plugin as sd
        sd.start_julia()
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    assert result.stdout.split() == ["True"], result.stderr[-2000:]
