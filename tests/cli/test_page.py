"""The report: well-formed, self-contained, complete, and safe whatever a checkpoint calls itself; seen by a browser."""

import re
import shutil
import struct
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from subdeq_plugin.certificates import Advice, Certificate, Check, advise, certify
from subdeq_plugin.cli.main import app
from subdeq_plugin.data import load
from subdeq_plugin.training import (
    Report,
    Survey,
    certify_images,
    convergence,
    facts,
    load_checkpoint,
    verify_certificate,
    write_page,
)
from tests.training.stored import make, rewrite

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)> & \'"'


class Page(HTMLParser):
    """Reads a page strictly: every tag that opens closes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in {tag}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def examine(text: str) -> Page:
    """What holds of every page."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}] and len(page.all("title")) == len(page.all("h1")) == 1
    assert {"charset": "utf-8"} in page.all("meta")
    assert any(attributes.get("name") == "viewport" for attributes in page.all("meta"))
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), attributes
    markup = re.sub(r">[^<]*<", "><", text)  # tags alone: what they point to, not what they enclose
    assert "http://" not in markup and "https://" not in markup and "@import" not in text
    for target in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text):
        assert "".join(target) in identifiers
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table"))
    return page


def mentions(page: Page, certificate: Certificate) -> None:
    """Every check, its value, its threshold, and the reasons of those that fail."""
    for check in certificate.checks:
        value = check.value if isinstance(check.value, str) else f"{check.value:.6g}"
        for part in (check.name, f"found {value} , must be {check.threshold}"):
            assert " ".join(part.split()) in page.text, part
        if not check.passed:
            assert check.reason in page.text
    assert page.text.count(" holds ") >= sum(check.passed for check in certificate.checks)


def report(folder: Path, scale: float = 1.0, gain: float = 1.0, count: int = 40, **settings) -> Report:
    path = folder / "a.safetensors"
    model = make(path, scale, gain, **settings).eval()
    stored, images = load_checkpoint(path), load("digits").test_x[:count]
    certificate = certify(model.deq.layer)
    return Report(
        "runs/a.safetensors",
        certificate,
        facts(stored),
        verify_certificate(model, stored),
        certify_images(model, images),
        advise(certificate),
        convergence(model, images),
    )


def written(path: Path, content: Report) -> str:
    write_page(path, content)
    return path.read_text(encoding="utf-8")


SIGNED = {"weight": "signed", "shift": 1.2}
KINDS = {
    "proven": (1.0, 1.0, {}, "Proven: for every input the layer has exactly one equilibrium."),
    "images": (1.4, 10.0, SIGNED, "Proven for the images looked at: each of the 40 has exactly one equilibrium."),
    "some": (1.4, 3.0, SIGNED, "Not proven for "),
    "hilbert": (1.0, 1.0, {"normalize": 2.0}, "Proven: for every input"),
    "negative states": (1.4, 3.0, {"weight": "signed", "shift": 0.0}, "Not proven for "),
    "conv": (1.0, 1.0, {"kind": "conv", "units": 3}, "Proven: for every input"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_complete(kind, tmp_path):
    scale, gain, settings, verdict = KINDS[kind]
    content = report(tmp_path, scale, gain, **settings)
    page = examine(written(tmp_path / "deep" / "r.html", content))
    assert content.verdict.startswith(verdict) and content.verdict in page.text
    mentions(page, content.certificate)
    assert content.certificate.scope in page.text and content.stored.message[1:] in page.text
    for name, count in content.survey.counts.items():
        assert name.lower() in page.text.lower() and str(count) in page.text
    if content.certificate.unique:
        assert "What to change" not in page.text
    else:
        assert content.advice and "What to change to get a proof" in page.text
        assert all(item.text[1:] in page.text and item.purpose[1:] in page.text for item in content.advice)
        for check in content.survey.checks:
            assert check.name in page.text and (check.passed or check.reason in page.text)
    assert len(page.all("svg")) == 1 + len(content.survey.measures)


def test_the_same_report_gives_the_same_page(tmp_path):
    content = report(tmp_path)
    assert written(tmp_path / "1.html", content) == written(tmp_path / "2.html", content)


def test_without_data(tmp_path):
    content = report(tmp_path, 3.0, **SIGNED)
    bare = Report(content.name, content.certificate)
    page = examine(written(tmp_path / "r.html", bare))
    assert "Not proven: no sufficient condition" in page.text and "No single change was found" in page.text
    assert page.all("svg") == []
    mentions(page, content.certificate)


def test_nothing_that_a_file_says_becomes_markup(tmp_path):
    content = report(tmp_path)
    check = Check(HOSTILE, HOSTILE, HOSTILE, False, HOSTILE, HOSTILE)
    hostile = replace(
        content,
        name=HOSTILE,
        certificate=replace(
            content.certificate, unique=False, scope=HOSTILE, checks=(check,), skipped=(HOSTILE,), proofs=()
        ),
        facts=((HOSTILE, HOSTILE),),
        stored=replace(content.stored, differing=(HOSTILE,)),
        survey=Survey(
            (HOSTILE, "not proven"),
            (HOSTILE, ""),
            torch.tensor([0.1, torch.inf], dtype=torch.float64),
            torch.full((2,), torch.nan, dtype=torch.float64),
            (check,),
            (Advice(HOSTILE, HOSTILE),),
        ),
        advice=(Advice("a" + HOSTILE, HOSTILE),),
        convergence=([1.0, 0.5], 0.5, HOSTILE),
    )
    text = written(tmp_path / "r.html", hostile)
    page = examine(text)
    assert page.text.count(HOSTILE) >= 10
    assert "<script" not in text and "<img" not in text


def test_a_hostile_checkpoint_from_the_shell(tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>&'.safetensors"
    make(path)
    rewrite(path, lambda header: header["config"].update(dataset=HOSTILE))
    arguments = ["certify", str(path), "--data", "digits", "--limit", "5", "--report", str(tmp_path / "r.html")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    page = examine((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert path.name in page.text and HOSTILE in page.text
    assert "header was edited since" in page.text


def test_numbers_that_are_none(tmp_path):
    content = report(tmp_path)
    certificate = replace(content.certificate, checks=(Check("n", float("nan"), "< 1", False, "r", "A"),))
    nothing = replace(content, certificate=certificate, convergence=([float("nan"), 1.0], None, "linf"))
    page = examine(written(tmp_path / "r.html", nothing))
    assert "found nan , must be < 1" in page.text and "Convergence" not in page.text
    small = replace(content.survey, errors=torch.zeros_like(content.survey.errors))
    examine(written(tmp_path / "r.html", replace(content, survey=small, convergence=([0.0], 0.0, "linf"))))


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
@pytest.mark.parametrize("width", [1000, 500])
@pytest.mark.parametrize("kind", ["proven", "some"])
def test_a_browser_shows_it(kind, width, tmp_path):
    scale, gain, settings, _ = KINDS[kind]
    content = report(tmp_path, scale, gain, **settings)
    # The page itself runs nothing: this copy measures it and writes what it finds where --dump-dom shows it.
    probe = (
        "<script>addEventListener('load', () => { const root = document.documentElement;"
        "document.title = [root.scrollHeight, root.scrollWidth, innerWidth,"
        "Math.min(...[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().height)),"
        "document.getElementById('verdict').getBoundingClientRect().height].join(' '); });</script></body>"
    )
    text = written(tmp_path / "page.html", content)
    (tmp_path / "probe.html").write_text(text.replace("</body>", probe), encoding="utf-8")

    def browse(page: str, *options: str) -> subprocess.CompletedProcess[str]:
        assert BROWSER is not None
        return subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
             "--no-first-run", "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}",
             f"--window-size={width},1200", *options, (tmp_path / page).as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip

    picture = tmp_path / "page.png"
    shown = browse("page.html", f"--screenshot={picture}")
    raw = picture.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", raw[16:24]) == (width, 1200)
    assert len(raw) > 20_000, "an empty picture"
    dumped = browse("page.html", "--dump-dom")
    assert content.verdict in dumped.stdout
    for log in (shown.stderr, dumped.stderr):
        assert "CONSOLE" not in log, log
    measured = re.search(r"<title>([^<]*)</title>", browse("probe.html", "--dump-dom").stdout)
    assert measured is not None
    height, needed, available, chart, verdict = (float(part) for part in measured.group(1).split())
    assert height > 1200 and verdict > 20 and chart > 150
    assert needed <= available, "the page scrolls sideways"
