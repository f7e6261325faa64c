"""The main job as a newcomer runs it: the shipped config, the real encoder, two training workers, HTTP requests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayrank.config import load
from rayrank.pipeline.distill import DistillConfig
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
STEPS = {"prepare", "train teacher", "label", "tune", "distill", "evaluate", "promote"}
STEPS |= {"start serving", "requests", "score"}
LIMIT_S = 360.0
"""What the README promises on two cores."""


def run(source: str, *overrides: str) -> str:
    """What the shipped config of a source prints; fails unless everything was promoted."""
    command = [sys.executable, "-m", "jobs.quickstart", f"jobs/configs/quickstart/{source}.yaml"]
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [*command, *overrides, f"http.port={free_port()}", "--debug"],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert "core_worker" not in done.stderr, "Ray complains about what we ask of it"
    return done.stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    assert f"report: {folder}/report.html" in run("synthetic", f"output={folder}")
    return folder


@pytest.fixture(scope="module")
def summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def test_every_step_ran_and_the_promised_time_holds(summary: dict) -> None:
    assert set(summary["seconds"]) >= STEPS
    assert sum(summary["seconds"].values()) <= summary["seconds_total"] + 1
    slack = 1.0 if (os.cpu_count() or 1) > 2 else 1.5  # the rest of a test session shares the cores
    assert summary["seconds_total"] <= LIMIT_S * slack


def test_the_models_beat_the_baselines_and_stay_below_the_oracle(summary: dict) -> None:
    assert summary["promoted"], summary["gates"]
    assert all(gate["passed"] for gate in summary["gates"].values())
    assert all(0.70 <= auc <= 0.85 for auc in summary["oracle_auc"].values())
    reached = [row["AUC"] for row in summary["table"] if row["model"] in ("teacher", "student")]
    assert len(reached) == 4
    assert max(reached) < summary["oracle_auc"]["like"] + 0.01, "nothing can be better than the truth"


def test_the_summary_says_when_and_where(summary: dict) -> None:
    assert summary["date"].startswith("20")
    assert summary["cpu"]
    assert summary["cores"] == os.cpu_count()
    assert summary["load"] >= 0
    assert "revision" in summary


def test_the_served_graph_answered_and_refused_malformed_requests(summary: dict) -> None:
    assert all(times["p50"] > 0 for times in summary["latency_ms"].values())
    assert set(summary["refused"].values()) == {422}


def test_lineage_leads_from_the_student_to_trial_sweep_and_teacher(output: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{output}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("rayrank").experiment_id])
    (student,) = (run for run in runs if run.data.tags["rayrank.kind"] == "student")
    (teacher,) = (run for run in runs if run.data.tags["rayrank.kind"] == "teacher")
    trial = client.get_run(student.data.tags["mlflow.parentRunId"])
    sweep = client.get_run(trial.data.tags["mlflow.parentRunId"])
    assert (trial.data.tags["rayrank.kind"], sweep.data.tags["rayrank.kind"]) == ("trial", "sweep")
    assert trial.data.metrics["score"] == sweep.data.metrics["best_score"]
    assert {run.data.tags["teacher_run"] for run in (student, trial, sweep)} == {teacher.info.run_id}
    (promoted,) = (run for run in runs if run.data.tags["rayrank.kind"] == "promote")
    assert promoted.data.tags["student_run"] == student.info.run_id
    version = client.get_model_version_by_alias("rayrank", "champion")
    assert version.run_id == promoted.info.run_id


def test_the_written_distill_config_is_what_trained_the_student(output: Path, summary: dict) -> None:
    written = (output / "jobs" / "distill.yaml").read_text()
    trained = json.loads((output / "student" / "bundle.json").read_text())["config"]
    assert (
        load(DistillConfig, output / "jobs" / "distill.yaml").objective.model_dump(mode="json") == trained["objective"]
    )
    assert summary["tuned"]
    assert all(name.rsplit(".", 1)[-1] in written for name in summary["tuned"])


def test_the_report_is_one_self_contained_page(output: Path) -> None:
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert 'src="http' not in page
    assert 'href="http' not in page


@pytest.mark.data
def test_movielens_goes_the_same_way(real_data: Path, tmp_path: Path) -> None:
    """The published files, every third user; one epoch, one trial and short texts, so that it ends in minutes."""
    data, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(real_data / "ml-1m", data, copy_function=os.symlink)
    (data / "ratings.dat").unlink()
    with (real_data / "ml-1m" / "ratings.dat").open() as every, (data / "ratings.dat").open("w") as third:
        third.writelines(line for line in every if int(line.partition("::")[0]) % 3 == 1)
    less = ["teacher_learning.epochs=1", "student_learning.epochs=1", "trials=1", "encoder.max_tokens=16", "requests=5"]
    run("movielens", f"data={data}", f"output={output}", *less)
    found = json.loads((output / "summary.json").read_text())
    assert found["dataset"] == "ml1m-user"
    assert set(found["seconds"]) >= STEPS
    assert found["promoted"], found["gates"]
    reached = {(row["model"], row["protocol"]): row["AUC"] for row in found["table"]}
    assert reached[("teacher", "streaming")] > reached[("user + item bias", "both")] + 0.02
    assert set(found["refused"].values()) == {422}
