"""Single checks of the machine that a job will run on; the doctor decides which to make.

Each check looks, changes nothing that lasts, contacts no other machine and answers with a level and a fix. Knows
nothing about configs or Ray.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sqlite3
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement

Level = Literal["ok", "warning", "error"]
GB = 2**30
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0")
LOW_FILES = 4096


@dataclass(frozen=True)
class Check:
    """What was looked at, how it stands, and how to mend it."""

    name: str
    level: Level
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Check:
    """Nothing to mend."""
    return Check(name, "ok", found)


def python_version(lowest: tuple[int, int] = (3, 11), below: tuple[int, int] = (3, 13)) -> Check:
    """The interpreter is one the libraries are built for, and ``import platform`` is the standard library's."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not lowest <= sys.version_info[:2] < below:
        wanted = f"{'.'.join(map(str, lowest))} up to, not including, {'.'.join(map(str, below))}"
        return Check("python", "error", f"{version}, needs {wanted}", "make install PYTHON=/path/to/python3.11")
    if not hasattr(platform, "system"):
        fix = "delete platform/__init__.py: it hides the standard library's platform module"
        return Check("python", "error", f"'import platform' finds {platform.__file__}", fix)
    return ok("python", version)


def requirements_of(package: str, root: Path) -> list[str]:
    """Requirements from the ``pyproject.toml`` in ``root`` if it is ``package``'s, else from what is installed."""
    file = root / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == package:
            return list(project.get("dependencies", []))
    with suppress(importlib.metadata.PackageNotFoundError):
        return [line for line in importlib.metadata.requires(package) or [] if "extra ==" not in line]
    return []


def library_versions(requirements: Iterable[str], name: str = "libraries", level: Level = "error") -> list[Check]:
    """One finding per requirement that is absent or of another version; one ``ok`` when all agree."""
    problems, count = [], 0
    for line in requirements:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        count += 1
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(Check(name, level, f"{wanted.name} is not installed", f"pip install '{wanted}'"))
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            problems.append(Check(name, level, f"{wanted.name} {found}, wants {wanted.specifier}", "make install"))
    return problems or [ok(name, f"{count} as required")]


def lock_versions(lock: Path) -> list[Check]:
    """Installed versions against a lock file; other versions may work, so they only warn."""
    lines = [line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    return library_versions([line for line in lines if line], name="lock", level="warning")


def cores() -> int:
    """Cores this process may use: affinity and the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    return count


def memory(wanted_gb: float) -> Check:
    """Free memory, within the container's limit."""
    free = _free_memory()
    if free is None:
        return Check(
            "memory", "warning", "free memory cannot be read here", f"make sure that {wanted_gb:g} GB are free"
        )
    found = f"{free / GB:.1f} GB free"
    if free < wanted_gb * GB:
        fix = "free some, or lower batch_events, lanes and cluster.object_store_mb"
        return Check(
            "memory", "error" if free < wanted_gb * GB / 2 else "warning", f"{found}, wants {wanted_gb:g}", fix
        )
    return ok("memory", found)


def _free_memory() -> int | None:
    free: list[int] = []
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
        free.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8")))
    return min(free) if free else None


def shared_memory(wanted_mb: int, folder: str = "/dev/shm") -> Check:
    """Room for Ray's object store; with too little Ray falls back to files, which is slow."""
    if not os.path.isdir(folder):
        return ok("shared memory", f"no {folder} on this system")
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**20:.0f} MB free in {folder}"
    if free < wanted_mb * 2**20:
        fix = f"start the container with --shm-size={wanted_mb}m or more, or lower cluster.object_store_mb"
        return Check("shared memory", "warning", f"{found}, wants {wanted_mb}", fix)
    return ok("shared memory", found)


def disk(path: str, wanted_gb: float, name: str = "disk") -> Check:
    """Free space where ``path`` is or will be."""
    folder = nearest_folder(path)
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GB:.1f} GB free at {folder}"
    if usage.free < wanted_gb * GB:
        return Check(name, "error", f"{found}, wants {wanted_gb:g}", "free some, or write elsewhere")
    if usage.free < 0.05 * usage.total:
        return Check(name, "warning", f"{found}: over 95 % full, Ray stops spilling", "free some")
    return ok(name, found)


def writable(path: str, name: str = "write access") -> Check:
    """``path``, or the nearest folder above it, takes a file."""
    if "://" in path:
        return Check(name, "warning", f"{path}: not a local path, not tried", "check the credentials of the store")
    folder = nearest_folder(path)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check(
            name, "error", f"{path}: {folder} takes no files ({error.strerror})", "chown it, or write elsewhere"
        )
    return ok(name, path)


def nearest_folder(path: str) -> Path:
    """``path`` or the first folder above it that exists."""
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def tracking_store(uri: str) -> Check:
    """The store can be written (sqlite) or answers (a server on this machine); other hosts are never contacted."""
    name, parts = "tracking store", urlsplit(uri)
    if parts.scheme == "sqlite":
        return _sqlite_store(name, uri.removeprefix("sqlite:///"))
    if parts.scheme in ("http", "https", "postgresql", "mysql"):
        if (parts.hostname or "") not in LOCAL_HOSTS:
            return ok(name, f"{parts.scheme}://{parts.hostname}: another host, not contacted")
        port = parts.port or {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}[parts.scheme]
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            return ok(name, f"port {port} answers")
        return Check(
            name, "error", f"nothing answers on port {port}", "start the server, or use sqlite:///runs/mlflow.db"
        )
    return Check(name, "error", f"'{uri}': MLflow refuses file stores", "use sqlite:///runs/mlflow.db")


def _sqlite_store(name: str, path: str) -> Check:
    access = writable(path, name)
    if access.level != "ok" or not os.path.exists(path):
        return access
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=2)) as store:
            store.execute("select name from sqlite_master limit 1").fetchall()
    except sqlite3.Error as error:
        return Check(name, "error", f"{path}: {error}", "move the file away; a new one is made")
    return ok(name, path)


def ports(numbers: Mapping[int, str]) -> list[Check]:
    """Ports that a job will listen on are free; ``numbers`` says what each is for."""
    taken = [(number, use) for number, use in numbers.items() if not _port_free(number)]
    fix = "stop what listens there, or choose another port"
    problems = [Check("ports", "warning", f"{number} ({use}) is taken", fix) for number, use in taken]
    return problems or [ok("ports", ", ".join(map(str, numbers)) + " free")]


def _port_free(number: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", number))
        except OSError:
            return False
    return True


def open_files(wanted: int = LOW_FILES) -> Check:
    """Ray opens many files and sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        return Check("open files", "warning", f"limit {soft} (hard limit {hard})", f"ulimit -n {wanted}")
    return ok("open files", f"limit {soft}")


def environment(variables: Mapping[str, str]) -> list[Check]:
    """Variables, often left over from another project, that change what the jobs do."""
    found: list[Check] = []

    def warn(variable: str, why: str, fix: str) -> None:
        found.append(Check("environment", "warning", f"{variable}={variables[variable]}: {why}", fix))

    if variables.get("RAY_ADDRESS"):
        warn("RAY_ADDRESS", "jobs attach to that cluster instead of starting one", "unset RAY_ADDRESS if not meant")
    if variables.get("RAY_TRAIN_V2_ENABLED", "1") != "1":
        warn("RAY_TRAIN_V2_ENABLED", "the training jobs are written for Ray Train V2", "unset it")
    if variables.get("RAY_AUTH_MODE") == "token" and not _has_token(variables):
        warn("RAY_AUTH_MODE", "no token to go with it", "ray get-auth-token --generate")
    if len(variables.get("RAY_TMPDIR", "")) > 60:
        warn("RAY_TMPDIR", "too long for Ray's sockets (107 characters in all)", "use a shorter folder")
    for cache in ("HF_HOME", "TRANSFORMERS_CACHE", "TMPDIR"):
        if variables.get(cache) and writable(variables[cache]).level == "error":
            warn(cache, "cannot be written", f"unset {cache}, or name a folder of yours")
    if variables.get("MLFLOW_TRACKING_URI"):
        warn("MLFLOW_TRACKING_URI", "the jobs use tracking.uri of their config, not this", "set tracking.uri")
    proxy = next((p for p in ("HTTP_PROXY", "http_proxy") if variables.get(p)), None)
    if proxy and not {"127.0.0.1", "localhost"} & set(_no_proxy(variables)):
        found.append(
            Check("environment", "warning", f"{proxy} is set without NO_PROXY", "NO_PROXY=127.0.0.1,localhost")
        )
    return found or [ok("environment", "nothing stray")]


def _has_token(variables: Mapping[str, str]) -> bool:
    home = Path(variables.get("HOME", "~")).expanduser()
    named = variables.get("RAY_AUTH_TOKEN_PATH", str(home / ".ray" / "auth_token"))
    return bool(variables.get("RAY_AUTH_TOKEN")) or Path(named).is_file()


def _no_proxy(variables: Mapping[str, str]) -> list[str]:
    return (variables.get("NO_PROXY") or variables.get("no_proxy") or "").replace(" ", "").split(",")
