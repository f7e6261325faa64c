"""What a search starts from: full weights, a space of the dataset's own tasks, and no typo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rayrank.config import ConfigError
from rayrank.on_ray.space import Uniform
from rayrank.on_ray.tune import Found, Trial
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.tune import TuneConfig, TuneResult, _record, space_of, tune, with_weights
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask, RetrievalTask
from rayrank.tracking import NullRun, NullTracker

SCHEMA = DatasetSchema(
    name="x",
    tasks=(
        BinaryTask(name="like", column="rating", at_least=4),
        RegressionTask(name="rating", column="rating", low=1, high=5),
        RetrievalTask(name="next", positive="like"),
    ),
)
DISTILL = DistillConfig(dataset="d", output="o", labels="l", teacher="t")


def _config(**changes: object) -> TuneConfig:
    return TuneConfig.model_validate({"distill": DISTILL, "output": "out", "tracking": {"kind": "none"}, **changes})


def test_changing_one_weight_leaves_the_others_as_they_are() -> None:
    third = pytest.approx(1 / 3)
    assert with_weights(DISTILL, SCHEMA).objective.weights == {"like": third, "rating": third, "next": third}
    given = DISTILL.model_copy(update={"objective": DISTILL.objective.model_copy(update={"weights": {"like": 2.0}})})
    assert with_weights(given, SCHEMA).objective.weights == {"like": 2.0, "rating": 0.0, "next": 0.0}
    wrong = DISTILL.model_copy(update={"objective": DISTILL.objective.model_copy(update={"weights": {"lke": 2.0}})})
    with pytest.raises(ConfigError, match="lke"):
        with_weights(wrong, SCHEMA)


def test_default_space_is_the_event_tasks_and_the_distillation() -> None:
    space = space_of(_config(), SCHEMA)
    assert sorted(space) == [
        "objective.distillation.temperature",
        "objective.distillation.unseen",
        "objective.weights.like",
        "objective.weights.rating",
    ]
    inline = {"learning.learning_rate": {"kind": "uniform", "low": 0.001, "high": 0.01}}
    assert space_of(_config(samplers=inline), SCHEMA) == {"learning.learning_rate": Uniform(low=0.001, high=0.01)}


def test_file_and_inline_samplers_exclude_each_other() -> None:
    inline = {"learning.learning_rate": {"kind": "uniform", "low": 0.001, "high": 0.01}}
    with pytest.raises(ValueError, match="not both"):
        _config(samplers=inline, space="space.yaml")


def test_a_weight_of_no_task_is_refused_before_anything_starts(world) -> None:
    distill = DistillConfig(dataset=world.dataset, output="o", labels="l", teacher=world.teacher)
    samplers = {"objective.weights.lke": {"kind": "uniform", "low": 0.1, "high": 1.0}}
    with pytest.raises(ConfigError, match=r"lke.*tasks of this dataset: like"):
        tune(_config(distill=distill, samplers=samplers), lambda _: None)


def test_summary_ranks_the_trials() -> None:
    trials = [
        Trial(2, {"objective.weights.like": 0.5}, 0.71, {}, [], 2.0),
        Trial(1, {"objective.weights.like": 0.25}, None, {}, [], 1.0, error="boom"),
    ]
    result = TuneResult("out", {}, 0.71, "streaming/like/auc", trials, 2, 4.0, "out/best.yaml")
    lines = result.summary()
    assert "2 trials, 2 at a time" in lines[0]
    assert "1. 0.7100  weights.like 0.5" in lines[1]
    assert "failed" in lines[2]
    assert "out/best.yaml" in lines[-1]


def test_a_score_of_zero_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, dict[str, float]] = {}

    class Recorder(NullTracker):
        @contextmanager
        def run(self, name: str, *_: object, **__: object) -> Iterator[NullRun]:
            run = NullRun()
            monkeypatch.setattr(run, "log_metrics", lambda found, _step=0: logged.setdefault(name, {}).update(found))
            yield run

    monkeypatch.setattr("rayrank.pipeline.tune.open_tracker", lambda _: Recorder())
    monkeypatch.setattr("rayrank.pipeline.tune._teacher_tags", lambda _: {})
    trials = [Trial(1, {}, 0.0, {}, [], 1.0), Trial(2, {}, None, {}, [], 1.0, error="boom")]
    _record(_config(), Found(trials, 1, 2.0))
    assert logged["trial-1"] == {"seconds": 1.0, "score": 0.0}
    assert logged["trial-2"] == {"seconds": 1.0}
    assert logged["sweep"] == {"best_score": 0.0, "trials": 2}
