"""Compare end to end on a small dataset: equal bundles differ by nothing, numbers recomputed from the dumped scores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rayrank.config import ConfigError, parse
from rayrank.metrics.bootstrap import Interval
from rayrank.metrics.paired import holm
from rayrank.pipeline.compare import CompareConfig, compare, resamples_of
from rayrank.pipeline.differences import Difference, count_tests
from rayrank.pipeline.slices import Bands, ContextValues, SlicesConfig, Slicing
from rayrank.pipeline.targets import read_targets
from rayrank.schema import NumericFeature
from rayrank.sources.dataset import Dataset

OFF = {"tracking": {"kind": "none"}}
LEAST = 20


def quiet(_line):
    pass


@pytest.fixture(scope="module")
def result(world, tmp_path_factory):
    bundles = {"teacher": world.teacher, "the same": world.teacher, "student": world.student}
    raw = OFF | {"dataset": world.dataset, "bundles": bundles, "output": str(tmp_path_factory.mktemp("compare"))}
    raw |= {"resamples": 200, "cost_requests": 5, "cost_candidates": 30, "slices": {"least": LEAST}}
    return compare(parse(CompareConfig, raw), quiet)


def written(result):
    return json.loads((Path(result.output) / "compare.json").read_text(), parse_constant=pytest.fail)


def test_equal_bundles_differ_by_nothing_and_nothing_is_shown(result):
    same = [d for d in (*result.differences, *result.by_slice) if d.model == "the same"]
    assert len(same) > 30
    for d in same:
        assert (d.gain.value, d.gain.low, d.gain.high) == (0.0, 0.0, 0.0)
        assert np.isnan(d.p) if d.metric == "normalised_entropy" else d.p == d.corrected == 1.0
        assert d.word(0.05) == "not shown"


def test_differences_are_of_the_metrics_and_corrected_over_the_whole_table(result):
    for d in result.differences:
        mine, base = (result.comparison.find(name, d.protocol).metrics for name in (d.model, "teacher"))
        assert d.gain.value == mine[f"{d.task}/{d.metric}"] - base[f"{d.task}/{d.metric}"]
        assert d.gain.low <= d.gain.value <= d.gain.high or abs(d.gain.value) < 0.05
    p = [d.p for d in result.differences]
    np.testing.assert_array_equal([d.corrected for d in result.differences], holm(p))
    schema = result.comparison.schema
    assert np.isfinite(p).sum() == count_tests(schema, models=3, protocols=2)
    assert {(d.task, d.metric) for d in result.differences} >= {
        ("like", "auc"), ("like", "ndcg_10"), ("stars", "rmse"), ("age_group", "accuracy"), ("next_like", "recall_100"),
    }  # fmt: skip


def test_slices_can_be_recomputed_from_the_dumped_scores(result, world):
    dataset = Dataset.open(world.dataset)
    rows = pq.read_table(Path(result.output) / "scores" / "student-streaming.parquet").to_pandas()
    counts = dataset.catalogue_table().column("train_count").to_numpy()[rows.item - 1]
    warm = np.sort(dataset.catalogue_table().column("train_count").to_numpy())
    warm = warm[warm >= 5]
    low, high = warm[-(-len(warm) // 3) - 1], warm[-(-2 * len(warm) // 3) - 1]
    bands = {"cold (<5)": counts < 5, "head": counts > high, "middle": (counts > low) & (counts <= high)}
    bands["tail"] = (counts >= 5) & (counts <= low)
    slices = result.comparison.find("student", "streaming").evidence.slices
    found = {one.value: one for one in slices if (one.task, one.dimension) == ("like", "item")}
    assert set(found) == {name for name, inside in bands.items() if inside.any()}
    assert len(found) >= 3
    for name, one in found.items():
        mine = rows[bands[name] & rows.label_like.notna().to_numpy()]
        assert one.positives == (mine.label_like == 1).sum()
        assert one.negatives == (mine.label_like == 0).sum()
        if min(one.positives, one.negatives) < LEAST:
            assert one.metrics == {}
            continue
        said, label = mine.prediction_like.to_numpy(np.float64), mine.label_like.to_numpy()
        assert one.metrics["auc"] == pytest.approx(roc_auc_score(label, said), abs=1e-9)
        assert one.metrics["log_loss"] == pytest.approx(log_loss(label, said), abs=1e-6)
        assert one.calibration.value == pytest.approx(said.sum() / label.sum(), abs=1e-9)
        assert one.calibration.low < one.calibration.value < one.calibration.high


def test_every_dimension_holds_every_target_once(result):
    slices = result.comparison.find("teacher", "streaming").evidence.slices
    dimensions = {one.dimension for one in slices}
    assert {"user", "item"} < dimensions
    count = result.comparison.find("teacher", "streaming").metrics["like/count"]
    for dimension in dimensions:
        mine = [one for one in slices if (one.task, one.dimension) == ("like", dimension)]
        assert sum(one.positives + one.negatives for one in mine) == count


def test_files_and_sentences(result):
    folder, found = Path(result.output), written(result)
    assert found["correction"] == "Holm"
    assert found["resamples"] == 200
    assert [e["model"] for e in found["entries"]] == ["teacher"] * 2 + ["the same"] * 2 + ["student"] * 2
    assert all(e["candidates_per_s"] > 0 and e["weights_mb"] > 0 and e["bundle_mb"] > 0 for e in found["entries"])
    assert len(found["differences"]) == len(result.differences)
    page = (folder / "compare.md").read_text()
    assert page.count("| student | snapshot | like auc |") == 1
    assert "| student | like | item: head |" in page
    for name in ("differences", "calibration", "slices", "quality_cost"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"({name}.png)" in page
    lines = result.summary()
    assert lines[-2].startswith("the same against teacher: no difference shown in ")
    assert lines[-1].startswith("student against teacher: ")
    assert any("give more resamples" in line for line in lines)  # 200 cannot show 5 % of so many tests


def test_words_follow_the_direction_of_the_metric():
    gain = Interval(-0.1, 0.01, -0.12, -0.08, 0.95)
    auc = Difference("m", "snapshot", "like", "auc", 0.8, 0.7, gain, 0.001, 0.01)
    assert auc.word(0.05) == "worse"
    assert replace(auc, metric="log_loss").word(0.05) == "better"
    assert replace(auc, metric="calibration").word(0.05) == "differs"
    assert auc.word(0.01) == replace(auc, corrected=float("nan")).word(0.05) == "not shown"


def test_bands_and_quarters_by_hand():
    bands = Bands.of(np.array([0, 1, 5, 6, 7, 8, 9, 10]), 5, ("a", "b", "c"))
    assert [bands.values[code] for code in bands.code] == ["cold (<5)"] * 2 + ["a"] * 2 + ["b"] * 2 + ["c"] * 2
    empty = Bands.of(np.array([0, 1, 2]), 5, ("a", "b", "c"))
    assert set(empty.code) == {0}
    value = np.arange(8.0)
    quarters = ContextValues.of(NumericFeature(name="age", column="age"), None, value)
    np.testing.assert_array_equal(quarters.codes(value), [0, 0, 1, 1, 2, 2, 3, 3])
    assert quarters.dimension.values[0] == "quarter 1 of 4"


def test_other_rows_are_found_out(world):
    dataset = Dataset.open(world.dataset)
    slicing = Slicing.of(dataset, 3, SlicesConfig())
    (scores, *_) = read_targets(dataset, 3)
    assert slicing.codes(scores).shape == (len(scores), len(slicing.dimensions))
    with pytest.raises(ValueError, match="other targets"):
        slicing.codes(replace(scores, row=scores.row + 10**9))


def test_mistakes_name_path_and_fix(world, tmp_path):
    raw = OFF | {"dataset": world.dataset, "output": str(tmp_path)}
    with pytest.raises(ConfigError, match="bundles"):
        parse(CompareConfig, raw | {"bundles": {"one": world.teacher}})
    both = {"one": world.teacher, "two": world.student}
    with pytest.raises(ConfigError, match="'three' is none of: one, two"):
        parse(CompareConfig, raw | {"bundles": both, "reference": "three"})
    with pytest.raises(ConfigError, match="names are letters"):
        parse(CompareConfig, raw | {"bundles": both | {"a.b": world.teacher}})
    with pytest.raises(ConfigError, match="no bundle here"):
        compare(parse(CompareConfig, raw | {"bundles": both | {"three": str(tmp_path)}}), quiet)


def test_a_stricter_level_is_given_more_resamples(world):
    raw = OFF | {"dataset": world.dataset, "output": "o", "bundles": {"one": world.teacher, "two": world.student}}
    schema = Dataset.open(world.dataset).schema
    usual, strict = (resamples_of(parse(CompareConfig, raw | {"level": level}), schema) for level in (0.05, 0.005))
    assert strict > 8 * usual
    assert resamples_of(parse(CompareConfig, raw | {"level": 0.005, "resamples": 200}), schema) == 200
