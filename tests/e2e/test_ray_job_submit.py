"""A job submitted to a cluster of its own, started as an operator would: token authentication, private ports.

What matters is where outputs land: a submitted job runs in an unpacked copy of the working folder that is thrown away.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.ports import free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CLUSTER = (ROOT / "cluster.yaml").read_text()
SERVE = [sys.executable, "-m", "ray.serve.scripts"]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
CONFIG = """\
source: {kind: synthetic, num_users: 40, num_items: 60, num_rows: 1000}
path: datasets/tiny
engine: ray
"""


class HeadNode:
    """A head started from the shell, its environment, and a way to end exactly its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.dashboard = free_port()
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("RAY", "PYTHONPATH"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), plain.get("PATH", "")])
        self.environment = {**plain, "HOME": str(self.home), "PATH": path, "RAY_AUTH_MODE": "token"}
        self.environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder / "ray")}
        self.environment["RAY_agent_register_timeout_ms"] = "240000"  # a head gives up after 30 s on a busy machine
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.call([*RAY, "get-auth-token", "--generate"], timeout=60).check_returncode()
        ports = {name: free_port() for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port")}
        options = [f"--{name}={number}" for name, number in ports.items()]
        options += [f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
        options += ["--num-cpus=4", f"--object-store-memory={100 * 2**20}", f"--temp-dir={self.folder / 'ray'}"]
        with (self.folder / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*RAY, "start", "--head", "--block", *options],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.wait()

    def wait(self, limit_s: float = 90.0) -> None:
        """Until the job server answers."""
        last = time.monotonic() + limit_s
        while time.monotonic() < last:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            listed = self.call([*RAY, "job", "list", "--address", self.address], timeout=60)
            if listed.returncode == 0:
                return
            time.sleep(1.0)
        raise AssertionError(f"no job server after {limit_s:g} s: {listed.stderr[-1000:]}")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def call(self, command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def submit(self, *entry: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
        command = [*RAY, "job", "submit", "--address", self.address, "--working-dir", "."]
        command += ["--runtime-env", "jobs/runtime_env.yaml", "--", *entry]
        last = time.monotonic() + 90.0
        while True:
            done = self.call(command, timeout)
            assert self.process is not None
            assert self.process.poll() is None, f"the head ended\n{self.said()}"
            if "No available agent" not in done.stderr or time.monotonic() > last:  # the head listens before its agent
                return done
            time.sleep(2.0)

    def said(self) -> str:
        """What the head and its agents last wrote."""
        logs = [self.folder / "head.log", *(self.folder / "ray").glob("session_2*/logs/*_agent.*")]
        logs += (self.folder / "ray").glob("session_2*/logs/raylet.*")
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs if log.is_file())

    def stop(self) -> None:
        """Ray's daemons leave the process group, but every one carries the session folder in its command line."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=20)
        mark = str(self.folder / "ray").encode()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark in entry.read_bytes():
                    os.kill(int(entry.parent.name), signal.SIGKILL)
            except OSError:
                continue


@pytest.fixture(scope="module")
def head() -> Iterator[HeadNode]:
    folder = Path(tempfile.mkdtemp(prefix="rr-"))  # short: Ray's socket paths may have 107 characters
    node = HeadNode(folder)
    try:
        node.start()
        yield node
    finally:
        node.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_writes_below_the_base_and_not_into_its_working_copy(head: HeadNode, tmp_path: Path) -> None:
    config = tmp_path / "prepare.yaml"
    config.write_text(CONFIG)
    done = head.submit("env", f"RAYRANK_BASE={tmp_path}/results", "python", "-m", "jobs.prepare", str(config))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    manifest = json.loads((tmp_path / "results" / "datasets" / "tiny" / "manifest.json").read_text())
    assert manifest["counts"]["events"] == 1000
    assert f"{tmp_path}/results/datasets/tiny" in done.stdout
    copies = list((head.folder / "ray").rglob("_ray_pkg_*"))
    assert copies, "the working folder was not unpacked where it was looked for"
    assert not [found for copy in copies for found in copy.rglob("manifest.json")]
    assert not [found for copy in copies for found in copy.glob("*") if found.name in {".venv", "runs", ".git"}]


SHORT = "learning={epochs: 1, rows: {epochs: 1}}"
DATA = ["source.num_users=80", "source.num_items=60", "source.num_rows=2500", "engine=ray"]
SMALL = {
    "validate": DATA,
    "prepare": DATA,
    "train_teacher": ["encoder={kind: tiny, width: 16}", SHORT, "workers.count=1"],
    "label": ["actors=1"],
    "tune": ["trials=1", f"distill.{SHORT}", f"space={ROOT}/tune_spaces/distill.yaml"],
    "evaluate": ["resamples=50", "cost_requests=5"],
    "promote": ["resamples=100", "gates.skip=[gain_auc, gain_gauc, lift, calibration, latency]"],
    "score": ["actors=1"],
}
"""Less of everything; the gates are skipped because so little data teaches nothing."""
MADE = {
    "prepare": "dataset/manifest.json",
    "train_teacher": "teacher/bundle.json",
    "label": "labels/manifest.json",
    "tune": "tune/best.yaml",
    "distill": "student/bundle.json",
    "evaluate": "evaluate/evaluation.json",
    "promote": "releases/champion.json",
    "score": "scores/_manifest.json",
}


WAVES = (
    ("validate", "prepare"),
    ("train_teacher",),
    ("label",),
    ("tune",),
    ("distill",),
    ("evaluate", "promote"),
    ("score",),
)
"""What does not wait for each other is submitted together."""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_job_of_the_cluster_file_runs_there_with_the_shipped_configs(head: HeadNode, tmp_path: Path) -> None:
    """The whole path, a submission per job, then the Serve application."""
    made = tmp_path / "runs" / "synthetic"
    assert {name for wave in WAVES for name in wave} == set(re.findall(r"\bjobs\.(\w+)", CLUSTER)), "cluster.yaml"

    def submit(name: str) -> None:
        config = {"distill": str(made / "tune" / "best.yaml"), "validate": "jobs/configs/synthetic/prepare.yaml"}
        entry = ["env", f"RAYRANK_BASE={tmp_path}", "python", "-m", f"jobs.{name}"]
        done = head.submit(*entry, config.get(name, f"jobs/configs/synthetic/{name}.yaml"), *SMALL.get(name, []))
        assert done.returncode == 0, f"{name}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        assert name not in MADE or (made / MADE[name]).is_file(), f"{name}\n{done.stdout[-2000:]}"

    with ThreadPoolExecutor(2) as two:
        for wave in WAVES:
            list(two.map(submit, wave))
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    copies = [copy for copy in (head.folder / "ray").rglob("_ray_pkg_*") if copy.is_dir()]
    assert copies
    assert not [copy for copy in copies if (copy / "runs").exists()], "results in a working copy vanish"
    _serve(head, made / "releases")


def _serve(head: HeadNode, releases: Path) -> None:
    """The Serve application of the cluster file, deployed as an operator does it, with the release of the jobs."""
    deployed = yaml.safe_load((ROOT / "serve_apps" / "ranking.yaml").read_text())
    port = deployed["http_options"]["port"] = free_port()
    (application,) = deployed["applications"]
    application["args"] |= {"releases": str(releases), "fused": True, "histories": str(releases / "h.sqlite")}
    application["runtime_env"]["env_vars"]["PYTHONPATH"] = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    config = releases / "serve.yaml"
    config.write_text(yaml.safe_dump(deployed))
    done = head.call([*SERVE, "deploy", "-a", head.address, str(config)], timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    last, said = time.monotonic() + 120, ""
    while time.monotonic() < last:
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/recommend", b'{"k": 3}', {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert len(json.load(answer)["items"]) == 3
                return
        except OSError as error:  # refused while it starts, 404 before the application is there
            said = str(error)
        time.sleep(1)
    status = head.call([*SERVE, "status", "-a", head.address], timeout=60)
    raise AssertionError(f"{said}\n{status.stdout}{status.stderr}")


def test_a_relative_path_without_a_base_is_refused(head: HeadNode, tmp_path: Path) -> None:
    config = tmp_path / "prepare.yaml"
    config.write_text(CONFIG)
    refused = head.submit("python", "-m", "jobs.prepare", str(config))
    assert refused.returncode != 0
    assert "set RAYRANK_BASE in the runtime env" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout.split("error:")[0]
    absolute = head.submit("python", "-m", "jobs.prepare", str(config), f"path={tmp_path}/absolute", "--show")
    assert absolute.returncode == 0, absolute.stdout[-3000:]
    assert f"path: {tmp_path}/absolute" in absolute.stdout


def test_without_the_token_nothing_is_accepted(head: HeadNode, tmp_path: Path) -> None:
    stranger = {**head.environment, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    listed = subprocess.run(
        [*RAY, "job", "list", "--address", head.address],
        env=stranger, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert listed.returncode != 0
