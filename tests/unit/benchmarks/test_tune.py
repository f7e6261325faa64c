"""The benchmark of trials: the first one's start does not count, training does not either."""

from __future__ import annotations

import pytest

from benchmarks.tune import Clock, Search, claims_of, rows_of
from rayrank.on_ray.goal import Choice
from rayrank.on_ray.record import Trial
from rayrank.pipeline.tune import TuneResult


def test_overhead_is_the_time_between_ends_less_the_training() -> None:
    found = Search(ended_s=(20.0, 24.0, 29.0), training_s=(9.0, 3.0, 4.5))
    assert found.overhead_s == pytest.approx((1.0 + 0.5) / 2)
    slow, slower = (Search((20.0, 24.0 + more), (9.0, 3.0)) for more in (1.0, 5.0))
    claims = claims_of([found, slow, slower])
    assert claims["seconds_per_trial_overhead"] == 2.0
    assert claims["by_search"] == [0.75, 2.0, 6.0]
    assert rows_of([found])[0].values["overhead s per trial"] == 0.75
    with pytest.raises(ValueError, match="two trials"):
        Search((20.0,), (9.0,))


def test_the_clock_notes_ends_of_trials_in_their_order() -> None:
    clock = Clock()
    for line in ("2 of 4 trials are there already (x)", "trial 2: streaming/like/auc 0.8 after 1 s", "trial 1: m 0.7"):
        clock(line)
    trials = [Trial(1, {}, 0.7, {}, [], 2.0, training_s=1.0), Trial(2, {}, 0.8, {}, [], 2.0, training_s=3.0)]
    found = clock.search(TuneResult("o", {}, 0.8, "m", trials, Choice(2, "best", ""), 1, 4.0, "b"))
    assert found.training_s == (3.0, 1.0)
    assert found.ended_s[0] <= found.ended_s[1]
