"""A certificate as one page for people: everything inside, nothing fetched, nothing to execute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, takewhile
from pathlib import Path

from ..certificates import Advice, Certificate, Check
from ..certificates.report import METRIC_NAMES, condition_title
from ..errors import DataError
from .charts import convergence_chart, error_chart
from .checkpoint import Checkpoint, StoredVerdict
from .style import STYLE
from .survey import Survey, quantiles

__all__ = ["Report", "facts", "write_page"]

_PLAIN_PROVEN = (
    "Among the states that the scope below names there is one equilibrium and only one, so the answer does not depend "
    "on the solver or on where it starts. The guaranteed errors bound how far a computed equilibrium can be from the "
    "true one. Every hypothesis of the theorem was checked on the numbers that the file holds."
)
_PLAIN_OPEN = (
    "None of the sufficient conditions holds for {what}. That says nothing about uniqueness either way: there may be "
    "one equilibrium, several or none. Until there is a proof, two solvers or two starts may give different answers."
)
_PLAIN_METRIC = {
    "thompson": "An error of e means that every entry of the computed state is within a factor of exp(e) of the true "
    "one: 0.001 is a tenth of a percent.",
    "hilbert": "An error of e means that every entry of the computed state, divided by its norm, is within a factor of "
    "exp(e) of the true one.",
    "linf": "An error of e means that no entry of the computed state is off by more than e.",
    "l1": "An error of e means that the entries of the computed state are off by e in total at most.",
    "l2": "An error of e means that the computed state lies within a Euclidean distance of e of the true one.",
}


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes:
        name: of the checkpoint.
        certificate: for every input.
        facts: further lines for the table of the model: label and value.
        stored: what the checkpoint's own certificate is worth, or None.
        survey: the certificates of single images, or None.
        advice: what would prove it for every input.
        convergence: distances of successive states, the certified rate or None, and the metric; or None.
    """

    name: str
    certificate: Certificate
    facts: Sequence[tuple[str, str]] = ()
    stored: StoredVerdict | None = None
    survey: Survey | None = None
    advice: Sequence[Advice] = ()
    convergence: tuple[list[float], float | None, str] | None = None

    @property
    def proven(self) -> bool:
        """For every input, or for every image looked at."""
        return self.certificate.unique or (self.survey is not None and self.survey.proven == self.survey.total)

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        if self.certificate.unique:
            return "Proven: for every input the layer has exactly one equilibrium."
        if self.survey is None:
            return "Not proven: no sufficient condition for a unique equilibrium holds for every input."
        if self.proven:
            return f"Proven for the images looked at: each of the {self.survey.total} has exactly one equilibrium."
        open_images = self.survey.total - self.survey.proven
        rest = f" Each of the other {self.survey.proven} has exactly one equilibrium." if self.survey.proven else ""
        return f"Not proven for {open_images} of the {self.survey.total} images looked at.{rest}"


def facts(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """What a checkpoint says of its model and training: label and value."""
    rows = [(name.replace("_", " "), str(value)) for name, value in checkpoint.config.to_dict().items()]
    rows.append(("parameters and buffers", f"{sum(tensor.numel() for tensor in checkpoint.model.values()):,}"))
    if checkpoint.history:
        last = checkpoint.history[-1]
        rows.append(("epochs completed", str(checkpoint.epoch)))
        rows += [(name.replace("_", " "), f"{last[name]:.4g}") for name in ("loss", "test_accuracy") if name in last]
    return tuple(rows)


def write_page(path: Path, report: Report) -> None:
    """Write the report as one HTML file, creating its folder.

    Raises:
        DataError: it cannot be written.
        OptionError: matplotlib is not installed.
    """
    text = _page(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}.") from error


def _page(report: Report) -> str:
    state = "good" if report.proven else "open"
    word = "Proven" if report.proven else "Not proven"
    parts = [
        "<header>",
        '<p class="kind">Certificate of a deep equilibrium model</p>',
        f"<h1>{escape(report.name)}</h1>",
        f'<p class="verdict {state}" id="verdict">{escape(report.verdict)}</p>',
        "</header>",
        _meaning(report),
        _figures(report),
        _advice(report),
        _images(report),
        _convergence(report),
        _checks(report),
        _model(report),
    ]
    title = f"{word}: {report.name}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, *content: str) -> str:
    body = "\n".join(part for part in content if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def _meaning(report: Report) -> str:
    if report.proven:
        text = _PLAIN_PROVEN
    else:
        text = _PLAIN_OPEN.format(what="every input" if report.survey is None else "some of the images")
    notes = [_paragraph(text)]
    if report.survey is not None and not report.certificate.unique and report.proven:
        notes.append(_paragraph("The proof is about these images only. For other inputs nothing is claimed."))
    notes.append(_paragraph(f"Scope of the certificate without data: {report.certificate.scope}."))
    if report.stored is not None:
        kind = "note open" if report.stored.void else "note"
        notes.append(_paragraph(report.stored.message[0].upper() + report.stored.message[1:], kind))
    return _section("What this means", *notes)


def _figures(report: Report) -> str:
    certificate, survey = report.certificate, report.survey
    cards: list[tuple[str, str]] = []
    if certificate.unique:
        cards.append(("condition", _title(str(certificate.theorem))))
        if certificate.rate is not None:
            cards.append(("each step multiplies the error by at most", f"{certificate.rate:.4g}"))
        cards.append(("measured in", METRIC_NAMES.get(str(certificate.metric), str(certificate.metric))))
    if survey is not None:
        cards.append(("images proven", f"{survey.proven} of {survey.total}"))
        for metric in survey.measures:
            name = "" if len(survey.measures) == 1 else f" ({METRIC_NAMES.get(metric, metric)})"
            cards.append((f"largest guaranteed error{name}", f"{float(survey.errors_in(metric).max()):.3g}"))
    if not cards:
        return ""
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in cards)
    return f'<dl class="cards">{items}</dl>'


def _advice(report: Report) -> str:
    blocks = []
    whole = tuple(report.advice)
    texts = [item.text for item in whole]  # what proves it for every input proves it for these
    partly = () if report.survey is None else [item for item in report.survey.advice if item.text not in texts]
    for intro, items in (
        ("For every input, one of these would suffice. Each was tried on a copy and certified:", whole),
        ("For the first images that are not proven, one of these would suffice; each was certified for them:", partly),
    ):
        if items:
            entries = "".join(
                f"<li><strong>{escape(item.text[0].upper() + item.text[1:])}.</strong> "
                f"{escape(item.purpose[0].upper() + item.purpose[1:])}.</li>"
                for item in items
            )
            blocks.append(f"{_paragraph(intro)}<ul>{entries}</ul>")
    if report.certificate.unique:
        return ""
    if not blocks:
        blocks = [_paragraph("No single change was found that certify confirms; the reasons below say what fails.")]
    if whole or partly:
        blocks.append(_paragraph("A changed layer gives other predictions: train it again.", "quiet"))
    return _section("What to change to get a proof", *blocks)


def _images(report: Report) -> str:
    survey = report.survey
    if survey is None:
        return ""
    rows = [(_title(name), f"{count}", f"{100 * count / survey.total:.1f} %") for name, count in survey.counts.items()]
    content = [_table("Images by the condition that proves them", ("condition", "images", "share"), rows)]
    for number, metric in enumerate(survey.measures):
        errors = survey.errors_in(metric)
        title = f"Guaranteed error, {METRIC_NAMES.get(metric, metric)}"
        content.append(f"<h3>{escape(title)}</h3>")
        content.append(_paragraph(_PLAIN_METRIC.get(metric, "")))
        content.append(f"<figure>{error_chart(errors, METRIC_NAMES.get(metric, metric), number)}</figure>")
        content.append(_quantile_table(f"Quantiles over {len(errors)} images", quantiles(errors)))
    rates = survey.rates[~survey.rates.isnan()]
    if len(rates):
        content.append("<h3>Certified factor of one step</h3>")
        content.append(_quantile_table(f"Quantiles over {len(rates)} images", quantiles(rates)))
    return _section("Image by image", *content)


def _quantile_table(title: str, values: dict[str, float]) -> str:
    names = {"0": "smallest", "0.5": "median", "1": "largest"}
    rows = [(names.get(part, f"{100 * float(part):g} % at most"), f"{value:.3g}") for part, value in values.items()]
    return _facts_table(title, rows)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _convergence(report: Report) -> str:
    if report.convergence is None:
        return ""
    steps, rate, name = report.convergence
    metric = METRIC_NAMES.get(name, name)
    steps = list(takewhile(math.isfinite, steps))
    if not steps:
        return ""
    text = "Distances of successive states of plain iteration, in float64, largest over a few images. " + (
        "The dashed line is what the certificate promises at least." if rate is not None else "No rate is proven."
    )
    return _section(
        "Convergence",
        _paragraph(text),
        f"<figure>{convergence_chart(steps, rate, metric)}</figure>",
    )


def _checks(report: Report) -> str:
    proofs = {proof.theorem: "proves it" for proof in report.certificate.proofs}
    content = [_groups(report.certificate.checks, proofs)]
    if report.certificate.skipped:
        content.append(_paragraph(f"Not needed: {', '.join(report.certificate.skipped)}.", "quiet"))
    whole = _section("Every check, for every input", *content)
    if report.survey is None or not report.survey.checks or report.certificate.unique:
        return whole
    intro = _paragraph("Each image was certified by itself; a value is the worst over the images.")
    shares = {name: f"proves {count}" for name, count in report.survey.counts.items()}
    return whole + "\n" + _section("Every check, over the images", intro, _groups(report.survey.checks, shares))


def _groups(checks: Sequence[Check], proofs: dict[str, str]) -> str:
    """The checks by condition; `proofs`: what to say of the conditions that prove something."""
    blocks = []
    for condition, group in groupby(checks, key=lambda check: check.condition):
        members = list(group)
        items = "".join(_check(check) for check in members)
        state = ("good", proofs[condition]) if condition in proofs else ("open", "no proof")
        blocks.append(
            f'<h3>{escape(_title(condition))} <span class="tag {state[0]}">{state[1]}</span></h3>'
            f'<ul class="checks">{items}</ul>'
        )
    return "\n".join(blocks)


def _check(check: Check) -> str:
    value = check.value if isinstance(check.value, str) else f"{check.value:.6g}"
    mark = '<span class="tag good">holds</span>' if check.passed else '<span class="tag open">fails</span>'
    reason = "" if check.passed or not check.reason else f'<p class="reason">{escape(check.reason)}</p>'
    numbers = f'<p class="numbers">found <b>{escape(value)}</b>, must be <b>{escape(check.threshold)}</b></p>'
    return f"<li>{mark}<div><p>{escape(check.name)}</p>{numbers}{reason}</div></li>"


def _model(report: Report) -> str:
    return _section("The model", _facts_table("Settings and results", report.facts)) if report.facts else ""


def _facts_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<div class="wide"><table><caption>{escape(title)}</caption><tbody>{body}</tbody></table></div>'


def _title(condition: str) -> str:
    title = condition_title(condition)
    return title[:1].upper() + title[1:]
