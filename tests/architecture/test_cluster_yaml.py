"""The cluster launcher file, held against the installed Ray's own schema and against what the code needs."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrank.on_ray.profile import PROFILE
from rayrank.pipeline.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def launcher_accepts(raw: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(copy.deepcopy(raw))
    validate_config(filled)
    return filled


def test_rays_launcher_accepts_it(raw: dict[str, Any]) -> None:
    filled = launcher_accepts(raw)
    assert filled["provider"]["type"] == "local"
    assert filled["available_node_types"][filled["head_node_type"]]["max_workers"] == len(raw["provider"]["worker_ips"])


def test_rays_launcher_refuses_a_misspelt_key(raw: dict[str, Any]) -> None:
    import jsonschema

    raw["setup_comands"] = []
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        launcher_accepts(raw)


def exported(commands: str) -> dict[str, str]:
    """What a program started after these commands inherits; Ray's launcher gives them to bash, too."""
    said = subprocess.run(["bash", "-c", f"{commands} env -0"], capture_output=True, check=True, timeout=30).stdout
    return dict(entry.split("=", 1) for entry in said.decode().split("\0") if "=" in entry)


def test_every_machine_starts_ray_with_the_launch_profile_and_the_token(raw: dict[str, Any]) -> None:
    for commands in (raw["head_start_ray_commands"], raw["worker_start_ray_commands"]):
        text = commands[-1]
        variables = exported(text.split("ray start")[0])
        assert variables["RAY_AUTH_MODE"] == "token"
        assert variables["OMP_NUM_THREADS"] == "1"
        assert variables.items() >= PROFILE.items()
    assert "~/.ray/auth_token" in raw["file_mounts"]


def test_what_the_setup_installs_is_what_make_wheel_builds(raw: dict[str, Any]) -> None:
    wheel_target = (ROOT / "Makefile").read_text().split("\nwheel:")[1].split("\n\n")[0]
    assert "--wheel-dir dist" in wheel_target
    assert "cp requirements.lock dist/" in wheel_target
    assert raw["file_mounts"]["~/rayrank/dist"] == "dist"
    setup = " ".join(raw["setup_commands"])
    assert "dist/requirements.lock" in setup
    assert "dist/rayrank-*.whl" in setup


def test_the_jobs_and_the_application_it_names_are_those_of_this_checkout(raw: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    named = set(re.findall(r"\bjobs\.(\w+)", text))
    assert named == {"validate", "prepare", "train_teacher", "label", "tune", "distill", "evaluate", "promote", "score"}
    assert named <= VERBS.keys()
    assert all((ROOT / "jobs" / f"{name}.py").is_file() for name in named)
    for path in re.findall(r"(?:jobs/configs|jobs/runtime_env|serve_apps)[\w/]*\.yaml", text):
        assert (ROOT / path).is_file(), path
    (deployed,) = re.findall(r"serve deploy (\S+)", text)
    (application,) = yaml.safe_load((ROOT / deployed).read_text())["applications"]
    folder, module = application["import_path"].partition(":")[0].split(".")
    assert (ROOT / folder / f"{module}.py").is_file()
    assert raw["file_mounts"][f"~/rayrank/{folder}"] == folder
    for commands in (raw["head_start_ray_commands"], raw["worker_start_ray_commands"]):
        assert "PYTHONPATH=~/rayrank " in commands[-1], "replicas must find serve_apps"
