"""The fused kernels: their checks in a process of their own, their compilation, and where they are not available."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.layers.fused_checks import Case

CHECKS = Path(__file__).with_name("fused_checks.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
INTERPRETED = ["1", "0"] if torch.cuda.is_available() else ["1"]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)


@needs_triton
@pytest.mark.parametrize("interpreted", INTERPRETED)
def test_checks(interpreted):
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS), TRITON_INTERPRET=interpreted)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_triton():
    script = """
import sys
sys.modules["triton"] = None  # an import of it fails
import torch, subdeq_plugin.layers
assert "subdeq_plugin.layers.fused" not in sys.modules
from subdeq_plugin.layers import SubhomLinear, fused
print(fused.available(SubhomLinear(2, 3).bind(torch.ones(1, 2))))
"""
    done = python("-c", script)
    assert done.stdout.strip() == "triton is not installed", done.stderr


@needs_triton
def test_a_map_on_the_cpu_is_left_to_torch():
    from subdeq_plugin.errors import OptionError
    from subdeq_plugin.layers import fused

    bound = Case(3).make().to("cpu", torch.float32)
    assert fused.available(bound) == "it is on 'cpu', not on a GPU"
    with pytest.raises(OptionError, match="not on a GPU"):
        fused.fused_walk(bound, bound.start(), rate=0.5, metric="thompson", tol=1e-3, max_steps=5)


class Compiler:
    """Stands in for a kernel: what it is launched with, it compiles for a Hopper GPU, which need not be there."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.made: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._compile

    def _compile(self, *arguments: Any, num_warps: int, enable_fp_fusion: bool, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        given = inspect.signature(self._kernel.fn).bind(*arguments, **constants).arguments
        constants |= {name: None for name, value in given.items() if value is None}
        kinds = {int: "i32", float: "fp32", torch.float32: "*fp32", torch.int32: "*i32"}
        signature = {
            name: "constexpr" if name in constants else kinds[getattr(value, "dtype", type(value))]
            for name, value in given.items()
        }
        source = ASTSource(self._kernel, signature, constexprs=constants)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        self.made.append(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))


@needs_triton
@pytest.mark.parametrize(
    "case",
    [Case(5, 64, norm=1), Case(87, 64, injected="both"), Case(256, 3, "softplus", 1.0, 0.5, norm="inf")],
    ids=str,
)
def test_kernels_compile(case, monkeypatch, tmp_path):
    # The interpreter takes more than the compiler does.
    from subdeq_plugin.layers import fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    walk, adjoint = Compiler(fused._walk), Compiler(fused._adjoint)
    monkeypatch.setattr(fused, "_walk", walk)
    monkeypatch.setattr(fused, "_adjoint", adjoint)
    bound = case.make().to("cpu", torch.float32)
    fused.fused_walk(bound, bound.start(), rate=0.5, metric=case.metric, tol=1e-3, max_steps=5)
    fused.fused_adjoint(bound, bound.start(), bound.start(), tol=1e-3, max_steps=5)
    for kernel in (*walk.made, *adjoint.made):
        assert kernel.metadata.shared <= 48 * 1024  # what every GPU has
        assert "tf32" not in kernel.asm["ptx"]
    assert len(walk.made) == len(adjoint.made) == 1
