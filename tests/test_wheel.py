"""The wheel: the Julia package is in it, and juliapkg finds it, there and in a checkout."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from subdeq_plugin.bridge import config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "julia" / "SubDEQ"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The folder of an unpacked wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_julia_package_is_inside_and_nothing_of_a_developer(unpacked):
    shipped = unpacked / "subdeq_plugin" / "julia" / "SubDEQ"
    expected = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    expected = {path for path in expected if not path.name.startswith("Manifest")}
    found = {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()}
    assert found == expected and Path("src/SubDEQ.jl") in found
    assert all((shipped / path).read_bytes() == (PACKAGE / path).read_bytes() for path in found)


def test_nothing_lands_beside_the_package(unpacked):
    assert sorted(path.name.split("-")[0] for path in unpacked.iterdir()) == ["subdeq_plugin", "subdeq_plugin"]
    assert (unpacked / "subdeq_plugin" / "py.typed").is_file()
    assert (unpacked / "subdeq_plugin" / "bridge" / "config.py").is_file()


def test_both_declarations_say_the_same_of_different_places(unpacked):
    texts = [(folder / "subdeq_plugin" / "juliapkg.json").read_text() for folder in (ROOT, unpacked)]
    tree, wheel = map(json.loads, texts)
    paths = [content["packages"]["SubDEQ"].pop("path") for content in (tree, wheel)]
    assert tree == wheel and paths == ["../julia/SubDEQ", "julia/SubDEQ"]
    for folder, path in zip((ROOT, unpacked), paths, strict=True):
        assert (folder / "subdeq_plugin" / path / "Project.toml").is_file()
    project = (PACKAGE / "Project.toml").read_text()
    assert f'uuid = "{tree["packages"]["SubDEQ"]["uuid"]}"' in project and f'julia = "{tree["julia"]}"' in project


def test_sources_are_found_in_both(unpacked, monkeypatch):
    assert config.sources() == ROOT / "julia"
    monkeypatch.setattr(config, "__file__", str(unpacked / "subdeq_plugin" / "bridge" / "config.py"))
    assert config.sources() == unpacked / "subdeq_plugin" / "julia"


@pytest.mark.parametrize("installed", ["checkout", "wheel"])
def test_juliapkg_reads_one_declaration(unpacked, tmp_path, installed):
    # It looks into every folder of every entry of sys.path, where a second declaration would contradict the first.
    pytest.importorskip("juliapkg", reason="juliacall is not installed")
    folder = ROOT if installed == "checkout" else unpacked
    code = (
        "import json, sys\n"
        "from juliapkg.deps import find_requirements\n"
        f"sys.path = [{str(folder)!r}]\n"
        "print(json.dumps([package.dict() for package in find_requirements()[1] if package.name == 'SubDEQ']))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    (package,) = json.loads(result.stdout.splitlines()[-1])  # it also tells what it does
    place = {"checkout": ROOT / "julia", "wheel": unpacked / "subdeq_plugin" / "julia"}[installed]
    assert Path(package["path"]) == place / "SubDEQ" and package["dev"] is True


def test_an_editable_install_copies_nothing():
    # hatchling copies what is force-included; juliapkg would take the copy for the package.
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    assert builder.config.force_include == {}
