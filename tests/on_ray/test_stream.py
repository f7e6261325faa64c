"""Ray Data hands over every row once, in the order that was asked for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayrank.batch import SequenceBatch
from rayrank.config import ConfigError
from rayrank.learning.feed import Feed, part_groups
from rayrank.learning.spec import LearningSpec
from rayrank.on_ray import stream
from rayrank.on_ray.patience import Limit, ReadAhead
from rayrank.on_ray.stream import PLACE, GroupStream, StreamSpec, split_by_place
from rayrank.sources.groups import Group, Shards, join_labels

SOON = Limit("stream.wait_s", 10.0, "row group")
LEARNING = LearningSpec(lanes=4, batch_events=512)


def _train_rows(dataset: str, spec: StreamSpec, epoch: int, rank: int = 0, world: int = 1) -> list[int]:
    feed = Feed(GroupStream(Shards(dataset), spec), LEARNING, (rank, world))
    return [int(r) for step in feed.steps(epoch) for b in step for r in b.row_BT[b.part_BT == 1]]


def _reference_rows(dataset: str) -> list[int]:
    """Row numbers of all training targets, read without any of the code under test."""
    found: list[int] = []
    for file in sorted(Path(dataset, "shards").glob("*.parquet")):
        table = pq.read_table(file)
        rows, parts = (np.concatenate([np.zeros(0, int), *table[c].to_pylist()]) for c in ("row", "part"))
        found += rows[parts == 1].astype(int).tolist()
    return sorted(found)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_what_direct_reading_gives_in_the_same_order(small) -> None:
    through_ray = StreamSpec(through="ray", groups_per_task=3)
    direct = StreamSpec(through="direct")
    for epoch in range(2):
        assert _train_rows(small.dataset, through_ray, epoch) == _train_rows(small.dataset, direct, epoch)


def test_every_training_target_is_seen_once_by_one_rank(small) -> None:
    expected = _reference_rows(small.dataset)
    spec = StreamSpec(through="direct", cache_mb=0)
    for world in (1, 2, 3):
        seen = [r for rank in range(world) for r in _train_rows(small.dataset, spec, 0, rank, world)]
        assert len(set(seen)) == len(seen)
        assert sorted(seen) == expected


def test_epochs_differ_and_repeat(small) -> None:
    spec = StreamSpec(through="direct")
    first, again, second = (_train_rows(small.dataset, spec, epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second)


def test_kept_row_groups_are_those_read(small, monkeypatch) -> None:
    shards = Shards(small.dataset)
    kept = Feed(GroupStream(shards, StreamSpec(through="direct")), LEARNING, cache_mb=32)
    plain = Feed(GroupStream(shards, StreamSpec(through="direct")), LEARNING)
    for part in ("valid", "test", "valid"):
        for a, b in zip(kept.evaluated(part), plain.evaluated(part), strict=True):
            assert torch.equal(a.row_BT, b.row_BT)
            assert torch.equal(a.events.item_BT, b.events.item_BT)
    monkeypatch.setattr(stream, "read_here", None)  # nothing is read any more
    assert len(list(kept.evaluated("test"))) == len(part_groups(shards.manifest, "test"))
    with pytest.raises(TypeError):
        list(plain.evaluated("test"))


def test_teachers_in_the_loop_are_asked_for_steps_alone(small) -> None:
    shards, told = Shards(small.dataset), list[int]()

    def teach(batch: SequenceBatch) -> SequenceBatch:
        told.append(len(batch.row_BT))
        return replace(batch, soft_BT={"like": torch.zeros(batch.row_BT.shape)})

    feed = Feed(GroupStream(shards, StreamSpec(through="direct")), LEARNING, cache_mb=32, teach=teach)
    assert len(list(feed.evaluated("valid"))) == len(part_groups(shards.manifest, "valid"))
    assert told == []
    for epoch in (0, 1):  # what evaluation read does not stand for what steps want
        assert all(batch.soft_BT for step in feed.steps(epoch) for batch in step)
    assert len(told) == len(part_groups(shards.manifest, "train"))  # once each: they are kept


def test_blocks_that_ray_joined_or_split_become_row_groups_again() -> None:
    whole = [pa.table({"x": [1, 2, 3], PLACE: [0, 0, 1]}), pa.table({"x": [4, 5], PLACE: [1, 2]})]
    assert [t["x"].to_pylist() for t in split_by_place(whole, 3)] == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("places", [[1, 0], [0, 2], [0]])
def test_lost_or_moved_row_groups_are_an_error(places: list[int]) -> None:
    with pytest.raises(RuntimeError, match="row group"):
        list(split_by_place([pa.table({"x": places, PLACE: places})], 2 if len(places) < 3 else 3))


def test_labels_of_other_shards_are_refused() -> None:
    table = pa.table({"key": [1, 2], "item": [[7], [8]]})
    assert join_labels(table, pa.table({"key": [1, 2], "soft_like": [[0.5], [1.5]]}), "x").num_columns == 3
    with pytest.raises(ConfigError, match="run label again"):
        join_labels(table, pa.table({"key": [1, 3], "soft_like": [[0.5], [1.5]]}), "x")


@pytest.mark.parametrize("name", ["soft_like", "spread_like"])
@pytest.mark.parametrize("values", [[[0.5], []], [[0.5], [1.5, 2.5]]])
def test_labels_of_other_lengths_are_neither_padded_nor_cut(name: str, values: list[list[float]]) -> None:
    table = pa.table({"key": [1, 2], "item": [[7], [8]]})
    labels = {"key": [1, 2], "soft_like": [[0.5], [1.5]], "spread_best_like": [[], [0.1, 0.2]]}  # of requests: any
    assert join_labels(table, pa.table(labels), "x").num_rows == 2
    with pytest.raises(ConfigError, match=rf"column {name} must have one value for every event"):
        join_labels(table, pa.table(labels | {name: pa.array(values, pa.list_(pa.float32()))}), "x")


def test_read_ahead_keeps_order_errors_and_bound() -> None:
    fetched: list[int] = []

    def numbers():
        for i in range(50):
            fetched.append(i)
            yield i

    stream = ReadAhead(numbers(), 3, SOON)
    assert next(stream) == 0
    assert len(fetched) <= 6
    assert list(stream) == list(range(1, 50))
    assert all(b == a + 1 for a, b in pairwise(fetched))

    def broken():
        yield 1
        raise ValueError("no such file")

    stream = ReadAhead(broken(), 3, SOON)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="no such file"):
        next(stream)


def test_a_forgotten_read_ahead_ends_its_thread() -> None:
    import threading
    import time

    stream = ReadAhead(iter(range(100)), 2, SOON)
    assert any(t.name == "read-ahead" for t in threading.enumerate())
    del stream
    deadline = time.monotonic() + 5
    while any(t.name == "read-ahead" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(t.name == "read-ahead" for t in threading.enumerate())


def test_an_epoch_begun_early_is_the_same_epoch(small) -> None:
    def rows(feed: Feed, epoch: int) -> list[int]:
        return [int(r) for step in feed.steps(epoch) for b in step for r in b.row_BT[b.part_BT == 1]]

    spec = StreamSpec(through="direct")
    early, late = (Feed(GroupStream(Shards(small.dataset), spec), LEARNING, (0, 1)) for _ in range(2))
    early.begin(1)
    assert rows(early, 1) == rows(late, 1)
    early.begin(1)
    assert rows(early, 0) == rows(late, 0)  # another one than was begun
    assert rows(early, 1) == rows(late, 1)


def test_place_of_a_group_names_its_mirror(small) -> None:
    place = Shards(small.dataset, "/labels").place(Group(1, 0))
    assert place.labels == "/labels/part-00001.parquet"
    assert "shards/part-00001-" in place.file


@pytest.mark.parametrize("world", [2, 3])
def test_metrics_do_not_depend_on_the_number_of_workers(small, world: int) -> None:
    from rayrank.bundle import load_bundle
    from rayrank.learning.predict import Wanted, predict
    from rayrank.metrics.scores import merge
    from rayrank.metrics.summary import evaluate_scores

    bundle, shards = load_bundle(small.teacher), Shards(small.dataset)

    def found(world: int) -> dict[str, float]:
        feeds = [Feed(GroupStream(shards, StreamSpec(through="direct")), LEARNING, (r, world)) for r in range(world)]
        parts = [
            predict(bundle.model, bundle.catalogue(), f.evaluated("test"), Wanted("streaming", (3,))) for f in feeds
        ]
        assert sum(len(p.row) for p in parts) == sum(g.test for s in shards.manifest.shards for g in s.row_groups)
        return evaluate_scores(merge(parts), bundle.info.data_schema)

    assert found(world) == pytest.approx(found(1), abs=1e-9, nan_ok=True)
