"""The dataset schema: cross-references, task kinds, and a fingerprint that follows the meaning."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rayrank.config import ConfigError, load, parse, to_yaml
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask, TimeSplit, UserSplit

LIKE = {"kind": "binary", "name": "like", "column": "rating", "at_least": 4}
RATING = {"kind": "regression", "name": "rating", "column": "rating", "low": 1, "high": 5}
AGE = {"kind": "multiclass", "name": "age", "column": "age", "classes": ["1", "18"]}
NEXT = {"kind": "retrieval", "name": "next", "positive": "like"}


def schema(**changes: object) -> DatasetSchema:
    return parse(DatasetSchema, {"name": "tiny", "tasks": [RATING, LIKE, AGE, NEXT], **changes})


def test_tasks_come_by_kind_in_order() -> None:
    found = schema()
    assert [task.name for task in found.event_tasks] == ["rating", "like"]
    assert found.of_kind(BinaryTask)[0].at_least == 4.0
    assert [task.name for task in found.of_kind(RegressionTask)] == ["rating"]
    assert found.split == UserSplit()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"tasks": [LIKE, {**RATING, "name": "like"}]}, "unique"),
        ({"tasks": [RATING, NEXT]}, "is no binary task"),
        ({"tasks": [RATING, {**NEXT, "positive": "rating"}]}, "is no binary task"),
        ({"item_features": [{"kind": "numeric", "name": "n", "column": "a"}] * 2}, "unique"),
        ({"split": {"kind": "time", "valid": 0.9}}, "less than 0.5"),
        ({"tasks": [{**AGE, "classes": ["only"]}]}, "at least 2"),
        ({"time_unit": "minutes"}, "'s', 'ms', 'us', 'ns' or 'auto'"),
    ],
)
def test_contradictions_are_refused(changes: dict, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        schema(**changes)


def test_fingerprint_follows_the_meaning() -> None:
    base = schema()
    assert base.fingerprint() == schema(split={"kind": "user", "valid": 0.1}).fingerprint()
    different = [schema(name="other"), schema(split={"kind": "time"}), schema(tasks=[LIKE, RATING, AGE, NEXT])]
    prints = {base.fingerprint(), *(other.fingerprint() for other in different)}
    assert len(prints) == 4
    assert all(len(text) == 64 for text in prints)


def test_yaml_round_trip_keeps_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text(to_yaml(schema(split={"kind": "time"})))
    again = load(DatasetSchema, file)
    assert again.split == TimeSplit()
    assert again.fingerprint() == schema(split={"kind": "time"}).fingerprint()


def test_keys_left_at_their_default_do_not_change_the_fingerprint() -> None:
    """A key that a later version adds and nobody sets must not make datasets and bundles strangers."""
    raw = {"name": "x", "tasks": [{"kind": "binary", "name": "a", "column": "a"}]}
    plain = parse(DatasetSchema, raw).fingerprint()
    text = '{"name":"x","tasks":[{"column":"a","kind":"binary","name":"a"}]}'
    assert plain == hashlib.sha256(text.encode()).hexdigest(), "what a schema without the newer keys hashes to"
    written = raw | {"history_lag_s": 0, "history": {"show": "all"}, "split": {"kind": "user", "valid": 0.1}}
    assert parse(DatasetSchema, written).fingerprint() == plain
    assert parse(DatasetSchema, raw | {"history_lag_s": 1}).fingerprint() != plain


def test_the_kind_counts_in_the_fingerprint() -> None:
    binary, regression = (
        parse(DatasetSchema, {"name": "x", "tasks": [{"kind": k, "name": "a", "column": "a"}]}).fingerprint()
        for k in ("binary", "regression")
    )
    assert binary != regression
