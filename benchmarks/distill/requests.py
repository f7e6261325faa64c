"""Requests that models are asked: users of the test part as they were before it, and items described by their texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from rayrank.batch import SequenceBatch
from rayrank.ranking.context import ColdItems, UserContext
from rayrank.ranking.items import DESCRIBED
from rayrank.ranking.store import History
from rayrank.schema import TEST, past_features
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset


@dataclass(frozen=True)
class Asking:
    """A user before the test part, and which items of it were positives."""

    context: UserContext
    positives: np.ndarray  # int64, distinct catalogue rows
    met: np.ndarray  # int64, every catalogue row of the user's events, of all parts


def described(dataset: Dataset, rows: np.ndarray) -> tuple[ColdItems, np.ndarray]:
    """Items of the catalogue as a request would describe them, unknown to it, and the rows (Q,) they go by."""
    texts = dataset.catalogue_table()["text"].to_pylist()
    features = {name: value[rows].numpy() for name, value in dataset.catalogue().features.items()}
    keys = tuple(f"new {row}" for row in rows.tolist())
    cold = ColdItems(keys, tuple(texts[row - 1] or "" for row in rows.tolist()), features)
    return cold, DESCRIBED + np.arange(len(rows), dtype=np.int64)


def askings(dataset: Dataset, task: str, window: int) -> Iterator[Asking]:
    """Users with positives of ``task`` in the test part, in the order of the row groups; snapshot."""
    met = _met(dataset)
    left_out = {f.name for f in past_features(dataset.schema)}
    for shard, group in dataset.groups():
        if dataset.manifest.shards[shard].row_groups[group].test:
            batch = collate(dataset.read_group(shard, group), dataset.schema)
            for row in range(len(batch.part_BT)):
                if (found := _asking(batch, row, task, left_out)) is not None:
                    context, positives = found
                    context = replace(context, history=context.history.last(window))
                    yield Asking(context, positives, met[context.user])


def _met(dataset: Dataset) -> dict[int, np.ndarray]:
    """User -> distinct catalogue rows of all events."""
    users, items = [], []
    for shard, group in dataset.groups():
        table = dataset.read_group(shard, group, ["user", "item"])
        items.append(pc.list_flatten(table["item"]).to_numpy())
        users.append(np.repeat(table["user"].to_numpy(), pc.list_value_length(table["item"]).to_numpy()))
    user, item = np.concatenate(users), np.concatenate(items).astype(np.int64)
    order = np.argsort(user, kind="stable")
    distinct, first = np.unique(user[order], return_index=True)
    return {int(u): np.unique(rows) for u, rows in zip(distinct, np.split(item[order], first[1:]), strict=True)}


def _asking(batch: SequenceBatch, row: int, task: str, left_out: set[str]) -> tuple[UserContext, np.ndarray] | None:
    """The user and the positives; None for a sequence without the user's first test targets or any positive."""
    events = batch.events
    test_T = batch.part_BT[row] == TEST
    first = int(batch.test_from_B[row])
    if not bool((events.request_BT[row][test_T] == first).any()):
        return None
    item_T = events.item_BT[row].numpy()
    positive_T = (test_T & (events.labels_BT[task][row] == 1.0)).numpy()
    if not positive_T.any():
        return None
    seen_T = (events.request_BT[row] < first).numpy()
    if events.history_BT is not None:
        seen_T &= events.history_BT[row].numpy()
    place = int(test_T.nonzero()[0])
    history = History(
        item=item_T[seen_T].astype(np.int32),
        request=events.request_BT[row].numpy()[seen_T],
        time=events.time_BT[row].numpy()[seen_T],
        labels={name: values[row].numpy()[seen_T] for name, values in events.labels_BT.items()},
    )
    context = UserContext(
        history=history,
        time=int(events.time_BT[row, place]),
        user=int(events.user_B[row]),
        features={name: values[row].numpy() for name, values in events.user_features.items()},
        context={name: values[row, place].numpy() for name, values in batch.context.items() if name not in left_out},
    )
    return context, np.unique(item_T[positive_T]).astype(np.int64)
