"""Sufficient conditions on the weights alone, for any signs: `z = a(A z + b) + c` with the slopes of `a` in `[m, L]`.

Each is a function `Subject -> Outcome`. None of them needs positivity; all of them need that the state is not divided
by a norm. Differences of two states satisfy `F(z) - F(w) = D A (z - w)` with a diagonal `D` of slopes.

- *norm*: an induced norm with `L ||A|| < 1` makes `F` a contraction in it (Banach).
- *spectral radius*: `rho(L |A|) < 1`; with a positive vector `L |A| v <= q v` it is a contraction in the maximum norm
  weighted by `1/v` (L. El Ghaoui et al., *Implicit Deep Learning*, SIAM J. Math. Data Sci. 3, 2021,
  doi:10.1137/20M1358517).
- *matrix measure*: `0 <= m`, and `mu_inf(L A) < 1` for the maximum norm weighted by some `1/v` (S. Jafarpour et al.,
  *Robust implicit networks via non-Euclidean contractions*, NeurIPS 2021, arXiv:2106.03194).
- *monotone*: `0 <= m`, and the largest eigenvalue of `L (A + A^T)/2` is below 1 (E. Winston, Z. Kolter, *Monotone
  operator equilibrium networks*, NeurIPS 2020, arXiv:2006.08591).

In the last two every `I - D A` is regular, with inverses bounded alike, so `z - F(z)` is a homeomorphism (Hadamard):
the fixed point exists and is unique, although the plain iteration need not converge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .intervals import gamma
from .proof import Check, Outcome, Proof, reciprocal_gap, scaled
from .spectral import column_norm, numerical_abscissa, perron_bound, row_norm, two_norm
from .subject import Subject

__all__ = ["matrix_measure", "monotone", "norm", "spectral_radius"]

_UP = 1 + 2.0**-50


def _applicable(subject: Subject, condition: str, *, rising: bool) -> tuple[Check, ...]:
    """What all of these conditions need, checked; `rising`: slopes must not be negative either."""
    bottom, top = subject.slope
    largest = max(abs(bottom), abs(top))
    checks = [
        _check(
            condition,
            "no normalisation",
            "none" if subject.normalizer is None else f"{subject.normalizer.p:g}-norm over {subject.normalizer.over}",
            "none",
            subject.normalizer is None,
            "the condition speaks of maps without normalisation; certify with x for the enclosure.",
        ),
        _check(
            condition,
            "slope of the activation over all real t",
            largest,
            "finite",
            largest < math.inf,
            "no finite bound of the activation's slope is proven over all real t; use power=1, or certify with x.",
        ),
    ]
    if rising:
        checks.append(
            _check(condition, "activation is nondecreasing", bottom, ">= 0", bottom >= 0, "its slope may be negative.")
        )
    if subject.magnitude is None:
        checks.append(
            _check(condition, "linear part is known", "unknown", "known", False, "it depends on the input; pass x.")
        )
    return tuple(checks)


def _check(condition: str, name: str, value: float | str, threshold: str, passed: bool, reason: str) -> Check:
    return Check(name, value, threshold, passed, "" if passed else reason, condition)


def _below_one(condition: str, name: str, value: float, remedy: str) -> Check:
    passed = value < 1
    return _check(condition, name, value, "< 1", passed, f"the proven bound is {value:.6g}, not below 1; {remedy}.")


def _failed(checks: tuple[Check, ...]) -> bool:
    return not all(check.passed for check in checks)


def _largest_slope(subject: Subject) -> float:
    return max(abs(part) for part in subject.slope)


def _every_state(subject: Subject) -> str:
    reach = "" if subject.activation.function.accurate else " in the range of a double"
    return f"{subject.scope}; every state on which the map is defined{reach}"


def _one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def norm(subject: Subject) -> Outcome:
    """`L ||A|| < 1` in the maximum norm, the sum norm or the Euclidean norm."""
    name = "norm"
    checks = _applicable(subject, name, rising=False)
    if _failed(checks):
        return Outcome(checks)
    operator, slope = subject.operator, _largest_slope(subject)
    assert operator is not None
    shape = subject.sample_shape
    found = {
        "linf": slope * row_norm(operator, shape) * _UP,
        "l1": slope * column_norm(operator, shape) * _UP,
    }
    if min(found.values()) >= 1:
        # The geometric mean of the two bounds the Euclidean norm; only below 1 would an eigenproblem be wasted.
        found["l2"] = slope * two_norm(operator, shape) * _UP
    metric = min(found, key=lambda key: found[key])
    value = found[metric]
    label = {"linf": "maximum norm", "l1": "sum norm", "l2": "Euclidean norm"}
    checks += tuple(
        Check(
            f"slope times the induced {label[key]} of A", bound, "< 1 in one of the norms", found[metric] < 1, "", name
        )
        for key, bound in found.items()
        if key != metric
    )
    checks += (_below_one(name, f"slope times the induced {label[metric]} of A", value, "scale the weights down"),)
    if value >= 1:
        return Outcome(checks)
    rate = _one(value)
    every = subject.bound is None
    proof = Proof(name, metric, reciprocal_gap(rate), rate, None, _every_state(subject), every_input=every)
    return Outcome(checks, (proof,))


def _collatz(subject: Subject, *, measured: bool) -> tuple[float, Tensor]:
    """Bound of the spectral radius of `L |A|`, or (`measured`) of its comparison splitting, and the vector `(1, N)`."""
    assert subject.magnitude is not None
    absolute, shape, diagonal = subject.magnitude
    slope, terms = _largest_slope(subject), absolute.terms() + 8
    own = diagonal.reshape(1, -1)
    slack, pivot = gamma(terms), _pivot(subject, own)

    def product(v: Tensor) -> Tensor:
        total = absolute(v.reshape(shape)).reshape(1, -1)
        if not measured:
            return slope * total
        return slope * ((total - own.abs() * v).clamp(min=0) + slack * total) / pivot

    if measured and not bool((pivot > 0).all()):
        return math.inf, torch.ones_like(own)
    ones = torch.ones(1, own.shape[1], dtype=torch.float64)
    rho, vector = perron_bound(product, ones, terms, balanced=True)
    return float(rho[0]), vector


def _pivot(subject: Subject, diagonal: Tensor) -> Tensor:
    """`1 - L A_ii`, rounded down."""
    slack = gamma(8)
    return (1 - _largest_slope(subject) * diagonal * (1 + slack * diagonal.sign())) * (1 - slack)


def _weights(subject: Subject, vector: Tensor) -> Tensor:
    """A vector over channels spread over the image, where the image is known."""
    vector = scaled(vector)
    if subject.sample_shape is None:
        return vector
    size = subject.sample_shape.numel()
    return vector if vector.shape[1] == size else vector.repeat_interleave(size // vector.shape[1], dim=1)


def spectral_radius(subject: Subject) -> Outcome:
    """`rho(L |A|) < 1`, by a Collatz-Wielandt bound."""
    name = "spectral radius"
    checks = _applicable(subject, name, rising=False)
    if _failed(checks):
        return Outcome(checks)
    value, vector = _collatz(subject, measured=False)
    checks += (_below_one(name, "slope times the spectral radius of |A|", value, "scale the weights down"),)
    if value >= 1:
        return Outcome(checks)
    rate = _one(value)
    proof = Proof(
        name,
        "linf",
        reciprocal_gap(rate),
        rate,
        None,
        _every_state(subject),
        every_input=subject.bound is None,
        weights=_weights(subject, vector),
    )
    return Outcome(checks, (proof,))


def matrix_measure(subject: Subject) -> Outcome:
    """`mu_inf(L A) < 1` in some weighted maximum norm.

    The row condition `d (A_ii + sum_{j != i} |A_ij| v_j / v_i) < 1` is linear in the slope `d`, so it holds on `[0, L]`
    if it holds at `L`; there it says that the matrix `L |A_ij| / (1 - L A_ii)`, `j != i`, has spectral radius < 1.
    """
    name = "matrix measure"
    checks = _applicable(subject, name, rising=True)
    if _failed(checks):
        return Outcome(checks)
    value, vector = _collatz(subject, measured=True)
    title = "spectral radius of L |A_ij| / (1 - L A_ii), j != i"
    checks += (_below_one(name, title, value, "lower the diagonal, or the weights beside it"),)
    if value >= 1:
        return Outcome(checks)
    assert subject.magnitude is not None
    # |e_i| <= |r_i| / (1 - d A_ii) + q v_i |e|_v, and 1 / (1 - d A_ii) is largest at d = L, or at 0.
    lead = float((1 / _pivot(subject, subject.magnitude[2].clamp(min=0))).max()) * (1 + 2.0**-40)
    proof = Proof(
        name,
        "linf",
        reciprocal_gap(_one(value)) * lead * _UP,
        None,
        None,
        _every_state(subject),
        every_input=subject.bound is None,
        weights=_weights(subject, vector),
    )
    return Outcome(checks, (proof,))


def monotone(subject: Subject) -> Outcome:
    """The largest eigenvalue of `L (A + A^T) / 2` is below 1.

    With `e = z - z*`, `r = z - F(z)` and `D` of slopes in `[0, L]`: `e - r = D A e`, and `|D y|^2 <= L <D y, y>` for
    every `y`. So `|e - r|^2 <= L <e - r, A (e - r)> + L <e - r, A r> <= (1 - m) |e - r|^2 + L |A| |e - r| |r|`, with
    `m` one minus the eigenvalue: `|e| <= (1 + L |A|_2 / m) |r|`.
    """
    name = "monotone"
    checks = _applicable(subject, name, rising=True)
    if _failed(checks):
        return Outcome(checks)
    operator, slope = subject.operator, _largest_slope(subject)
    assert operator is not None
    abscissa = numerical_abscissa(operator, subject.sample_shape)
    value = slope * abscissa
    value = value * _UP if value > 0 else value / _UP
    checks += (
        _below_one(name, "slope times the largest eigenvalue of (A + A^T)/2", value, "lower the symmetric part of A"),
    )
    if not value < 1:
        return Outcome(checks)
    size = slope * two_norm(operator, subject.sample_shape) * _UP
    factor = (1 + size / ((1 - value) * (1 - 2.0**-50))) * (1 + 2.0**-40)
    proof = Proof(name, "l2", _one(factor), None, None, _every_state(subject), every_input=subject.bound is None)
    return Outcome(checks, (proof,))
