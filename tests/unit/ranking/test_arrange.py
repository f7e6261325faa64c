"""The steps of a policy on plain numbers: orders by hand, propensities against counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rayrank.ranking.arrange import CapOf, diverse, explored, first_of_each, placed


def test_only_the_first_of_each_code_stays_and_no_code_is_no_repetition() -> None:
    assert first_of_each(np.asarray([2, 0, 1, 2, 0, 1])).tolist() == [True, True, True, False, True, False]


def slow_mmr(score: np.ndarray, vectors: np.ndarray, relevance: float) -> list[int]:
    """The paper's formula, one pair at a time."""
    scaled = (score - score.min()) / (score.max() - score.min())

    def cosine(i: int, j: int) -> float:
        lengths = np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j])
        return float(vectors[i] @ vectors[j] / lengths) if lengths else 0.0

    chosen = [int(scaled.argmax())]
    while len(chosen) < len(score):
        left = [i for i in range(len(score)) if i not in chosen]
        gain = [relevance * scaled[i] - (1 - relevance) * max(cosine(i, j) for j in chosen) for i in left]
        chosen.append(left[int(np.argmax(gain))])
    return chosen


@pytest.mark.parametrize("relevance", [1.0, 0.6, 0.0])
def test_diversity_is_the_papers_formula(relevance: float) -> None:
    random = np.random.default_rng(3)
    score, vectors = -np.sort(-random.random(12)).astype(np.float32), random.standard_normal((12, 4))
    vectors[5] = 0
    expected = slow_mmr(score, vectors, relevance)
    assert diverse(score, vectors, relevance, 12).tolist() == expected
    some = diverse(score, vectors, relevance, 4).tolist()
    assert some[:4] == expected[:4]
    assert some[4:] == sorted(set(range(12)) - set(expected[:4]))


def test_of_two_twins_the_second_waits() -> None:
    score, vectors = np.asarray([3.0, 2.9, 1.0]), np.asarray([[1.0, 0], [1.0, 0], [0, 1.0]])
    assert diverse(score, vectors, 0.5, 3).tolist() == [0, 2, 1]


def test_a_capped_value_waits_until_the_cap_ends() -> None:
    genres = [[1], [1], [1], [2], [1], [3]]
    assert placed([0, 1, 2, 3, 4, 5], {}, [CapOf(genres, 2, 4)]) == [0, 1, 3, 5, 2, 4]


def test_any_value_of_a_multi_valued_column_counts_and_none_is_free() -> None:
    genres = [[1, 2], [2, 0], [0, 0], [0, 0], [3, 0]]
    assert placed([0, 1, 2, 3, 4], {}, [CapOf(genres, 1, 4)]) == [0, 2, 3, 4, 1]


def test_a_cap_that_cannot_be_kept_gives_way_in_order() -> None:
    assert placed([2, 0, 1], {}, [CapOf([[1], [1], [1]], 1, 3)]) == [2, 0, 1]


def test_two_caps_of_different_length_hold_each_in_its_range() -> None:
    genres, makers = [[1], [1], [2], [3]], [[7], [8], [7], [9]]
    caps = [CapOf(genres, 1, 2), CapOf(makers, 1, 3)]
    # First two: one of each genre and maker; the third place is free of the genre's cap but not of the maker's.
    assert placed([0, 1, 2, 3], {}, caps) == [0, 3, 1, 2]


def test_pins_stand_where_they_are_pinned_and_count_towards_caps() -> None:
    assert placed([0, 1, 2], {1: 9}, []) == [0, 9, 1, 2]
    genres = [[1], [2], [1], *[[0]] * 6, [1]]
    assert placed([0, 1, 2], {1: 9}, [CapOf(genres, 1, 3)]) == [1, 9, 0, 2]
    assert placed([0, 1], {5: 9, 8: 7}, []) == [0, 1, 9, 7], "a place beyond the last item is the end"


def test_no_share_no_pool_or_all_fixed_explores_nothing() -> None:
    for pool, fixed, share in (([8], set(), 0.0), ([], set(), 0.9), ([8], {0, 1}, 0.9)):
        found = explored([3, 4], pool, fixed, share, "key")
        assert (found.shown, found.propensity.tolist(), found.drawn) == ([3, 4], [1.0, 1.0], frozenset())


@pytest.mark.parametrize(("share", "pool"), [(0.3, [10, 11, 12, 13, 14]), (0.7, [10, 11]), (1.0, [10, 11])])
def test_propensities_are_the_shares_of_many_draws(share: float, pool: list[int]) -> None:
    shown, fixed, draws = [0, 1, 2, 3], {1}, 20_000
    counts: Counter[tuple[int, int]] = Counter()
    told: dict[tuple[int, int], float] = {}
    for n in range(draws):
        found = explored(shown, pool, fixed, share, f"request {n}")
        assert found.shown[1] == 1
        assert len(set(found.shown)) == 4
        for place, item in enumerate(found.shown):
            counts[place, item] += 1
            told.setdefault((place, item), float(found.propensity[place]))
            assert told[place, item] == found.propensity[place], "the same whatever else is shown"
    assert len(told) > len(shown)
    for seen, propensity in told.items():
        assert counts[seen] / draws == pytest.approx(propensity, abs=4 * (0.25 / draws) ** 0.5)
    for place in range(4):
        assert sum(p for (at, _), p in told.items() if at == place) == pytest.approx(1)


def test_the_same_key_draws_the_same() -> None:
    one, again = (explored([0, 1, 2], [7, 8, 9], set(), 0.5, "r1") for _ in range(2))
    assert (one.shown, one.drawn) == (again.shown, again.drawn)
    assert any(explored([0, 1, 2], [7, 8, 9], set(), 0.5, f"r{n}").shown != one.shown for n in range(20))
