"""The whole build on tiny data: parts, features, files, verification and running again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayrank.batch import FAR
from rayrank.config import ConfigError
from rayrank.schema import TEST, TRAIN, VALID
from rayrank.sources.build import build, run_here
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec


def _spec(movielens: Path, out: Path, **options: object) -> BuildSpec:
    source = {"kind": "movielens", "path": str(movielens)} | options.pop("source", {})  # type: ignore[operator]
    return BuildSpec(source=source, path=str(out), **options)  # type: ignore[arg-type]


def _build(spec: BuildSpec) -> Dataset:
    build(spec, run_here, lambda _: None)
    return Dataset.open(spec.path, verify=True)


def _by_row(dataset: Dataset) -> dict[int, dict[str, object]]:
    """Every target once, read back through collate: row -> what the batch says of it."""
    found: dict[int, dict[str, object]] = {}
    for shard, group in dataset.groups():
        batch = collate(dataset.read_group(shard, group), dataset.schema)
        for b, t in batch.part_BT.nonzero().tolist():
            row = int(batch.row_BT[b, t])
            assert row not in found, "a target is a target once"
            found[row] = {
                "user": int(batch.events.user_B[b]),
                "item": int(batch.events.item_BT[b, t]),
                "part": int(batch.part_BT[b, t]),
                "request": int(batch.events.request_BT[b, t]),
                "like": float(batch.events.labels_BT["like"][b, t]),
                "rating": float(batch.events.labels_BT["rating"][b, t]),
                "time": int(batch.events.time_BT[b, t]),
            }
    return found


def test_user_split_end_to_end(movielens: Path, tmp_path: Path) -> None:
    rows = _by_row(_build(_spec(movielens, tmp_path / "out")))
    # user 1 by (time, file order): rows 2, 0, 1; user 2: 4, 3; user 3: 6, 5, 8, 7
    parts = {2: TRAIN, 0: VALID, 1: TEST, 4: VALID, 3: TEST, 6: TRAIN, 5: TRAIN, 8: VALID, 7: TEST}
    assert {r: v["part"] for r, v in rows.items()} == parts
    assert rows[1] == {"user": 1, "item": 2, "part": 3, "request": 1, "like": 0.0, "rating": 3.0, "time": 1_000_000_100}
    assert rows[0]["request"] == 1, "equal timestamps are one request"


def test_time_split_end_to_end(movielens: Path, tmp_path: Path) -> None:
    spec = _spec(movielens, tmp_path / "out", source={"split": {"kind": "time"}}, rows_per_shard=3)
    rows = _by_row(_build(spec))
    # by time: 2 (50), 6, 5, 8, 7 (90), 0 and 1 (100), 4 (200), 3 (300); ⌈0.9⌉ = 1 each for valid and test
    assert {r: v["part"] for r, v in rows.items()} == dict.fromkeys([2, 6, 5, 8, 7, 0, 1], 1) | {4: VALID, 3: TEST}


def test_features_are_fitted_on_training_entities(movielens: Path, tmp_path: Path) -> None:
    dataset = _build(_spec(movielens, tmp_path / "out", source={"hidden_share": 0.01}))  # nobody is hidden
    state = dataset.manifest.features
    # training events: user 1 on film 30; user 3 on films 10 and 20
    assert state.users.categories["gender"] == ("F", "M")
    assert state.users.categories["age"] == ("1", "25")
    assert state.items.categories["genres"] == ("Comedy", "Crime", "Drama", "Romance")
    assert state.items.scales["year"].mean == 1998.0
    users = dataset.users_table().to_pydict()
    assert users["gender"] == [1, 2, 2, 1]
    assert users["age"] == [1, 0, 2, 2], "an age no trained user has is unknown"
    assert users["train_count"] == [1, 0, 2, 0]
    assert users["profile_age"] == [0, 6, 2, 2]
    items = dataset.catalogue_table().to_pydict()
    assert items["genres"] == [[1, 4], [2], [3], [1]]
    assert items["train_count"] == [1, 1, 1, 0]
    assert items["train_sum_like"] == [1, 0, 1, 0]
    assert items["train_sum_rating"] == [5, 2, 4, 0]
    catalogue = dataset.catalogue()
    assert catalogue.count_N.tolist() == [0, 1, 0, 1, 0], "likes in training, unknown item first"
    assert catalogue.features["genres"].shape == (5, 6)
    assert catalogue.features["genres"][1].tolist() == [1, 4, 0, 0, 0, 0]


def test_the_profiles_of_hidden_users_are_nobodys_input(movielens: Path, tmp_path: Path) -> None:
    """Users 1 and 3 are hidden at a share of 0.2: gender and age become unknown, in the table, the shards, the fit."""
    dataset = _build(_spec(movielens, tmp_path / "out"))
    users = dataset.users_table().to_pydict()
    assert users["user_id"] == ["1", "2", "3", "4"]
    assert users["hidden_gender"] == users["hidden_age"] == [True, False, True, False]
    assert users["gender"] == users["age"] == [0, 0, 0, 0], "only hidden users were trained: nothing is known of others"
    assert dataset.manifest.features.users.categories == {"gender": (), "age": (), "occupation": ("10", "15")}
    assert users["occupation"] == [1, 0, 2, 0], "what is no profile label stays"
    assert users["profile_gender"] == [0, 1, 1, 0], "the label itself stays, for evaluation"
    ((shard, group),) = dataset.groups()
    batch = collate(dataset.read_group(shard, group), dataset.schema)
    for name in ("gender", "age"):
        assert batch.events.user_features[name].tolist() == [0, 0, 0]
    assert batch.events.user_features["occupation"].tolist() == [0, 1, 2]


def test_every_hidden_user_and_no_other_is_unknown(tmp_path: Path) -> None:
    source = {"kind": "synthetic", "num_users": 300, "num_rows": 6000, "num_items": 200}
    dataset = _build(BuildSpec(source=source, path=str(tmp_path / "out")))  # type: ignore[arg-type]
    users = dataset.users_table()
    hidden, feature = users["hidden_age_group"].to_numpy(), users["age_group"].to_numpy()
    assert 30 < hidden.sum() < 90
    assert (feature[hidden] == 0).all()
    assert (feature[~hidden] > 0).all()
    assert (users["profile_age_group"].to_numpy() >= 0).all()
    for place in dataset.groups():
        batch = collate(dataset.read_group(*place), dataset.schema)
        unknown = batch.events.user_features["age_group"] == 0
        assert torch.equal(unknown, batch.profile_hidden_B["age_group"])


def test_profiles_are_asked_once_and_padding_is_inert(movielens: Path, tmp_path: Path) -> None:
    dataset = _build(_spec(movielens, tmp_path / "out"))
    ((shard, group),) = dataset.groups()
    batch = collate(dataset.read_group(shard, group), dataset.schema)
    assert batch.events.shape == (3, 4)
    assert batch.events.user_B.tolist() == [2, 1, 3], "sorted by length"
    assert batch.profile_B["gender"].tolist() == [-1, 0, 1], "user 2 has no training event"
    assert batch.valid_from_B.tolist() == [0, 1, 2]
    assert batch.test_from_B.tolist() == [1, 1, 3]
    padding = batch.row_BT == -1
    assert padding.sum() == 3
    assert (batch.events.item_BT[padding] == 0).all()
    assert (batch.events.request_BT[padding] == FAR).all()
    assert batch.events.labels_BT["like"][padding].isnan().all()
    assert batch.events.history_BT is not None
    assert not batch.events.history_BT[padding].any()
    assert batch.events.history_BT[~padding].all()
    assert batch.events.key_B.unique().numel() == 3


def test_chunks_overlap_and_targets_count_once(movielens: Path, tmp_path: Path) -> None:
    dataset = _build(_spec(movielens, tmp_path / "out", window=1, chunk=1))
    rows = _by_row(dataset)
    assert sorted(rows) == list(range(9))
    table = dataset.read_group(0, 0).to_pylist() + [
        row for s, g in dataset.groups()[1:] for row in dataset.read_group(s, g).to_pylist()
    ]
    last = next(r for r in table if r["user"] == 3 and TEST in r["part"])
    assert last["row"] == [8, 7]
    assert last["part"] == [0, TEST]
    asked = [r for r in table if r["profile_gender"] >= 0]
    assert sorted(r["user"] for r in asked) == [1, 3], "only the chunk with the last training event asks"


def test_teacher_labels_must_belong_to_the_rows(movielens: Path, tmp_path: Path) -> None:
    dataset = _build(_spec(movielens, tmp_path / "out"))
    table = dataset.read_group(0, 0)
    labels = table.select(["key"]).append_column("soft_like", table["label_rating"])
    batch = collate(table, dataset.schema, labels)
    assert torch.equal(batch.soft_BT["like"].nan_to_num(), batch.events.labels_BT["rating"].nan_to_num())
    with pytest.raises(ConfigError, match="in order"):
        collate(table, dataset.schema, labels.take([1, 0, 2]))


@pytest.mark.parametrize("moved", [False, True])
def test_values_of_targets_must_not_be_those_of_others(movielens: Path, tmp_path: Path, moved: bool) -> None:
    dataset = _build(_spec(movielens, tmp_path / "out"))
    table = dataset.read_group(0, 0)
    counts = [2 * sum(part == TRAIN for part in row) for row in table["part"].to_pylist()]
    if moved:  # as many in all
        most = counts.index(max(counts))
        counts[most], counts[most - 1] = counts[most] - 1, counts[most - 1] + 1
    items = pa.array([[1] * n for n in counts], pa.list_(pa.int32()))
    columns = {"key": table["key"], "soft_like": table["label_rating"], "unseen_item": items, "unseen_like": items}
    labels = pa.table(columns)
    if not moved:
        assert collate(table, dataset.schema, labels).unseen_item_BTS.shape[-1] == 2  # type: ignore[union-attr]
        return
    with pytest.raises(ConfigError, match="as many values as the others"):
        collate(table, dataset.schema, labels)


def test_bytes_do_not_depend_on_parts_or_order_of_work(movielens: Path, tmp_path: Path) -> None:
    one = _build(_spec(movielens, tmp_path / "one", rows_per_shard=4))

    def backwards(spec, tasks):  # type: ignore[no-untyped-def]
        return list(reversed(list(run_here(spec, list(reversed(tasks))))))

    other_spec = _spec(movielens, tmp_path / "two", rows_per_shard=4, source={"part_bytes": 1})
    build(other_spec, backwards, lambda _: None)
    two = Dataset.open(other_spec.path)
    assert one.manifest.data_fingerprint == two.manifest.data_fingerprint
    for a, b in zip(one.manifest.shards, two.manifest.shards, strict=True):
        assert a.model_copy(update={"file": b.file}) == b, "part_bytes is in the names alone"
        assert (tmp_path / "one" / a.file).read_bytes() == (tmp_path / "two" / b.file).read_bytes()


def test_an_unchanged_dataset_is_left_alone_and_a_changed_one_rebuilt(movielens: Path, tmp_path: Path) -> None:
    spec = _spec(movielens, tmp_path / "out")
    first, written = build(spec, run_here, lambda _: None)
    assert written
    again, written = build(spec, run_here, lambda _: None)
    assert not written
    assert again == first
    (movielens / "ratings.dat").write_text("1::10::5::1000000100\n" * 3 + "2::10::4::1000000300\n" * 3)
    changed, written = build(spec, run_here, lambda _: None)
    assert written
    assert changed.data_fingerprint != first.data_fingerprint
    assert changed.counts.events == 6


def test_leftovers_of_an_interrupted_run_are_removed(movielens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "_work").mkdir(parents=True)
    (out / "shards").mkdir()
    (out / "shards" / "part-00099.parquet").write_bytes(b"half")
    made = _build(_spec(movielens, out)).manifest
    assert sorted(p.name for p in out.iterdir()) == sorted(["manifest.json", "shards", *made.tables])
    assert [f"shards/{p.name}" for p in (out / "shards").iterdir()] == [s.file for s in made.shards]


def test_a_folder_with_something_else_is_refused(movielens: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "shards").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no dataset build left"):
        _build(_spec(movielens, tmp_path / "out"))


def test_broken_input_does_not_cost_the_older_dataset(movielens: Path, tmp_path: Path) -> None:
    spec = _spec(movielens, tmp_path / "out")
    before = _build(spec).manifest
    (movielens / "ratings.dat").write_text("")
    with pytest.raises(ConfigError, match="interactions must not be empty"):
        _build(spec)
    assert Dataset.open(spec.path, verify=True).manifest == before


def test_opening_checks_format_fingerprints_and_files(movielens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"manifest.json is missing"):
        Dataset.open(str(out))
    _build(_spec(movielens, out))
    manifest = (out / "manifest.json").read_text()
    for change, rule in (
        ({"format": 99}, "reads dataset format 1"),
        ({"fingerprint": "x"}, "that of the schema"),
        ({"data_fingerprint": "x"}, "that of the files"),
    ):
        (out / "manifest.json").write_text(json.dumps(json.loads(manifest) | change))
        with pytest.raises(ConfigError, match=rule):
            Dataset.open(str(out))
    (out / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="must be JSON"):
        Dataset.open(str(out))
    (out / "manifest.json").write_text(manifest)
    table = out / Dataset.open(str(out)).manifest.table_file("users")
    table.write_bytes(table.read_bytes() + b" ")
    Dataset.open(str(out))
    with pytest.raises(ConfigError, match="checksum"):
        Dataset.open(str(out), verify=True)
    table.unlink()
    with pytest.raises(ConfigError, match="missing"):
        Dataset.open(str(out))


def test_row_groups_in_the_manifest_are_those_of_the_files(movielens: Path, tmp_path: Path) -> None:
    dataset = _build(_spec(movielens, tmp_path / "out", max_sequences=2))
    (shard,) = dataset.manifest.shards
    file = pq.ParquetFile(tmp_path / "out" / shard.file)
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [2, 1]
    assert [g.sequences for g in shard.row_groups] == [2, 1]
    assert [g.max_length for g in shard.row_groups] == [3, 4]
    totals = dataset.manifest.counts
    assert [sum(getattr(g, p) for g in shard.row_groups) for p in ("train", "valid", "test")] == [3, 3, 3]
    assert (totals.train, totals.valid, totals.test, totals.events) == (3, 3, 3, 9)
    assert (totals.users, totals.items, totals.active_users) == (4, 4, 3)
    assert math.isclose(sum(g.events for g in shard.row_groups), 9)
