"""Evaluate end to end on a small dataset; every number of the table recomputed from the dumped scores."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, parse
from rayrank.metrics.bootstrap import Interval
from rayrank.pipeline.comparison import file_name
from rayrank.pipeline.evaluate import EvaluateConfig, evaluate
from rayrank.pipeline.tabulate import points
from rayrank.ranking.release import Release, save_release, set_alias
from tests import recompute

OFF = {"tracking": {"kind": "none"}}


def quiet(_line):
    pass


@pytest.fixture(scope="module")
def result(world, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("evaluate"))
    raw = OFF | {"dataset": world.dataset, "teacher": world.teacher, "student": world.student, "output": output}
    return evaluate(parse(EvaluateConfig, raw | {"resamples": 50, "cost_requests": 5, "cost_candidates": 50}), quiet)


def entries(result):
    return json.loads((Path(result.output) / "evaluation.json").read_text())["entries"]


def dumped(result, name):
    return pq.read_table(Path(result.output) / "scores" / f"{name}.parquet").to_pandas()


def test_every_model_and_baseline_has_a_row(result):
    found = [(e["model"], e["protocol"]) for e in entries(result)]
    baselines = ["popularity", "recent popularity", "item mean", "user + item bias"]
    models = [(m, p) for m in ("teacher", "student") for p in ("snapshot", "streaming")]
    assert found == [(b, "both") for b in baselines] + models
    assert [(r["model"], r["protocol"]) for r in result.rows] == found


@pytest.mark.parametrize(
    "name", ["teacher-snapshot", "teacher-streaming", "student-snapshot", "student-streaming", "item_mean-both"]
)
def test_every_metric_can_be_recomputed_from_the_dumped_scores(result, name):
    model, protocol = name.replace("_", " ").rsplit("-", 1)
    metrics = next(e for e in entries(result) if (e["model"], e["protocol"]) == (model, protocol))["metrics"]
    rows, ranks = dumped(result, name), None
    assert (rows.part == 3).all()
    found = {
        "like": recompute.binary(rows, "like"),
        "finish": recompute.binary(rows, "finish"),
        "stars": recompute.regression(rows, "stars"),
    }
    if protocol != "both":
        ranks = dumped(result, f"{name}-retrieval-next_like")["rank"]
        assert len(ranks) == rows.label_like.sum()
        # A profile is told from the history before valid and test, so it is dumped with the first protocol.
        found["age_group"] = recompute.profile(dumped(result, f"{model}-snapshot-profile-age_group"))
        found["next_like"] = recompute.retrieval(ranks)
    wanted = recompute.named(found)
    assert set(metrics) == set(wanted)
    assert metrics == pytest.approx(wanted, abs=1e-9, rel=0, nan_ok=True)


def test_all_entries_speak_of_the_same_targets(result):
    names = [file_name(e.model, e.protocol) for e in result.comparison.entries]
    columns = ["row", "user", "item", "part", "label_like"]
    targets = [dumped(result, name)[columns].sort_values("row").reset_index(drop=True) for name in names]
    assert len(targets) == 8
    assert all(t.equals(targets[0]) for t in targets)


def test_files_and_verdict(result):
    folder = Path(result.output)
    page = (folder / "report.html").read_text()
    assert result.verdict.endswith(".")
    assert "best baseline" in result.verdict
    assert "keeps" in result.verdict
    assert "Results" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    with (folder / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert float(lines[0]["like/auc"]) == result.comparison.entries[0].metrics["like/auc"]
    assert (folder / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    assert result.summary()[-1] == result.verdict
    assert (
        result.metrics["teacher/snapshot/like/auc"] == result.comparison.find("teacher", "snapshot").metrics["like/auc"]
    )


def test_the_champion_is_evaluated_beside(world, tmp_path):
    release = Release(release_id="before", student=world.student, teacher=None, fusion={"like": 1.0})
    save_release(tmp_path / "releases", release)
    set_alias(tmp_path / "releases", "before")
    raw = OFF | {"dataset": world.dataset, "teacher": world.teacher, "releases": str(tmp_path / "releases")}
    raw |= {"output": str(tmp_path / "out"), "resamples": 20, "cost_requests": 5, "baselines": False}
    found = evaluate(parse(EvaluateConfig, raw | {"part": "valid", "protocols": ["streaming"]}), quiet)
    assert [(r["model"], r["protocol"]) for r in found.rows] == [
        ("teacher", "streaming"),
        ("champion student", "streaming"),
    ]
    assert "no baseline to compare with" in found.verdict
    assert set(dumped(found, "teacher-streaming").part) == {2}


def test_mistakes_name_path_and_fix(world, tmp_path):
    raw = OFF | {"dataset": world.dataset, "output": str(tmp_path)}
    with pytest.raises(ConfigError, match="at least one of teacher and student"):
        parse(EvaluateConfig, raw)
    config = parse(EvaluateConfig, raw | {"teacher": world.teacher, "task": "stars"})
    with pytest.raises(ConfigError, match=r"must be a binary task.*one of: like"):
        evaluate(config, quiet)
    with pytest.raises(ConfigError, match="no bundle here"):
        evaluate(parse(EvaluateConfig, raw | {"teacher": str(tmp_path), "baselines": False}), quiet)


def test_a_bundle_of_other_data_is_refused(world, tmp_path):
    from rayrank.sources.build import build, run_here
    from rayrank.sources.spec import BuildSpec

    source = {"kind": "synthetic", "num_rows": 1000, "num_users": 40, "num_items": 60, "seed": 9}
    build(parse(BuildSpec, {"source": source, "path": str(tmp_path / "other")}), run_here, quiet)
    raw = OFF | {"dataset": str(tmp_path / "other"), "student": world.student, "output": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="trained on other data"):
        evaluate(parse(EvaluateConfig, raw | {"baselines": False}), quiet)
    assert not (tmp_path / "out").exists()


def test_points_are_hundredths_with_half_the_interval():
    assert points(Interval(0.031, 0.002, 0.027, 0.035, 0.95)) == "+3.10 ± 0.40"
    assert points(Interval(-0.005, 0.002, -0.010, 0.0, 0.95)) == "−0.50 ± 0.50"
