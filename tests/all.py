"""Every test, in two processes at once: those that serve wait most of their time, the others do not.

python tests/all.py [pytest arguments]      arguments that name tests run in one process, as pytest would
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
APART = (
    "architecture", "unit", "parity", "on_ray", "e2e/test_signal.py", "e2e/test_documented_requests.py",
    "e2e/test_readme.py", "e2e/test_wheel.py",
)  # fmt: skip
"""Tests that serve nothing: about half of the time of all."""


def main(arguments: list[str]) -> int:
    """The exit code of the worse of both."""
    command = [sys.executable, "-m", "pytest", "--durations=15"]
    if any(not argument.startswith("-") for argument in arguments):
        return subprocess.call([*command, *arguments])
    rest = sorted(path.name for path in TESTS.iterdir() if any(path.glob("test_*.py")) and path.name not in APART)
    others = [f"--ignore={TESTS / name}" for name in APART]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryFile("w+") as told:
        apart = subprocess.Popen(
            [*command, *arguments, *(str(TESTS / name) for name in APART)], stdout=told, stderr=subprocess.STDOUT
        )
        try:
            code = subprocess.call([*command, *arguments, *others, *(str(TESTS / name) for name in rest)])
            other = apart.wait()
        finally:  # also where a time-out ends this process: what the other said so far
            apart.kill()
            told.seek(0)
            print(told.read(), flush=True)
    return code or other


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
