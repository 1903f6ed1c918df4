"""The user's configuration file, and the choice of a Julia in it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BridgeError

__all__ = ["config_file", "forget_choice", "read_choice", "write_choice"]


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where choices are saved: `SUBDEQ_CONFIG`, or `subdeq/config.json` in the user's configuration folder."""
    named = environ.get("SUBDEQ_CONFIG")
    if named:
        return Path(named).expanduser()
    folder = environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "subdeq" / "config.json"


def read_choice(path: Path) -> dict[str, str]:
    """What the file says about Julia: `executable` and `project`, or nothing.

    Raises:
        BridgeError: it is damaged or cannot be read.
    """
    choice: dict[str, str] = _read(path).get("julia", {})
    return choice


def write_choice(path: Path, executable: str, project: str) -> None:
    """Save the choice; whatever else is in the file stays.

    Raises:
        BridgeError: the file is damaged or cannot be written.
    """
    content = _read(path)
    julia = {**content.get("julia", {}), "executable": executable, "project": project}
    _write(path, {**content, "julia": julia})


def forget_choice(environ: Mapping[str, str] = os.environ) -> bool:
    """Remove the saved choice, and the file if nothing else is in it; whether there was one.

    Raises:
        BridgeError: the file is damaged or cannot be written.
    """
    path = config_file(environ)
    content = _read(path)
    if content.pop("julia", None) is None:
        return False
    if content:
        _write(path, content)
        return True
    try:
        path.unlink()
    except OSError as error:
        raise BridgeError(f"{path} cannot be removed: {error}.") from error
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BridgeError(f"{path} cannot be read: {error}.") from error
    except ValueError as error:
        raise BridgeError(f"{path} is not JSON: {error}. Correct or delete it.") from error
    julia = content.get("julia", {}) if isinstance(content, dict) else None
    if not isinstance(julia, dict) or not all(isinstance(julia.get(key, ""), str) for key in ("executable", "project")):
        form = '{"julia": {"executable": "EXE", "project": "DIR"}}'
        raise BridgeError(f"{path} must hold {form}. Correct or delete it.")
    return dict(content)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step, so that no other process reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=2) + "\n")
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise BridgeError(f"{path} cannot be written: {error}. Set SUBDEQ_CONFIG to a file that can be.") from error
