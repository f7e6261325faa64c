"""What a search starts from: full weights, a space of the dataset's own tasks, and no typo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rayrank.config import ConfigError
from rayrank.on_ray.goal import Choice, Term
from rayrank.on_ray.record import Trial
from rayrank.on_ray.space import Uniform
from rayrank.on_ray.tune import Found
from rayrank.pipeline.charts import LIGHT, to_png
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.search_charts import pareto_front, search_history
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


def test_workers_that_trials_would_not_have_are_refused(world) -> None:
    raw = {"dataset": world.dataset, "output": "o", "labels": "l", "teacher": world.teacher, "workers": {"count": 2}}
    with pytest.raises(ConfigError, match=r"distill\.workers\.count: got 2; a trial trains in one process"):
        tune(_config(distill=DistillConfig.model_validate(raw)), lambda _: None)


def test_summary_ranks_the_trials() -> None:
    trials = [
        Trial(2, {"objective.weights.like": 0.5}, 0.71, {}, [], 2.0),
        Trial(1, {"objective.weights.like": 0.25}, None, {}, [], 1.0, error="boom"),
    ]
    result = TuneResult("out", {}, 0.71, "streaming/like/auc", trials, Choice(2, "best", ""), 2, 4.0, "out/best.yaml")
    lines = result.summary()
    assert "2 trials, 2 at a time" in lines[0]
    assert "1. 0.7100  weights.like 0.5" in lines[1]
    assert "failed" in lines[2]
    assert "out/best.yaml" in lines[-1]


def test_summary_tells_the_front_and_what_was_taken_of_it() -> None:
    auc, cost = "streaming/like/auc", "cost/parameters"
    trials = [
        Trial(n, {}, quality, {}, [], 2.0, folds=(quality - 0.01, quality + 0.01), values={auc: quality, cost: size})
        for n, quality, size in ((1, 0.8, 900.0), (2, 0.79, 100.0))
    ]
    choice = Choice(2, "knee", "because", (1, 2), 1.5, 0.75, {auc: 0.5, cost: 1000.0})
    text = TuneResult("out", {}, 0.79, auc, trials, choice, 1, 4.0, "out/best.yaml").summary()
    assert "0.8000 ± 0.0141" in text[1]
    assert "Pareto set of 2 trials, hypervolume 1.5 (75.0% of its box):" in text
    assert f"  * trial 2: {auc} 0.79, {cost} 100" in text
    assert "taken: trial 2 by knee (because)" in text


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
    _record(_config(), Found(trials, Choice(1, "best", ""), 1, 2.0))
    assert logged["trial-1"] == {"seconds": 1.0, "score": 0.0}
    assert logged["trial-2"] == {"seconds": 1.0}
    assert logged["sweep"] == {"best_score": 0.0, "trials": 2}


@pytest.mark.parametrize("objectives", [2, 3])
def test_plots_of_a_search_show_the_trials_and_the_front(objectives: int) -> None:
    names = ["streaming/like/auc", "cost/parameters", "streaming/rating/rmse"][:objectives]
    trials = [
        Trial(n, {}, 0.7 + n / 100, {}, [{names[0]: 0.7 + n / 100}], 2.0, stopped=n == 3,
              values=dict(zip(names, (0.7 + n / 100, 100.0 * n, 1.0), strict=False)))
        for n in (1, 2, 3)
    ]  # fmt: skip
    choice = Choice(2, "knee", "", (3, 2), 1.0)
    drawn = search_history(trials, choice, names[0], LIGHT)
    assert len(to_png(drawn)) > 5000
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()][-1:] != []
    terms = [Term(name, "max" if name.endswith("auc") else "min") for name in names]
    front = pareto_front(trials, choice, terms, LIGHT)
    assert len(front.axes) == (1 if objectives == 2 else 3)
    assert {text.get_text() for text in front.axes[0].texts} == {"2", "3"}
    assert len(to_png(front)) > 5000
