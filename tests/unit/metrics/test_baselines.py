"""Baselines by hand, against closed-form ridge regression, and blind to how the stream is cut into blocks."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rayrank.metrics.baselines import (
    Additive,
    Sizes,
    Targets,
    choose,
    item_mean,
    platt,
    popularity,
    recent_popularity,
    user_item_bias,
)
from rayrank.metrics.order import auc

SIZES = Sizes(users=4, items=5)


def targets(*rows):
    user, item, time, label = zip(*rows, strict=True)
    return Targets(np.array(user), np.array(item), np.array(time), np.array(label, np.float32))


HAND = targets((1, 1, 0, 1), (1, 2, 50, 0), (2, 1, 90, 1), (2, 3, 100, 0), (3, 1, 10, 0), (3, 2, 95, np.nan))


def in_blocks(block, size):
    def one_pass():
        for start in range(0, len(block.user), size):
            piece = slice(start, start + size)
            yield Targets(block.user[piece], block.item[piece], block.time[piece], block.label[piece])

    return one_pass


def made(seed=0, rows=600, users=30, items=20):
    generator = np.random.default_rng(seed)
    user, item = generator.integers(1, users, rows), generator.integers(1, items, rows)
    truth = 3 + generator.normal(size=users)[user] + generator.normal(size=items)[item]
    label = (truth + 0.1 * generator.normal(size=rows)).astype(np.float32)
    return Targets(user, item, np.arange(rows), label), Sizes(users, items)


def test_popularity_counts_train_targets():
    scorer = popularity(in_blocks(HAND, 2), SIZES)
    assert np.expm1(scorer.item_N).round().tolist() == [0, 3, 2, 1, 0]
    assert scorer.parameters == 5


def test_recent_popularity_counts_the_end_of_the_train_period():
    last, half = recent_popularity(in_blocks(HAND, 2), SIZES, shares=(0.1, 0.5))
    assert np.expm1(last.item_N).round().tolist() == [0, 1, 1, 1, 0]  # times 90..100
    assert np.expm1(half.item_N).round().tolist() == [0, 1, 2, 1, 0]  # times 50..100


def test_item_mean_shrinks_to_the_overall_mean():
    (scorer,) = item_mean(in_blocks(HAND, 4), SIZES, priors=(2.0,))
    mean = 2 / 5  # the missing label is left out
    expected = [mean, (2 + 2 * mean) / 5, (0 + 2 * mean) / 3, (0 + 2 * mean) / 3, mean]
    assert scorer.item_N.tolist() == pytest.approx(expected)


def test_biases_equal_closed_form_ridge_regression():
    train, sizes = made()
    ridges = ((2.0, 5.0), (20.0, 1.0))
    found = user_item_bias(in_blocks(train, 100), sizes, ridges=ridges, rounds=60)
    mean = train.label.astype(np.float64).mean()
    rows = np.arange(len(train.user))
    design = np.zeros((len(rows), sizes.users + sizes.items))
    design[rows, train.user] = design[rows, sizes.users + train.item] = 1.0
    for (item_ridge, user_ridge), scorer in zip(ridges, found, strict=True):
        penalty = np.diag([user_ridge] * sizes.users + [item_ridge] * sizes.items)
        solved = np.linalg.solve(design.T @ design + penalty, design.T @ (train.label - mean))
        np.testing.assert_allclose(scorer.user_U, solved[: sizes.users], atol=1e-6)
        np.testing.assert_allclose(scorer.item_N, solved[sizes.users :], atol=1e-6)
        assert scorer.intercept == pytest.approx(mean)
        assert scorer.parameters == sizes.users + sizes.items


@pytest.mark.parametrize("size", [1, 7, 600])
def test_the_cut_into_blocks_does_not_matter(size):
    train, sizes = made()
    for fit in (item_mean, user_item_bias, recent_popularity):
        whole, cut = fit(in_blocks(train, 600), sizes), fit(in_blocks(train, size), sizes)
        for a, b in zip(whole, cut, strict=True):
            np.testing.assert_allclose(a.item_N, b.item_N, atol=1e-9)


def test_choose_takes_the_best_on_valid_and_keeps_the_order():
    generator = np.random.default_rng(0)
    item = generator.integers(1, 20, 2000)
    label = (generator.random(2000) < item / 20).astype(np.float32)
    valid = Targets(np.ones(2000, np.int64), item, np.zeros(2000), label)
    good, bad = Additive("x", "good", np.arange(20.0)), Additive("x", "bad", -np.arange(20.0))
    chosen = choose([bad, good], valid, logistic=True)
    assert chosen.option == "good"
    predicted = chosen.predict(valid.user, valid.item)
    assert auc(label, predicted) == auc(label, good.score(valid.user, item))
    assert predicted.mean() == pytest.approx(label.mean(), abs=1e-3)
    ratings = Targets(valid.user, item, valid.time, (item / 4).astype(np.float32))
    assert choose([good, Additive("x", "quarter", np.arange(20.0) / 4)], ratings, logistic=False).option == "quarter"


def test_platt_equals_logistic_regression():
    generator = np.random.default_rng(1)
    score = generator.normal(2.0, 3.0, 3000)
    label = (generator.random(3000) < 1 / (1 + np.exp(-(0.7 * score - 1)))).astype(np.float64)
    model = LogisticRegression(C=np.inf).fit(score[:, None], label)
    slope, shift = platt(label, score)
    assert slope == pytest.approx(model.coef_[0, 0], abs=0.01)
    assert shift == pytest.approx(model.intercept_[0], abs=0.02)


@pytest.mark.parametrize(
    ("label", "score"), [([], []), ([1, 1], [0, 1]), ([0, 1], [3, 3]), ([1, 0], [0, 1]), ([0, 1], [0, 1])]
)
def test_platt_stays_finite_and_rising(label, score):
    slope, shift = platt(np.array(label, float), np.array(score, float))
    assert slope > 0
    assert np.isfinite([slope, shift]).all()
