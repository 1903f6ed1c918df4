"""The certificate as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Certificate

__all__ = ["describe"]


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def describe(certificate: Certificate) -> str:
    """Verdict first, then the scope, then every check."""
    if certificate.unique:
        head = (
            f"PROVEN: exactly one fixed point (theorem {certificate.theorem}); each step multiplies its "
            f"{str(certificate.metric).capitalize()} distance by at most {certificate.rate:.6g} "
            f"(degree mu = {certificate.mu:.6g})."
        )
    else:
        head = "NOT PROVEN: this says nothing about uniqueness either way."
    lines = [head, f"Scope: {certificate.scope}"]
    for check in certificate.checks:
        mark = "ok" if check.passed else "NO"
        lines.append(f"  [{mark}] {check.name}: {_number(check.value)} (must be {check.threshold})")
        if not check.passed:
            lines.append(f"       {check.reason}")
    return "\n".join(lines)
