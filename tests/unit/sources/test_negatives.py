"""Sampled negatives: unseen, never shown, deterministic, and through the whole build."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask
from rayrank.sources.build import build, run_here
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.negatives import Drawing, add_negatives, repeats
from rayrank.sources.spec import BuildSpec

SCHEMA = DatasetSchema(
    name="x",
    tasks=(BinaryTask(name="click", column="*"), RegressionTask(name="stars", column="s")),
    sampled_negatives=2,
)


def known(items: int, share: float) -> Drawing:
    return Drawing(np.full(items, share), "known")


def _events(items: list[int], rows: list[int]) -> pa.Table:
    n = len(items)
    return pa.table(
        {
            "item": pa.array(items, pa.int32()),
            "request": pa.array(range(n), pa.int32()),
            "time": list(range(n)),
            "row": rows,
            "part": pa.array([1] * n, pa.int8()),
            "history": [True] * n,
            "label_click": pa.array([1.0] * n, pa.float32()),
            "label_stars": pa.array([3.0] * n, pa.float32()),
        }
    )


def test_negatives_follow_their_event_and_are_unseen() -> None:
    events, starts = _events([1, 2, 5, 1], [0, 1, 2, 3]), np.array([0, 3, 4])
    widened, new_starts = add_negatives(events, starts, SCHEMA, known(9, 1 / 9), first_row=100)
    rows = widened.to_pylist()
    assert new_starts.tolist() == [0, 9, 12]
    assert [r["history"] for r in rows] == [True, False, False] * 4
    assert [r["request"] for r in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [r["label_click"] for r in rows] == [1, 0, 0] * 4
    assert [r["row"] for r in rows][:6] == [0, 100, 101, 1, 102, 103]
    for user, seen in ((rows[:9], {1, 2, 5}), (rows[9:], {1})):
        negatives = [r["item"] for r in user if not r["history"]]
        assert not seen & set(negatives)
        assert all(1 <= item <= 9 for item in negatives)
    for event in range(4):
        pair = [r["item"] for r in rows[3 * event + 1 : 3 * event + 3]]
        assert len(set(pair)) == 2, "two different items per event"
    assert np.isnan([r["label_stars"] for r in rows if not r["history"]]).all()


def test_the_draw_depends_on_the_row_alone() -> None:
    one, _ = add_negatives(_events([1, 2], [7, 8]), np.array([0, 2]), SCHEMA, known(50, 0.02), 100)
    two, _ = add_negatives(_events([2], [8]), np.array([0, 1]), SCHEMA, known(50, 0.02), 100)
    assert one["item"].to_pylist()[3:] == two["item"].to_pylist()


def test_every_unseen_item_is_about_equally_likely() -> None:
    n = 4000
    widened, _ = add_negatives(_events([1] * n, list(range(n))), np.arange(n + 1), SCHEMA, known(9, 1 / 9), n)
    counts = np.bincount(widened.filter(pa.compute.invert(widened["history"]))["item"].to_numpy(), minlength=10)
    assert counts[:2].tolist() == [0, 0]
    assert counts.sum() == 2 * n
    assert abs(counts[2:] / 1000 - 1).max() < 0.15


def test_a_user_who_knows_everything_gets_fewer() -> None:
    widened, starts = add_negatives(_events([1, 2], [0, 1]), np.array([0, 2]), SCHEMA, known(3, 1 / 3), 100)
    assert starts.tolist() == [0, 4]
    assert [r["item"] for r in widened.to_pylist() if not r["history"]] == [3, 3]
    nothing, starts = add_negatives(_events([1, 2], [0, 1]), np.array([0, 2]), SCHEMA, known(2, 0.5), 100)
    assert nothing.num_rows == 2


@pytest.mark.parametrize("avoid", ["known", "request"])
def test_what_negatives_avoid_knows_nothing_of_later_parts(avoid: Literal["known", "request"]) -> None:
    """One user, two requests a part; of 8 items 6 are clicked."""
    events = _events([1, 2, 3, 4, 5, 6], list(range(6)))
    parts = np.array([1, 1, 2, 2, 3, 3], np.int8)
    events = events.set_column(events.column_names.index("part"), "part", pa.array(parts))
    found: dict[int, set[int]] = {}
    for seed in range(200):
        rows = events.set_column(events.column_names.index("row"), "row", pa.array(np.arange(6) + 6 * seed))
        drawing = Drawing(np.full(8, 1 / 8), avoid)
        widened, _ = add_negatives(rows, np.array([0, 6]), SCHEMA, drawing, 10_000)
        for row in widened.to_pylist():
            if not row["history"]:
                found.setdefault(row["request"], set()).add(row["item"])
    every = set(range(1, 9))
    if avoid == "known":
        assert found == {r: every - set(range(1, 3 + 2 * (r // 2))) for r in range(6)}
    else:
        assert found == {r: every - {r + 1} for r in range(6)}


def test_repeats_are_items_of_earlier_requests() -> None:
    events, starts = _events([1, 2, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]), np.array([0, 4, 6])
    assert repeats(events, starts) == 3, "twice 1 of the first user, once 2 of the second"
    one = events.set_column(events.column_names.index("request"), "request", pa.array([0] * 6, pa.int32()))
    assert repeats(one, starts) == 0


@pytest.mark.parametrize("again", [False, True], ids=["no item twice", "items come back"])
def test_on_noise_the_past_tells_nothing_of_clicks(again: bool, tmp_path: Path) -> None:
    """Uniform clicks at random times: neither having had an item nor having been its negative may tell a click."""
    rng, lines = np.random.default_rng(0), ["user,item,time"]
    for user in range(400):
        items = rng.choice(40, 20, replace=again)
        lines += [f"u{user},i{i},{1_700_000_000 + t}" for i, t in zip(items, rng.permutation(10**6)[:20], strict=True)]
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "dataset.yaml").write_text(
        "name: noise\nuser_id: user\nitem_id: item\ntimestamp: time\nsampled_negatives: 4\n"
        "tasks: [{kind: binary, name: click, column: '*'}]\nsplit: {kind: time, valid: 0.1, test: 0.2}\n"
    )
    source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/clicks.csv"}
    spec = BuildSpec(source=source, path=str(tmp_path / "out"))  # type: ignore[arg-type]
    manifest, _ = build(spec, run_here, lambda _: None)
    assert manifest.counts.negatives_avoid == ("request" if again else "known")
    train: dict[int, dict[int, int]] = {0: {}, 1: {}}
    test: dict[int, list[int]] = {0: [], 1: []}
    dataset = Dataset.open(spec.path)
    for group in dataset.groups():
        batch = collate(dataset.read_group(*group), dataset.schema)
        label = batch.events.labels_BT["click"]
        for b, user in enumerate(batch.events.user_B.tolist()):
            for part, item, value in zip(
                batch.part_BT[b].tolist(), batch.events.item_BT[b].tolist(), label[b].tolist(), strict=True
            ):
                pair = user * 100 + item
                if part == 1:
                    train[int(value)][pair] = train[int(value)].get(pair, 0) + 1
                elif part == 3:
                    test[int(value)].append(pair)
    for known in (0, 1):  # been a negative, been clicked
        rates = [np.mean([pair in train[known] for pair in test[value]]) for value in (0, 1)]
        spread = (rates[0] * (1 - rates[0]) / min(len(test[0]), len(test[1]))) ** 0.5 + 1e-9
        assert abs(rates[1] - rates[0]) < 4 * spread, (known, rates)


def test_clicks_only_data_end_to_end(tmp_path: Path) -> None:
    lines = [f"u{u},i{(u * 3 + k) % 12},{1_700_000_000 + 10 * k}" for u in range(6) for k in range(5)]
    (tmp_path / "clicks.csv").write_text("user,item,time\n" + "\n".join(lines) + "\n")
    (tmp_path / "dataset.yaml").write_text(
        "name: clicks\nuser_id: user\nitem_id: item\ntimestamp: time\nsampled_negatives: 3\n"
        "tasks: [{kind: binary, name: click, column: '*'}, {kind: retrieval, name: next, positive: click}]\n"
    )
    source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/clicks.csv"}
    spec = BuildSpec(source=source, path=str(tmp_path / "out"), window=2, chunk=3)  # type: ignore[arg-type]
    manifest, _ = build(spec, run_here, lambda _: None)
    assert (manifest.counts.events, manifest.counts.negatives) == (120, 90)
    dataset = Dataset.open(spec.path)
    targets = {True: 0, False: 0}
    for group in dataset.groups():
        batch = collate(dataset.read_group(*group), dataset.schema)
        history, part = batch.events.history_BT, batch.part_BT
        assert history is not None
        label = batch.events.labels_BT["click"]
        assert (label[part > 0] == history[part > 0].float()).all()
        real = batch.row_BT >= 0
        assert history[real & (part == 0)].all(), "repeated history holds no negatives"
        for shown in (True, False):
            targets[shown] += int(((part > 0) & (history == shown)).sum())
    assert targets == {True: 30, False: 90}
    assert dataset.catalogue_table()["train_count"].to_numpy().sum() == 18
    assert dataset.catalogue().count_N.sum() == 18
