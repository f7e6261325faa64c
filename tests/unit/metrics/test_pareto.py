"""Pareto sets, hypervolume and the rules for one point, against values by hand and slow references."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank.metrics.pareto import front, hypervolume, knee, scaled, within

NAN = float("nan")


def slow_front(values: np.ndarray) -> list[bool]:
    def beats(a: np.ndarray, b: np.ndarray) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))

    return [not any(beats(other, one) for other in values) for one in values]


def slow_hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Every cell of the grid that the points' coordinates make, counted when a point dominates its upper corner."""
    above = [point for point in values if (point > reference).all()]
    edges = [sorted({float(reference[k]), *(float(p[k]) for p in above)}) for k in range(len(reference))]
    total = 0.0
    for corner in np.ndindex(*(len(e) - 1 for e in edges)):
        upper = np.array([edges[k][i + 1] for k, i in enumerate(corner)])
        size = np.prod([edges[k][i + 1] - edges[k][i] for k, i in enumerate(corner)])
        total += float(size) if any((point >= upper).all() for point in above) else 0.0
    return total


def test_the_front_by_hand() -> None:
    values = np.array([[1.0, 5.0], [2.0, 3.0], [2.0, 2.0], [0.5, 5.0], [2.0, 3.0], [9.0, NAN], [3.0, 0.0]])
    assert front(values).tolist() == [True, True, False, False, True, False, True]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_front_and_hypervolume_equal_their_slow_references(objectives: int) -> None:
    generator = np.random.default_rng(objectives)
    for count in (1, 2, 5, 12):
        values = generator.integers(0, 6, (count, objectives)).astype(float)  # small integers: many ties
        assert front(values).tolist() == slow_front(values)
        for reference in (np.zeros(objectives), np.full(objectives, 2.0), values.min(0)):
            assert hypervolume(values, reference) == pytest.approx(slow_hypervolume(values, reference), abs=1e-12)


def test_hypervolume_by_hand() -> None:
    staircase = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert hypervolume(staircase, np.zeros(2)) == 6.0  # columns of 3, 2 and 1
    assert hypervolume(staircase, np.array([1.0, 1.0])) == 1.0  # (2, 2) alone is above in both
    assert hypervolume(np.array([[2.0, 3.0, 4.0]]), np.zeros(3)) == 24.0
    two = np.array([[2.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert hypervolume(two, np.zeros(3)) == 5.0  # a 2 × 2 × 1 box, and the unit box on top of it
    assert hypervolume(staircase, np.full(2, 9.0)) == 0.0
    with pytest.raises(ValueError, match="up to three"):
        hypervolume(np.ones((2, 4)), np.zeros(4))


def test_hypervolume_is_the_share_of_random_points_that_are_dominated() -> None:
    generator = np.random.default_rng(0)
    values = generator.random((15, 3))
    drawn = generator.random((100_000, 3))
    share = (values[:, None] >= drawn[None]).all(2).any(0).mean()
    assert hypervolume(values, np.zeros(3)) == pytest.approx(share, abs=0.006)  # four standard errors


def test_a_dominated_point_adds_nothing_and_one_of_the_front_does() -> None:
    values = np.array([[0.8, 0.2], [0.2, 0.8]])
    before = hypervolume(values, np.zeros(2))
    assert hypervolume(np.vstack([values, [0.1, 0.1]]), np.zeros(2)) == before
    assert hypervolume(np.vstack([values, [0.5, 0.5]]), np.zeros(2)) == pytest.approx(before + 0.3**2)


def test_the_knee_lies_farthest_beyond_the_line_through_the_ends() -> None:
    bent = np.array([[0.0, 100.0], [9.0, 90.0], [10.0, 0.0]])
    assert knee(bent) == 1
    assert scaled(bent)[1].tolist() == [0.9, 0.9]
    straight = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    assert knee(straight) == 0  # all alike: the first
    assert knee(np.array([[0.7, -5.0]])) == 0


def test_within_takes_the_cheapest_that_loses_little() -> None:
    values = np.array([[0.80, -900.0], [0.799, -400.0], [0.797, -100.0], [0.70, -1.0]])
    assert [within(values, tolerance) for tolerance in (0.0, 0.0015, 0.005, 1.0)] == [0, 1, 2, 3]
    equal = np.array([[0.8, -1.0, 3.0], [0.9, -1.0, 3.0], [0.9, -1.0, 4.0]])
    assert within(equal, 0.5) == 2
    assert within(equal[:2], 0.5) == 1  # as cheap: the better one
