"""Lineage in a real sqlite store: parents, artifacts, registry, several processes; nothing when switched off."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from rayrank.config import Config, ConfigError
from rayrank.tracking import MlflowTracking, NoTracking, NullTracker, check_tracking, open_tracker


class Small(Config):
    rate: float = 0.1
    nested: dict[str, int] = Field(default_factory=lambda: {"a": 1})


def store(folder):
    return MlflowTracking(uri=f"sqlite:///{folder}/mlflow.db", experiment="made")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def tracker(folder):
    """One store for the module: creating its tables takes seconds."""
    return open_tracker(store(folder))


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "ftp://x"])
def test_file_stores_are_refused(uri):
    with pytest.raises(ConfigError, match="file stores are refused"):
        open_tracker(MlflowTracking(uri=uri))
    with pytest.raises(ConfigError, match="file stores are refused"):
        check_tracking(MlflowTracking(uri=uri))
    check_tracking(NoTracking())


def test_relative_sqlite_is_refused_because_workers_have_other_folders():
    with pytest.raises(ConfigError, match="absolute path"):
        open_tracker(MlflowTracking(uri="sqlite:///mlflow.db"))


def test_off_records_nothing_and_imports_nothing():
    code = (
        "import sys; from rayrank.tracking import NoTracking, open_tracker\n"
        "t = open_tracker(NoTracking())\n"
        "with t.run('a', 'teacher') as run: run.log_metrics({'x': 1.0}); run.log_config({})\n"
        "assert t.register('m', '/x') is None and t.alias('m', 'champion') is None\n"
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert type(open_tracker(NoTracking())) is NullTracker


def test_lineage_of_sweep_trial_and_student(tracker, folder):
    with tracker.run("teacher", "teacher") as teacher:
        teacher.log_config(Small())
    with tracker.run("sweep", "sweep") as sweep:
        for index in range(2):
            tags = {"rayrank.teacher": teacher.run_id}
            with tracker.run(f"trial {index}", "trial", parent=sweep.run_id, tags=tags) as trial:
                for step in range(3):
                    trial.log_metrics({"like/auc": 0.5 + step / 10, "missing": float("nan")}, step)
    client = tracker._client
    data = client.get_run(trial.run_id).data
    assert data.tags["mlflow.parentRunId"] == sweep.run_id
    assert data.tags["rayrank.teacher"] == teacher.run_id
    assert data.tags["rayrank.kind"] == "trial"
    assert "missing" not in data.metrics
    assert [m.value for m in client.get_metric_history(trial.run_id, "like/auc")] == [0.5, 0.6, 0.7]
    assert client.get_run(teacher.run_id).data.params == {"rate": "0.1", "nested.a": "1"}
    config = folder / "mlartifacts" / teacher.run_id / "artifacts" / "config.yaml"
    assert "rate: 0.1" in config.read_text()


def test_artifacts_lie_beside_the_store(tracker, folder, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.png").write_bytes(b"x")
    (tmp_path / "card.md").write_text("hello")
    with tracker.run("x", "evaluate") as run:
        run.log_artifact(tmp_path / "plots", "plots")
        run.log_artifact(tmp_path / "card.md")
    base = folder / "mlartifacts" / run.run_id / "artifacts"
    assert sorted(str(p.relative_to(base)) for p in base.rglob("*.*")) == ["card.md", "plots/a.png"]


def test_a_run_that_raises_is_marked_failed(tracker):
    with pytest.raises(RuntimeError), tracker.run("x", "teacher") as run:
        raise RuntimeError
    assert tracker._client.get_run(run.run_id).info.status == "FAILED"
    with tracker.run("y", "teacher") as run:
        tracker.attach(run.run_id).log_metrics({"loss": 1.0})
    assert tracker._client.get_run(run.run_id).info.status == "FINISHED"
    assert tracker._client.get_run(run.run_id).data.metrics == {"loss": 1.0}


def test_registry_versions_and_alias(tracker, tmp_path):
    assert tracker.alias("ranker", "champion") is None
    first = tracker.register("ranker", str(tmp_path), tags={"bundle": "abc"})
    second = tracker.register("ranker", str(tmp_path))
    assert (first, second) == ("1", "2")
    assert tracker.register("ranker", str(tmp_path), tags={"bundle": "abc"}, note="again") == first
    assert tracker.register("ranker", str(tmp_path / "else"), tags={"bundle": "abc"}) == "3"
    tracker.set_alias("ranker", "champion", first)
    assert tracker.alias("ranker", "champion") == "1"
    tracker.set_alias("ranker", "champion", second)
    assert tracker.alias("ranker", "champion") == "2"
    assert tracker._client.get_model_version("ranker", "1").source == Path(tmp_path).as_uri()


@pytest.mark.slow
def test_processes_share_a_new_store(tmp_path):
    """Three processes open a store that does not exist yet, at the same time, and log into it."""
    code = (
        "import sys; from rayrank.tracking import MlflowTracking, open_tracker\n"
        "t = open_tracker(MlflowTracking(uri=sys.argv[1], experiment='made'))\n"
        "for i in range(5):\n"
        "    with t.run(f'{sys.argv[2]}-{i}', 'trial') as run:\n"
        "        for step in range(5): run.log_metrics({'loss': 1.0, 'auc': 0.5}, step)\n"
    )
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [subprocess.Popen([sys.executable, "-c", code, uri, str(i)]) for i in range(3)]
    assert [p.wait(timeout=180) for p in processes] == [0, 0, 0]
    tracker = open_tracker(MlflowTracking(uri=uri, experiment="made"))
    runs = tracker._client.search_runs([tracker._experiment_id])
    assert len(runs) == 15
    assert {r.info.status for r in runs} == {"FINISHED"}
