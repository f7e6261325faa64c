"""One of a thing is not several."""

from __future__ import annotations

import pytest

from rayrank.pipeline.prepare import PrepareResult
from rayrank.sources.manifest import Counts, Manifest
from rayrank.wording import counted, meant, near_id


@pytest.mark.parametrize(("number", "said"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1234, "1,234 files")])
def test_counted(number: int, said: str) -> None:
    assert counted(number, "file") == said
    assert counted(number, "process", "es").endswith("process" if number == 1 else "processes")


def test_what_may_have_been_meant() -> None:
    assert meant("ratings", ["like", "rating"]) == " (did you mean 'rating'?)"
    assert meant("moon", ["like", "rating"]) == ""
    assert meant("like", [f"name{n}" for n in range(5000)] + ["likes"]) == "", "too many to compare"
    known = {"i17": 1, "Abc": 2, "42": 3}
    tries = {"I17": "i17", " i17 ": "i17", "i0017": "i17", "042": "42", "abc": "", "i17": "", "x": ""}
    for given, found in tries.items():
        assert near_id(given, known) == (f" (did you mean '{found}'?)" if found else "")


def test_sampled_negatives_are_told_apart_from_what_was_logged() -> None:
    numbers = {"events": 100_000, "users": 9, "items": 1, "active_users": 9, "train": 1, "valid": 1, "test": 1}
    counts = Counts(**numbers, negatives=80_000)
    name = type("Schema", (), {"name": "clicks"})
    manifest = Manifest.model_construct(
        counts=counts, dataset_schema=name, shards=(1,), data_fingerprint="ab", oracle={}
    )
    lines = PrepareResult("d", manifest, True).summary()
    assert lines[1] == "100,000 events (80,000 of them sampled negatives) of 9 users on 1 item, 1 shard"
