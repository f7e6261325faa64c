"""AUC, GAUC and NDCG against scikit-learn, slow obvious references and cases worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from rayrank.metrics import order
from rayrank.metrics.order import TieOrder, auc, gauc, ndcg

NAN = float("nan")


def array(*values):
    return np.array(values, dtype=np.float32)


def users_with_ties(seed, rows=400, users=40, levels=6):
    generator = np.random.default_rng(seed)
    user = generator.integers(1, users, rows)
    label = (generator.random(rows) < 0.3).astype(np.float32)
    score = (generator.integers(0, levels, rows) / levels).astype(np.float32)
    return user, label, score


def test_auc_by_hand():
    # Positives .9 and .4, negatives .4 and .1: pairs (.9,.4) (.9,.1) (.4,.1) won, (.4,.4) tied -> 3.5 / 4.
    assert auc(array(1, 1, 0, 0), array(0.9, 0.4, 0.4, 0.1)) == 0.875


def test_auc_of_all_ties_is_a_half_and_of_reversed_order_zero():
    assert auc(array(1, 0, 1, 0, 0), array(2, 2, 2, 2, 2)) == 0.5
    assert auc(array(1, 1, 0), array(0.1, 0.2, 0.9)) == 0.0


@pytest.mark.parametrize("label", [(), (1, 1), (0, 0), (NAN, NAN, 1)])
def test_auc_without_two_classes_is_nan(label):
    assert math.isnan(auc(array(*label), np.arange(len(label), dtype=np.float32)))


def test_missing_labels_are_left_out():
    label, score = array(1, NAN, 0, NAN), array(0.2, 9, 0.1, -9)
    assert auc(label, score) == 1.0
    assert gauc(np.array([1, 1, 1, 2]), label, score).rows == 2


def test_scores_that_are_not_finite_are_refused_unless_unlabelled():
    with pytest.raises(ValueError, match="finite"):
        auc(array(1, 0), array(NAN, 1))
    with pytest.raises(ValueError, match="length"):
        gauc(np.array([1]), array(1, 0), array(1, 0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auc_equals_counting_all_pairs(rows):
    label = array(*(r[0] for r in rows))
    score = array(*(r[1] for r in rows))
    pairs = [(p, n) for p, n in itertools.product(score[label == 1], score[label == 0])]
    expected = np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs]) if pairs else NAN
    assert auc(label, score) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_auc_is_exact_whatever_is_counted_at_once(block, monkeypatch):
    monkeypatch.setattr(order, "_BLOCK", block)
    _, label, score = users_with_ties(5)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-15)


@pytest.mark.parametrize("block", [1, 2, 7, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_auc_equals_scikit_learn_also_with_weights(seed, block, monkeypatch):
    monkeypatch.setattr(order, "_BLOCK", block)
    user, label, score = users_with_ties(seed)
    weight = np.random.default_rng(seed).integers(0, 4, user.max() + 1).astype(np.uint8)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    for said in (score, np.full(len(score), 0.5, np.float32)):
        weighted = TieOrder.of(said).auc(label, user, weight)
        assert weighted == pytest.approx(roc_auc_score(label, said, sample_weight=weight[user]), abs=1e-12)


def test_gauc_by_hand():
    user = np.array([7, 7, 7, 7, 3, 3, 5, 5, 5])
    label = array(1, 0, 1, 0, 1, 0, 1, 1, 1)
    score = array(0.9, 0.4, 0.4, 0.1, 0.2, 0.6, 0.5, 0.5, 0.5)
    result = gauc(user, label, score)
    # User 7: 3.5/4 with 4 rows; user 3: 0 with 2 rows; user 5 has one class.
    assert result.mean == pytest.approx((0.875 * 4 + 0.0 * 2) / 6)
    assert (result.users_left_out, result.rows_left_out, result.rows) == (1, 3, 6)
    assert result.user.tolist() == [3, 7]


@pytest.mark.parametrize("seed", range(4))
def test_gauc_equals_a_loop_over_users(seed):
    user, label, score = users_with_ties(seed)
    total = weight = 0.0
    for one in np.unique(user):
        rows = user == one
        if 0 < label[rows].sum() < rows.sum():
            total += roc_auc_score(label[rows], score[rows]) * rows.sum()
            weight += rows.sum()
    assert gauc(user, label, score).mean == pytest.approx(total / weight, abs=1e-12)


def test_gauc_and_ndcg_of_nothing():
    empty = array()
    for result in (gauc(np.zeros(0, np.int64), empty, empty), ndcg(np.zeros(0, np.int64), empty, empty)):
        assert math.isnan(result.mean)
        assert result.users_left_out == 0
    single = gauc(np.array([1, 1]), array(1, 1), array(0, 1))
    assert math.isnan(single.mean)
    assert (single.users_left_out, single.rows_left_out) == (1, 2)


def test_ndcg_by_hand_with_and_without_ties():
    user = np.array([1, 1, 1])
    plain = ndcg(user, array(0, 1, 0), array(0.9, 0.5, 0.1))
    assert plain.mean == pytest.approx(1 / math.log2(3))
    # All tied: the positive is at rank 1, 2 or 3 with equal probability.
    tied = ndcg(user, array(0, 1, 0), array(0.5, 0.5, 0.5))
    assert tied.mean == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 3)


def test_ndcg_cuts_at_k_and_leaves_out_users_without_a_positive():
    user = np.array([1] * 12 + [2, 2])
    label = np.zeros(14, np.float32)
    label[11] = 1.0  # ranked last of twelve: outside the first ten
    score = np.arange(14, 0, -1).astype(np.float32)
    result = ndcg(user, label, score)
    assert result.mean == 0.0
    assert (result.users_left_out, result.rows_left_out) == (1, 2)
    assert ndcg(user, label, score, k=12).mean == pytest.approx(1 / math.log2(13))


def expected_dcg_slow(label, score, k):
    """Average DCG over every order that agrees with the scores."""
    totals = []
    for ranking in itertools.permutations(range(len(label))):
        if all(score[a] >= score[b] for a, b in itertools.pairwise(ranking)):
            totals.append(sum(label[i] / math.log2(rank + 2) for rank, i in enumerate(ranking[:k])))
    return float(np.mean(totals))


@pytest.mark.parametrize("seed", range(5))
def test_ndcg_equals_the_average_over_all_tie_breaks(seed):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, 6).astype(np.float64)
    label[0] = 1.0
    score = generator.integers(0, 3, 6).astype(np.float64)
    for k in (2, 4, 10):
        expected = expected_dcg_slow(label, score, k) / expected_dcg_slow(label, label, k)
        assert ndcg(np.ones(6, np.int64), label, score, k).mean == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_ndcg_equals_scikit_learn_user_by_user(seed):
    user, label, score = users_with_ties(seed, levels=20)
    values = [
        ndcg_score(label[None, user == one], score[None, user == one], k=10)
        for one in np.unique(user)
        if label[user == one].sum() > 0 and (user == one).sum() > 1
    ]
    several = np.isin(user, [one for one in np.unique(user) if (user == one).sum() > 1])
    assert ndcg(user[several], label[several], score[several]).mean == pytest.approx(np.mean(values), abs=1e-9)
