"""Where a benchmark was run: what decides about times, and nothing about who ran it."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..bridge import get_runtime
from ..bridge.runtime import probe

__all__ = ["describe_environment"]

_PACKAGES = ("torch", "torchdeq", "numpy", "scipy", "jax", "optimistix", "juliacall")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's model, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:  # not on Linux
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def describe_environment(device: torch.device, command: str) -> dict[str, Any]:
    """Versions, processor, threads, device and date, as JSON-compatible values.

    Names of hosts, users and folders are left out. Julia's version is there if Julia was used.

    Args:
        device: that the benchmark ran on.
        command: that started it.
    """
    own = sys.modules[__name__.partition(".")[0]].__version__  # also where the package is not installed
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {
            "subdeq-plugin": own,
            **{name: found for name in _PACKAGES if (found := _version(name)) is not None},
        },
        "julia": probe()["julia"] if get_runtime().running else None,
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
