"""The benchmark of training under Ray: which epochs count, which way the ratio goes, when arms are not comparable."""

from __future__ import annotations

import pytest

from benchmarks.ray_train import ARMS, CLAIMS, claims_of, differing, epoch_seconds, rows_of


def test_the_first_epoch_does_not_count() -> None:
    assert epoch_seconds({"history": [{"seconds": 90.0}, {"seconds": 4.0}, {"seconds": 6.0}]}) == 5.0
    with pytest.raises(ValueError, match="two epochs"):
        epoch_seconds({"history": [{"seconds": 90.0}]})


def test_a_slower_ray_gives_a_ratio_below_one_within_each_round() -> None:
    usual, loaded = (dict.fromkeys(ARMS, 2.0) | {"1 worker": 4.0}, dict.fromkeys(ARMS, 20.0) | {"1 worker": 25.0})
    found = claims_of([usual, loaded, loaded])
    assert found["ray_1w_vs_plain"]["value"] == pytest.approx(0.8)
    assert found["ray_1w_vs_plain"]["least"] == pytest.approx(0.5)
    assert found["ray_2w_vs_plain"]["value"] == 1.0
    assert {row.arm[0] for row in rows_of(found)} == set(CLAIMS)


def test_arms_that_learned_different_things_are_told() -> None:
    assert not differing({"auc": 0.8}, {"auc": 0.8004, "more": 1.0})
    assert differing({"auc": 0.8, "rmse": 0.9}, {"auc": 0.81}) == {"auc": pytest.approx(0.01), "rmse": float("inf")}
