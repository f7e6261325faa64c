"""Evaluate end to end on a small dataset; every number of the table recomputed from the dumped scores."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, parse
from rayrank.metrics.bootstrap import Interval
from rayrank.pipeline.comparison import file_name
from rayrank.pipeline.evaluate import EvaluateConfig, evaluate
from rayrank.pipeline.tabulate import about_retrieval, points
from rayrank.ranking.release import Release, save_release, set_alias
from rayrank.sources.dataset import Dataset
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
    "name",
    [
        *("teacher-snapshot", "teacher-streaming", "student-snapshot", "student-streaming"),
        *("item_mean-both", "popularity-both"),
    ],
)
def test_every_metric_can_be_recomputed_from_the_dumped_scores(result, name):
    model, protocol = name.replace("_", " ").rsplit("-", 1)
    metrics = next(e for e in entries(result) if (e["model"], e["protocol"]) == (model, protocol))["metrics"]
    rows, ranks = dumped(result, name), None
    assert (rows.part == 3).all()
    found = {
        "like": recompute.binary(rows, "like"),
        "finish": recompute.binary(rows, "finish"),
    }
    if model != "popularity":  # a count is no prediction of a value
        found["stars"] = recompute.regression(rows, "stars")
    if model != "item mean":
        ranks = dumped(result, f"{name}-retrieval-next_like")["rank"]
        assert len(ranks) == rows.label_like.sum()
        found["next_like"] = recompute.retrieval(ranks)
    if protocol != "both":
        # A profile is told from the history before valid and test, so it is dumped with the first protocol.
        found["age_group"] = recompute.profile(dumped(result, f"{model}-snapshot-profile-age_group"))
    wanted = recompute.named(found)
    assert set(metrics) == set(wanted)
    assert metrics == pytest.approx(wanted, abs=1e-9, rel=0, nan_ok=True)


def test_popularity_ranks_the_items_that_the_user_had_not_seen(world, result):
    dataset = Dataset.open(world.dataset)
    chunks = [row for place in dataset.groups() for row in dataset.read_group(*place).to_pylist()]
    count = Counter(i for row in chunks for i, part in zip(row["item"], row["part"], strict=True) if part == 1)
    wanted = {}
    for row in chunks:
        events = list(zip(row["item"], row["request"], row["part"], row["label_like"], row["row"], strict=True))
        for item, request, part, like, number in events:
            if part == 3 and like == 1.0:
                seen = {other for other, earlier, *_ in events if earlier < request}
                rest = [count[i] for i in range(1, dataset.manifest.counts.items + 1) if i not in seen]
                above, ties = sum(value > count[item] for value in rest), rest.count(count[item])
                wanted[number] = 1 + above + max(ties - 1, 0) // 2
    found = dumped(result, "popularity-both-retrieval-next_like")
    assert len(set(wanted.values())) > 10
    assert dict(zip(found.row, found["rank"], strict=True)) == wanted


def test_recall_is_measured_by_chance_and_popularity(result):
    name = "next_like/recall_100"

    def lines(items, **recalls):
        told = [
            replace(e, metrics={**e.metrics, name: recalls[e.model]}) if e.model in recalls else e
            for e in result.comparison.entries
        ]
        return about_retrieval(replace(result.comparison, entries=tuple(told), items=items))

    same = {"popularity": 0.2, "recent popularity": 0.1}
    head, *warned = lines(1000, teacher=0.3, student=0.25, **same)
    assert head.startswith("Recall@100 by chance: 0.1000 (100 of 1,000 items); popularity's leaves out all that")
    assert warned == []
    _, *warned = lines(1000, teacher=0.19, student=0.12, **same)
    assert "Recall@100 of the teacher (streaming) is 0.1900, below that of popularity (0.2000): " in warned[0]
    assert "is 0.1200, below that of popularity (0.2000) and 1.5 times chance: " in warned[1]
    assert lines(60, teacher=0.0, student=0.0) == [lines(60)[0]]  # every item is among the first hundred
    assert lines(60)[0] in result.table_lines()


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
