"""Days appended to a dataset: the old shards stay byte for byte, and every target sees what one build would show."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrank.config import ConfigError, parse
from rayrank.pipeline.prepare import PrepareConfig, PrepareResult, prepare
from rayrank.pipeline.validate import ValidateConfig, validate
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset

START, DAY = 1_700_000_000, 86_400
SCHEMA = f"""
name: days
tasks:
  - {{kind: binary, name: click, column: click}}
  - {{kind: multiclass, name: age, column: age, classes: [young, old]}}
user_features: [{{kind: categorical, name: city, column: city}}]
item_features: [{{kind: numeric, name: price, column: price}}]
context_features: [{{kind: categorical, name: tab, column: tab}}, {{kind: categorical, name: hour, column: "@hour"}}]
text: "{{title}}"
split: {{kind: boundary, valid_from: {START + 2 * DAY}, test_from: {START + 3 * DAY}}}
"""


def quiet(_: str) -> None:
    pass


class Shop:
    """Five days of a log, a file each; users and items that come late, users that stay away for days."""

    def __init__(self, folder: Path) -> None:
        self.folder, rng = folder, random.Random(4)
        (folder / "dataset.yaml").write_text(SCHEMA)
        self.lines: dict[int, list[str]] = {}
        for day in range(5):
            times = sorted(rng.sample(range(1, DAY), 90))
            people = [u for u in range(8 + 2 * day) if (u + day) % 4]
            self.lines[day] = [
                f"u{rng.choice(people)},i{rng.randrange(15 + 3 * day)},{START + day * DAY + t},"
                f"{rng.randint(0, 1)},{rng.randrange(3)}"
                for t in times
            ]
        items = [f"i{i},Item {i},{i / 2}" for i in range(24)]  # the rest is known from the log alone
        (folder / "items.csv").write_text("\n".join(["item_id,title,price", *items]) + "\n")
        users = [f"u{u},{'young' if u % 3 else 'old'},c{u % 3}" for u in range(15)]
        (folder / "users.csv").write_text("\n".join(["user_id,age,city", *users]) + "\n")

    def config(self, days: range, out: str, **options: Any) -> dict[str, Any]:
        file = self.folder / f"days-{days.start}-{days.stop}.csv"
        if not file.exists():  # its time stamp counts in what was appended
            lines = [line for day in days for line in self.lines[day]]
            file.write_text("\n".join(["user_id,item_id,timestamp,click,tab", *lines]) + "\n")
        source = {"kind": "tables", "dataset": f"{self.folder}/dataset.yaml", "interactions": str(file)}
        source |= {"items": f"{self.folder}/items.csv", "users": f"{self.folder}/users.csv"}
        raw = {"source": source, "path": f"{self.folder}/{out}", "engine": "local", "rows_per_shard": 70}
        return raw | {"window": 6, "chunk": 5} | options

    def prepare(self, days: range, out: str, **options: Any) -> PrepareResult:
        return prepare(parse(PrepareConfig, self.config(days, out, **options)), quiet)


def told(dataset: Dataset) -> dict[Any, Any]:
    """(user id, time, item id) of every target -> all that a batch tells of it, by ids, newest history first."""
    items = ["?", *dataset.catalogue_table()["item_id"].to_pylist()]
    users = ["?", *dataset.users_table()["user_id"].to_pylist()]
    found: dict[Any, Any] = {}
    for place in dataset.groups():
        batch = collate(dataset.read_group(*place), dataset.schema)
        e, snapshot = batch.events, batch.snapshot().visible_before_BQ
        for b, t in batch.part_BT.nonzero().tolist():
            key = users[int(e.user_B[b])], int(e.time_BT[b, t]), items[int(e.item_BT[b, t])]
            assert key not in found, "a target is a target once"
            said = {"part": int(batch.part_BT[b, t]), "click": float(e.labels_BT["click"][b, t])}
            said |= {n: v[b, t].item() for n, v in batch.context.items()}
            said |= {n: v[b].item() for n, v in e.user_features.items()} | {"row": int(batch.row_BT[b, t])}
            for name, limit in (("streaming", int(e.request_BT[b, t])), ("snapshot", int(snapshot[b, t]))):
                seen = np.flatnonzero((e.request_BT[b] < limit).numpy())[::-1][:6]
                said[name] = [(items[int(e.item_BT[b, s])], int(e.time_BT[b, s]), float(e.labels_BT["click"][b, s]))
                              for s in seen]  # fmt: skip
            found[key] = said
    return found


def test_appended_days_tell_what_one_build_tells(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    whole = Dataset.open(shop.prepare(range(5), "whole").path)
    shop.prepare(range(3), "grown")
    before = {p.name: p.read_bytes() for p in (tmp_path / "grown/shards").iterdir()}
    assert len(before) == 4
    for day in (3, 4):
        result = shop.prepare(range(day, day + 1), "grown", append=True)
        assert result.written
    grown = Dataset.open(str(tmp_path / "grown"), verify=True)
    assert {n: (tmp_path / "grown/shards" / n).read_bytes() for n in before} == before, "old shards are not written"
    assert told(grown) == told(whole)
    counts, expected = grown.manifest.counts, whole.manifest.counts
    assert counts == expected
    assert len(grown.manifest.shards) > 8
    one, two = grown.catalogue_table().to_pylist(), whole.catalogue_table().to_pylist()
    assert {r["item_id"]: r for r in one} == {r["item_id"]: r for r in two}
    one, two = grown.users_table().to_pylist(), whole.users_table().to_pylist()
    assert {r["user_id"]: r for r in one} == {r["user_id"]: r for r in two}


def test_profiles_are_asked_once(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.prepare(range(1), "grown")
    shop.prepare(range(1, 5), "grown", append=True)
    dataset = Dataset.open(str(tmp_path / "grown"))
    rows = [r for g in dataset.groups() for r in dataset.read_group(*g).to_pylist()]
    asked = [r["user"] for r in rows if r["profile_age"] >= 0]
    assert len(asked) == len(set(asked))
    users = dataset.users_table().to_pylist()
    known = {n + 1 for n, u in enumerate(users) if u["train_count"] and u["profile_age"] >= 0}
    assert set(asked) == known


def test_the_same_day_is_not_appended_twice(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.prepare(range(3), "grown")
    first = shop.prepare(range(3, 4), "grown", append=True)
    again = shop.prepare(range(3, 4), "grown", append=True)
    assert (first.written, again.written) == (True, False)
    assert again.manifest == first.manifest
    assert not shop.prepare(range(3), "grown").written, "and the first days are still complete"
    assert not (tmp_path / "grown/_work").exists()
    options = shop.config(range(3), "grown")
    result = validate(parse(ValidateConfig, options), quiet)
    assert not [f for f in result.findings if f.where.startswith("dataset") and f.severity == "error"]


def test_an_append_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(tmp_path)
    made = shop.prepare(range(3), "grown").manifest
    import rayrank.sources.append as module

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", broken)
    with pytest.raises(ConfigError, match="must have room"):
        shop.prepare(range(3, 4), "grown", append=True)
    monkeypatch.undo()
    assert Dataset.open(str(tmp_path / "grown"), verify=True).manifest == made
    assert not (tmp_path / "grown/_work").exists()
    shop.prepare(range(3, 4), "grown", append=True)
    assert len(told(Dataset.open(str(tmp_path / "grown"), verify=True))) == 4 * 90


@pytest.mark.parametrize(
    ("schema", "options", "message"),
    [
        ({}, {"days": range(2, 3)}, "must be later than all the dataset has"),
        ({"tab, column: tab": "tab, column: tab, min_count: 2"}, {}, "must have the schema of the dataset"),
        ({}, {"window": 7}, "must be that of the dataset"),
    ],
)
def test_what_would_change_old_rows_is_refused(
    tmp_path: Path, schema: dict[str, str], options: dict[str, Any], message: str
) -> None:
    shop = Shop(tmp_path)
    made = shop.prepare(range(3), "grown").manifest
    for old, new in schema.items():
        (tmp_path / "dataset.yaml").write_text(SCHEMA.replace(old, new))
    days = options.pop("days", range(3, 4))
    with pytest.raises(ConfigError, match=message):
        shop.prepare(days, "grown", append=True, **options)
    assert Dataset.open(str(tmp_path / "grown"), verify=True).manifest == made


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("split: {kind: boundary", "split: {kind: time}\n# {", "under this split"),
        ('"@hour"', '"@gap"', "look back need the old events"),
        ("column: click}", "column: click, available_after_s: 60}", "arrive late need the old events"),
    ],
)
def test_schemas_that_cannot_grow(tmp_path: Path, old: str, new: str, message: str) -> None:
    shop = Shop(tmp_path)
    (tmp_path / "dataset.yaml").write_text(SCHEMA.replace(old, new))
    shop.prepare(range(3), "grown")
    with pytest.raises(ConfigError, match=message):
        shop.prepare(range(3, 4), "grown", append=True)


def test_earlier_clicks_that_are_told_again_cannot_be_appended(tmp_path: Path) -> None:
    from tests.published_layouts import mind

    split = {"kind": "boundary", "valid_from": 1_573_500_000, "test_from": 1_573_600_000}
    raw = {"source": {"kind": "mind", "path": str(mind(tmp_path / "raw")), "split": split}, "engine": "local"}
    raw["path"] = str(tmp_path / "out")
    prepare(parse(PrepareConfig, raw), quiet)
    (tmp_path / "raw" / "behaviors.tsv").touch()
    with pytest.raises(ConfigError, match="earlier clicks of a line"):
        prepare(parse(PrepareConfig, raw | {"append": True, "rows_per_shard": 7}), quiet)


def test_new_users_in_buckets_that_had_nobody(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.lines[0] = [f"u{u},i{i},{START + 10 * u + i},{i % 2},0" for u in (0, 1) for i in range(4)]
    shop.lines[1] = [f"u{u},i{i},{START + 2 * DAY + 10 * u + i},{i % 2},0" for u in range(2, 14) for i in range(4)]
    shop.prepare(range(1), "grown", rows_per_shard=1)
    first = Dataset.open(str(tmp_path / "grown")).manifest
    assert any(not s.row_groups for s in first.shards), "some bucket has nobody"
    shop.prepare(range(1, 2), "grown", append=True, rows_per_shard=1)
    grown = Dataset.open(str(tmp_path / "grown"), verify=True)
    assert {s.bucket for s in grown.manifest.shards if s.row_groups} > {s.bucket for s in first.shards if s.row_groups}
    assert told(grown) == told(Dataset.open(shop.prepare(range(2), "whole").path))


def test_there_must_be_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no dataset"):
        Shop(tmp_path).prepare(range(1), "grown", append=True)
    assert not (tmp_path / "grown").exists()
