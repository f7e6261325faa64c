"""The sample checks look at: everything while it is small, whole users when it is not, the same ones every time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrank.sources.hashing import text_hash
from rayrank.sources.row_sample import RowSample, hashed


def _block(users: list[int], first: int) -> dict[str, np.ndarray]:
    hashes = text_hash([f"u{u}" for u in users])
    return {"user": hashes, "row": np.arange(first, first + len(users))}


def test_small_data_is_kept_whole() -> None:
    sample = RowSample(cap=100)
    sample.add(_block(list(range(40)), 0))
    sample.add(_block(list(range(60)), 40))
    assert sample.level == 0
    assert sample.columns()["row"].tolist() == list(range(100))


def test_large_data_keeps_all_rows_of_some_users() -> None:
    sample = RowSample(cap=300)
    for k in range(20):
        sample.add(_block(list(range(100)), 100 * k))
    found = sample.columns()
    assert sample.level >= 2
    assert 100 <= len(found["row"]) <= 300
    users, counts = np.unique(found["user"], return_counts=True)
    assert set(counts) == {20}, "each of them with every row"
    again = RowSample(cap=300)
    for k in range(10):
        again.add({n: np.concatenate([_block(list(range(100)), 100 * (2 * k + i))[n] for i in (0, 1)]) for n in found})
    assert np.array_equal(np.unique(again.columns()["user"]), users), "however the rows arrive"


def test_equal_texts_have_equal_hashes_in_every_part() -> None:
    one, two = (pa.chunked_array([cells]) for cells in (["a", None, "b"], ["b", "a"]))
    for lasting in (False, True):
        first, second = hashed(one, lasting), hashed(two, lasting)
        assert first[1] == 0
        assert first[[2, 0]].tolist() == second.tolist()
        assert first[0] != first[2]
    assert hashed(two, lasting=True).tolist() == text_hash(["b", "a"]).tolist()
