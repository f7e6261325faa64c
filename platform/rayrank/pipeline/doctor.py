"""The doctor: find what would break a job before it breaks, and say how to mend it.

Looks at the machine and, when job configs are named, at what they ask for. Changes nothing that lasts and contacts no
other machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import rayrank
from rayrank.config import Config, ConfigError, DataPath, load, path_fields
from rayrank.locations import SQLITE, base_folder, resolve_paths
from rayrank.on_ray.cluster import ClusterConfig, local_cpus
from rayrank.pipeline import checks
from rayrank.pipeline.checks import Check, Level
from rayrank.pipeline.verbs import VERBS, bind

MARKS: Mapping[Level, str] = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


class DoctorConfig(Config):
    """What to look at; the defaults suit the quickstart."""

    jobs: dict[str, DataPath] = Field(default_factory=dict, description="job name -> its config file, checked as well")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="the Ray that jobs would start or join")
    output: DataPath = Field("runs", description="folder that results go to")
    tracking_uri: DataPath = Field("sqlite:///runs/mlflow.db", description="the MLflow store")
    memory_gb: float = Field(3.0, gt=0, description="free memory wanted, GB")
    disk_gb: float = Field(2.0, gt=0, description="free disk wanted where results go, GB")
    ports: dict[int, str] = Field(
        default_factory=lambda: {
            8000: "Serve HTTP",
            8265: "Ray dashboard",
            8404: "HAProxy statistics",
            9101: "HAProxy",
        },
        description="port -> what would listen on it",
    )
    encoder: bool = Field(True, description="look for the packaged text encoder and check its weights")
    deep: bool = Field(False, description="also start a local Ray, run one task in it and stop it (about 15 s)")
    deep_timeout_s: float = Field(120.0, gt=0, description="longest wait for that, s")
    report: Literal["text", "json"] = Field("text", description="how the findings are printed")


@dataclass(frozen=True)
class DoctorResult:
    """The findings, in the order they were looked for."""

    checks: tuple[Check, ...]
    report: Literal["text", "json"] = "text"

    @property
    def refused(self) -> bool:
        """True when something would break."""
        return any(check.level == "error" for check in self.checks)

    def summary(self) -> list[str]:
        """One line per finding and one that counts them; or one JSON document."""
        counts = {level: sum(check.level == level for check in self.checks) for level in MARKS}
        if self.report == "json":
            return [json.dumps({"counts": counts, "checks": [asdict(check) for check in self.checks]}, indent=2)]
        lines = [
            f"{MARKS[check.level]}  {check.name}: {check.found}" + (f"; fix: {check.fix}" if check.fix else "")
            for check in self.checks
        ]
        return [*lines, ", ".join(f"{count} {level}" for level, count in counts.items())]


def doctor(config: DoctorConfig, progress: Callable[[str], None]) -> DoctorResult:
    """Look at everything ``config`` names; never raises for what it finds."""
    progress("looking at this machine")
    found = [*_installation(), *_machine(config), *checks.environment(os.environ)]
    for name, file in config.jobs.items():
        progress(f"looking at {name}: {file}")
        found += _job(name, file)
    if config.deep:
        progress("starting a local Ray")
        found.append(_start_ray(config))
    return DoctorResult(tuple(found), config.report)


def _installation() -> Iterator[Check]:
    root = Path(rayrank.__file__).resolve().parents[2]
    yield checks.python_version()
    yield from checks.library_versions(checks.requirements_of("rayrank", root))
    if (root / "requirements.lock").is_file():
        yield from checks.lock_versions(root / "requirements.lock")


def _machine(config: DoctorConfig) -> Iterator[Check]:
    cores, logical = checks.cores(), local_cpus(config.cluster)
    if logical > 4 * cores:
        fix = f"set cluster.logical_cpus to at most {4 * cores}"
        yield Check(
            "cpus", "warning", f"{logical} logical CPUs on {cores} cores: processes will starve each other", fix
        )
    else:
        yield checks.ok("cpus", f"{cores} cores, {logical} logical CPUs for a local Ray")
    yield checks.memory(config.memory_gb)
    yield checks.shared_memory(config.cluster.object_store_mb)
    yield checks.open_files()
    yield checks.disk(config.output, config.disk_gb)
    yield checks.disk(os.environ.get("RAY_TMPDIR", "/tmp"), 1.0, name="disk of Ray's session files")
    yield checks.writable(config.output)
    yield checks.tracking_store(config.tracking_uri)
    yield from checks.ports(config.ports)
    if config.encoder:
        yield _encoder()


def _encoder() -> Check:
    try:
        from rayrank.sources.encoders import package_folder

        return checks.ok("text encoder", f"all-MiniLM-L6-v2 in {package_folder()}, weights as published")
    except ImportError as error:
        return Check("text encoder", "error", f"a library does not import: {error}", "make install")
    except ConfigError as error:
        return Check("text encoder", "error", error.rule, error.fix)


def _job(name: str, file: str) -> Iterator[Check]:
    if name not in VERBS:
        yield Check(f"job {name}", "error", "no such job", f"one of {', '.join(VERBS)}")
        return
    try:
        config = resolve_paths(load(bind(name).config, file), base_folder(os.environ))
    except ImportError as error:
        yield Check(f"job {name}", "error", f"a library does not import: {error}", "make install")
        return
    except ConfigError as error:
        yield Check(f"job {name}", "error", str(error), error.fix)
        return
    yield checks.ok(f"job {name}", f"{file} is valid")
    yield from _capacity(name, config)
    for path in path_fields(config).values():
        if not os.path.exists(path.removeprefix(SQLITE)):
            yield checks.writable(path.removeprefix(SQLITE), f"job {name}, paths")


def _capacity(name: str, config: Config) -> Iterator[Check]:
    """What the job's worker groups ask for, against what the Ray it starts would have."""
    from rayrank.on_ray.train import Workers  # brings torch: the doctor must run where that is broken

    values = list(_walk(config))
    cluster = next((value for _, value in values if isinstance(value, ClusterConfig)), ClusterConfig())
    asked = {f"{path}.count": value.count * value.cpus for path, value in values if isinstance(value, Workers)}
    asked |= {path: value for path, value in values if path in ("workers", "actors") and isinstance(value, int)}
    logical = local_cpus(cluster)
    for path, cpus in asked.items():
        if cpus + 1 > logical and cluster.address is None:
            found = f"{path} asks for {cpus:g}, a local Ray has {logical} logical CPUs and one is for data tasks"
            fix = f"set cluster.logical_cpus={int(cpus) + 1}, or ask for {logical - 1} at most"
            yield Check(f"job {name}, cpus", "error", found, fix)


def _walk(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(config).model_fields:
        value = getattr(config, name)
        yield f"{prefix}{name}", value
        if isinstance(value, Config):
            yield from _walk(value, f"{prefix}{name}.")


_PROBE = """
import ray
from rayrank.on_ray.cluster import ClusterConfig, ensure_cluster
from rayrank.config import parse
import json, sys
with ensure_cluster(parse(ClusterConfig, json.loads(sys.argv[1]))) as cluster:
    import_path = ray.get(ray.remote(lambda: __import__("rayrank").__file__).remote(), timeout=float(sys.argv[2]))
    print(f"{cluster.cpus:g} logical CPUs, a worker imports rayrank from {import_path}")
"""


def _start_ray(config: DoctorConfig) -> Check:
    """In a process group of its own, so that a Ray that hangs can be ended whole."""
    root = str(Path(rayrank.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-c", _PROBE, config.cluster.model_dump_json(), str(config.deep_timeout_s)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, problem = process.communicate(timeout=config.deep_timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Check(
            "ray", "error", f"did not start within {config.deep_timeout_s:g} s", "see /tmp/ray/session_latest/logs"
        )
    if process.returncode:
        last = (problem.strip().splitlines() or ["no message"])[-1]
        return Check("ray", "error", last, "see /tmp/ray/session_latest/logs")
    return checks.ok("ray", out.strip().splitlines()[-1])
