"""The gate's numbers by hand; NaN never passes."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank.compression.gate import checks, logloss_ratio, ndcg_drop, score_difference
from rayrank.compression.spec import GateLimits
from rayrank.metrics.scores import Scores
from tests.tiny_models import SCHEMA

GOOD = {"score_difference": 0.05, "kendall_tau": 0.95, "ndcg_drop": 0.001, "logloss_ratio": 1.0}


def scores(like: list[float], stars: list[float]) -> Scores:
    whole = np.arange(len(like))
    predictions = {"like": np.array(like, np.float32), "stars": np.array(stars, np.float32)}
    return Scores(whole, whole, whole, whole, whole, {}, predictions)


def test_all_four_limits_are_kept_or_named() -> None:
    assert all(check.passed for check in checks(GOOD, GateLimits()))
    for name, bad in (("score_difference", 0.2), ("kendall_tau", 0.8), ("ndcg_drop", 0.01), ("logloss_ratio", 1.02)):
        for value in (bad, float("nan")):
            failed = [check for check in checks({**GOOD, name: value}, GateLimits()) if not check.passed]
            assert [check.name for check in failed] == [name]
            assert failed[0].line().startswith(f"FAILED  {name} {value:.4f} (asked: ")


def test_a_limit_of_null_is_left_out_and_a_missing_number_fails() -> None:
    assert [check.name for check in checks(GOOD, GateLimits(max_ndcg_drop=None, min_kendall_tau=None))] == [
        "score_difference",
        "logloss_ratio",
    ]
    assert not any(check.passed for check in checks({}, GateLimits()))


def test_differences_are_shares_of_the_scale() -> None:
    before = scores([0.1, 0.9], [1.0, 4.0])
    assert score_difference(before, scores([0.1, 0.8], [1.0, 4.0]), SCHEMA) == pytest.approx(0.1)
    assert score_difference(before, scores([0.1, 0.8], [3.0, 4.0]), SCHEMA) == pytest.approx(0.5)
    assert np.isnan(score_difference(before, scores([0.1, np.nan], [1.0, 4.0]), SCHEMA))


def test_losses_of_binary_tasks() -> None:
    before, after = {"like/ndcg_10": 0.8, "like/log_loss": 0.5}, {"like/ndcg_10": 0.7, "like/log_loss": 0.6}
    assert ndcg_drop(before, after, SCHEMA) == pytest.approx(0.1)
    assert logloss_ratio(before, after, SCHEMA) == pytest.approx(1.2)
