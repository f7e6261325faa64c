"""HAProxy processes that a killed service left behind: found at the next start, said, and ended.

Each service notes in the folder of its proxy's files who it is. A proxy is an orphan when its files lie in such a
folder and whoever made the folder runs no more; nothing else is touched. Reads /proc; without one nothing is found.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PLACE, PREFIX, OWNER = Path("/tmp"), "rr-", "owner"  # short: socket paths below it may have about 100 characters


def claim(folder: Path) -> None:
    """Note that this process has made ``folder``."""
    (folder / OWNER).write_text(f"{os.getpid()} {_started(os.getpid())}", encoding="ascii")


def end_orphans(progress: Callable[[str], None], place: Path = PLACE) -> None:
    """End the proxies of services that run no more, and remove their folders."""
    for note in sorted(place.glob(f"{PREFIX}*/{OWNER}")):
        try:
            pid, _, started = note.read_text(encoding="ascii").partition(" ")
            if not pid.isdigit() or _started(int(pid)) == started:
                continue
        except OSError:
            continue  # another user's, or gone in this moment
        for orphan in _running_on(note.parent):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(orphan, signal.SIGTERM)
                progress(f"ended haproxy (process {orphan}), left behind by a service that was killed (process {pid})")
        shutil.rmtree(note.parent, ignore_errors=True)


def _running_on(folder: Path) -> Iterator[int]:
    """Processes of the program haproxy whose command line names a file of ``folder``."""
    proc = Path("/proc")
    for entry in proc.iterdir() if proc.is_dir() else ():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if Path(words[0]).name == "haproxy" and any(word.startswith(f"{folder}/") for word in words):
            yield int(entry.name)


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks: with its number it names the process; empty: it is not there."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""
