"""The doctor's checks: each one is shown what it must catch, and what it must let pass."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from rayrank.config import Config, parse
from rayrank.on_ray.cluster import ClusterConfig
from rayrank.on_ray.train import Workers
from rayrank.pipeline import checks
from rayrank.pipeline.checks import Check
from rayrank.pipeline.doctor import DoctorConfig, DoctorResult, _capacity, doctor
from rayrank.pipeline.label import LabelConfig
from rayrank.pipeline.quickstart_plan import QuickstartConfig


def quiet(message: str) -> None:
    del message


@pytest.fixture
def config(tmp_path: Path) -> DoctorConfig:
    raw = {"output": f"{tmp_path}/runs", "tracking_uri": f"sqlite:///{tmp_path}/m.db", "encoder": False, "ports": {}}
    return parse(DoctorConfig, {**raw, "memory_gb": 0.01, "disk_gb": 0.001})


def by_name(result: DoctorResult, name: str) -> list[Check]:
    return [check for check in result.checks if check.name == name]


def test_a_sound_machine_passes(config: DoctorConfig, tmp_path: Path) -> None:
    result = doctor(config, quiet)
    assert not result.refused, result.summary()
    assert {"python", "libraries", "cpus", "memory", "disk", "write access", "tracking store"} <= {
        check.name for check in result.checks
    }
    assert list(tmp_path.iterdir()) == [], "looking must leave nothing behind"


def test_report_as_json(config: DoctorConfig) -> None:
    (text,) = doctor(config.model_copy(update={"report": "json"}), quiet).summary()
    found = json.loads(text)
    assert found["counts"]["error"] == 0
    assert {"name", "level", "found", "fix"} == set(found["checks"][0])


def test_one_error_refuses_and_a_warning_does_not() -> None:
    warning, error = Check("a", "warning", "x", "y"), Check("b", "error", "x", "y")
    assert not DoctorResult((warning,)).refused
    assert DoctorResult((warning, error)).refused
    assert DoctorResult((warning, error)).summary() == [
        "warning  a: x; fix: y",
        "ERROR    b: x; fix: y",
        "0 ok, 1 warning, 1 error",
    ]


@pytest.mark.parametrize(
    ("requirement", "level"),
    [
        ("pydantic>=2", "ok"),
        ("pydantic<1", "error"),
        ("no-such-library-anywhere>=1", "error"),
        ("ray[serve,tune]>=2", "ok"),
    ],
)
def test_library_versions(requirement: str, level: str) -> None:
    assert checks.library_versions([requirement])[0].level == level


def test_python_version() -> None:
    assert checks.python_version().level == "ok"
    refused = checks.python_version(lowest=(3, 98), below=(3, 99))
    assert refused.level == "error"
    assert "3.98" in refused.found


def test_a_lock_that_differs_warns(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("# comment\npydantic==0.1\npyyaml>=1  # fine\n")
    (found,) = checks.lock_versions(tmp_path / "requirements.lock")
    assert (found.level, "pydantic" in found.found) == ("warning", True)


def test_requirements_come_from_the_checkout_when_there_is_one() -> None:
    root = Path(__file__).resolve().parents[2]
    assert any(line.startswith("ray[") for line in checks.requirements_of("rayrank", root))
    assert checks.requirements_of("no-such-library-anywhere", root) == []


def test_write_access(tmp_path: Path) -> None:
    assert checks.writable(f"{tmp_path}/a/b/c").level == "ok"
    assert checks.writable("/proc/self/rayrank").level == "error"
    assert checks.writable("s3://bucket/x").level == "warning"
    (tmp_path / "file").write_text("")
    assert checks.nearest_folder(f"{tmp_path}/file/below") == tmp_path


def test_tracking_store(tmp_path: Path) -> None:
    assert checks.tracking_store(f"sqlite:///{tmp_path}/new/m.db").level == "ok"
    good = tmp_path / "good.db"
    with sqlite3.connect(good) as store:
        store.execute("create table t (a)")
    assert checks.tracking_store(f"sqlite:///{good}").level == "ok"
    (tmp_path / "bad.db").write_text("this is no database, however long the text of it may be " * 5)
    assert checks.tracking_store(f"sqlite:///{tmp_path}/bad.db").level == "error"
    assert "refuses file stores" in checks.tracking_store("./mlruns").found


def test_no_other_host_is_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"contacted {args}")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert checks.tracking_store("https://mlflow.example.org/").found.endswith("not contacted")


def test_ports_and_a_local_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        (found,) = checks.ports({number: "a test"})
        assert (found.level, found.found) == ("warning", f"{number} (a test) is taken")
        assert checks.tracking_store(f"http://127.0.0.1:{number}").level == "ok"
    assert checks.ports({number: "a test"})[0].level == "ok"
    assert checks.tracking_store(f"http://127.0.0.1:{number}").level == "error"


def test_memory_and_disk_and_shared_memory(tmp_path: Path) -> None:
    assert checks.memory(0.001).level == "ok"
    assert checks.memory(1e6).level == "error"
    assert checks.disk(str(tmp_path), 1e6).level == "error"
    assert checks.shared_memory(10**9, str(tmp_path)).level == "warning"


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"RAY_ADDRESS": "auto"}, "RAY_ADDRESS"),
        ({"RAY_TRAIN_V2_ENABLED": "0"}, "V2"),
        ({"RAY_AUTH_MODE": "token", "HOME": "/nonexistent"}, "no token"),
        ({"HF_HOME": "/proc/self/cache"}, "cannot be written"),
        ({"MLFLOW_TRACKING_URI": "http://x"}, "MLFLOW_TRACKING_URI"),
        ({"HTTP_PROXY": "http://proxy"}, "NO_PROXY"),
        ({"RAY_TMPDIR": "/tmp/" + "x" * 80}, "too long"),
    ],
)
def test_stray_variables(variables: dict[str, str], word: str) -> None:
    (found,) = checks.environment(variables)
    assert found.level == "warning"
    assert word in found.found


def test_a_clean_environment_is_ok() -> None:
    variables = {"HTTP_PROXY": "http://proxy", "NO_PROXY": "a.example, 127.0.0.1", "RAY_TRAIN_V2_ENABLED": "1"}
    assert [check.level for check in checks.environment(variables)] == ["ok"]


def test_a_bad_job_config_is_found(config: DoctorConfig, tmp_path: Path) -> None:
    file = tmp_path / "doctor.yaml"
    file.write_text("memry_gb: 3\n")
    jobs = {"doctor": str(file), "prepar": str(file)}
    result = doctor(config.model_copy(update={"jobs": jobs}), quiet)
    assert "did you mean 'memory_gb'?" in by_name(result, "job doctor")[0].found
    assert by_name(result, "job prepar")[0].level == "error"


def test_paths_of_a_job_config_must_be_writable(config: DoctorConfig, tmp_path: Path) -> None:
    file = tmp_path / "doctor.yaml"
    file.write_text("output: /proc/self/runs\n")
    result = doctor(config.model_copy(update={"jobs": {"doctor": str(file)}}), quiet)
    assert [check.level for check in by_name(result, "job doctor, paths")].count("error") == 1


def test_workers_that_do_not_fit_are_found() -> None:
    class Job(Config):
        training: Workers = Field(default_factory=Workers, description="training")
        cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="cluster")

    assert list(_capacity("x", Job(cluster=ClusterConfig(logical_cpus=3)))) == []
    (found,) = _capacity("x", Job(training=Workers(count=2, cpus=1.5), cluster=ClusterConfig(logical_cpus=3)))
    assert found.level == "error"
    assert "training.count asks for 3" in found.found
    assert "logical_cpus=4" in found.fix
    (quick,) = _capacity("quickstart", QuickstartConfig(workers=9, cluster=ClusterConfig(logical_cpus=9)))
    assert "workers asks for 9" in quick.found
    labels = LabelConfig(dataset="d", teacher="t", output="o", actors=4, cluster=ClusterConfig(logical_cpus=4))
    (label,) = _capacity("label", labels)
    assert "actors asks for 4" in label.found


@pytest.mark.slow
def test_deep_starts_ray_and_a_hanging_start_is_ended(config: DoctorConfig) -> None:
    deep = config.model_copy(update={"deep": True})
    (found,) = by_name(doctor(deep, quiet), "ray")
    assert found.level == "ok", found
    assert "a worker imports rayrank" in found.found
    (late,) = by_name(doctor(deep.model_copy(update={"deep_timeout_s": 0.2}), quiet), "ray")
    assert (late.level, late.found) == ("error", "did not start within 0.2 s")


def test_the_doctor_starts_where_the_heavy_libraries_are_broken() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'mlflow', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "from rayrank.pipeline.doctor import DoctorConfig, doctor\n"
        "found = doctor(DoctorConfig(jobs={'quickstart': 'none.yaml'}, ports={}), lambda message: None)\n"
        "print([check.found for check in found.checks if 'does not import' in check.found])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("does not import") == 2
