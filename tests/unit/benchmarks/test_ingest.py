"""The benchmark of ingest: what it times is compared before, through the reading that it times, cold and warm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import ingest
from rayrank.batch import SequenceBatch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return ingest.made(tmp_path_factory.mktemp("ingest"), 10_000)


def test_equal_batches_pass(dataset: str) -> None:
    ingest.compare(dataset, "direct")


@pytest.mark.parametrize(("wrong", "arm"), [(1, "cold"), (2, "warm")])
def test_one_changed_value_in_either_pass_is_found(
    dataset: str, monkeypatch: pytest.MonkeyPatch, wrong: int, arm: str
) -> None:
    class Spoiled(ingest.Feed):
        passes = 0

        def steps(self, epoch: int, start: int = 0) -> Iterator[list[SequenceBatch]]:
            self.passes += 1
            for number, step in enumerate(super().steps(epoch, start)):
                if self.passes == wrong and number == 0:
                    step[0].events.time_BT[0, -1] += 1
                yield step

    monkeypatch.setattr(ingest, "Feed", Spoiled)
    with pytest.raises(AssertionError, match=f"the {arm} batches read through direct differ"):
        ingest.run(dataset, 1, "direct")


def test_the_reading_that_is_timed_is_the_one_compared(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def stream(_shards: Any, spec: Any) -> Any:
        asked.append(spec.through)
        raise RuntimeError("enough")

    monkeypatch.setattr(ingest, "GroupStream", stream)
    with pytest.raises(RuntimeError, match="enough"):
        ingest.run(dataset, 1, "ray")
    assert asked == ["ray"]


def test_rows_of_the_table_hold_the_claims(dataset: str) -> None:
    claims = ingest.run(dataset, 2, "direct")
    rows = {row.arm[-1]: row.values for row in ingest.rows_of(claims, 10_000, "direct")}
    assert list(rows) == list(ingest.ARMS)
    assert all(set(values) == set(ingest.TABLE.columns) for values in rows.values())
    assert rows["cold"]["to pyarrow"] == claims["cold_vs_pyarrow"]
    assert rows["cold"]["lowest"] <= rows["cold"]["to pyarrow"] <= rows["cold"]["highest"]
    assert rows["cold"]["to DataLoader"] == claims["vs_dataloader"]


def test_the_claims_are_ratios_within_a_round(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 2.0, 0.5, 8.0, *(1.0, 4.0, 1.0, 4.0), *(3.0, 3.0, 1.0, 30.0)])
    monkeypatch.setattr(ingest, "compare", lambda *_: None)
    monkeypatch.setattr(ingest, "seconds", lambda _work: next(seconds))
    found = ingest.run(dataset, 3, "direct")
    assert (found["cold_vs_pyarrow"], found["warm_vs_pyarrow"], found["vs_dataloader"]) == (0.5, 2.0, 4.0)
    assert found["cold_vs_pyarrow_range"] == [0.25, 1.0]
