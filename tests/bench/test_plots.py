"""Pictures: which are drawn, and the numbers of the performance profile."""

from __future__ import annotations

import sys

import pytest

from subdeq_plugin.bench.plots import draw, profile
from subdeq_plugin.errors import DataError, OptionError

from .synthetic import bare, report, row

PNG = b"\x89PNG"


def solved(backend, milliseconds, to_fastest, **changes):
    return row(backend, milliseconds, to_fastest=to_fastest, **changes)


MANY = report(
    *(
        part
        for size, entries, scale in (("4x2", 8, 1.0), ("8x2", 16, 2.0))
        for error, factor in ((1e-3, 1.0), (1e-6, 3.0))
        for part in (
            solved("fast", scale * factor, 1.0, size=size, entries=entries, error=error),
            solved("slow", 4 * scale * factor, 4.0, size=size, entries=entries, error=error)
            if error == 1e-3 or size == "4x2"
            else row("slow", None, size=size, entries=entries, error=error),
            bare(1.0, size=size, error=error),
        )
    )
)


def test_the_profile_counts_failures_as_never_solved():
    assert profile(MANY) == {"fast": [1.0] * 4, "slow": [4.0] * 3}
    assert profile(report(row("lost", None), solved("best", 1.0, 1.0))) == {"lost": [], "best": [1.0]}


def test_every_picture_for_which_there_are_data(tmp_path):
    written = draw(MANY, tmp_path / "deep" / "pictures")
    assert sorted(path.name for path in written) == [
        "profile.png",
        "size-p-forward-float64-0.001.png",
        "size-p-forward-float64-1e-06.png",
        "work-precision-p-4x2-forward-float64.png",
        "work-precision-p-8x2-forward-float64.png",
    ]
    assert all(path.read_bytes().startswith(PNG) for path in written)


def test_one_size_and_one_error_make_a_profile_only(tmp_path):
    written = draw(report(solved("a:b", 1.0, 1.0), row("c", None), bare(1.0)), tmp_path)
    assert [path.name for path in written] == ["profile.png"]


def test_names_of_problems_do_not_leave_the_folder(tmp_path):
    odd = [solved("a", 1.0, 1.0, problem="../x:y/z", error=error) for error in (1e-3, 1e-4)]
    written = draw(report(*odd), tmp_path / "here")
    assert {path.parent for path in written} == {tmp_path / "here"} and len(written) == 2


def test_the_curves_have_the_medians_and_quartiles():
    from subdeq_plugin.bench.plots import _curves

    rows = [solved("a", 1.0, 1.0, error=1e-3), solved("a", 3.0, 1.0, error=1e-6), row("a", None, error=1e-9)]
    (axes,) = _curves(rows, "guaranteed error", lambda row: row.error, "title").axes
    (bars,) = axes.containers
    line, _, (spread,) = bars
    assert line.get_xdata().tolist() == [1e-6, 1e-3] and line.get_ydata() == pytest.approx([3e-3, 1e-3])
    assert [segment[:, 1].tolist() for segment in spread.get_segments()] == [
        pytest.approx([2.7e-3, 3.3e-3]),
        pytest.approx([0.9e-3, 1.1e-3]),
    ]
    assert axes.xaxis_inverted() and axes.get_xscale() == axes.get_yscale() == "log"


def test_nothing_to_draw(tmp_path):
    with pytest.raises(DataError, match="no backend reached its error"):
        draw(report(row("a", None), bare(1.0)), tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written to"):
        draw(MANY, tmp_path / "file")


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"pip install 'subdeq-plugin\[plot\]'"):
        draw(MANY, tmp_path)
