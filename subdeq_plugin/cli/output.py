"""What the commands share: writing JSON and showing a certificate."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..certificates import Advice, Certificate
from ..errors import DataError
from ..training import GradientError, StoredVerdict, Survey
from ..training.survey import quantiles

__all__ = [
    "proven_line",
    "show_advice",
    "show_certificate",
    "show_gradients",
    "show_radii",
    "show_stored",
    "show_survey",
    "write_json",
]


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


def show_stored(console: Console, verdict: StoredVerdict) -> None:
    """Print what the checkpoint's own certificate is worth, a void one in colour."""
    console.print(escape(verdict.message), style="bold red" if verdict.void else "", soft_wrap=True, highlight=False)


def show_survey(console: Console, survey: Survey, accuracy: float) -> None:
    """Print how many images are proven and by what, and how large the guaranteed errors and the rates are."""
    lines = []
    if survey.proven == survey.total and len(survey.measures) == 1 and bool(survey.errors.isfinite().all()):
        lines.append(f"{proven_line(float(survey.errors.max()))}; test accuracy {100 * accuracy:.2f} %")
    else:
        lines.append(f"{survey.proven} of {survey.total} test images proven; test accuracy {100 * accuracy:.2f} %")
    lines.append("  " + ", ".join(f"{name}: {count}" for name, count in survey.counts.items()))
    for metric in survey.measures:
        lines.append(f"  guaranteed errors ({metric}): {_spread(quantiles(survey.errors_in(metric)))}")
    rates = quantiles(survey.rates[~survey.rates.isnan()])
    if rates:
        lines.append(f"  factors of one step: {_spread(rates)}")
    for line in lines:
        console.print(escape(line), soft_wrap=True, highlight=False)


def _spread(values: dict[str, float]) -> str:
    return f"median {values['0.5']:.3g}, 95 % {values['0.95']:.3g}, largest {values['1']:.3g}"


def show_advice(console: Console, advice: Sequence[Advice], survey: Survey | None) -> None:
    """Print what would give a proof, for every input or for the images that have none."""
    parts = [("to prove it for every input, one of:", advice)]
    if survey is not None:
        texts = [item.text for item in advice]  # what proves it for every input proves it for these
        rest = [item for item in survey.advice if item.text not in texts]
        parts.append(("to prove the first images that are not, one of:", rest))
    for title, items in parts:
        if items:
            console.print(title, highlight=False)
        for item in items:
            console.print(escape(f"  - {item}"), soft_wrap=True, highlight=False)


def show_radii(console: Console, norm: str, found: dict[str, Any], total: int) -> None:
    """Print certified radii."""
    console.print(
        f"{found['certified']} of {total} images have a certified {norm} radius, median {found['radii']['0.5']:.3g}, "
        f"largest {found['radii']['1']:.3g} ({found['unit']}s); {found['certified_and_right']} of them are right",
        highlight=False,
        soft_wrap=True,
    )


def show_gradients(console: Console, found: Sequence[GradientError], count: int) -> None:
    """Print how wrong gradients can be."""
    for item in found:
        bound = f"off by at most {item.error:.3g}" if math.isfinite(item.error) else "no bound is to be had"
        console.print(
            f"gradient of the mean loss over {count} images, {item.tensor}: {bound} (largest entry {item.largest:.3g})",
            highlight=False,
            soft_wrap=True,
        )
