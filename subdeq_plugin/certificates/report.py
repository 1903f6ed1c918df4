"""The certificate as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..metrics import METRICS

if TYPE_CHECKING:
    from .base import Certificate

__all__ = ["METRIC_NAMES", "condition_title", "describe"]


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


METRIC_NAMES = {
    "thompson": "Thompson's metric",
    "hilbert": "Hilbert's metric",
    "linf": "maximum norm",
    "l1": "sum norm",
    "l2": "Euclidean norm",
}


def _head(certificate: Certificate) -> str:
    if not certificate.unique:
        count, total = int(certificate.proven.sum()), certificate.proven.numel()
        if count:
            return f"NOT PROVEN for {total - count} of {total} samples: this says nothing about uniqueness either way."
        return "NOT PROVEN: this says nothing about uniqueness either way."
    metric = str(certificate.metric)
    metric = f"{metric.capitalize()} distance" if metric in METRICS else METRIC_NAMES[metric]
    head = f"PROVEN: exactly one fixed point ({condition_title(str(certificate.theorem))})"
    if certificate.rate is None:
        return f"{head}; errors are bounded in the {metric}."
    degree = "" if certificate.mu is None else f" (degree mu = {certificate.mu:.6g})"
    return f"{head}; each step multiplies its {metric} by at most {certificate.rate:.6g}{degree}."


def condition_title(theorem: str) -> str:
    """How a sufficient condition is called in a sentence."""
    return f"theorem {theorem}" if theorem in ("A", "B") else theorem


def describe(certificate: Certificate) -> str:
    """Verdict first, then the scope, then every check."""
    lines = [_head(certificate), f"Scope: {certificate.scope}"]
    condition = None
    for check in certificate.checks:
        if check.condition != condition:
            condition = check.condition
            lines.append(f"  {condition_title(condition)}")
        mark = "ok" if check.passed else "NO"
        lines.append(f"    [{mark}] {check.name}: {_number(check.value)} (must be {check.threshold})")
        if not check.passed and check.reason and not certificate.unique:
            lines.append(f"         {check.reason}")
    if certificate.skipped:
        lines.append(f"  not needed: {', '.join(certificate.skipped)}")
    return "\n".join(lines)
