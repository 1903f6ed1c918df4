"""Run the tests of the Julia package in the Julia that was chosen; `make test-julia`."""

from __future__ import annotations

import os
import subprocess
import sys

from subdeq_plugin.bridge.config import find_route, prepare, sources
from subdeq_plugin.errors import BridgeError


def main() -> int:
    """The exit status of the tests; 0 with a word of explanation where no Julia was chosen."""
    try:
        route = find_route()
    except BridgeError as error:
        print(f"The Julia tests did not run. {error}")
        return 0
    if route.executable is None or route.project is None:
        print("The Julia tests did not run: no Julia was chosen. subdeq doctor --use-julia EXE --project DIR")
        return 0
    environment = dict(os.environ)
    prepare(route, environment)
    environment["JULIA_LOAD_PATH"] = os.pathsep.join(("@", str(sources()), "@stdlib"))
    tests = sources() / "SubDEQ" / "test" / "runtests.jl"
    command = [str(route.executable), f"--project={route.project}", "--startup-file=no", "--threads=2", str(tests)]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
