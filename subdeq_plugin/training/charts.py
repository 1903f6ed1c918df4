"""The pictures of a report, as SVG to stand inside a page: no colours of their own for text and axes, no addresses."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

from torch import Tensor

from ..errors import OptionError

__all__ = ["convergence_chart", "error_chart"]

_INK = "#123456"  # stands for the page's text colour until the picture is there
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "subdeq",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _INK,
}
_MEASURED, _CERTIFIED = "#2a7fb8", "#d1701f"  # legible on white and on black, and apart for the colour-blind
_BINS = 30


def _figure() -> tuple[Any, Any]:
    """A figure and its axes."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("the report's pictures need matplotlib: pip install 'subdeq-plugin[plot]'.") from error
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        return figure, figure.subplots()


def _style() -> Any:
    from matplotlib import rc_context

    return rc_context(_STYLE)


def _svg(figure: Any, name: str, label: str) -> str:
    """The figure as an `svg` element; `label` is read out in place of it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
    # Several pictures share a page, hence its names.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    box = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {box.group(0) if box else ""} role="img" aria-label="{escape(label, quote=True)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def convergence_chart(steps: list[float], rate: float | None, metric: str) -> str:
    """Distances of successive states, against the certified rate if there is one.

    Args:
        steps: the distances, at least one.
        rate: the certified factor, or None.
        metric: of the distances.

    Raises:
        OptionError: matplotlib is not installed.
    """
    figure, axes = _figure()
    with _style():
        numbers = range(len(steps))
        axes.semilogy(
            numbers, [max(step, 1e-17) for step in steps], "o-", color=_MEASURED, ms=4, label="measured, worst image"
        )
        label = f"Distances of successive states fall from {steps[0]:.2g} to {steps[-1]:.2g} in {len(steps)} steps"
        if rate is not None:
            certified = [steps[0] * rate**number for number in numbers]
            axes.semilogy(numbers, certified, "--", color=_CERTIFIED, label=f"certified: factor {rate:.3f} a step")
            label += f"; the certificate allows a factor of {rate:.3g} a step"
        axes.set(xlabel="application of the map", ylabel=f"distance ({metric})")
        axes.legend()
        return _svg(figure, "convergence", label + ".")


def error_chart(errors: Tensor, metric: str, number: int) -> str:
    """Histogram of guaranteed errors over decades.

    Args:
        errors: `(n,)` finite and nonnegative, at least one.
        metric: of the errors.
        number: of the picture on its page.

    Raises:
        OptionError: matplotlib is not installed.
    """
    figure, axes = _figure()
    values = errors.double().clamp(min=1e-17)  # a logarithmic axis has no zero
    low, high = float(values.min().log10()), float(values.max().log10())
    if high - low < 0.1:
        low, high = low - 0.05, high + 0.05
    edges = [10 ** (low + (high - low) * step / _BINS) for step in range(_BINS + 1)]
    edges[0], edges[-1] = min(edges[0], float(values.min())), max(edges[-1], float(values.max()))
    with _style():
        axes.hist(values.tolist(), bins=edges, color=_MEASURED)
        axes.set(xscale="log", xlabel=f"guaranteed error ({metric})", ylabel="images")
        label = (
            f"Histogram of {len(values)} guaranteed errors from {float(values.min()):.2g} to {float(values.max()):.2g}."
        )
        return _svg(figure, f"errors{number}", label)
