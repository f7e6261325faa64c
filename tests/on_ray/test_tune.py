"""Trials run in their own processes, never more than there is room for, and the best wins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrank.config import ConfigError, load, replace
from rayrank.on_ray.cluster import Cluster
from rayrank.on_ray.patience import Limit
from rayrank.on_ray.tune import EPOCH, SCORE, SearchSpec, Trial, _trial, _watcher, concurrent_trials
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.tune import TuneConfig, tune
from rayrank.tracking import NoTracking


def _config(small, folder: Path, **changes: object) -> TuneConfig:
    labels = str(folder / "labels")
    label(LabelConfig(dataset=small.dataset, teacher=small.teacher, output=labels, actors=0), lambda _: None)
    raw = {**small.raw_student, "labels": labels, "output": str(folder / "student"), "tracking": {"kind": "none"}}
    distill = DistillConfig.model_validate(raw)
    base = TuneConfig(distill=distill, output=str(folder / "tune"), trials=4, tracking=NoTracking())
    return replace(base, changes)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_ends_on_four_logical_cpus_and_the_winner_can_be_distilled(small, tmp_path: Path) -> None:
    lines: list[str] = []
    config = _config(small, tmp_path)
    result = tune(config, lines.append)
    assert len(result.trials) == 4
    assert [t.score for t in result.trials] == sorted((t.score for t in result.trials if t.score), reverse=True)
    assert result.best_score == result.trials[0].score
    assert len({str(t.params) for t in result.trials}) == 4
    assert len(lines) == 4
    own = next(t for t in result.trials if t.number == 1)
    assert own.params["objective.distillation.temperature"] == config.distill.objective.distillation.temperature
    winner = load(DistillConfig, result.best_yaml)
    assert winner == replace(config.distill, result.best)
    assert set(winner.objective.weights) == {"like", "finish", "stars", "age_group", "next_like"}
    assert not (tmp_path / "tune" / "work.search").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_same_search_gives_the_same_scores_and_asha_stops_early(small, tmp_path: Path) -> None:
    samplers = {"learning.learning_rate": {"kind": "choice", "values": [1e-5, 5e-3]}}
    changes = {
        "samplers": samplers,
        "distill.learning.epochs": 3,
        "distill.learning.patience": 3,
        "search.scheduler": "asha",
        "trials": 3,
    }
    first = tune(_config(small, tmp_path, **changes), lambda _: None)
    again = tune(_config(small, tmp_path, **{**changes, "search.scheduler": "fifo"}), lambda _: None)
    scores = {t.number: t.history[0]["streaming/like/auc"] for t in first.trials}
    assert scores == pytest.approx({t.number: t.history[0]["streaming/like/auc"] for t in again.trials}, abs=1e-6)
    assert all(len(t.history) == 3 and not t.stopped for t in again.trials)
    assert all(1 <= len(t.history) <= 3 for t in first.trials)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_failed_trials_are_told_and_a_search_of_failures_is_an_error(small, tmp_path: Path) -> None:
    config = _config(small, tmp_path, **{"search.metric": "streaming/like/acu", "trials": 2})
    lines: list[str] = []
    with pytest.raises(RuntimeError, match=r"every trial failed.*streaming/like/acu"):
        tune(config, lines.append)
    assert len(lines) == 2


def _heard(mode: str, scores: list[list[float]]) -> tuple[list[Trial], list[str]]:
    lines: list[str] = []
    watcher = _watcher(SearchSpec(metric="m", mode=mode), lines.append, Limit("cluster.stall_s", 60, "result"))
    for number, epochs in enumerate(scores):
        trial: Any = SimpleNamespace(trial_id=f"x_{number:05d}", config={"values": {}})
        watcher.on_trial_start(trial=trial)
        for epoch, score in enumerate(epochs, 1):
            watcher.on_trial_result(trial=trial, result={EPOCH: epoch, "metrics": {"m": score}})
        watcher.on_trial_complete(trial=trial)
    return watcher.ranked(), lines


def test_a_score_that_is_no_number_hides_no_winner() -> None:
    nan = float("nan")
    for mode, order in (("max", [3, 1, 2, 4]), ("min", [1, 3, 2, 4])):
        trials, lines = _heard(mode, [[0.7], [nan, nan], [nan, 0.8, nan], [float("inf")]])
        assert [t.number for t in trials] == order
        assert [t.score for t in trials if t.number in (1, 3)] == sorted([0.7, 0.8], reverse=mode == "max")
        assert all(t.score is None and "not a number" in str(t.error) for t in trials[2:])
        assert "not a number" in lines[1]
    assert [t.score for t in _heard("max", [[-0.5], [nan], [0.0]])[0]] == [0.0, -0.5, None]


@pytest.mark.parametrize(("mode", "expected"), [("max", [float("-inf"), 0.6, 0.7]), ("min", [float("inf"), 0.6, 0.6])])
def test_a_trial_that_began_with_no_number_can_still_win(mode: str, expected: list[float], monkeypatch) -> None:
    from rayrank.on_ray import fit

    told: list[float] = []

    def played(_task: object, listeners: fit.Listeners) -> Any:
        for epoch, score in enumerate([float("nan"), 0.6, 0.7], 1):
            listeners.on_epoch(epoch, {"m": score})
        return SimpleNamespace(history=[{"metrics": {"m": 0.7}}])

    monkeypatch.setattr(fit, "fit", played)
    monkeypatch.setattr("ray.tune.report", lambda found: told.append(found[SCORE]))
    _trial({"base": {"dataset": "d"}, "metric": "m", "mode": mode, "values": {}})
    assert told == [*expected, expected[-1]]


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
