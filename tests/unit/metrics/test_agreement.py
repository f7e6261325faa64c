"""Agreement of two score lists, by hand and against scipy; ties included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score

from rayrank.metrics.agreement import kendall_tau, list_ndcg, lost, mean_ranks, spearman


def pair(seed: int, values: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    first = generator.integers(0, values, 60)
    return first, first + generator.integers(0, values, 60)


@pytest.mark.parametrize("values", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_tau_and_rho_are_those_of_scipy(seed: int, values: int) -> None:
    first, second = pair(seed, values)
    assert kendall_tau(first, second) == pytest.approx(stats.kendalltau(first, second).statistic, abs=1e-12)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_ranks_by_hand() -> None:
    np.testing.assert_array_equal(mean_ranks(np.array([30, 10, 30, 20])), [3.5, 1.0, 3.5, 2.0])
    # Ranks 1 2 3 against 1 3 2: rho = 1 − 6·2 / (3·8) = 0.5; two pairs agree and one does not: tau = 1/3.
    first, second = np.array([1.0, 2.0, 3.0]), np.array([1.0, 9.0, 5.0])
    assert spearman(first, second) == pytest.approx(0.5)
    assert kendall_tau(first, second) == pytest.approx(1 / 3)
    assert spearman(first, -first) == kendall_tau(first, -first) == -1.0


def test_kendall_tau_by_hand() -> None:
    first = np.array([1.0, 2.0, 3.0, 4.0])
    assert kendall_tau(first, first * 3) == pytest.approx(1)
    assert kendall_tau(first, -first) == pytest.approx(-1)
    assert kendall_tau(first, np.array([2.0, 1.0, 3.0, 4.0])) == pytest.approx((5 - 1) / 6)
    assert kendall_tau(first, np.array([1.0, 1.0, 3.0, 4.0])) == pytest.approx(5 / np.sqrt(6 * 5))
    assert np.isnan(kendall_tau(first, np.ones(4)))


def test_a_list_without_an_order_agrees_with_nothing() -> None:
    flat, other = np.ones(4), np.arange(4)
    for found in (spearman(flat, other), kendall_tau(flat, other), spearman(flat[:0], other[:0])):
        assert np.isnan(found)


def test_what_a_cut_loses() -> None:
    assert lost(np.array([1, 2, 3, 4]), np.array([9, 4, 2, 1])) == 0.25
    assert lost(np.array([1, 2]), np.zeros(0, np.int64)) == 1.0
    assert np.isnan(lost(np.zeros(0, np.int64), np.array([1])))


def test_ndcg_of_a_list_by_hand_and_by_sklearn() -> None:
    # Wanted items stand at places 1 and 3 of a list of 3: 1 + 1/2 over 1 + 1/log2(3).
    found = list_ndcg(np.array([7, 5, 8]), np.array([8, 7]), 3)
    assert found == pytest.approx(1.5 / (1 + 1 / np.log2(3)))
    assert list_ndcg(np.array([5, 7]), np.array([7]), 1) == 0.0
    assert np.isnan(list_ndcg(np.array([5]), np.zeros(0, np.int64), 1))
    order = np.random.default_rng(0).permutation(50)
    wanted = np.array([3, 11, 19, 44])
    relevance = np.isin(np.arange(50), wanted).astype(float)
    score = np.empty(50)
    score[order] = np.arange(50, 0, -1)
    assert list_ndcg(order, wanted, 20) == pytest.approx(ndcg_score([relevance], [score], k=20))
