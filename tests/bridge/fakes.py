"""A Julia and a juliacall that only look like it: what finds and questions them is tested without either."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FACTS = {
    "julia": "1.10.8",
    "cpu": "8",
    "blas": "libopenblas64_.so\t2",
    "pythoncall": "PythonCall\t0.9.30\t\tlisted",
    "package": "Krylov\t0.10.3\t0.10\tlisted",
    "optional": "CUDA\t\t5\t",
}


def answers(*more: str, **changed: str) -> str:
    """What a Julia prints when it is questioned: one line for each fact, some changed, some added."""
    lines = [f"{kind}\t{words}" for kind, words in {**FACTS, **changed}.items()]
    return "".join(f"subdeq\t{line}\n" for line in [*lines, *more])


def fake_julia(folder: Path, says: str = "", then: str = "exit 0") -> Path:
    """An executable that records how it was called beside itself, says something and ends."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "says").write_text(says)
    path = folder / "julia"
    path.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$@\" > '{folder}/arguments'\nenv > '{folder}/environment'\n"
        f"cat '{folder}/says'\n{then}\n"
    )
    path.chmod(0o755)
    return path


def fake_project(folder: Path) -> Path:
    """An empty Julia project."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Project.toml").touch()
    return folder


def fake_juliacall(folder: Path, version: str = "0.9.30") -> Path:
    """A folder for `sys.path` with a juliacall and a juliapkg that must not be imported."""
    for name in ("juliacall", "juliapkg"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    metadata = folder / f"juliacall-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: juliacall\nVersion: {version}\n")
    return folder


def use_juliacall(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "0.9.30") -> None:
    """Let this process find that juliacall, and none that was imported."""
    for name in ("juliacall", "juliapkg"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(fake_juliacall(folder, version)))


def julia(folder: Path, name: str) -> tuple[Path, Path]:
    """Executable and project of a Julia that can be chosen."""
    return fake_julia(folder / name), fake_project(folder / f"{name}-project")


def ours(folder: Path) -> dict[str, str]:
    """The variables that choose a Julia for this package."""
    exe, project = julia(folder, "ours")
    return {"SUBDEQ_JULIA_EXE": str(exe), "SUBDEQ_JULIA_PROJECT": str(project)}


def theirs(folder: Path) -> dict[str, str]:
    """The variables that choose a Julia for juliacall."""
    exe, project = julia(folder, "theirs")
    return {"PYTHON_JULIACALL_EXE": str(exe), "PYTHON_JULIACALL_PROJECT": str(project)}
