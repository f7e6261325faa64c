"""Bootstrap over users: exact against repeating rows, paired, seeded and fast."""

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rayrank.metrics.bootstrap import Resamples, difference, interval
from rayrank.metrics.order import gauc, ndcg
from rayrank.metrics.values import log_loss, rmse


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


@pytest.mark.parametrize("name", ["auc", "gauc", "ndcg_10", "log_loss", "rmse"])
def test_resampled_metric_equals_the_metric_of_repeated_rows(name):
    user, label, (score, _) = made()
    slow = {
        "auc": lambda _u, y, s: roc_auc_score(y, s),
        "gauc": lambda u, y, s: gauc(u, y, s).mean,
        "ndcg_10": lambda u, y, s: ndcg(u, y, s).mean,
        "log_loss": lambda _u, y, s: log_loss(y, s),
        "rmse": lambda _u, y, s: rmse(y, s),
    }[name]
    resamples = Resamples.draw(user, 5, seed=3)
    whole, values = resamples.metric(name, user, label, score)
    assert whole == pytest.approx(slow(user, label, score), abs=1e-12)
    for r in range(5):
        assert values[r] == pytest.approx(slow(*repeated(resamples, r, user, label, score)), abs=1e-12)


def test_the_seed_decides_and_pairing_tightens():
    user, label, (good, bad) = made()
    resamples = Resamples.draw(user, 300, seed=1)
    first = difference(resamples, "auc", user, label, (good, bad))
    assert first == difference(Resamples.draw(user, 300, seed=1), "auc", user, label, (good, bad))
    assert first != difference(Resamples.draw(user, 300, seed=2), "auc", user, label, (good, bad))
    assert first.low < first.value < first.high
    assert first.low > 0
    loose = resamples.metric("auc", user, label, good)[1] - resamples.metric("auc", user, label, bad)[1][::-1]
    assert first.deviation < loose.std()


def test_equal_models_differ_by_zero_with_no_width():
    user, label, (good, _) = made()
    result = difference(Resamples.draw(user, 50), "gauc", user, label, (good, good))
    assert (result.value, result.low, result.high, result.half_width) == (0.0, 0.0, 0.0, 0.0)


def test_interval_covers_the_spread_between_fresh_samples():
    """The bootstrap deviation of AUC agrees with the deviation over independent data sets."""
    fresh = [Resamples.draw(u, 1).metric("auc", u, y, s)[0] for u, y, (s, _) in (made(seed=i) for i in range(60))]
    user, label, (score, _) = made(seed=99)
    _, values = Resamples.draw(user, 300).metric("auc", user, label, score)
    assert interval(0.0, values).deviation == pytest.approx(np.std(fresh), rel=0.4)


def test_users_never_drawn_are_refused_and_one_class_gives_nan():
    user, label, (score, _) = made()
    with pytest.raises(ValueError, match="other users"):
        Resamples.draw(user[user < 40], 2).metric("auc", user, label, score)
    value, samples = Resamples.draw(user, 4).metric("auc", user, np.ones(len(user)), score)
    assert np.isnan(interval(value, samples).low)


def test_fifty_thousand_rows_by_five_hundred_resamples_take_seconds():
    user, label, scores = made(rows=50_000, users=3000)
    started = time.perf_counter()
    difference(Resamples.draw(user, 500), "auc", user, label, scores)
    assert time.perf_counter() - started < 30  # about 2 s on one free core
