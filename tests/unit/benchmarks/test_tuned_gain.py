"""Tuned against default: both arms search as much, for the same; gains have the right sign."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.quality_ml1m import Runner, quick
from benchmarks.tuned_gain import ARMS, claims_of, gains, key_of, search_of
from rayrank.on_ray.search_spec import number_of_trials
from rayrank.on_ray.space import check_space
from rayrank.pipeline.distill import DistillConfig
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask, RetrievalTask

SCHEMA = DatasetSchema(
    name="x",
    tasks=(
        BinaryTask(name="like", column="rating", at_least=4),
        RegressionTask(name="rating", column="rating", low=1, high=5),
        RetrievalTask(name="next", positive="like"),
    ),
)
STUDENT = DistillConfig(dataset="d", output="o", labels="l", teacher="t")


def test_both_arms_train_as_many_students_and_choose_by_the_same_score() -> None:
    arms = {arm: search_of(arm, STUDENT, SCHEMA, 3, 5) for arm in ARMS}
    for config in arms.values():
        check_space(config.samplers, STUDENT, "samplers")
        assert number_of_trials(config.search, config.samplers, config.trials, "samplers") == 5
        assert config.distill == STUDENT
    assert arms["default"].search.goal == arms["tuned"].search.goal
    assert set(arms["default"].samplers) == {"learning.seed"}
    assert "learning.seed" not in arms["tuned"].samplers


def test_another_search_is_another_row(tmp_path: Path) -> None:
    def key(arm: str, trials: int, schema: DatasetSchema) -> str:
        manifest = SimpleNamespace(data_fingerprint="f" * 64)
        dataset = SimpleNamespace(schema=schema, path=str(tmp_path / "dataset"), manifest=manifest)
        return key_of(Runner(quick(tmp_path), dataset), arm, 0, trials)  # type: ignore[arg-type]

    half = RegressionTask(name="rating", column="rating", low=1, high=3)  # another factor of its term in the goal
    other = SCHEMA.model_copy(update={"tasks": (SCHEMA.tasks[0], half, SCHEMA.tasks[2])})
    fewer = SCHEMA.model_copy(update={"tasks": SCHEMA.tasks[:2]})  # other bounds of the weights
    asked = [
        ("tuned", 5, SCHEMA),
        ("default", 5, SCHEMA),
        ("tuned", 6, SCHEMA),
        ("tuned", 5, other),
        ("tuned", 5, fewer),
    ]
    assert len({key(*one) for one in asked}) == len(asked)
    assert key("tuned", 5, SCHEMA) == key("tuned", 5, SCHEMA)


def test_gains_count_less_error_as_better_and_name_the_tasks_that_lost() -> None:
    rows = [
        {"default": {"like auc": 0.80, "rating rmse": 0.90}, "tuned": {"like auc": 0.81, "rating rmse": 0.94}},
        {"default": {"like auc": 0.80, "rating rmse": 0.90}, "tuned": {"like auc": 0.83, "rating rmse": 0.90}},
    ]
    found = gains(rows, SCHEMA)
    assert found == {"like": pytest.approx([1.0, 3.0]), "rating": pytest.approx([-1.0, 0.0])}
    claims = claims_of(found)
    assert claims["tuned_gain"] == 0.75  # means of 0 and 1.5
    assert claims["by_task"] == {"like": 2.0, "rating": -0.5}
    assert claims["worse_on"] == ["rating"]
