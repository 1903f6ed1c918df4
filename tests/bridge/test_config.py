"""Which Julia is found, what is saved, and what juliacall is told; no Julia is needed."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from subdeq_plugin.bridge import config
from subdeq_plugin.bridge.config import (
    MINIMUM_JULIACALL,
    Route,
    check_versions,
    find_route,
    import_order_problems,
    prepare,
    save_choice,
    sources,
    version_problems,
)
from subdeq_plugin.errors import BridgeError

from .fakes import fake_juliacall, fake_project, julia, ours, theirs, use_juliacall
from .process import python

ROOT = Path(__file__).parents[2]


# Routes.


def test_the_order_of_the_routes(environ, tmp_path):
    assert find_route(environ) == Route("juliapkg", None, None)
    environ |= theirs(tmp_path)
    assert find_route(environ) == Route("juliacall", *julia(tmp_path, "theirs"))
    save_choice(*julia(tmp_path, "saved"), environ)
    assert find_route(environ) == Route("saved", *julia(tmp_path, "saved"))
    environ |= ours(tmp_path)
    assert find_route(environ) == Route("environment", *julia(tmp_path, "ours"))


def test_only_juliapkg_may_use_the_network():
    assert [Route(source).offline for source in ("environment", "saved", "juliacall", "juliapkg")] == [True] * 3 + [
        False
    ]
    texts = [Route(source).describe() for source in ("environment", "saved", "juliacall", "juliapkg")]
    assert "SUBDEQ_JULIA_EXE" in texts[0] and "--use-julia" in texts[1] and "PYTHON_JULIACALL_EXE" in texts[2]
    assert "downloads" in texts[3]


def test_a_command_that_can_be_pasted():
    assert Route("saved", Path("/opt/my julia/julia"), Path("/p")).command == "'/opt/my julia/julia' --project=/p"


@pytest.mark.parametrize("prefix", ["SUBDEQ_JULIA", "PYTHON_JULIACALL"])
@pytest.mark.parametrize("half", ["EXE", "PROJECT"])
def test_half_a_choice_is_an_error(environ, tmp_path, prefix, half):
    exe, project = julia(tmp_path, "ours")
    value = {"EXE": exe, "PROJECT": project}[half]
    other = {"EXE": "PROJECT", "PROJECT": "EXE"}[half]
    # A weaker choice that could be used must not be.
    environ |= theirs(tmp_path) if prefix == "SUBDEQ_JULIA" else {}
    environ[f"{prefix}_{half}"] = str(value)
    with pytest.raises(BridgeError) as caught:
        find_route(environ)
    assert (
        str(caught.value) == f"{prefix}_{half} is {str(value)!r} but {prefix}_{other} is not set: set both, or neither."
    )


@pytest.mark.parametrize(
    ("exe", "fault"),
    [
        ("{}/absent/julia", "does not exist: name a julia executable"),
        ("{}", "is a folder: name the julia executable in it"),
        ("{}/plain", "is not executable: name a julia executable"),
        ("subdeq-no-such-command", "is not a command on the PATH"),
    ],
)
def test_an_executable_that_cannot_be_used_is_an_error(environ, tmp_path, exe, fault):
    (tmp_path / "plain").touch(mode=0o644)
    exe = exe.format(tmp_path)
    environ |= theirs(tmp_path) | ours(tmp_path) | {"SUBDEQ_JULIA_EXE": exe}
    with pytest.raises(BridgeError, match=f"^SUBDEQ_JULIA_EXE is {re.escape(repr(exe))}, which {fault}"):
        find_route(environ)


@pytest.mark.parametrize(
    ("project", "fault"),
    [("{}/absent", "is not a folder"), ("{}/plain", "is not a folder"), ("{}", "has no Project.toml")],
)
def test_a_project_that_is_none_is_an_error(environ, tmp_path, project, fault):
    (tmp_path / "plain").touch()
    project = project.format(tmp_path)
    environ |= ours(tmp_path) | {"SUBDEQ_JULIA_PROJECT": project}
    with pytest.raises(BridgeError) as caught:
        find_route(environ)
    assert str(caught.value) == (
        f"SUBDEQ_JULIA_PROJECT is {project!r}, which {fault}: name the folder of a Julia project."
    )


def test_a_bare_command_is_looked_up_on_the_path(environ, tmp_path):
    exe, _ = julia(tmp_path, "ours")
    environ |= ours(tmp_path) | {"SUBDEQ_JULIA_EXE": "julia", "PATH": f"{tmp_path}{os.pathsep}{exe.parent}"}
    assert find_route(environ).executable == exe


def test_relative_paths_become_absolute_and_links_stay(environ, tmp_path, monkeypatch):
    exe, project = julia(tmp_path, "ours")
    (tmp_path / "launcher").symlink_to(exe)
    monkeypatch.chdir(tmp_path)
    environ |= {"SUBDEQ_JULIA_EXE": "./launcher", "SUBDEQ_JULIA_PROJECT": project.name}
    assert find_route(environ) == Route("environment", tmp_path / "launcher", project)


def test_the_older_name_of_a_project_file_counts(environ, tmp_path):
    environ |= ours(tmp_path)
    (tmp_path / "ours-project" / "Project.toml").rename(tmp_path / "ours-project" / "JuliaProject.toml")
    assert find_route(environ).source == "environment"


def test_empty_variables_of_ours_count_as_not_set(environ):
    assert find_route({**environ, "SUBDEQ_JULIA_EXE": "", "SUBDEQ_JULIA_PROJECT": ""}).source == "juliapkg"


def test_options_of_the_interpreter_count_as_juliacall_counts_them(environ, tmp_path, monkeypatch):
    exe, project = julia(tmp_path, "option")
    environ |= theirs(tmp_path)
    monkeypatch.setitem(sys._xoptions, "juliacall-exe", str(exe))
    assert find_route(environ) == Route("juliacall", exe, tmp_path / "theirs-project")
    monkeypatch.setitem(sys._xoptions, "juliacall-project", str(project))
    assert find_route(environ) == Route("juliacall", exe, project)
    del environ["PYTHON_JULIACALL_EXE"], environ["PYTHON_JULIACALL_PROJECT"]
    assert find_route(environ) == Route("juliacall", exe, project)
    monkeypatch.delitem(sys._xoptions, "juliacall-project")
    with pytest.raises(BridgeError, match=r"-X juliacall-exe is .* but PYTHON_JULIACALL_PROJECT is not set"):
        find_route(environ)
    monkeypatch.setitem(sys._xoptions, "juliacall-exe", True)
    with pytest.raises(BridgeError, match="-X juliacall-exe needs a value"):
        find_route(environ)


def test_an_option_of_the_interpreter_must_not_contradict_a_stronger_choice(environ, tmp_path, monkeypatch):
    environ |= ours(tmp_path)
    monkeypatch.setitem(sys._xoptions, "juliacall-exe", environ["SUBDEQ_JULIA_EXE"])
    assert find_route(environ).source == "environment"
    monkeypatch.setitem(sys._xoptions, "juliacall-project", str(tmp_path))
    with pytest.raises(BridgeError, match=r"-X juliacall-project=.* contradicts .*SUBDEQ_JULIA_PROJECT: give up one"):
        find_route(environ)


def test_the_folder_of_the_executable_counts_as_juliacall_counts_it(environ, tmp_path):
    exe, project = julia(tmp_path, "home")
    environ |= {"PYTHON_JULIACALL_BINDIR": str(exe.parent), "PYTHON_JULIACALL_PROJECT": str(project)}
    assert find_route(environ) == Route("juliacall", exe, project)


def test_where_nothing_is_found_the_message_lists_everything(environ, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "juliapkg", None)  # as if it were not installed
    with pytest.raises(BridgeError) as caught:
        find_route(environ)
    message = str(caught.value)
    for text in (
        "SUBDEQ_JULIA_EXE and SUBDEQ_JULIA_PROJECT (not set)",
        f"a choice saved in {tmp_path / 'config.json'} (no such file)",
        "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT (not set)",
        "juliacall (installed) and juliapkg (not installed)",
        "pip install 'subdeq-plugin[julia]'",
        "subdeq doctor --use-julia EXE --project DIR",
    ):
        assert text in message
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BridgeError, match=r"config.json \(it has none\)"):
        find_route(environ)


def test_an_explicit_choice_needs_juliacall_and_not_juliapkg(environ, tmp_path, monkeypatch):
    environ |= ours(tmp_path)
    monkeypatch.setitem(sys.modules, "juliapkg", None)
    assert find_route(environ).source == "environment"
    monkeypatch.setitem(sys.modules, "juliacall", None)
    with pytest.raises(BridgeError, match=r"juliacall is not installed.*pip install 'juliacall>=0\.9\.28'"):
        find_route(environ)


def test_a_juliacall_that_would_ignore_the_choice_is_refused(environ, tmp_path, monkeypatch):
    use_juliacall(monkeypatch, tmp_path / "old", "0.9.27")
    for chosen in (environ, environ | ours(tmp_path)):
        with pytest.raises(BridgeError, match=r"juliacall 0\.9\.27 is too old.*'juliacall>=0\.9\.28'"):
            find_route(chosen)
    use_juliacall(monkeypatch, tmp_path / "new", "0.9.28")
    assert find_route(environ).source == "juliapkg"
    assert find_route(environ | ours(tmp_path)).source == "environment"


# What juliacall is told.


def test_one_thread_without_signal_handlers_is_the_default(environ):
    done = prepare(Route("juliapkg"), environ)
    assert done == {
        "PYTHON_JULIACALL_THREADS": "1",
        "PYTHON_JULIACALL_HANDLE_SIGNALS": "no",
        "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "no",
    }
    assert done.items() <= environ.items()
    assert prepare(Route("juliapkg"), environ) == {}


@pytest.mark.parametrize(
    ("threads", "signals"), [("1", "no"), ("1,0", "no"), ("4", "yes"), ("auto", "yes"), ("1,1", "yes")]
)
@pytest.mark.parametrize("variable", ["PYTHON_JULIACALL_THREADS", "JULIA_NUM_THREADS"])
def test_several_threads_need_signal_handlers(environ, variable, threads, signals):
    environ[variable] = threads
    done = prepare(Route("juliapkg"), environ)
    assert done["PYTHON_JULIACALL_HANDLE_SIGNALS"] == signals
    assert "PYTHON_JULIACALL_THREADS" not in done and environ[variable] == threads


def test_threads_asked_of_the_interpreter_count(environ, monkeypatch):
    monkeypatch.setitem(sys._xoptions, "juliacall-threads", "2")
    assert prepare(Route("juliapkg"), environ)["PYTHON_JULIACALL_HANDLE_SIGNALS"] == "yes"


def test_what_the_user_has_set_stays(environ):
    mine = {
        "PYTHON_JULIACALL_THREADS": "4",
        "PYTHON_JULIACALL_HANDLE_SIGNALS": "no",
        "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "yes",
        "JULIA_PKG_OFFLINE": "false",
        "JULIA_CONDAPKG_BACKEND": "System",
    }
    environ |= mine
    assert prepare(Route("juliacall"), environ) == {}
    assert mine.items() <= environ.items()


@pytest.mark.parametrize("source", ["environment", "saved"])
def test_a_choice_for_this_package_goes_before_one_for_juliacall(environ, tmp_path, source):
    environ |= theirs(tmp_path)
    exe, project = julia(tmp_path, "ours")
    done = prepare(Route(source, exe, project), environ)
    assert environ["PYTHON_JULIACALL_EXE"] == done["PYTHON_JULIACALL_EXE"] == str(exe)
    assert environ["PYTHON_JULIACALL_PROJECT"] == done["PYTHON_JULIACALL_PROJECT"] == str(project)


def test_explicit_routes_are_kept_off_the_network(environ, tmp_path):
    for source in ("environment", "saved", "juliacall"):
        done = prepare(Route(source, *julia(tmp_path, "ours")), dict(environ))
        assert done["JULIA_PKG_OFFLINE"] == "true" and done["JULIA_CONDAPKG_BACKEND"] == "Null"


# Versions and order.


def test_the_minimum_is_what_the_package_asks_for():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'julia = ["juliacall>={MINIMUM_JULIACALL}"]' in text


@pytest.mark.parametrize(
    "versions",
    [
        ("0.9.28", "0.9.28", "1.10.0", 1),
        ("0.9.30", "0.9.30", "1.10.8", 4),
        ("0.9.30", "0.9.30", "1.12.1", 1),
        ("0.9.32", "0.9.32", "1.12.1", 4),
        ("0.9.30", "0.9.30", "1.11.7+0.x64.linux.gnu", 2),
        ("0.10.0", "0.10.0", "1.13.0-DEV.12", 2),
    ],
)
def test_versions_that_fit(versions):
    check_versions(*versions)


@pytest.mark.parametrize(
    ("versions", "texts"),
    [
        (("0.9.27", "0.9.27", "1.10.8", 1), ["juliacall 0.9.27 is too old", "'juliacall>=0.9.28'"]),
        (
            ("0.9.37", "0.9.30", "1.10.8", 1),
            ["PythonCall.jl is 0.9.30", "'juliacall==0.9.30'", 'Pkg.add(name="PythonCall", version="0.9.37")'],
        ),
        (("0.9.30", "0.9.30", "1.9.4", 1), ["Julia 1.9.4 is too old", "1.10 or later"]),
        (
            ("0.9.31", "0.9.31", "1.12.0-rc1", 2),
            ["Julia 1.12.0-rc1 with 2 threads", "'juliacall>=0.9.32'", "PYTHON_JULIACALL_THREADS=1"],
        ),
        (("0.9.31", "0.9.30", "1.9.4", 1), ["PythonCall.jl is 0.9.30", "Julia 1.9.4 is too old"]),
    ],
)
def test_versions_that_do_not_fit(versions, texts):
    with pytest.raises(BridgeError) as caught:
        check_versions(*versions)
    assert all(text in str(caught.value) for text in texts)


def test_the_remedy_names_the_julia_in_question():
    ((_, remedy),) = version_problems("0.9.37", "0.9.30", "1.10.8", 1, "/j --project=/p")
    assert "/j --project=/p -e 'using Pkg; Pkg.add(" in remedy


def juliacall_with(**options):
    return types.SimpleNamespace(CONFIG=options)


def test_what_was_imported_before():
    assert import_order_problems({"torch": object()}) == []
    one = import_order_problems({"juliacall": juliacall_with(opt_threads="1", opt_handle_signals="no")})
    assert len(one) == 1 and "belongs to the thread" in one[0]
    safe = import_order_problems({"juliacall": juliacall_with(opt_threads="4", opt_handle_signals="yes")})
    assert safe == one
    crash = import_order_problems({"juliacall": juliacall_with(opt_threads="4", opt_handle_signals=None)})
    assert crash[0] == one[0] and "--threads=4" in crash[1] and "PYTHON_JULIACALL_HANDLE_SIGNALS=yes" in crash[1]


def test_another_julia_that_was_started_before(tmp_path):
    exe, project = julia(tmp_path, "ours")
    route = Route("environment", exe, project)
    same = {"juliacall": juliacall_with(exepath=str(exe), project=str(project))}
    assert len(import_order_problems(same, route)) == 1
    other = {"juliacall": juliacall_with(exepath="/other/julia", project=str(project))}
    assert f"with /other/julia, not with {exe}" in import_order_problems(other, route)[1]
    assert len(import_order_problems(other, Route("juliapkg"))) == 1


# Where things are.


def test_the_julia_package_of_this_checkout():
    assert sources() == ROOT / "julia"


def test_a_missing_julia_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "__file__", str(tmp_path / "subdeq_plugin" / "bridge" / "config.py"))
    with pytest.raises(BridgeError) as caught:
        sources()
    assert str(tmp_path / "subdeq_plugin" / "julia") in str(caught.value) and str(tmp_path / "julia") in str(
        caught.value
    )
    for folder in (tmp_path / "julia", tmp_path / "subdeq_plugin" / "julia"):
        fake_project(folder / "SubDEQ")
        assert sources() == folder


def test_choosing_a_julia_does_not_import_juliacall(tmp_path):
    site = fake_juliacall(tmp_path / "site")
    code = (
        "import sys, subdeq_plugin, subdeq_plugin.bridge.config as config\n"
        "assert config.find_route().source == 'environment'\n"
        "config.prepare(config.find_route(), {})\n"
        "sys.exit('juliacall' in sys.modules or 'juliapkg' in sys.modules)"
    )
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, **ours(tmp_path), "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr


def test_what_a_user_without_julia_is_told(tmp_path, monkeypatch):
    """By a solve, where juliapkg may not use the network."""
    for prefix in ("SUBDEQ_JULIA", "PYTHON_JULIACALL"):
        for half in ("EXE", "PROJECT"):
            monkeypatch.delenv(f"{prefix}_{half}", raising=False)
    result = python(
        """
        import torch, subdeq_plugin as sd
        from subdeq_plugin.errors import BridgeError
        for key in ("julia:auto", "julia:newton_krylov"):
            try:
                sd.solve(torch.cos, torch.ones(2, 3), sd.parse_solver(key))
            except BridgeError as error:
                print(error)
        print(sd.solve(torch.cos, torch.ones(2, 3), sd.parse_solver("subdeq:auto")).converged)
        """,
        SUBDEQ_CONFIG=str(tmp_path / "none.json"),
        PYTHON_JULIAPKG_OFFLINE="yes",
        PYTHON_JULIAPKG_PROJECT=str(tmp_path / "project"),
        PATH=str(tmp_path),
    )
    first, second, usable = [line for line in result.stdout.splitlines() if not line.startswith("[juliapkg]")]
    assert first == second
    for part in ("SUBDEQ_JULIA_EXE", str(tmp_path / "none.json"), "pip install", "--use-julia EXE --project DIR"):
        assert part in first
    assert usable == "True"
