"""What the commands share: writing JSON and showing a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..certificates import Certificate
from ..errors import DataError

__all__ = ["proven_line", "show_certificate", "write_json"]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, creating its folder.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}.") from error


def proven_line(worst: float) -> str:
    """What the largest guaranteed error over the test images means."""
    return f"every test image: distance of the computed state to the fixed point <= {worst:.3g}, proven"


def show_certificate(console: Console, certificate: Certificate) -> None:
    """Print a certificate, the verdict in colour."""
    head, *rest = str(certificate).splitlines()
    style = "bold green" if certificate.unique else "bold yellow"
    console.print(f"[{style}]{escape(head)}[/]", soft_wrap=True)
    for line in rest:
        console.print(escape(line), soft_wrap=True, highlight=False)
