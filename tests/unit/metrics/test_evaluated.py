"""What is kept of scores gives the metrics of all of them, however they are parted."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank.metrics import order
from rayrank.metrics.evaluated import Evaluated, Judged
from rayrank.metrics.order import by_user, gauc, ndcg
from rayrank.metrics.summary import binary_metrics


def judged(seed: int = 0, size: int = 400) -> Judged:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, size).astype(np.float32)
    label[::17] = np.nan
    score = generator.integers(0, 20, size) / 20
    return Judged.of(generator.integers(0, 40, size), label, score)


@pytest.mark.parametrize("metric", [gauc, ndcg])
@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_blocks_of_users_give_what_all_users_give(metric, block: int, monkeypatch) -> None:
    monkeypatch.setattr(order, "_BLOCK", block)
    one = judged()
    found, whole = by_user(one, metric), metric(one.user, one.label, one.prediction)
    np.testing.assert_array_equal(found.user, whole.user)
    np.testing.assert_allclose(found.value, whole.value, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.weight, whole.weight)
    assert (found.users_left_out, found.rows_left_out) == (whole.users_left_out, whole.rows_left_out)


def test_nobody_at_all() -> None:
    nobody = Judged.of(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))
    assert np.isnan(by_user(nobody, gauc).mean)


def test_missing_labels_are_left_out_and_scores_must_be_numbers() -> None:
    label = np.array([1.0, np.nan], np.float32)
    assert len(Judged.of(np.array([1, 2]), label, np.array([0.5, np.nan]))) == 1
    wrong = Judged.of(np.array([1, 2]), label, np.array([np.inf, 0.5]))
    assert not wrong.finite
    with pytest.raises(ValueError, match="must be finite"):
        binary_metrics(wrong)


def test_parts_must_agree_on_their_tasks() -> None:
    like, other = Evaluated({"like": judged()}, {}, {}), Evaluated({"buy": judged()}, {}, {})
    assert len(Evaluated.join([like, like]).events["like"]) == 2 * len(judged())
    for parts in ([], [like, other]):
        with pytest.raises(ValueError, match="same tasks"):
            Evaluated.join(parts)
