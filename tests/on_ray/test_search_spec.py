"""What a search is after and how it goes about it: numbers by hand, and mistakes that are told before anything runs."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from rayrank.config import Config, ConfigError, parse, replace
from rayrank.learning.spec import LearningSpec
from rayrank.on_ray.goal import AnyGoal, choose, judged, mode_of, name_of, resolved, score_of
from rayrank.on_ray.record import Finished
from rayrank.on_ray.search_spec import SearchSpec, check_first_member, number_of_trials
from rayrank.on_ray.space import clipped, drawn, holds, own_values, parse_space, walked
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.tune import SearchTask, proposals_of
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask

SCHEMA = DatasetSchema(
    name="x",
    tasks=(
        BinaryTask(name="like", column="rating", at_least=4),
        RegressionTask(name="rating", column="rating", low=1, high=5),
    ),
)
AUC, RMSE, COST = "streaming/like/auc", "streaming/rating/rmse", "cost/parameters"
NAN = float("nan")


def goal(**raw: Any) -> AnyGoal:
    return resolved(parse(SearchSpec, {"goal": raw} if raw else {}).goal, LearningSpec(), SCHEMA)


PARETO = {"kind": "pareto", "objectives": [{"metric": AUC}, {"metric": COST}]}


def test_directions_are_read_from_the_names() -> None:
    assert (name_of(goal()), mode_of(goal())) == (AUC, "max")
    assert mode_of(goal(kind="single", metric=RMSE)) == "min"
    assert mode_of(goal(kind="single", metric=COST)) == "min"
    assert mode_of(goal(kind="single", metric=RMSE, mode="max")) == "max"


def test_a_weighted_sum_by_hand() -> None:
    both = goal(kind="weighted", terms=[{"metric": AUC, "weight": 2.0}, {"metric": RMSE, "weight": 0.5}])
    assert score_of(both, {AUC: 0.8, RMSE: 0.9}) == pytest.approx(2 * 0.8 - 0.5 * 0.9)
    assert mode_of(both) == "max"
    assert name_of(both) == f"+ 2 {AUC} − 0.5 {RMSE}"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"kind": "single", "metric": "streaming/lke/auc"}, "no task 'lke'"),
        ({"kind": "single", "metric": "cost/seconds"}, "cost/parameters, cost/multiply_adds"),
        ({"kind": "single", "metric": "like/auc"}, "starts with streaming/"),
    ],
)
def test_metrics_that_cannot_be_are_refused(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        goal(**raw)
    with pytest.raises(ConfigError, match=f"valid gives: {AUC}"):
        score_of(goal(kind="single", metric="streaming/like/gauc"), {AUC: 0.5})


def test_epochs_are_chosen_by_fold_and_averaged_over_folds() -> None:
    folds = [[{AUC: 0.7, RMSE: 1.0}, {AUC: 0.8, RMSE: 0.9}], [{AUC: 0.6, RMSE: 0.7}, {AUC: NAN, RMSE: 0.1}]]
    found = judged(goal(), folds)
    assert found.folds == (0.8, 0.6)
    assert found.score == pytest.approx(0.7)
    assert found.metrics == {AUC: pytest.approx(0.7), RMSE: pytest.approx(0.8)}
    assert judged(goal(kind="single", metric=RMSE), folds).folds == (0.9, 0.1)
    assert judged(goal(), [[{AUC: NAN}]]).score is None
    assert judged(goal(), []).score is None
    assert judged(goal(), [[{AUC: 0.7}], [{AUC: math.inf}]]).score is None  # a fold without a number


VALUES = {
    1: {AUC: 0.80, COST: 900.0},
    2: {AUC: 0.799, COST: 100.0},
    3: {AUC: 0.70, COST: 50.0},
    4: {AUC: 0.75, COST: 500.0},
    5: {AUC: NAN, COST: 10.0},
}
SCORES = {number: found[AUC] for number, found in VALUES.items() if number < 5}


def test_the_pareto_set_its_volume_and_the_point_taken() -> None:
    found = choose(goal(**PARETO), VALUES, SCORES)
    assert found.front == (1, 2, 3)
    assert (found.number, found.rule) == (2, "knee")
    assert found.reference == {AUC: 0.70, COST: 900.0}  # the worst of each
    # above the reference: (0.1, 0), (0.099, 800), (0, 850)
    assert found.hypervolume == pytest.approx(0.099 * 800)
    assert found.hypervolume_share == pytest.approx(0.099 * 800 / (0.1 * 850))
    given = {"kind": "pareto", "objectives": [{"metric": AUC, "reference": 0.5}, {"metric": COST, "reference": 1000.0}]}
    volume = 0.3 * 100 + 0.299 * 800 + 0.2 * 50
    assert choose(goal(**given), VALUES, SCORES).hypervolume == pytest.approx(volume)


@pytest.mark.parametrize(("tolerance", "number"), [(0.0, 1), (0.005, 2), (0.2, 3)])
def test_the_rule_may_be_a_tolerance(tolerance: float, number: int) -> None:
    found = choose(goal(**PARETO, pick={"kind": "within", "tolerance": tolerance}), VALUES, SCORES)
    assert found.number == number
    assert f"within {tolerance:g} of the best {AUC}" in found.reason


def test_one_number_takes_the_best_and_of_equals_the_first() -> None:
    assert choose(goal(), VALUES, {3: 0.8, 2: 0.8, 1: 0.7}).number == 2
    assert choose(goal(kind="single", metric=RMSE), VALUES, {3: 0.8, 2: 0.8, 1: 0.7}).number == 1


GRID = parse_space(
    {"a.x": {"kind": "grid", "values": [1, 2]}, "a.y": {"kind": "grid", "values": ["p", "q", "r"]}}, "space"
)
DRAWN = parse_space(
    {
        "learning.learning_rate": {"kind": "loguniform", "low": 1e-3, "high": 1e-1},
        "learning.lanes": {"kind": "randint", "low": 1, "high": 3},
        "learning.precision": {"kind": "choice", "values": ["fp32", "bf16"]},
        "learning.horizon": {"kind": "uniform", "low": 0.0, "high": 0.5},
    },
    "space",
)


@pytest.mark.parametrize(
    "metric", ["streaming/like/acu", "streaming/rating/auc", "snapshot/like", "snapshot/like/rmse"]
)
def test_a_metric_that_the_task_does_not_have_is_refused_before_any_trial(metric: str) -> None:
    for raw in (
        {"kind": "single", "metric": metric},
        {"kind": "weighted", "terms": [{"metric": metric, "weight": 1.0}]},
        {"kind": "pareto", "objectives": [{"metric": COST}, {"metric": metric}]},
    ):
        with pytest.raises(ConfigError, match=r"search\.goal\..*metrics of task (like|rating): (auc|rmse), .*count"):
            goal(**raw)


def test_a_grid_is_every_combination_once() -> None:
    spec = parse(SearchSpec, {"algorithm": {"kind": "grid"}})
    settings = walked(GRID)
    assert [tuple(one.values()) for one in settings] == [(1, "p"), (1, "q"), (1, "r"), (2, "p"), (2, "q"), (2, "r")]
    assert number_of_trials(spec, GRID, None, "space") == 6 == number_of_trials(spec, GRID, 6, "space")
    with pytest.raises(ConfigError, match="6 combinations"):
        number_of_trials(spec, GRID, 8, "space")
    with pytest.raises(ConfigError, match="this sampler draws"):
        number_of_trials(spec, {**GRID, **DRAWN}, None, "space")
    with pytest.raises(ConfigError, match="for algorithm grid"):
        number_of_trials(SearchSpec(), GRID, None, "space")
    with pytest.raises(ConfigError, match="for algorithm grid"):
        number_of_trials(parse(SearchSpec, {"algorithm": {"kind": "optuna"}}), GRID, None, "space")


def test_draws_are_plain_values_inside_and_the_first_ones_do_not_change() -> None:
    settings = drawn(DRAWN, 20, seed=1)
    assert settings[:7] == drawn(DRAWN, 7, seed=1)
    assert settings[:7] != drawn(DRAWN, 7, seed=2)
    assert all(holds(DRAWN, one) for one in settings)
    assert {type(value) for one in settings for value in one.values()} == {float, int, str}
    assert {one["learning.lanes"] for one in settings} == {1, 2, 3}


def test_values_outside_are_noticed_and_moved_in() -> None:
    base = LearningSpec(learning_rate=0.5)

    class Outer(Config):
        learning: LearningSpec = base

    own = own_values(DRAWN, Outer())
    assert own == {
        "learning.learning_rate": 0.5, "learning.lanes": 2, "learning.precision": "fp32", "learning.horizon": 0.3
    }  # fmt: skip
    assert own is not None
    assert not holds(DRAWN, own)
    assert clipped(DRAWN, own) == {**own, "learning.learning_rate": 0.1}
    assert own_values({"learning.targets_per_sequence": DRAWN["learning.lanes"]}, Outer()) is None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"goal": PARETO, "scheduler": {"kind": "asha"}}, "cheap end"),
        ({"goal": PARETO, "scheduler": {"kind": "pbt"}}, "cheap end"),
        ({"folds": 3, "scheduler": {"kind": "asha"}}, "whole trials"),
        ({"algorithm": {"kind": "optuna"}, "scheduler": {"kind": "pbt"}}, "random or grid"),
        ({"folds": 1}, "greater than or equal to 2"),
    ],
)
def test_what_does_not_go_together_is_refused(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse(SearchSpec, raw)


def test_a_population_changes_only_what_can_change_midway() -> None:
    spec = parse(SearchSpec, {"scheduler": {"kind": "pbt"}})
    rate = {"learning.learning_rate": DRAWN["learning.learning_rate"]}
    weight = {"objective.weights.like": DRAWN["learning.horizon"]}
    assert number_of_trials(spec, {**rate, **weight}, 4, "space") == 4
    with pytest.raises(ConfigError, match=r"learning\.lanes.*in the middle of training"):
        number_of_trials(spec, {**rate, "learning.lanes": DRAWN["learning.lanes"]}, 4, "space")
    with pytest.raises(ConfigError, match="two members"):
        number_of_trials(spec, rate, 1, "space")


def test_members_of_a_population_have_the_same_layers_and_maps() -> None:
    spec, items = parse(SearchSpec, {"scheduler": {"kind": "pbt"}}), "objective.distillation.matching.items"
    some = parse_space({items: {"kind": "loguniform", "low": 0.1, "high": 1.0}}, "space")
    assert number_of_trials(spec, some, 4, "space") == 4
    for path, sampler in (
        (items, {"kind": "uniform", "low": 0.0, "high": 1.0}),
        ("objective.distillation.matching.user", {"kind": "choice", "values": [0.0, 0.3]}),
        ("objective.distillation.auxiliary", {"kind": "choice", "values": [True, False]}),
    ):
        space = parse_space({path: sampler}, "space")
        with pytest.raises(ConfigError, match=f"{path}.*from member to member"):
            number_of_trials(spec, space, 4, "space")
        assert number_of_trials(SearchSpec(), space, 4, "space") == 4
    base = parse(FitTask, {"dataset": "d", "objective": {"distillation": {}}})
    with pytest.raises(ConfigError, match=f"{items}.*the config's own 0"):
        check_first_member(spec, some, base, "space")
    check_first_member(SearchSpec(), some, base, "space")
    check_first_member(parse(SearchSpec, {"scheduler": {"kind": "pbt"}, "include_base": False}), some, base, "space")
    check_first_member(spec, some, replace(base, {items: 0.5}), "space")


def test_optuna_proposes_inside_the_space_and_goes_on_from_what_is_known() -> None:
    optuna = pytest.importorskip("optuna")
    sizes = {"model.hidden": {"kind": "choice", "values": [8, 64]}}
    rate = {"learning.learning_rate": {"kind": "loguniform", "low": 1e-3, "high": 1e-2}}
    space = parse_space({**sizes, **rate}, "space")
    base = parse(FitTask, {"dataset": "d", "model": {"kind": "student", "hidden": 64}})
    task = SearchTask(base, space, 6, "folder")
    spec = parse(
        SearchSpec, {"goal": {"kind": "single", "metric": AUC, "mode": "max"}, "algorithm": {"kind": "optuna"}}
    )

    def proposed(known: list[Finished]) -> list[dict[str, Any]]:
        proposals = proposals_of(task, spec, known, 2)
        return [proposals.suggest(name)["point"]["values"] for name in ("a", "b")]

    first = proposed([])
    assert first == proposed([])
    assert first[0] == {"model.hidden": 64, "learning.learning_rate": base.learning.learning_rate}
    known = [Finished(1, first[0], first[0], [[{AUC: 0.8}]], 1.0, 1.0, False, [])]
    later = proposed(known)
    assert first[0] not in later
    assert first[1] not in later  # another seed: not the same draws again
    assert all(holds(space, values) for values in (*first, *later))
    proposals = proposals_of(task, spec, known, 2)
    study = proposals.searcher._ot_study
    assert [trial.value for trial in study.trials] == [0.8]
    assert study.trials[0].state == optuna.trial.TrialState.COMPLETE
    assert proposals.suggest("a") is not None
    assert proposals.suggest("b") is not None
    assert "c" not in proposals.live_trials
    proposals.suggest("c")
    assert len(proposals.live_trials) == 2  # no more at a time
    pareto = parse(SearchSpec, {"goal": PARETO, "algorithm": {"kind": "optuna", "sampler": "nsga2"}})
    pareto = pareto.model_copy(update={"goal": resolved(pareto.goal, LearningSpec(), SCHEMA)})
    both = [Finished(1, first[0], first[0], [[{AUC: 0.8, COST: 9.0}]], 1.0, 1.0, False, [])]
    studied = proposals_of(task, pareto, both, 1).searcher._ot_study
    assert [trial.values for trial in studied.trials] == [[0.8, 9.0]]
    assert [way.name for way in studied.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_optuna_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    spec = parse(
        SearchSpec, {"goal": {"kind": "single", "metric": AUC, "mode": "max"}, "algorithm": {"kind": "optuna"}}
    )
    task = SearchTask(parse(FitTask, {"dataset": "d"}), DRAWN, 2, "folder")
    with pytest.raises(ConfigError, match=r"search\.algorithm.*pip install 'rayrank\[optuna\]'"):
        proposals_of(task, spec, [], 1)
