"""Every test, in groups of about equal length, two groups at a time: most tests wait as much as they work.

python tests/all.py [pytest arguments]      arguments that name tests run in one process, as pytest would
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

TESTS = Path(__file__).resolve().parent
AT_ONCE = 2
GROUPS = (  # the longest first, so that the last to run are short; no two that serve on the same ports
    ("serve",),
    ("e2e/test_quickstart.py", "e2e/test_ray_job_submit.py", "e2e/test_s3.py"),
    ("unit",),
    ("e2e/test_readme.py", "e2e/test_signal.py", "e2e/test_documented_requests.py", "e2e/test_wheel.py"),
    ("on_ray",),
    ("architecture", "parity"),
)


def main(arguments: list[str]) -> int:
    """The highest exit code of all groups."""
    command = [sys.executable, "-m", "pytest", "--durations=15"]
    if any(not argument.startswith("-") for argument in arguments):
        return subprocess.call([*command, *arguments])
    given = {TESTS / name for group in GROUPS for name in group}
    apart = [path for path in TESTS.rglob("test_*.py") if not given.intersection((path, *path.parents))]
    if apart:
        print("in no group of tests/all.py:", *apart)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    waiting, running, codes = list(GROUPS), list[tuple[subprocess.Popen[str], IO[str], float]](), list[int]()
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                running.append(_started([*command, *arguments], waiting.pop(0)))
            time.sleep(1)
            for ended in [each for each in running if each[0].poll() is not None]:
                running.remove(ended)
                codes.append(_told(ended))
    finally:  # where a time-out ends this process: what the groups said so far
        for each in running:
            each[0].terminate()
        for each in running:
            _told(each)
    return max(codes)


def _started(command: list[str], group: tuple[str, ...]) -> tuple[subprocess.Popen[str], IO[str], float]:
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the group has ended
    paths = [str(TESTS / name) for name in group]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}  # what was said is there, however the process ends
    process = subprocess.Popen([*command, *paths], stdout=said, stderr=subprocess.STDOUT, text=True, env=variables)
    return process, said, time.monotonic()


def _told(group: tuple[subprocess.Popen[str], IO[str], float]) -> int:
    process, said, began = group
    try:
        code = process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    said.seek(0)
    print(said.read(), f"exit code {code} after {time.monotonic() - began:.0f} s\n", flush=True)
    return abs(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
