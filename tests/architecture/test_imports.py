"""Who may import whom, how long a module may be, and that public modules say what they export."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import subdeq_plugin

ROOT = Path(subdeq_plugin.__file__).parent
PACKAGE = "subdeq_plugin"
MAX_LINES = 450

_BASE = {"errors", "result", "_shapes"}
_MATHS = {*_BASE, "metrics", "degrees"}
_LAYERS = {*_MATHS, "activations"}
_CERTIFICATES = {*_LAYERS, "layers"}
_SOLVERS = {*_BASE, "metrics"}
_AUTOGRAD = {*_SOLVERS, "solvers"}
_INTEGRATION = {*_CERTIFICATES, "certificates", *_AUTOGRAD, "autograd", "perron", "bridge"}
_APPLICATIONS = {*_INTEGRATION, "integration"}

# Each part of the package, and the other parts it may import.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "result": {"errors"},
    "_shapes": {"errors"},
    "metrics": _BASE,
    "degrees": _BASE,
    "activations": _MATHS,
    "layers": _LAYERS,
    "certificates": _CERTIFICATES,
    "solvers": _SOLVERS,
    "autograd": _AUTOGRAD,
    "perron": {*_CERTIFICATES, "certificates", *_AUTOGRAD, "autograd", "bridge"},
    "bridge": {*_BASE, "layers", "solvers"},
    "integration": _INTEGRATION,
    "data": _APPLICATIONS,
    "training": {*_APPLICATIONS, "data"},
    "bench": {*_APPLICATIONS, "data", "training"},
    "cli": {*_APPLICATIONS, "data", "training", "bench"},
    "__init__": {*_APPLICATIONS, "data", "training", "bench"},
    "__main__": {"cli"},
}

# Packages that only the files named may import.
RESERVED: dict[str, set[str]] = {"torchdeq": {"integration/torchdeq.py"}, "juliacall": {"bridge/runtime.py"}}

# A name that users look for among the layers; it is imported when it is asked for.
EXCEPTIONS = {("layers/__init__.py", "perron")}

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def part_of(module: str) -> str:
    """The part a file belongs to: its folder, or its own name at the top."""
    return module.split("/")[0].removesuffix(".py")


def imported(module: str, source: str) -> list[tuple[str, str]]:
    """`(package, part)` of every import in a file: anywhere in it, also inside functions and type-checking blocks."""
    folder = [PACKAGE, *module.split("/")[:-1]]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == PACKAGE else [stem]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            found.append((package, rest.partition(".")[0]))
    return found


def violations(module: str, source: str) -> list[str]:
    """What a file imports against the rules."""
    own = part_of(module)
    faults = [] if own in ALLOWED else [f"{module}: no rule for {own!r}"]
    for package, part in imported(module, source):
        permitted = part in ALLOWED.get(own, set()) or (module, part) in EXCEPTIONS
        if package == PACKAGE and part != own and not permitted:
            faults.append(f"{module} imports {part or PACKAGE}")
        if package in RESERVED and module not in RESERVED[package]:
            faults.append(f"{module} imports {package}")
    return faults


def test_there_is_something_to_check():
    assert len(MODULES) > 40 and {"errors.py", "solvers/loop.py", "integration/torchdeq.py"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_in_one_direction(module):
    assert violations(module, (ROOT / module).read_text(encoding="utf-8")) == []


def test_the_rules_have_no_cycle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {part for part, allowed in ALLOWED.items() if part not in done and allowed & set(ALLOWED) <= done}
        assert ready, f"a cycle among {set(ALLOWED) - done}"
        done |= ready


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("layers/linear.py", "from ..solvers import solve"),
        ("layers/linear.py", "from ..certificates.base import Certificate"),
        ("layers/linear.py", "from .. import solvers"),
        ("layers/linear.py", "import subdeq_plugin.solvers.loop as loop"),
        ("layers/linear.py", "from subdeq_plugin import integration"),
        ("layers/linear.py", "def f():\n    from ..solvers import solve"),
        ("layers/linear.py", "if TYPE_CHECKING:\n    from ..solvers import Solver"),
        ("certificates/base.py", "from ..solvers import Stop"),
        ("certificates/base.py", "from ..bridge import start"),
        ("certificates/base.py", "from ..integration import SubDEQ"),
        ("solvers/loop.py", "from ..layers import BoundMap"),
        ("solvers/loop.py", "from ..certificates import certify"),
        ("solvers/loop.py", "from ..autograd import Adjoint"),
        ("autograd/implicit.py", "from ..layers import BoundMap"),
        ("degrees/rules.py", "from ..activations import Activation"),
        ("activations/base.py", "from ..layers import BoundMap"),
        ("metrics.py", "from .solvers import solve"),
        ("errors.py", "from .result import Status"),
        ("integration/core.py", "from ..training import fit"),
        ("data/images.py", "from ..training import fit"),
        ("integration/core.py", "from torchdeq import get_deq"),
        ("solvers/loop.py", "import torchdeq.solver"),
        ("integration/torchdeq.py", "import juliacall"),
        ("bridge/solver.py", "from juliacall import Main"),
        ("layers/linear.py", "import subdeq_plugin"),
        ("novelty/thing.py", "x = 1"),
    ],
)
def test_a_violation_is_seen(module, source):
    assert violations(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("layers/linear.py", "from .base import SubhomLayer\nfrom ..degrees.rules import compose\nimport torch"),
        ("solvers/loop.py", "from ..result import Status\nfrom ..metrics import METRICS"),
        ("integration/torchdeq.py", "import torchdeq\nfrom ..layers import BoundMap"),
        ("bridge/runtime.py", "import juliacall"),
        ("cli/main.py", "from ..training import fit\nfrom .. import data"),
    ],
)
def test_what_is_allowed_is_not_reported(module, source):
    assert violations(module, source) == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_short(module):
    assert len((ROOT / module).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def exported(source: str) -> list[str] | None:
    """The names in `__all__`, or None where there is none."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(node.value))
    return None


def has_public_definitions(source: str) -> bool:
    """Whether a file defines a function or class that does not start with an underscore."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in ast.parse(source).body)


def test_a_missing_export_list_is_seen():
    assert exported("x = 1\ndef f(): pass") is None and has_public_definitions("def f(): pass")
    assert exported("__all__ = ['f']") == exported("__all__: list[str] = ['f']") == ["f"]


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith("__main__.py")])
def test_public_modules_say_what_they_export(module):
    source = (ROOT / module).read_text(encoding="utf-8")
    names = exported(source)
    if names is None:
        assert not has_public_definitions(source), "no __all__"
        return
    assert len(names) == len(set(names))
    defined = {
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [alias.asname or alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom)
            else [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else []
        )
    }  # fmt: skip
    assert set(names) <= defined
