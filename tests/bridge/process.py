"""Code in an interpreter of its own, with this one's settings."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

# Shells start background jobs, and so all that they start, with Ctrl-C ignored.
_HANDLER = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def python(code: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code`, indented as it is in a test, with these environment variables in addition."""
    return subprocess.run(
        [sys.executable, "-c", _HANDLER + textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
