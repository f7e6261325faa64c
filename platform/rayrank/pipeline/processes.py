"""The processes of a service on this machine, found from the port it listens on, and the processor time each has had.

A service is everything below the raylet that the listener descends from: so two services on one machine are told
apart, and nothing has to be asked of either. Reads /proc, so Linux only. Knows how Serve names its processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

PROC = Path("/proc")
_LISTENS = "0A"
_REPLICA = re.compile(r"ray::ServeReplica:[^:]*:(\w+)")
_STAGES = {"Ingress": "ingress", "UserState": "user", "Retrieve": "retrieve", "PreRank": "student", "ReRank": "teacher"}
_PROXIES = ("haproxy", "ray::ProxyActor", "ray::HAProxyManager")


def stage_of(title: str) -> str | None:
    """Stage of a process by its command line; ``proxy`` for what carries HTTP; None: neither."""
    replica = _REPLICA.match(title)
    if replica:
        return _STAGES.get(replica[1], replica[1])
    program = title.split(" ")[0].rsplit("/", 1)[-1]
    return "proxy" if program.startswith(_PROXIES) or title.startswith(_PROXIES) else None


def service_on(port: int) -> dict[int, str]:
    """Process id -> stage, of the service that listens on ``port`` of this machine; empty where none can be seen."""
    parents, titles = dict[int, int](), dict[int, str]()
    for pid in _pids():
        parents[pid], titles[pid] = _parent(pid), _title(pid)
    root = next((found for pid in _listeners(port) for found in [_raylet(pid, parents, titles)] if found), None)
    if root is None:
        return {}
    inside = {pid: stage_of(title) for pid, title in titles.items() if root in _ancestors(pid, parents)}
    return {pid: stage for pid, stage in inside.items() if stage is not None}


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has had; 0 when it has ended."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Meter:
    """Processor seconds of the service on a port, with those of its processes that have come or gone meanwhile.

    A process that came counts from its start, loading included; one that ended as far as it was last read.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stages, self._seconds = dict[int, str](), dict[int, float]()

    def look(self) -> dict[str, float]:
        """Find the processes that are there now; stage -> processor seconds so far, empty where none can be seen."""
        self._stages |= service_on(self._port)
        self.read()
        found: dict[str, float] = {}
        for pid, stage in self._stages.items():
            found[stage] = found.get(stage, 0.0) + self._seconds[pid]
        return found

    def read(self) -> None:
        """Read the processes that are known; quick enough to be called while requests are on their way."""
        for pid in self._stages:
            self._seconds[pid] = max(self._seconds.get(pid, 0.0), cpu_seconds(pid))


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _parent(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _title(pid: int) -> str:
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while pid > 1:
        yield pid
        pid = parents.get(pid, 0)


def _raylet(pid: int, parents: Mapping[int, int], titles: Mapping[int, str]) -> int | None:
    named = (p for p in _ancestors(pid, parents) if titles.get(p, "").split(" ")[0].endswith("/raylet"))
    return next(named, None)


def _listeners(port: int) -> Iterator[int]:
    """Processes that hold a listening socket on the port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        fields = [line.split() for line in lines]
        inodes |= {f[9] for f in fields if f[3] == _LISTENS and int(f[1].rpartition(":")[2], 16) == port}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in _pids() if wanted else ():
        try:
            held = {os.readlink(entry) for entry in (PROC / str(pid) / "fd").iterdir()}
        except OSError:
            continue
        if held & wanted:
            yield pid
