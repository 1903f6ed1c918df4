"""What `subdeq doctor` tells: which Julia is used, what it has, and what it lacks, each with the remedy."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BridgeError
from .config import USE_JULIA, Route, find_route, juliacall_version, prepare, sources, version_problems

__all__ = ["Finding", "Report", "allows", "inspect"]

Starter = Callable[[], dict[str, Any]]

# Asks a Julia about itself and the packages in ARGS[1], a Project.toml, without loading one of them or Pkg.
_SCRIPT = r"""
using LinearAlgebra, TOML
say(words...) = println(join(("subdeq", words...), '\t'))
version(path) = string(get(isfile(path) ? TOML.parsefile(path) : Dict(), "version", VERSION))
function look(kind, name, uuid, compat="")
    id = Base.PkgId(Base.UUID(uuid), name)
    path = Base.locate_package(id)
    found = path === nothing ? "" : version(joinpath(dirname(dirname(path)), "Project.toml"))
    say(kind, name, found, compat, Base.identify_package(name) == id ? "listed" : "")
end
say("julia", VERSION)
say("cpu", Sys.CPU_THREADS)
say("blas", join((basename(lib.libname) for lib in BLAS.get_config().loaded_libs), ", "), BLAS.get_num_threads())
look("pythoncall", "PythonCall", "6099a3de-0909-46bc-b1f4-468b9a2dfc0d")
package = TOML.parsefile(ARGS[1])
for (kind, table) in (("package", "deps"), ("optional", "weakdeps"))
    for (name, uuid) in sort!(collect(get(package, table, Dict())))
        look(kind, name, uuid, get(get(package, "compat", Dict()), name, ""))
    end
end
"""


@dataclass(frozen=True)
class Finding:
    """One fact, and what to do if it is not as it must be.

    Attributes:
        name: What was looked at.
        ok: Whether it is as it must be.
        value: What was found.
        remedy: What to do; empty where there is nothing to do, or where the value says it.
    """

    name: str
    ok: bool
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings.

    Attributes:
        findings: In the order in which they were made.
        started: What the started Julia said of itself; None where it was not started.
    """

    findings: tuple[Finding, ...]
    started: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether Julia can be used as it is."""
        return all(finding.ok for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings], "started": self.started}


def inspect(
    start: bool = True,
    environ: Mapping[str, str] = os.environ,
    starter: Starter | None = None,
    timeout: float = 120.0,
) -> Report:
    """Look at the Julia that would be used; nothing is downloaded.

    Args:
        start: Whether to start Julia in this process if nothing speaks against it.
        environ: The environment variables.
        starter: Starts Julia and returns what it is, with the `seconds` it took.
        timeout: Seconds that the Julia process which answers the questions may take.
    """
    look = _Look(environ, timeout)
    try:
        ready = look.everything()
    except BridgeError as error:
        look.note(look.stage, str(error), ok=False)
        ready = False
    started = None
    if start and starter is not None and ready and all(finding.ok for finding in look.findings):
        try:
            started = starter()
        except BridgeError as error:
            look.note("start", str(error), ok=False)
        else:
            look.note("start", _started(started))
    return Report(tuple(look.findings), started)


def _started(facts: dict[str, Any]) -> str:
    rest = [f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if name != "seconds"]
    return ", ".join([f"{facts['seconds']:.1f} s", *rest] if "seconds" in facts else rest)


@dataclass
class _Look:
    """One inspection while it goes on."""

    environ: Mapping[str, str]
    timeout: float
    stage: str = "route"
    findings: list[Finding] = field(default_factory=list)

    def note(self, name: str, value: str, ok: bool = True, remedy: str = "") -> None:
        self.findings.append(Finding(name, ok, value, remedy))

    def everything(self) -> bool:
        """Make all findings; whether there is a Julia that can be started without a download.

        Raises:
            BridgeError: no Julia can be used.
        """
        route = find_route(self.environ)
        self.note("route", route.describe())
        self.note("juliacall", juliacall_version())
        self.stage = "SubDEQ"
        folder = sources()
        self.note("SubDEQ", str(folder / "SubDEQ"))
        self.stage = "juliapkg"
        resolved = route if route.offline else _resolved(route)
        if resolved is None:
            self.note("Julia", "will be found or downloaded at first use, with its packages")
            return False
        self.note("executable", str(resolved.executable))
        self.note("project", str(resolved.project))
        answers = self.ask(resolved, folder / "SubDEQ" / "Project.toml")
        if answers is not None:
            self.judge(resolved, answers)
        return answers is not None

    def ask(self, route: Route, project_file: Path) -> list[list[str]] | None:
        """What a Julia process answers; None if it does not."""
        environ = dict(self.environ)
        prepare(route, environ)
        command = [str(route.executable), "--startup-file=no", f"--project={route.project}", "-e", _SCRIPT]
        fault = ""
        answers: list[list[str]] = []
        try:
            result = _run([*command, str(project_file)], environ, self.timeout)
        except subprocess.TimeoutExpired:
            fault = f"gave no answer within {self.timeout:g} s"
        except OSError as error:
            fault = f"cannot be run: {error}"
        else:
            lines = [line.split("\t") for line in result.stdout.splitlines()]
            answers = [words[1:] for words in lines if words[0] == "subdeq"]
            if result.returncode != 0:
                fault = f"ended with exit code {result.returncode}: {_complaint(result)}"
            elif not answers:
                fault = f"is not Julia; it said: {_complaint(result)}"
        if fault:
            remedy = f"see what {route.command} -e 'println(VERSION)' does, or choose another: {USE_JULIA}"
            self.note("Julia", f"{route.executable} {fault}", ok=False, remedy=remedy)
            return None
        return answers

    def judge(self, route: Route, answers: list[list[str]]) -> None:
        """Make findings of what a Julia process answered."""
        juliacall = juliacall_version()
        facts = {kind: words for kind, *words in answers if kind in ("julia", "cpu", "blas", "pythoncall")}
        self.note("Julia", facts["julia"][0])
        self.note("CPU threads", facts["cpu"][0])
        library, threads = facts["blas"]
        self.note("BLAS", f"{library}, {threads} {'thread' if threads == '1' else 'threads'}")
        self.packages(route, [words for kind, *words in answers if kind in ("pythoncall", "package")])
        for kind, name, *words in answers:
            if kind == "optional":
                self.note(name, f"{words[0]}; whether it works is not tried" if words[0] else "not in the project")
        # Threads are counted when Julia is started: this process was not started as juliacall will.
        pythoncall = facts["pythoncall"][1] or juliacall
        for fault, remedy in version_problems(juliacall, pythoncall, facts["julia"][0], 1, route.command):
            self.note("versions", fault, ok=False, remedy=remedy)

    def packages(self, route: Route, packages: list[list[str]]) -> None:
        """Make findings of the packages: name, version, the versions allowed, and a mark if the project lists it."""
        missing = {}
        for name, version, compat, mark in packages:
            if not version:
                missing[name] = mark == "listed"
            elif allows(compat, version):
                self.note(name, version)
            else:
                newest = compat.split(",")[-1].strip()
                remedy = _pkg(route, f'Pkg.add(name="{name}", version="{newest}")')
                self.note(name, f"{version}, but SubDEQ needs {compat}", ok=False, remedy=remedy)
        if missing and all(missing.values()):
            value = f"in the project, but not installed: {', '.join(missing)}"
            self.note("packages", value, ok=False, remedy=_pkg(route, "Pkg.instantiate()"))
        elif missing:
            names = [f'"{name}"' for name in missing if name != "PythonCall"]
            work = [f"Pkg.add([{', '.join(names)}])"] if names else []
            if "PythonCall" in missing:
                work.append(f'Pkg.add(name="PythonCall", version="{juliacall_version()}")')
            self.note("packages", f"missing: {', '.join(missing)}", ok=False, remedy=_pkg(route, *work))


def _pkg(route: Route, *work: str) -> str:
    return f"{route.command} -e 'using Pkg; {'; '.join(work)}'"


def _complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The line of a process's output that tells most."""
    said = (result.stderr.strip() or result.stdout.strip() or "nothing").splitlines()
    return next((line for line in said if line.startswith("ERROR")), said[0])


def _run(command: list[str], environ: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command; what takes too long is killed with its children, for a launcher's child keeps the pipes open."""
    posix = os.name == "posix"
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environ,
        start_new_session=posix,
    ) as process:
        try:
            output, messages = process.communicate(timeout=timeout)
        except BaseException:
            if posix:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, messages)


def _resolved(route: Route) -> Route | None:
    """Where juliapkg has its Julia and its project; None if it would have to resolve, that is, to download.

    Raises:
        BridgeError: juliapkg cannot be asked.
    """
    try:
        import juliapkg
        from juliapkg.state import STATE

        # Even a dry run makes the folder of the environment, so it is not asked where there is none.
        if not os.path.isfile(STATE["meta"]) or not juliapkg.resolve(dry_run=True):
            return None
    except Exception as error:  # of juliapkg's own, which have no common class
        raise BridgeError(f"juliapkg cannot be asked for its Julia: {type(error).__name__}: {error}") from error
    return replace(route, executable=Path(juliapkg.executable()), project=Path(juliapkg.project()))


def allows(compat: str, version: str) -> bool:
    """Whether a `[compat]` entry made of plain versions allows a version, by Julia's rule.

    A version `a.b.c` stands for everything up to the next change of its first number that is not zero
    (https://pkgdocs.julialang.org/v1/compatibility/). An empty entry allows everything.

    Raises:
        ValueError: the entry has other signs than numbers, dots and commas.
    """
    if not compat:
        return True
    have = tuple(int(part) for part in version.split("+")[0].split("-")[0].split("."))
    for entry in compat.split(","):
        low = [int(part) for part in entry.split(".")]
        pivot = next((index for index, part in enumerate(low) if part), len(low) - 1)
        if tuple(low) <= have and have[: pivot + 1] == tuple(low[: pivot + 1]):
            return True
    return False
