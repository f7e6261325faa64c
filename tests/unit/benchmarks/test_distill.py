"""The distillation benchmark's arithmetic, by hand; which arm learns from what; which requests are asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import results
from benchmarks.distill import __main__ as benchmark
from benchmarks.distill import clock, figures, kept, labelling, quality, requests, speed
from benchmarks.distill.arms import DISTILLED, TABLE, TEACHER, UNDISTILLED, Arms
from benchmarks.quality_ml1m import Setting
from benchmarks.results import ROOT
from rayrank.batch import Events, Queries
from rayrank.bundle import load_bundle
from rayrank.config import to_yaml
from rayrank.metrics.order import ndcg
from rayrank.pipeline.cost import request_contexts
from rayrank.ranking.items import DESCRIBED
from rayrank.ranking.scorer import Scorer
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec
from tests.tiny_release import make_world


def test_t_quantiles_are_those_of_tables() -> None:
    assert figures.t_quantile(0.975, 4) == pytest.approx(2.7764, abs=1e-4)
    assert figures.t_quantile(0.975, 1) == pytest.approx(12.7062, abs=1e-3)
    assert figures.t_quantile(0.95, 2) == pytest.approx(2.9200, abs=1e-4)


def test_interval_over_paired_seeds() -> None:
    found = figures.Paired.of([0.4, 0.6, 0.5, 0.7, 0.3])
    half = 2.7764 * 0.158114 / 5**0.5  # standard deviation of those by hand: sqrt(.1 / 4)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-4)
    assert figures.Paired.of([0.4]) == figures.Paired(0.4, None, None)


def test_calibration_of_slices() -> None:
    label = np.array([1.0, 0.0, 1.0, 0.0, np.nan, 1.0])
    said = np.array([0.5, 0.5, 0.8, 0.4, 0.9, 0.8])
    column = np.array([1, 1, 2, 2, 1, 2])
    several = np.array([[1, 2], [3, 0], [1, 0], [1, 0], [1, 0], [0, 0]])
    found = {one.name: one for one in figures.slices({"a": column, "b": several}, label, said, least=1)}
    assert set(found) == {"all", "a=1", "a=2", "b=1"}  # b=2 and b=3 lack a class; 0 is no value of several
    assert (found["all"].ratio, found["all"].positives, found["all"].negatives) == (pytest.approx(3.0 / 3), 3, 2)
    assert found["a=1"].ratio == pytest.approx(1.0)
    assert found["a=2"].ratio == pytest.approx(2.0 / 2)
    assert found["a=2"].error == pytest.approx((0.16 + 0.24 + 0.16) ** 0.5 / 2)
    assert found["b=1"].ratio == pytest.approx(1.7 / 2)
    assert not [one for one in figures.slices({"a": column}, label, said) if one.name != "all"]


@pytest.mark.parametrize(("ratio", "error", "calibrated"), [(0.96, 0.01, False), (0.96, 0.03, True), (1.03, 0.0, True)])
def test_a_slice_is_calibrated_near_one_or_within_two_errors(ratio: float, error: float, calibrated: bool) -> None:
    assert figures.Slice("x", ratio, error, 1, 1).calibrated is calibrated


def test_candidates_read_in_time() -> None:
    seconds = {1: 0.010, 2: 0.020, 4: 0.060}
    assert [figures.in_time(seconds, s) for s in (0.009, 0.010, 0.02, 0.041, 0.059, 1.0)] == [0, 1, 2, 3, 3, 4]


def test_what_the_teacher_read_comes_first_and_the_rest_keeps_its_order() -> None:
    student = np.array([0.9, 0.8, 0.7, 0.6])
    teacher = np.array([0.1, 0.5, 0.9, 0.2])
    places = figures.under_budget(student, teacher, np.array([0, 1]))
    assert np.argsort(-places).tolist() == [1, 0, 2, 3]
    assert np.argsort(-figures.under_budget(student, teacher, np.array([3]))).tolist() == [3, 0, 1, 2]
    nothing = figures.under_budget(student, teacher, np.zeros(0, np.int64))
    label, user = np.array([0.0, 1.0, 0.0, 0.0]), np.zeros(4)
    assert ndcg(user, label, nothing).mean == ndcg(user, label, student).mean == pytest.approx(1 / np.log2(3))


def test_spearman_counts_ranks_and_halves_ties() -> None:
    assert labelling.spearman(np.array([1.0, 2.0, 30.0]), np.array([1.0, 5.0, 6.0])) == pytest.approx(1.0)
    assert labelling.spearman(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(
        0.9487, abs=1e-4
    )


def test_both_clocks_are_read_and_every_arm_runs_in_turn() -> None:
    calls: list[str] = []
    times = clock.timed({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(found[name]) for found in (times.wall, times.processor) for name in "ab"] == [2] * 4
    found = clock.Times({"s": [4.0, 8.0], "f": [1.0, 4.0]}, {"s": [3.0, 3.0], "f": [1.0, 1.0]})
    assert found.ratios("x", "s", "f", 2.0) == {"x": 6.0, "x, processor time": 6.0}
    assert found.rates("x", "f", 10.0) == {"x": 4.0, "x, processor time": 10.0}


def test_a_row_per_candidate_holds_the_users_events_and_one_question() -> None:
    events = Events(
        torch.tensor([[3, 4]]), torch.tensor([[1, 2]]), torch.tensor([[10, 20]]), {"like": torch.tensor([[1.0, 0.0]])},
        torch.tensor([7]), {"age": torch.tensor([2])}, torch.tensor([0]),
    )  # fmt: skip
    asked = torch.tensor([[5, 6, 8]])
    rows, queries = speed._one_each(events, Queries(asked, asked * 0, asked * 0 + 3, {"device": asked * 2}))
    assert rows.item_BT.tolist() == [[3, 4]] * 3
    assert rows.user_B.tolist() == [7, 7, 7]
    assert queries.item_BQ.tolist() == [[5], [6], [8]]
    assert queries.context["device"].tolist() == [[10], [12], [16]]


def arms(folder: Path, data: str = "movielens", **changes: object) -> Arms:
    manifest = SimpleNamespace(data_fingerprint="f" * 64)
    dataset = SimpleNamespace(path=str(folder / "dataset"), manifest=manifest)
    setting = Setting(folder, folder / "r.json", ROOT / "jobs" / "configs" / data, {}, (), "", "")
    return Arms(replace(setting, **changes), dataset)  # type: ignore[arg-type]


def test_students_have_one_shape_and_one_search_and_learn_from_what_they_say(tmp_path: Path) -> None:
    found = arms(tmp_path)
    assert found.students == (UNDISTILLED, TABLE, DISTILLED)
    made = {arm: found.student_config(arm, 1, 5) for arm in found.students}
    assert [made[arm].labels is not None for arm in found.students] == [False, False, True]
    assert [made[arm].teacher is not None for arm in found.students] == [False, True, True]
    assert [made[arm].objective.distillation is not None for arm in found.students] == [False, False, True]
    assert {c.learning.rows.epochs for c in made.values()} == {5}
    assert {c.learning.seed for c in made.values()} == {1}
    assert len({to_yaml(c.model.model_copy(update={"inputs": None})) for c in made.values()}) == 1
    assert len({c.output for c in made.values()}) == 3


def test_without_texts_there_is_no_item_table_to_give(tmp_path: Path) -> None:
    found = arms(tmp_path, "kuairand")
    assert found.students == (UNDISTILLED, DISTILLED)
    assert not found.student_config(DISTILLED, 0, 3).model.inputs.text


def test_folders_and_keys_follow_the_recipes_and_not_the_place(tmp_path: Path) -> None:
    here, there = arms(tmp_path / "a"), arms(tmp_path / "b")
    assert [here.recipe(arm, 0) for arm in (TEACHER, DISTILLED)] == [
        there.recipe(arm, 0) for arm in (TEACHER, DISTILLED)
    ]
    name = Path(here.student_config(DISTILLED, 0, 3).output).name
    assert name == Path(there.student_config(DISTILLED, 0, 3).output).name
    other = arms(tmp_path / "a", teacher={"model": {"kind": "teacher", "width": 48}})
    assert Path(other.student_config(DISTILLED, 0, 3).output).name != name
    plain = (one.student_config(UNDISTILLED, 0, 3).output for one in (here, other))
    assert len(set(plain)) == 1  # it has no teacher


def test_each_student_takes_what_its_own_search_found_on_valid(tmp_path: Path) -> None:
    found = arms(tmp_path)
    told = {3: 0.7, 5: 0.8, 8: 0.75}
    object.__setattr__(found, "_chosen", {UNDISTILLED: 8})
    found.__dict__["task"] = "like"
    for passes, auc in told.items():
        place = found.student_config(DISTILLED, 0, passes).output
        found._made[place] = SimpleNamespace(metrics={"streaming/like/auc": auc})  # type: ignore[assignment]
    assert (found.chosen(DISTILLED), found.chosen(UNDISTILLED)) == (5, 8)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    place = str(tmp_path_factory.mktemp("generated") / "dataset")
    source = {"kind": "synthetic", "num_rows": 2_000, "num_users": 60, "num_items": 80}
    build(BuildSpec.model_validate({"source": source, "path": place}), run_here, lambda _: None)
    return Dataset.open(place)


def test_users_are_asked_as_they_were_before_the_test_part(generated: Dataset) -> None:
    found = list(requests.askings(generated, "like", 256))
    assert len(found) > 30
    for one in found:
        assert (one.context.history.time < one.context.time).all()
        assert len(one.positives) > 0
        assert np.isin(one.positives, one.met).all()
        assert np.isin(one.context.history.item, one.met).all()
    assert len({one.context.user for one in found}) == len(found)


def test_described_items_bring_text_and_features(generated: Dataset) -> None:
    cold, rows = requests.described(generated, np.array([3, 1]))
    texts = generated.catalogue_table()["text"].to_pylist()
    assert cold.texts == (texts[2], texts[0])
    assert rows.tolist() == [DESCRIBED, DESCRIBED + 1]
    assert all(len(values) == 2 for values in cold.features.values())


def test_the_teacher_reads_the_texts_of_described_items(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    scorer = Scorer(load_bundle(world.teacher))
    (context,) = request_contexts(Dataset.open(str(world.dataset)), 5, 1)
    cold, rows = requests.described(Dataset.open(str(world.dataset)), np.array([3, 1, 8]))
    read = scorer.score(context, rows, cold).cold_vectors
    assert read is not None
    np.testing.assert_allclose(read, scorer.bundle.text_ND[[3, 1, 8]], atol=1e-5)


def test_claims_follow_from_rows(tmp_path: Path) -> None:
    store = kept.Kept(tmp_path / "r.json", "here", "f")
    auc = {UNDISTILLED: 0.80, TABLE: 0.803, DISTILLED: 0.805, TEACHER: 0.81}
    for seed in (0, 1):
        for arm, value in auc.items():
            values = {"AUC": value + 0.01 * seed, "GAUC": value - 0.1, "LogLoss": 1 - value, "calibration": 1.0}
            for protocol in quality.PROTOCOLS:
                store.keep_quality(
                    store.key(arm, seed, protocol), seed, (arm, protocol), {"like": values, "stars": {"RMSE": 0.9}}
                )
    assert store.judged((0, 1, 2)) is None
    found = benchmark.claims(store, "like", (0, 1))
    assert found["lift_kept"]["like"] == pytest.approx((0.305 / 0.31 + 0.315 / 0.32) / 2)
    assert found["logloss_ratio"]["like"] == pytest.approx(0.195 / 0.19)
    assert found["rmse_ratio"] == {"stars": pytest.approx(1.0)}
    gain = {name: value["mean"] for name, value in found["kd_gain"].items() if isinstance(value, dict)}
    assert gain["auc_points"] == pytest.approx(0.5)
    assert (gain["by_item_table"], gain["by_soft_loss"]) == (pytest.approx(0.3), pytest.approx(0.2))
    assert "speed_ratio" not in found
    store.keep_claims(store.key("speed"), 0, {"speed_ratio warm": 4.0})
    assert benchmark.claims(store, "like", (0, 1))["speed_ratio"] == {"warm": 4.0}
    assert store.has(store.key("speed"))


def test_a_run_that_ended_between_two_protocols_measures_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, found = make_world(tmp_path), arms(tmp_path)
    object.__setattr__(found, "dataset", Dataset.open(str(world.dataset)))
    monkeypatch.setattr(Arms, "bundle", lambda *_: load_bundle(world.student))
    store = kept.Kept(tmp_path / "r.json", "here", "f")
    bench = benchmark.Bench(found, store, speed.Effort())
    bench.quality(0)
    whole = results.load(store.file).rows
    assert store.judged((0,)) is not None
    cut = [row for row in whole if row.arm[-1] == "streaming"]
    store.file.unlink()
    results.record(kept.NAME, kept.QUALITY, cut, store.file)
    assert store.judged((0,)) is None
    bench.quality(0)
    assert {row.arm for row in results.load(store.file).rows} == {row.arm for row in whole}


def test_unknown_sections_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--quick", "--sections", "speed,taste"])
    assert "taste" in capsys.readouterr().err
