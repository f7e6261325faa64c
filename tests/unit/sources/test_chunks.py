"""Chunk borders by hand; every target exactly once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrank.schema import TEST, TRAIN, VALID
from rayrank.sources.chunks import cut, last_train, row_groups


def _parts(train: int, valid: int, test: int) -> np.ndarray:
    return np.array([TRAIN] * train + [VALID] * valid + [TEST] * test, dtype=np.int8)


def test_a_short_sequence_is_one_chunk() -> None:
    (chunk,) = cut(_parts(4, 1, 1), np.ones(6, bool), window=3, targets=3)
    assert chunk.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert (chunk.first_target, chunk.end_target) == (0, 6)


def test_later_chunks_repeat_the_window() -> None:
    first, second, third = cut(_parts(11, 0, 0), np.ones(11, bool), window=3, targets=3)
    assert first.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert second.positions.tolist() == [3, 4, 5, 6, 7, 8]
    assert (second.first_target, second.end_target) == (6, 9)
    assert third.positions.tolist() == [6, 7, 8, 9, 10]


def test_a_snapshot_keeps_its_window_in_every_chunk_of_the_part() -> None:
    # test begins at position 5; the last chunk starts at 12 and needs 3..4 too, what a snapshot at 5 may see
    chunks = cut(_parts(5, 0, 9), np.ones(14, bool), window=2, targets=4)
    assert [c.first_target for c in chunks] == [0, 6, 10]
    assert chunks[1].positions.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert chunks[2].positions.tolist() == [3, 4, 8, 9, 10, 11, 12, 13]


def test_the_window_counts_and_keeps_visible_events_only() -> None:
    history = np.array([1, 0, 1, 0, 1, 0, 1, 0], bool)
    chunks = cut(_parts(8, 0, 0), history, window=2, targets=2)
    assert chunks[1].positions.tolist() == [0, 2, 4, 5]
    assert chunks[2].positions.tolist() == [2, 4, 6, 7]


def test_the_last_training_event_ignores_negatives() -> None:
    assert last_train(_parts(3, 1, 0), np.array([1, 1, 0, 1], bool)) == 1
    assert last_train(_parts(0, 1, 1), np.ones(2, bool)) == -1


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 80), window=st.integers(1, 9), targets=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_event_is_a_target_once_and_sees_its_window(n: int, window: int, targets: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    train = int(rng.integers(n + 1))
    part, history = _parts(train, (n - train) // 2, n - train - (n - train) // 2), rng.random(n) < 0.7
    seen: list[int] = []
    for chunk in cut(part, history, window, targets):
        assert (np.diff(chunk.positions) > 0).all()
        mine = [p for p in chunk.positions if chunk.first_target <= p < chunk.end_target]
        seen += mine
        for p in mine:
            before = [q for q in range(p) if history[q]][-window:]
            assert set(before) <= set(chunk.positions.tolist())
            start = int(np.argmax(part == part[p]))
            if part[p] in (VALID, TEST):
                assert {q for q in range(start) if history[q]} & set(chunk.positions.tolist()) >= set(
                    [q for q in range(start) if history[q]][-window:]
                )
    assert seen == list(range(n))


def test_row_groups_stay_within_the_budget() -> None:
    lengths = np.array([1, 1, 2, 3, 9, 40])
    assert row_groups(lengths, max_events=6, max_sequences=64) == [(0, 3), (3, 4), (4, 5), (5, 6)]
    assert row_groups(lengths, max_events=1000, max_sequences=4) == [(0, 4), (4, 6)]
    assert row_groups(np.array([], dtype=int), 10, 10) == []
