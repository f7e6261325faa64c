"""When and where something was measured: without it a number in a report can be compared with nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rayrank.bundle.revision import code_revision


@dataclass(frozen=True)
class Surroundings:
    """Date, machine and code of a run."""

    date: str  # ISO 8601, UTC
    cpu: str
    cores: int
    load: float  # processes that wanted to run, mean of the last minute
    revision: str | None  # None outside a checkout

    @staticmethod
    def now() -> Surroundings:
        """Of this machine, at this moment."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return Surroundings(date, cpu_model(), os.cpu_count() or 1, round(os.getloadavg()[0], 1), code_revision())

    def line(self) -> str:
        """One line for people."""
        code = f", revision {self.revision[:10]}" if self.revision else ""
        return f"{self.date}; {self.cpu}, {self.cores} cores, load {self.load:g}{code}"


def cpu_model() -> str:
    """The processor's name, family and model, as /proc/cpuinfo has them; its architecture elsewhere.

    Virtual machines hide the rest of the name, and one family may multiply twice as fast as another.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    first = dict[str, str]()
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    if "model name" not in first:
        return platform.machine()
    known = [f"{key.removeprefix('cpu ')} {first[key]}" for key in ("cpu family", "model") if key in first]
    return first["model name"] + (f" ({', '.join(known)})" if known else "")
