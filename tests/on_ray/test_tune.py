"""Trials run in their own processes, never more than there is room for, and the best wins; none is trained twice."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrank.config import ConfigError, load, parse, replace
from rayrank.on_ray import fit as fit_module
from rayrank.on_ray.cluster import Cluster
from rayrank.on_ray.patience import Limit
from rayrank.on_ray.record import Finished, Record, Trial
from rayrank.on_ray.search_spec import SearchSpec
from rayrank.on_ray.space import parse_space
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.trial import CLOCK, EPOCH, EPOCHS, NOW, SCHEDULE, SCORE, TRAINING, WHOLE, Told, run_trial
from rayrank.on_ray.tune import SearchTask, concurrent_trials, points, record_of
from rayrank.on_ray.watch import Watch, callback
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.tune import TuneConfig, tune
from rayrank.tracking import NoTracking

AUC, ADDS = "streaming/like/auc", "cost/multiply_adds"


def _config(small, folder: Path, **changes: object) -> TuneConfig:
    labels = str(folder / "labels")
    label(LabelConfig(dataset=small.dataset, teacher=small.teacher, output=labels, actors=0), lambda _: None)
    raw = {**small.raw_student, "labels": labels, "output": str(folder / "student"), "tracking": {"kind": "none"}}
    distill = DistillConfig.model_validate(raw)
    base = TuneConfig(distill=distill, output=str(folder / "tune"), trials=4, tracking=NoTracking())
    return replace(base, changes)


def _steps(folder: Path) -> list[tuple[str, int, int]]:
    """Stage, epoch and step of every optimiser step that was ever taken, by the audit."""
    lines = [json.loads(line) for file in folder.glob("used-*.jsonl") for line in file.read_text().splitlines()]
    return [(line["stage"], line["epoch"], line["step"]) for line in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_search_goes_on_with_its_trials_and_the_winner_can_be_distilled(small, tmp_path: Path) -> None:
    """On four logical CPUs; first one trial at a time, then three."""
    lines: list[str] = []
    config = _config(small, tmp_path, **{"distill.audit": str(tmp_path / "audit"), "search.max_concurrent": 1})

    def killing(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise RuntimeError("killed here")

    with pytest.raises(Exception, match="killed here"):
        tune(config, killing)
    assert len(lines) == 2
    before = _steps(tmp_path / "audit")
    result = tune(replace(config, {"search.max_concurrent": 3}), lines.append)
    assert "2 of 4 trials are there already" in lines[2]
    assert sorted(line.split(":")[0] for line in lines[3:]) == ["trial 3", "trial 4"]
    assert [t.number for t in result.trials if t.found] in ([1, 2], [2, 1])
    assert len(result.trials) == 4
    assert [t.score for t in result.trials] == sorted((t.score for t in result.trials if t.score), reverse=True)
    assert result.best_score == result.trials[0].score
    assert len({str(t.params) for t in result.trials}) == 4
    own = next(t for t in result.trials if t.number == 1)
    assert own.params["objective.distillation.temperature"] == config.distill.objective.distillation.temperature
    whole = _steps(tmp_path / "audit")
    one = len(set(whole))  # steps of a trial: the same in all
    assert 2 * one <= len(whole) - len(before) <= 3 * one  # of four; the third may have begun when it was killed
    again = tune(config, lines.append)
    assert _steps(tmp_path / "audit") == whole
    assert again.best == result.best
    winner = load(DistillConfig, result.best_yaml)
    assert winner == replace(config.distill, result.best)
    assert set(winner.objective.weights) == {"like", "finish", "stars", "age_group", "next_like"}
    assert {file.name for file in (tmp_path / "tune").iterdir()} == {"best.yaml", "trials.json", "trials", "search.png"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_same_search_gives_the_same_scores_and_asha_stops_early(small, tmp_path: Path) -> None:
    samplers = {"learning.learning_rate": {"kind": "choice", "values": [1e-5, 5e-3]}}
    changes = {
        "samplers": samplers,
        "distill.learning.epochs": 3,
        "distill.learning.patience": 3,
        "search.scheduler.kind": "asha",
        "search.max_concurrent": 1,  # the first one is there to be lagged behind
        "trials": 3,
    }
    first = tune(_config(small, tmp_path, **changes), lambda _: None)
    again = tune(_config(small, tmp_path, **{**changes, "search.scheduler.kind": "fifo"}), lambda _: None)
    scores = {t.number: t.history[0][AUC] for t in first.trials}
    assert scores == pytest.approx({t.number: t.history[0][AUC] for t in again.trials}, abs=1e-6)
    assert all(len(t.history) == 3 and not t.stopped for t in again.trials)
    length = {t.number: len(t.history) for t in first.trials}
    assert min(length.values()) < 3 == length[1]
    assert {t.number: t.stopped for t in first.trials} == {number: epochs < 3 for number, epochs in length.items()}
    assert all(t.training_s > 0 for t in first.trials)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_population_trades_weights_and_optuna_searches_for_a_front(small, tmp_path: Path) -> None:
    rates = {"learning.learning_rate": {"kind": "loguniform", "low": 1e-5, "high": 1e-2}}
    population = {
        "samplers": rates,
        "distill.learning.epochs": 3,
        "search.scheduler": {"kind": "pbt", "quantile": 0.5, "resample": 0.0},
        "search.max_concurrent": 1,  # both are under way all the same
        "trials": 2,
    }
    members = tune(_config(small, tmp_path, **population), lambda _: None)
    assert all(len(t.history) == 3 and not t.stopped for t in members.trials)
    traded = [[s["learning.learning_rate"] for s in t.schedule] for t in members.trials if t.schedule]
    assert traded
    for first, second, third in traded:  # the other's until the trade, then changed by a fifth
        assert 0.79 < second / first < 1.21
        assert 0.79 < third / second < 1.21
    assert members.trials[0].history[0] == members.trials[1].history[0]
    front = {
        "samplers": {"model.hidden": {"kind": "choice", "values": [8, 64]}},
        "distill.learning.epochs": 1,
        "search.goal": {"kind": "pareto", "objectives": [{"metric": AUC}, {"metric": ADDS}]},
        "search.algorithm.kind": "optuna",
        "search.folds": 2,
    }
    found = tune(_config(small, tmp_path, **{**front, "trials": 2}), lambda _: None)
    assert all(len(t.folds) == 2 and t.spread is not None for t in found.trials)
    lines: list[str] = []
    more = tune(_config(small, tmp_path, **{**front, "trials": 4}), lines.append)
    assert sorted(t.number for t in more.trials if t.found) == [1, 2]
    assert sorted(t.number for t in more.trials) == [1, 2, 3, 4]
    assert more.choice.number in more.choice.front
    by_hidden = {t.params["model.hidden"]: t.values[ADDS] for t in more.trials}
    assert by_hidden == dict(sorted(by_hidden.items()))
    assert (tmp_path / "tune" / "front.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_failed_trials_are_told_and_a_search_of_failures_is_an_error(small, tmp_path: Path) -> None:
    config = _config(small, tmp_path, **{"search.goal.metric": "streaming/like/acu", "trials": 2})
    lines: list[str] = []
    with pytest.raises(RuntimeError, match=r"every trial failed.*streaming/like/acu"):
        tune(config, lines.append)
    assert len(lines) == 2
    assert not (tmp_path / "tune" / "trials").exists()  # failed trials are tried again


def test_what_goes_wrong_while_a_trial_is_heard_ends_the_search() -> None:
    """Tune logs some errors of callbacks and goes on; a record that cannot be written must not be lost so."""

    def full(_trial: Finished) -> None:
        raise OSError("no space left")

    heard = callback(Watch(_goal("max"), [], full, lambda _: None), Limit("cluster.stall_s", 60, "result"))
    trial: Any = SimpleNamespace(trial_id="x", config={"point": {"values": {}}})
    said = {EPOCHS: [[{"m": 0.5}]], SCHEDULE: [], TRAINING: 1.0, WHOLE: True}
    heard.on_trial_result(trial=trial, result=said)
    heard.on_step_end(iteration=1, trials=[trial])
    heard.on_trial_complete(trial=trial)
    with pytest.raises(OSError, match="no space left"):
        heard.on_step_end(iteration=2, trials=[trial])


def _goal(mode: str) -> Any:
    return parse(SearchSpec, {"goal": {"kind": "single", "metric": "m", "mode": mode}}).goal


def _heard(mode: str, scores: list[list[float]]) -> tuple[list[Trial], list[str], list[Finished]]:
    lines: list[str] = []
    kept: list[Finished] = []
    watch = Watch(_goal(mode), [], kept.append, lines.append)
    for number, epochs in enumerate(scores, 1):
        trial: Any = SimpleNamespace(trial_id=f"x_{number}", config={"point": {"number": number, "values": {}}})
        watch.began(trial)
        for epoch in range(len(epochs)):
            said = {EPOCHS: [[{"m": score} for score in epochs[: epoch + 1]]], SCHEDULE: [], TRAINING: 1.0}
            watch.told(trial, {**said, WHOLE: False})
        watch.ended(trial)
    return watch.ranked(), lines, kept


def test_a_score_that_is_no_number_hides_no_winner() -> None:
    nan = float("nan")
    for mode, order in (("max", [3, 1, 2, 4]), ("min", [1, 3, 2, 4])):
        trials, lines, kept = _heard(mode, [[0.7], [nan, nan], [nan, 0.8, nan], [float("inf")]])
        assert [t.number for t in trials] == order
        assert [t.score for t in trials if t.number in (1, 3)] == sorted([0.7, 0.8], reverse=mode == "max")
        assert all(t.score is None and "not a number" in str(t.error) for t in trials[2:])
        assert "not a number" in lines[1]
        assert [trial.number for trial in kept] == [1, 2, 3, 4]
    assert [t.score for t in _heard("max", [[-0.5], [nan], [0.0]])[0]] == [0.0, -0.5, None]


def _folds_heard(epochs: list[list[float]], end: str) -> Trial:
    """A trial of two folds that ended by itself, was cut, or crashed."""
    watch = Watch(_goal("max"), [], lambda _: None, lambda _: None, folds=2)
    trial: Any = SimpleNamespace(trial_id="x", config={"point": {"number": 1, "values": {}}})
    watch.began(trial)
    said = {EPOCHS: [[{"m": score} for score in fold] for fold in epochs], SCHEDULE: [], TRAINING: 1.0}
    watch.told(trial, {**said, WHOLE: end == "whole"})
    (watch.failed if end == "crashed" else watch.ended)(trial)
    return watch.ranked()[0]


def test_half_a_cross_validation_cannot_win() -> None:
    assert _folds_heard([[0.9], [0.7]], "whole").score == pytest.approx(0.8)
    for epochs in ([[0.9]], [[0.9], [0.95]]):
        for end, error in (("cut", f"fold {len(epochs)} of 2"), ("crashed", "unknown error")):
            found = _folds_heard(epochs, end)
            assert (found.score, found.values, found.folds) == (None, {}, ())
            assert error in str(found.error)


def test_a_trial_that_crashed_cannot_win() -> None:
    watch = Watch(_goal("max"), [], lambda _: None, lambda _: None)
    for number, score in ((1, 0.9), (2, 0.7)):
        trial: Any = SimpleNamespace(trial_id=f"x{number}", config={"point": {"number": number, "values": {}}})
        watch.told(trial, {EPOCHS: [[{"m": score}]], SCHEDULE: [], TRAINING: 1.0, WHOLE: number == 2})
        (watch.failed if number == 1 else watch.ended)(trial)
    assert [(t.number, t.score) for t in watch.ranked()] == [(2, 0.7), (1, None)]


@pytest.mark.parametrize(("mode", "expected"), [("max", [float("-inf"), 0.6, 0.7]), ("min", [float("inf"), 0.6, 0.6])])
def test_a_trial_that_began_with_no_number_can_still_win(mode: str, expected: list[float]) -> None:
    said: list[dict[str, Any]] = []
    told = Told(_goal(mode), {"a": 1}, 3, lambda found, _kept: said.append(found))
    told.begin()
    for score in (float("nan"), 0.6, 0.7):
        told.epoch({"m": score})
        told.report()
    told.end()
    assert [found[SCORE] for found in said] == [*expected, expected[-1]]
    assert [found[EPOCH] for found in said] == [1, 2, 3, 3]
    assert [found[CLOCK] for found in said] == [1, 2, 2.5, 2.5]  # no turn of a population after the last epoch
    assert [found[WHOLE] for found in said] == [False, False, True, True]
    assert said[0][NOW] == expected[0]
    assert said[-1][SCHEDULE] == [{"a": 1}] * 3


def _told_by_a_trial(
    small, monkeypatch: pytest.MonkeyPatch, search: dict[str, Any], values: dict[str, Any], given: Any = None
) -> list[tuple[dict[str, Any], Any]]:
    """What a trial says to Tune, which this test stands for."""
    said: list[tuple[dict[str, Any], Any]] = []

    def report(found: dict[str, Any], checkpoint: Any = None) -> None:
        said.append((found, _keep(checkpoint)))

    monkeypatch.setattr("ray.tune.report", report)
    monkeypatch.setattr("ray.tune.get_checkpoint", lambda: given)
    base = parse(FitTask, {**small.raw_student, "objective": {}}).model_dump(mode="json")
    goal = {"kind": "single", "metric": AUC, "mode": "max"}
    run_trial({"base": base, "search": {"goal": goal, **search}, "point": {"number": 1, "values": values}})
    return said


def _keep(checkpoint: Any) -> Any:
    if checkpoint is None:
        return None
    from ray.tune import Checkpoint

    kept = f"{checkpoint.path}.kept"
    shutil.copytree(checkpoint.path, kept, dirs_exist_ok=True)
    moved = f"{Path(kept).parent}-{len(list(Path(kept).parent.parent.glob('*')))}"
    shutil.copytree(kept, moved)
    return Checkpoint(moved)


def test_a_member_goes_on_with_the_weights_of_another(small, monkeypatch: pytest.MonkeyPatch) -> None:
    population, rate = {"scheduler": {"kind": "pbt"}}, "learning.learning_rate"
    alone = _told_by_a_trial(small, monkeypatch, population, {rate: 5e-3})
    (first, weights), (second, _), (end, _) = alone
    assert first[EPOCHS] == [second[EPOCHS][0][:1]]
    assert end[WHOLE]
    same = _told_by_a_trial(small, monkeypatch, population, {rate: 5e-3}, weights)
    assert same[0][0][EPOCHS] == second[EPOCHS]  # as if it had never stopped
    other = _told_by_a_trial(small, monkeypatch, population, {rate: 1e-4}, weights)
    assert other[0][0][EPOCHS][0][0] == first[EPOCHS][0][0]
    assert other[0][0][EPOCHS][0][1] != second[EPOCHS][0][1]
    assert other[-1][0][SCHEDULE] == [{rate: 5e-3}, {rate: 1e-4}]
    shutil.rmtree(weights.path)


def test_a_trial_of_folds_says_the_mean_and_what_it_costs(small, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _told_by_a_trial(small, monkeypatch, {"folds": 2}, {"learning.epochs": 1, "model.hidden": 8})
    end = said[-1][0]
    assert [found[EPOCH] for found, _ in said] == [1, 2, 2]
    assert len(end[EPOCHS]) == 2
    scores = [epochs[0][AUC] for epochs in end[EPOCHS]]
    assert scores[0] != scores[1]
    assert end[SCORE] == pytest.approx(sum(scores) / 2)
    count = [epochs[0]["streaming/like/count"] for epochs in end[EPOCHS]]
    whole = _told_by_a_trial(small, monkeypatch, {}, {"learning.epochs": 1})[-1][0][EPOCHS][0][0]
    assert sum(count) == whole["streaming/like/count"]  # each valid target once
    assert end[EPOCHS][0][0][ADDS] < whole[ADDS]
    assert end[EPOCHS][0][0]["cost/parameters"] < whole["cost/parameters"]
    assert 0 < end[TRAINING] < math.inf


def test_only_training_counts_as_training(small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the model's building nor Tune's listening, which blocks; what was trained counts once it is told."""
    build = fit_module.build_ranker

    def slowly(*given: Any) -> Any:
        time.sleep(30.0)
        return build(*given)

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    monkeypatch.setattr(fit_module, "build_ranker", slowly)
    said: list[float] = []

    def report(found: dict[str, Any], **_: Any) -> None:
        said.append(found[TRAINING])
        time.sleep(5.0)

    train = fit_module.train

    def for_long(*given: Any) -> Any:
        time.sleep(2.0)
        return train(*given)

    monkeypatch.setattr(fit_module, "train", for_long)
    monkeypatch.setattr("ray.tune.report", report)
    base = parse(FitTask, {**small.raw_student, "objective": {}}).model_dump(mode="json")
    goal = {"kind": "single", "metric": AUC, "mode": "max"}
    run_trial({"base": base, "search": {"goal": goal}, "point": {"number": 1, "values": {"learning.epochs": 2}}})
    assert said == [2.0, 2.0, 2.0]


def test_a_trial_that_told_of_its_last_epoch_is_whole() -> None:
    said: list[bool] = []
    told = Told(_goal("max"), {}, 2, lambda found, _kept: said.append(found[WHOLE]))
    told.begin()
    for _ in range(2):
        told.epoch({"m": 0.5})
        told.report()
    assert said == [False, True]


def test_a_record_gives_back_what_was_kept(tmp_path: Path) -> None:
    record = Record(str(tmp_path), "a", {"b": 1})
    assert record.known() == []
    trials = [
        Finished(2, {"x": 1}, {"x": 1}, [[{"m": 0.5, "n": float("nan")}]], 2.0, 1.0, False, [{"x": 1}]),
        Finished(1, {"x": 2.5}, {"x": None}, [[], [{"m": 0.25}]], 2.0, 1.0, True, []),
    ]
    for trial in trials:
        record.keep(trial)
    assert str(record.known()) == str(trials[::-1])  # as text: nan is not equal to itself
    assert Record(str(tmp_path), "a", {"b": 2}).known() == []
    assert Record(str(tmp_path), "a", {"b": 1}).known()[0].number == 1
    record.clear()
    assert record.known() == []


def test_a_search_is_found_again_by_what_decides_its_trials(small, tmp_path: Path) -> None:
    base = parse(FitTask, {**small.raw_student, "objective": {}})
    space = parse_space({"learning.learning_rate": {"kind": "loguniform", "low": 1e-3, "high": 1e-2}}, "space")

    def place(learning_rate: float = 5e-3, trials: int = 4, **search: Any) -> str:
        varied = replace(base, {"learning.learning_rate": learning_rate})
        return record_of(SearchTask(varied, space, trials, str(tmp_path)), parse(SearchSpec, search)).folder

    same = place()
    assert place(trials=9, max_concurrent=1, time_budget_s=5.0) == same
    assert place(goal={"kind": "single", "metric": AUC}) == same  # whole trials can be judged anew
    asha = {"kind": "asha"}
    assert place(scheduler=asha) != place(scheduler=asha, goal={"kind": "single", "metric": AUC})
    assert len({same, place(1e-3), place(seed=1), place(folds=2), place(scheduler=asha)}) == 5
    few, more = (points(SearchTask(base, space, n, str(tmp_path)), SearchSpec()) for n in (3, 6))
    assert few == more[:3]
    assert few[0] == {"number": 1, "values": {"learning.learning_rate": base.learning.learning_rate}}


def test_trials_at_a_time_leave_a_cpu_free() -> None:
    def room(cpus: float, trial_cpus: float = 1.0, most: int | None = None) -> int:
        there = Cluster("there", cpus, 0, started_here=False)
        return concurrent_trials(SearchSpec(trial_cpus=trial_cpus, max_concurrent=most), there)

    assert [room(c) for c in (2, 4, 9)] == [1, 3, 8]
    assert room(9, trial_cpus=3) == 2
    assert room(9, most=4) == 4
    here = Cluster("here", 1000, 0, started_here=True)
    assert concurrent_trials(SearchSpec(), here) < 999  # cores are not shared by trials of a Ray of our own


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_needs_all_cpus_is_refused(small, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.trial_cpus"):
        tune(_config(small, tmp_path, **{"search.trial_cpus": 4}), lambda _: None)
