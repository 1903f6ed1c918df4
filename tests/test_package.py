"""The package as it is installed: names, types, version, and what the README says."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import subdeq_plugin as sd

ROOT = Path(__file__).parents[1]


def test_public_names_exist_and_have_docstrings():
    for name in sd.__all__:
        thing = getattr(sd, name)
        if callable(thing):
            assert thing.__doc__, name


def test_version_and_type_marker():
    assert importlib.metadata.version("subdeq-plugin") == sd.__version__
    assert (Path(sd.__file__).parent / "py.typed").is_file()


def test_readme_opens_with_the_two_commands_and_its_code_runs():
    text = (ROOT / "README.md").read_text()
    first_block = re.search(r"```console\n(.*?)```", text, re.S).group(1)
    assert [line.split("#")[0].strip() for line in first_block.splitlines()] == ["make run", "make test"]
    snippet = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("PROVEN")


def test_links_in_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_importing_does_not_start_julia():
    code = "import sys, subdeq_plugin; sys.exit('juliacall' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
