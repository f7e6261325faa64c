"""Row groups of a shard to padded tensors, without a Python loop over events.

Knows the shard's columns; knows nothing about files or models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from rayrank.batch import FAR, Events, SequenceBatch, first_of_requests
from rayrank.config import ConfigError
from rayrank.schema import TRAIN, CategoricalFeature, DatasetSchema, MulticlassTask
from rayrank.sources.dataset import feature_tensor, pad_list_array


def collate(table: pa.Table, schema: DatasetSchema, labels: pa.Table | None = None) -> SequenceBatch:
    """A batch of the table's B sequences, padded on the right to the longest of them (T).

    Args:
        table: rows of a shard (all columns).
        schema: of the dataset.
        labels: the same rows of the teacher's label files, or None: ``key``, ``soft_<task>`` aligned with ``item``,
            ``class_<task>`` of each profile, and for each train target in turn S unseen items (``unseen_item``,
            ``unseen_<task>``), M hard negatives (``mined_item``, ``mined_log_q``) and U columns of the user's state
            (``state_user``), and for the first of each request K best candidates (``best_item``, ``best_<task>``); of
            several teachers also ``spread_<task>``, ``spread_unseen_<task>`` and ``spread_best_<task>``.

    Raises:
        ConfigError: ``labels`` belong to other rows.
    """
    lists = _Lists(table)
    event_labels = {t.name: lists.padded(f"label_{t.name}", np.float32, np.nan) for t in schema.event_tasks}
    events = Events(
        item_BT=lists.padded("item", np.int64, 0),
        request_BT=lists.padded("request", np.int32, FAR),
        time_BT=lists.padded("time", np.int64, 0),
        labels_BT=event_labels,
        user_B=_flat(table, "user", np.int64),
        user_features={f.name: feature_tensor(f, table[f"user_{f.name}"]) for f in schema.user_features},
        key_B=_flat(table, "key", np.int64),
        history_BT=lists.padded("history", np.bool_, False),
    )
    context = {}
    for feature in schema.context_features:
        dtype = np.int64 if isinstance(feature, CategoricalFeature) else np.float32
        context[feature.name] = lists.padded(f"context_{feature.name}", dtype, 0)
    profiles = schema.of_kind(MulticlassTask)
    return SequenceBatch(
        events=events,
        context=context,
        part_BT=lists.padded("part", np.int8, 0),
        row_BT=lists.padded("row", np.int64, -1),
        valid_from_B=_flat(table, "valid_from", np.int32),
        test_from_B=_flat(table, "test_from", np.int32),
        profile_B={t.name: _flat(table, f"profile_{t.name}", np.int64) for t in profiles},
        profile_hidden_B={t.name: _flat(table, f"hidden_{t.name}", np.bool_) for t in profiles},
        **(_soft(labels, table, lists) if labels is not None else {}),
    )


def _soft(labels: pa.Table, table: pa.Table, lists: _Lists) -> dict[str, Any]:
    train_BT = lists.padded("part", np.int8, 0) == TRAIN
    begins_BT = first_of_requests(train_BT, lists.padded("request", np.int32, FAR))
    return _Soft(labels, table, train_BT, begins_BT).fields()


class _Lists:
    """List columns of a table that all have the lengths of ``item``."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        lengths = pc.list_value_length(_one(table["item"])).to_numpy(zero_copy_only=False)
        self.shape = (len(lengths), int(lengths.max(initial=0)))
        self.filled = np.arange(self.shape[1]) < lengths[:, None]  # once for all columns
        self.events = int(lengths.sum())

    def padded(self, name: str, dtype: type, fill: float) -> Tensor:
        lists = _one(self.table[name])
        whole = len(lists.values) == self.events  # then nothing of it lies outside the lists, as is read
        flat = (lists.values if whole else lists.flatten()).to_numpy(zero_copy_only=False)
        if len(flat) != self.events:
            raise ValueError(f"column '{name}' must have the lengths of 'item'")
        out: np.ndarray = np.full(self.shape, fill, dtype=dtype)
        out[self.filled] = flat
        return torch.from_numpy(out)


class _Soft:
    """A teacher's labels of the same rows."""

    def __init__(self, labels: pa.Table, table: pa.Table, train_BT: Tensor, begins_BT: Tensor) -> None:
        if not _one(labels["key"]).equals(_one(table["key"])):
            raise ConfigError("labels", None, "rows must be those of the shard, in order", "run label again")
        self.labels, self.train_BT, self.begins_BT = labels, train_BT, begins_BT

    def fields(self) -> dict[str, Any]:
        """The batch's fields that hold soft labels."""
        width, names = self.train_BT.shape[1], self.labels.column_names
        tasks = [n.removeprefix("soft_") for n in names if n.startswith("soft_")]
        several = [n for n in tasks if f"spread_{n}" in names]
        found: dict[str, Any] = {
            "soft_BT": {n: self._lists(f"soft_{n}", width) for n in tasks},
            "spread_BT": {n: self._lists(f"spread_{n}", width) for n in several},
            "profile_soft_BC": {n.removeprefix("class_"): self._lists(n) for n in names if n.startswith("class_")},
        }
        if "unseen_item" in names:
            found["unseen_item_BTS"] = self._by_target("unseen_item", torch.int64, 0)
            found["unseen_soft_BTS"] = {n: self._by_target(f"unseen_{n}") for n in tasks}
            found["unseen_spread_BTS"] = {n: self._by_target(f"spread_unseen_{n}") for n in several}
        if "mined_item" in names:
            found["mined_item_BTM"] = self._by_target("mined_item", torch.int64, 0)
            found["mined_log_q_BTM"] = self._by_target("mined_log_q")
        if "state_user" in names:
            found["state_BTU"] = self._by_target("state_user", torch.float16, 0)
        if "best_item" in names:
            found["best_item_BTK"] = self._at("best_item", self.begins_BT, torch.int64, 0)
            found["best_soft_BTK"] = {n: self._at(f"best_{n}", self.begins_BT) for n in tasks}
            found["best_spread_BTK"] = {n: self._at(f"spread_best_{n}", self.begins_BT) for n in several}
        return found

    def _lists(self, name: str, width: int | None = None) -> Tensor:
        """(B, width) of lists; by default they are all as long as the first."""
        lists = _one(self.labels[name])
        if width is None:
            width = len(lists[0]) if len(lists) else 0
        return torch.from_numpy(pad_list_array(lists, width, np.float32, np.nan))

    def _by_target(self, name: str, dtype: torch.dtype = torch.float32, fill: float = float("nan")) -> Tensor:
        """(B, T, S) from S (or M) values for each train target, in order."""
        return self._at(name, self.train_BT, dtype, fill)

    def _at(
        self, name: str, place_BT: Tensor, dtype: torch.dtype = torch.float32, fill: float = float("nan")
    ) -> Tensor:
        """(B, T, S) from S values for each marked position, in order."""
        lists, places = _one(self.labels[name]), int(place_BT.sum())
        values = torch.from_numpy(pc.list_flatten(lists).to_numpy(zero_copy_only=False).copy())
        samples = len(values) // max(places, 1)
        if not np.array_equal(pc.list_value_length(lists).to_numpy(), samples * place_BT.sum(1).numpy()):
            rule = "every place that was labelled must have as many values as the others"
            raise ConfigError(f"labels: {name}", None, rule, "run label again")
        spread = torch.full((*place_BT.shape, samples), fill, dtype=dtype)
        spread[place_BT] = values.to(dtype).view(places, samples)
        return spread


def _flat(table: pa.Table, name: str, dtype: type) -> Tensor:
    return torch.from_numpy(_one(table[name]).to_numpy(zero_copy_only=False).astype(dtype))


def _one(column: pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # a tenth of the time
    return column
