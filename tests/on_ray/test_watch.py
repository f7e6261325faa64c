"""What is heard of trials: what is not whole or no number wins nothing, and what goes wrong is not lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rayrank.config import parse
from rayrank.on_ray.patience import Limit
from rayrank.on_ray.record import Finished, Trial
from rayrank.on_ray.search_spec import SearchSpec
from rayrank.on_ray.trial import CLOCK, EPOCH, EPOCHS, NOW, SCHEDULE, SCORE, TRAINING, WHOLE, Told
from rayrank.on_ray.watch import Watch, callback


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


def test_a_trial_that_told_of_its_last_epoch_is_whole() -> None:
    said: list[bool] = []
    told = Told(_goal("max"), {}, 2, lambda found, _kept: said.append(found[WHOLE]))
    told.begin()
    for _ in range(2):
        told.epoch({"m": 0.5})
        told.report()
    assert said == [False, True]
