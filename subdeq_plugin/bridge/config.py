"""Which Julia is used, and what juliacall must be told before it starts it.

The order is: `SUBDEQ_JULIA_EXE` with `SUBDEQ_JULIA_PROJECT`; the choice saved by `subdeq doctor --use-julia`;
juliacall's own `PYTHON_JULIACALL_EXE` with `PYTHON_JULIACALL_PROJECT`; juliapkg, which downloads what is missing. The
first three never touch the network. An explicit choice that cannot be used is an error, never a reason to try the next.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BridgeError
from .choice import config_file, forget_choice, read_choice, write_choice

__all__ = [
    "MINIMUM_JULIACALL",
    "USE_JULIA",
    "Route",
    "check_versions",
    "config_file",
    "find_route",
    "forget_choice",
    "import_order_problems",
    "juliacall_version",
    "looked_for",
    "prepare",
    "save_choice",
    "saved_choice",
    "sources",
    "version_problems",
]

MINIMUM_JULIACALL = "0.9.28"  # older ones ignore PYTHON_JULIACALL_EXE and let juliapkg download a Julia
USE_JULIA = "subdeq doctor --use-julia EXE --project DIR"
_FIRST_FOR_1_12 = "0.9.32"
_MINIMUM_JULIA = "1.10"
_OURS = ("SUBDEQ_JULIA_EXE", "SUBDEQ_JULIA_PROJECT")
_THEIRS = ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT")


@dataclass(frozen=True)
class Route:
    """A way to a Julia.

    Attributes:
        source: Who chose it: `"environment"`, `"saved"`, `"juliacall"` or `"juliapkg"`.
        executable: The Julia executable; None where juliapkg will find or download one.
        project: The folder with the Julia project; None where juliapkg will make one.
    """

    source: str
    executable: Path | None = None
    project: Path | None = None

    @property
    def offline(self) -> bool:
        """Whether it never touches the network."""
        return self.source != "juliapkg"

    @property
    def command(self) -> str:
        """How this Julia is started from a shell, in its project."""
        if self.executable is None or self.project is None:
            return "julia"
        words = [str(self.executable), f"--project={self.project}"]
        return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)

    def describe(self) -> str:
        """Who chose it, in words."""
        return {
            "environment": "chosen by " + " and ".join(_OURS),
            "saved": "chosen with `subdeq doctor --use-julia`",
            "juliacall": "chosen by juliacall's own options " + " and ".join(_THEIRS),
            "juliapkg": "left to juliapkg, which downloads what is missing",
        }[self.source]


def find_route(environ: Mapping[str, str] = os.environ) -> Route:
    """The Julia to use. Nothing is started or imported.

    Args:
        environ: The environment variables. Options of this interpreter, as `-X juliacall-exe=...`, count too.

    Raises:
        BridgeError: an explicit choice is half given or cannot be used, or there is no way to a Julia.
    """
    route = _explicit(environ)
    if route is None:
        if not (_installed("juliacall") and _installed("juliapkg")):
            raise BridgeError(f"no Julia can be used. {looked_for(environ)}")
        route = Route("juliapkg")
    if not _installed("juliacall"):
        raise BridgeError(
            f"the Python package juliacall is not installed, and {route.executable}, {route.describe()}, is used "
            f"through it: pip install 'juliacall>={MINIMUM_JULIACALL}'."
        )
    version = juliacall_version()
    if _numbers(version) < _numbers(MINIMUM_JULIACALL):
        why = "; older ones ignore the choice of a Julia" if route.offline else ""
        raise BridgeError(f"juliacall {version} is too old{why}: pip install 'juliacall>={MINIMUM_JULIACALL}'.")
    return route


def _explicit(environ: Mapping[str, str]) -> Route | None:
    exe, project = (environ.get(name) or None for name in _OURS)
    if exe is not None or project is not None:
        route = _checked("environment", _OURS, exe, project, environ)
    else:
        saved = saved_choice(environ)
        if saved is None:
            return _chosen_for_juliacall(environ)
        route = saved
    # Options of the interpreter win over the variables by which juliacall is told of our choice.
    for option, chosen in (("juliacall-exe", route.executable), ("juliacall-project", route.project)):
        given = sys._xoptions.get(option)
        if given is not None and os.path.abspath(str(given)) != str(chosen):
            raise BridgeError(f"-X {option}={given} contradicts {chosen}, {route.describe()}: give up one of the two.")
    return route


def _chosen_for_juliacall(environ: Mapping[str, str]) -> Route | None:
    """What juliacall's own options choose, read as juliacall reads them."""
    exe, exe_label = _option("exe", environ)
    project, project_label = _option("project", environ)
    home, home_label = _option("home", environ, "PYTHON_JULIACALL_BINDIR")
    if exe is None and home is not None:
        exe, exe_label = os.path.join(home, "julia.exe" if os.name == "nt" else "julia"), f"julia in {home_label}"
    if exe is None and project is None:
        return None
    return _checked("juliacall", (exe_label, project_label), exe, project, environ)


def _option(name: str, environ: Mapping[str, str], variable: str = "") -> tuple[str | None, str]:
    """The value of an option of juliacall, or None, and what it is called where it was given."""
    given = sys._xoptions.get(f"juliacall-{name.replace('_', '-')}")
    if given is True:
        raise BridgeError(f"-X juliacall-{name} needs a value: -X juliacall-{name}=VALUE.")
    if given is not None:
        return str(given), f"-X juliacall-{name}"
    variable = variable or f"PYTHON_JULIACALL_{name.upper()}"
    return environ.get(variable), variable


def _checked(
    source: str, labels: tuple[str, str], exe: str | None, project: str | None, environ: Mapping[str, str]
) -> Route:
    """The route of an explicit choice.

    Raises:
        BridgeError: half of it is missing, or it names something that cannot be used.
    """
    exe_label, project_label = labels
    if exe is None or project is None:
        has, value, lacks = (exe_label, exe, project_label) if project is None else (project_label, project, exe_label)
        raise BridgeError(f"{has} is {value!r} but {lacks} is not set: set both, or neither.")
    executable = os.path.expanduser(exe)
    found = shutil.which(executable, path=environ.get("PATH"))
    if found is None:
        if os.path.isdir(executable):
            fault = "is a folder: name the julia executable in it"
        elif os.path.exists(executable):
            fault = "is not executable: name a julia executable"
        elif os.path.dirname(executable):
            fault = "does not exist: name a julia executable"
        else:
            fault = "is not a command on the PATH: name a julia executable with its folder"
        raise BridgeError(f"{exe_label} is {exe!r}, which {fault}.")
    folder = Path(os.path.abspath(os.path.expanduser(project)))
    if not any((folder / name).is_file() for name in ("JuliaProject.toml", "Project.toml")):
        fault = "has no Project.toml" if folder.is_dir() else "is not a folder"
        raise BridgeError(f"{project_label} is {project!r}, which {fault}: name the folder of a Julia project.")
    # Links stay: the launcher of juliaup acts by the name it is called.
    return Route(source, Path(os.path.abspath(found)), folder)


def _installed(package: str) -> bool:
    return sys.modules.get(package) is not None or importlib.util.find_spec(package) is not None


def juliacall_version() -> str:
    """The version of the installed juliacall, without importing it.

    Raises:
        BridgeError: there is none, or its installation is damaged.
    """
    try:
        return importlib.metadata.version("juliacall")
    except importlib.metadata.PackageNotFoundError as error:
        raise BridgeError(
            f"Python knows no version of juliacall: pip install --force-reinstall 'juliacall>={MINIMUM_JULIACALL}'."
        ) from error


def looked_for(environ: Mapping[str, str]) -> str:
    """Where a Julia was looked for in vain, and the two ways to get one."""
    path = config_file(environ)
    packages = (f"{name} ({'' if _installed(name) else 'not '}installed)" for name in ("juliacall", "juliapkg"))
    return (
        f"Looked for: {' and '.join(_OURS)} (not set); a choice saved in {path} "
        f"({'it has none' if path.exists() else 'no such file'}); {' and '.join(_THEIRS)} (not set); the Python "
        f"packages {' and '.join(packages)}. Two ways to get it. Online: pip install 'subdeq-plugin[julia]'; the first "
        f"use downloads Julia and its packages. Offline, with a Julia of yours: pip install "
        f"'juliacall>={MINIMUM_JULIACALL}', then {USE_JULIA}."
    )


def saved_choice(environ: Mapping[str, str] = os.environ) -> Route | None:
    """The saved choice of a Julia, or None.

    Raises:
        BridgeError: the file is damaged, or what it names cannot be used.
    """
    path = config_file(environ)
    choice = read_choice(path)
    exe, project = choice.get("executable"), choice.get("project")
    if exe is None and project is None:
        return None
    labels = (f'"executable" in {path}', f'"project" in {path}')
    return _checked("saved", labels, exe, project, environ)


def save_choice(executable: str | Path, project: str | Path, environ: Mapping[str, str] = os.environ) -> Route:
    """Save the choice of a Julia for every later process of this user.

    Args:
        executable: The Julia executable, or a command on the PATH.
        project: The folder of the Julia project.
        environ: The environment variables.

    Returns:
        The route, with absolute paths, as it was saved.

    Raises:
        BridgeError: one of them cannot be used, or the configuration file is damaged or cannot be written.
    """
    route = _checked("saved", ("--use-julia", "--project"), str(executable), str(project), environ)
    write_choice(config_file(environ), str(route.executable), str(route.project))
    return route


def sources() -> Path:
    """The folder with the Julia package `SubDEQ`: inside an installed package, beside it in a checkout.

    Raises:
        BridgeError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "julia", package.parent / "julia")
    for place in places:
        if (place / "SubDEQ" / "Project.toml").is_file():
            return place
    raise BridgeError(
        f"the Julia package SubDEQ is neither in {places[0]} nor in {places[1]}: the installation is incomplete; "
        "install subdeq-plugin again."
    )


def prepare(route: Route, environ: MutableMapping[str, str]) -> dict[str, str]:
    """Set the variables that juliacall reads when it is imported; what the user has set stays.

    A `JULIA_NUM_THREADS` of the user's counts as a number of threads asked for, as it does for juliacall.

    Args:
        route: The Julia to use; a choice made for this package goes before one made for juliacall.
        environ: The environment, changed in place.

    Returns:
        What was set.
    """
    done: dict[str, str] = {}
    if route.source in ("environment", "saved"):
        done.update(zip(_THEIRS, (str(route.executable), str(route.project)), strict=True))
    threads = _option("threads", environ)[0] or environ.get("JULIA_NUM_THREADS")
    wanted = {
        "PYTHON_JULIACALL_THREADS": "1",
        # Julia's threads stop for the garbage collector by a signal, and without its handlers they crash. With them,
        # Ctrl-C no longer reaches Python: one thread does without.
        "PYTHON_JULIACALL_HANDLE_SIGNALS": "yes" if _several(threads) else "no",
        "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "no",
    }
    if threads is not None:
        del wanted["PYTHON_JULIACALL_THREADS"]
    if route.offline:
        # CondaPkg comes with PythonCall and would download a Python of its own.
        wanted |= {"JULIA_PKG_OFFLINE": "true", "JULIA_CONDAPKG_BACKEND": "Null"}
    done |= {name: value for name, value in wanted.items() if name not in environ}
    environ.update(done)
    return done


def _several(threads: str | None) -> bool:
    """Whether a value of Julia's `--threads` can mean more than one thread."""
    return threads is not None and re.fullmatch(r"\s*1\s*(,\s*0\s*)?", threads) is None


def check_versions(juliacall: str, pythoncall: str, julia: str, threads: int) -> None:
    """Whether these versions work together.

    Args:
        juliacall: Version of the Python package juliacall.
        pythoncall: Version of the Julia package PythonCall.
        julia: Version of Julia.
        threads: Number of Julia's threads.

    Raises:
        BridgeError: they do not; the message has every reason and its remedy.
    """
    problems = version_problems(juliacall, pythoncall, julia, threads)
    if problems:
        raise BridgeError(" ".join(f"{fault}: {remedy}." for fault, remedy in problems))


def version_problems(
    juliacall: str, pythoncall: str, julia: str, threads: int, command: str = "julia"
) -> list[tuple[str, str]]:
    """What is wrong with these versions: pairs of a fault and its remedy.

    Args:
        juliacall: Version of the Python package juliacall.
        pythoncall: Version of the Julia package PythonCall.
        julia: Version of Julia.
        threads: Number of Julia's threads.
        command: How this Julia is started in its project; the remedies use it.
    """
    found = []
    if _numbers(juliacall) < _numbers(MINIMUM_JULIACALL):
        found.append((f"juliacall {juliacall} is too old", f"pip install 'juliacall>={MINIMUM_JULIACALL}'"))
    elif pythoncall != juliacall:
        add = f'using Pkg; Pkg.add(name="PythonCall", version="{juliacall}")'
        found.append(
            (
                f"PythonCall.jl is {pythoncall} and juliacall {juliacall}, but they must be the same",
                f"pip install 'juliacall=={pythoncall}', or {command} -e '{add}'",
            )
        )
    if _numbers(julia) < _numbers(_MINIMUM_JULIA):
        found.append((f"Julia {julia} is too old", f"use Julia {_MINIMUM_JULIA} or later"))
    # PythonCall.jl #748
    if _numbers(julia) >= (1, 12) and threads > 1 and _numbers(juliacall) < _numbers(_FIRST_FOR_1_12):
        found.append(
            (
                f"Julia {julia} with {threads} threads crashes under juliacall {juliacall}",
                f"pip install 'juliacall>={_FIRST_FOR_1_12}', or set PYTHON_JULIACALL_THREADS=1",
            )
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `1.12.0-rc1` is as good as `1.12.0`."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def import_order_problems(modules: Mapping[str, Any] = sys.modules, route: Route | None = None) -> list[str]:
    """What is wrong with starting Julia now because of what was imported before; torch may have been.

    Args:
        modules: The imported modules.
        route: The Julia that should be used.
    """
    juliacall = modules.get("juliacall")
    if juliacall is None:
        return []
    found = [
        "juliacall was imported before, so Julia belongs to the thread that did it, and calls from another would hang: "
        "import it after Julia was started by subdeq_plugin, or not at all."
    ]
    config: dict[str, Any] = getattr(juliacall, "CONFIG", {})
    if _several(config.get("opt_threads")) and config.get("opt_handle_signals") != "yes":
        found.append(
            f"it started Julia with --threads={config['opt_threads']} without Julia's signal handlers, and garbage "
            "collection will crash the process: set PYTHON_JULIACALL_HANDLE_SIGNALS=yes before the import."
        )
    for key, chosen in (("exepath", route and route.executable), ("project", route and route.project)):
        if chosen is not None and config.get(key) not in (None, str(chosen)):
            found.append(f"it started Julia with {config[key]}, not with {chosen}: set {' and '.join(_THEIRS)}.")
    return found
