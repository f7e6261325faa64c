"""Bootstrap over users: exact against repeating rows, paired, seeded and fast."""

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rayrank.metrics.bootstrap import Resamples, interval
from rayrank.metrics.evaluated import Judged
from rayrank.metrics.order import auc, gauc, ndcg


def made(rows=2000, users=80, noise=0.4, seed=0):
    generator = np.random.default_rng(seed)
    user = generator.integers(1, users, rows)
    truth = generator.random(rows)
    label = (generator.random(rows) < truth).astype(np.float32)
    scores = [np.clip(truth + noise * scale * generator.normal(size=rows), 0.01, 0.99) for scale in (0.5, 1.5)]
    return user, label, tuple(np.round(s, 2).astype(np.float32) for s in scores)


def repeated(resamples, r, user, label, score):
    """Rows repeated as often as their user was drawn; copies of a user count as users of their own."""
    times = resamples.weights[r][np.searchsorted(resamples.user, user)]
    index = np.repeat(np.arange(len(user)), times)
    copy = np.concatenate([np.arange(t) for t in times])
    return user[index] * 100 + copy, label[index], score[index]


def difference(resamples, user, label, scores):
    """Of AUC, paired by resample, as a comparison takes it."""
    first, second = (Judged(user, label, score) for score in scores)
    value = auc(label, scores[0]) - auc(label, scores[1])
    return interval(value, resamples.auc(first) - resamples.auc(second))


def test_resampled_auc_equals_that_of_repeated_rows():
    user, label, (score, _) = made()
    resamples = Resamples.draw(user, 5, seed=3)
    values = resamples.auc(Judged(user, label, score))
    for r in range(5):
        _, labels, scores = repeated(resamples, r, user, label, score)
        assert values[r] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("metric", [gauc, ndcg])
def test_resampled_means_over_users_equal_those_of_repeated_rows(metric):
    user, label, (score, _) = made()
    resamples = Resamples.draw(user, 5, seed=3)
    values = resamples.means(metric(user, label, score))
    for r in range(5):
        assert values[r] == pytest.approx(metric(*repeated(resamples, r, user, label, score)).mean, abs=1e-12)


def test_the_seed_decides_and_pairing_tightens():
    user, label, (good, bad) = made()
    resamples = Resamples.draw(user, 300, seed=1)
    first = difference(resamples, user, label, (good, bad))
    assert first == difference(Resamples.draw(user, 300, seed=1), user, label, (good, bad))
    assert first != difference(Resamples.draw(user, 300, seed=2), user, label, (good, bad))
    assert first.low < first.value < first.high
    assert first.low > 0
    loose = resamples.auc(Judged(user, label, good)) - resamples.auc(Judged(user, label, bad))[::-1]
    assert first.deviation < loose.std()


def test_equal_models_differ_by_zero_with_no_width():
    user, label, (good, _) = made()
    result = difference(Resamples.draw(user, 50), user, label, (good, good))
    assert (result.value, result.low, result.high, result.half_width) == (0.0, 0.0, 0.0, 0.0)


def test_interval_covers_the_spread_between_fresh_samples():
    """The bootstrap deviation of AUC agrees with the deviation over independent data sets."""
    fresh = [auc(y, s) for _, y, (s, _) in (made(seed=i) for i in range(60))]
    user, label, (score, _) = made(seed=99)
    values = Resamples.draw(user, 300).auc(Judged(user, label, score))
    assert interval(0.0, values).deviation == pytest.approx(np.std(fresh), rel=0.4)


def test_users_never_drawn_are_refused_and_one_class_gives_nan():
    user, label, (score, _) = made()
    with pytest.raises(ValueError, match="other users"):
        Resamples.draw(user[user < 40], 2).auc(Judged(user, label, score))
    samples = Resamples.draw(user, 4).auc(Judged(user, np.ones(len(user)), score))
    assert np.isnan(interval(float("nan"), samples).low)


def test_fifty_thousand_rows_by_five_hundred_resamples_take_seconds():
    user, label, scores = made(rows=50_000, users=3000)
    started = time.perf_counter()
    difference(Resamples.draw(user, 500), user, label, scores)
    assert time.perf_counter() - started < 30  # about 2 s on one free core
