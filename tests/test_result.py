"""Statuses and their messages, solutions, and the errors that name the nearest valid name."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from subdeq_plugin import errors
from subdeq_plugin.errors import OptionError, SubdeqError, unknown_name
from subdeq_plugin.result import Solution, Status


def solution(*codes: Status) -> Solution:
    count = len(codes)
    return Solution(
        value=torch.zeros(count, 2),
        status=torch.tensor([int(code) for code in codes]),
        abs_residual=torch.zeros(count),
        rel_residual=torch.zeros(count),
        iterations=torch.ones(count, dtype=torch.int64),
        evaluations=1,
    )


def test_codes_are_stable():
    names = ["CONVERGED", "ROUNDING_FLOOR", "MAX_ITERATIONS", "DIVERGED", "NONFINITE", "STALLED"]
    assert {status.name: int(status) for status in Status} == {name: code for code, name in enumerate(names)}


@pytest.mark.parametrize("status", Status)
def test_every_status_has_a_message_of_its_own(status):
    assert status.message.endswith(".") and len(status.message) > 15
    assert sum(other.message == status.message for other in Status) == 1


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (Status.ROUNDING_FLOOR, "raise tol or compute in float64"),
        (Status.MAX_ITERATIONS, "raise max_iter or tol"),
        (Status.DIVERGED, "certify the layer"),
        (Status.NONFINITE, "check this sample's input"),
    ],
)
def test_the_message_says_the_remedy(status, remedy):
    assert remedy in status.message


def test_what_counts_as_failed():
    assert [status.failed for status in Status] == [False, False, True, True, True, True]
    every = solution(*Status)
    assert every.failed.tolist() == [status.failed for status in every.statuses]
    assert every.statuses == tuple(Status)


def test_converged_means_every_sample():
    assert solution(Status.CONVERGED, Status.CONVERGED).converged
    assert not solution(Status.CONVERGED, Status.ROUNDING_FLOOR).converged


def test_failures_are_described_by_kind_and_number():
    assert solution(Status.CONVERGED, Status.ROUNDING_FLOOR).describe_failures() == ""
    text = solution(Status.DIVERGED, Status.CONVERGED, Status.MAX_ITERATIONS, Status.DIVERGED).describe_failures()
    assert text.startswith("3 of 4 samples failed. 1 x MAX_ITERATIONS: ")
    assert "2 x DIVERGED: " + Status.DIVERGED.message in text
    assert Status.NONFINITE.message not in text and Status.CONVERGED.message not in text


def test_a_solution_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution(Status.CONVERGED).evaluations = 2  # type: ignore[misc]


def test_every_error_is_ours():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    ours = [kind for kind in kinds if not issubclass(kind, Warning)]
    assert len(ours) >= 8 and all(issubclass(kind, SubdeqError) for kind in ours)
    for kind in (errors.ShapeError, errors.DomainError, errors.OptionError):
        assert issubclass(kind, ValueError)


def test_an_unknown_name_points_at_the_nearest():
    error = unknown_name("solver", "andersn", ["picard", "anderson"])
    assert isinstance(error, OptionError)
    assert str(error) == "unknown solver 'andersn'; did you mean 'anderson'? Valid: anderson, picard."
    assert "did you mean" not in str(unknown_name("solver", "zzz", ["picard"]))
    assert "picard" in str(unknown_name("solver", None, ["picard"]))
