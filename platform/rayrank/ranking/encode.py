"""A request becomes arrays: ids to rows, raw columns to features, history to events.

Uses the same feature functions as ``prepare``. Knows nothing about models or where stored histories come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from rayrank.features.encode import Hashed, encode_categorical, encode_numeric, index_for, is_multi, pad_lists
from rayrank.features.history import shown_events
from rayrank.features.state import FeatureState, TableState, cell_values, numeric_values
from rayrank.features.text import item_text, template_fields
from rayrank.messages import FeedbackEvent, HistoryEvent, TextItem
from rayrank.ranking.context import ColdItems
from rayrank.ranking.items import DESCRIBED, Items
from rayrank.ranking.state import UserEvents
from rayrank.ranking.store import History
from rayrank.schema import CategoricalFeature, DatasetSchema, Feature, RegressionTask
from rayrank.wording import counted, meant

MOST_PROBLEMS = 20
"""That one answer tells of."""


class TableEncoder:
    """Raw columns of many rows to the features of one table; vocabularies are indexed once."""

    def __init__(self, features: Sequence[Feature], state: TableState) -> None:
        self.features = tuple(features)
        self._state = state
        self._index = {f.name: index_for(f, state) for f in self.features if isinstance(f, CategoricalFeature)}

    def __call__(self, rows: Sequence[Mapping[str, object]]) -> dict[str, np.ndarray]:
        """Feature -> int64 (R,) or (R, V), or float32 (R,); absent columns count as missing."""
        return self.columns({f.column: [row.get(f.column) for row in rows] for f in self.features})

    def columns(self, given: Mapping[str, Sequence[object] | np.ndarray]) -> dict[str, np.ndarray]:
        """The same from whole columns."""
        encoded: dict[str, np.ndarray] = {}
        for feature in self.features:
            cells = given[feature.column]
            if feature.train_only:
                cells = [None] * len(cells)
            if not isinstance(feature, CategoricalFeature):
                encoded[feature.name] = encode_numeric(feature, self._state.scales[feature.name], cells)
                continue
            values = encode_categorical(feature, self._index[feature.name], list(cells))
            if is_multi(feature):
                encoded[feature.name] = pad_lists(values, feature.max_values)  # type: ignore[arg-type]
            else:
                encoded[feature.name] = np.asarray(values, np.int64)
        return encoded

    def strange(self, rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
        """Column -> what is wrong with its values; those values count as missing."""
        found = {}
        for feature in self.features:
            cells = [row[feature.column] for row in rows if row.get(feature.column) is not None]
            if not cells or feature.train_only:
                continue
            if isinstance(feature, CategoricalFeature):
                index = self._index[feature.name]
                if isinstance(index, Hashed):
                    continue
                names = [v for cell in cells for v in cell_values(feature, cell) if v not in index]  # type: ignore[arg-type]
                lost, near = len(names), meant(names[0], index) if names else ""
                what = f"that the release does not know, or knew too rarely{near}"
            else:
                lost, what = int(np.isnan(numeric_values(feature, cells)).sum()), "that is no number"
            if lost:
                found[feature.column] = f"{counted(lost, 'value')} {what}"
        return found

    def one(self, row: Mapping[str, object]) -> dict[str, np.ndarray]:
        """Feature -> () or (V,) of a single row."""
        return {name: values[0] for name, values in self([row]).items()}


class RequestEncoder:
    """Ids, described items and histories of requests against one catalogue."""

    def __init__(self, schema: DatasetSchema, state: FeatureState, items: Items) -> None:
        self.schema, self.items = schema, items
        self.tasks = tuple(t.name for t in schema.event_tasks)
        self.user = TableEncoder(schema.user_features, state.users)
        self.context = TableEncoder(schema.context_features, state.context)
        self.item = TableEncoder(schema.item_features, state.items)

    def rows(self, items: Sequence[str | TextItem], cold: ColdBuilder) -> np.ndarray:
        """int64 (len(items),): catalogue rows; described unknown items are entered in ``cold``, the others are 0."""
        row = self.items.row
        return np.asarray([row(i) if isinstance(i, str) else self._row(i, cold) for i in items], np.int64)

    def _row(self, item: TextItem, cold: ColdBuilder) -> int:
        row = self.items.row(item.item_id)
        return cold.row(item) if not row and item.described else row

    def history(self, events: Sequence[HistoryEvent], now: int, cold: ColdBuilder) -> History:
        """Events in time order. Equal times share a request; an event without a time is a request of its own.

        Missing times are those of the neighbour before, else after, else ``now``: unknown gaps count as none.
        """
        times = _filled([e.time for e in events], now)
        order = np.argsort(times, kind="stable")
        times = times[order]
        stamped = np.asarray([events[i].time is not None for i in order], bool)
        same = np.zeros(len(events), bool)
        same[1:] = stamped[1:] & stamped[:-1] & (times[1:] == times[:-1])
        if self.schema.timestamp is None:  # they order the events, the models were trained without
            times = np.zeros_like(times)
        labels = {
            task: np.asarray([events[i].labels.get(task, np.nan) for i in order], np.float32) for task in self.tasks
        }
        rows, request = self.rows(events, cold)[order], np.cumsum(~same)
        shown = shown_events(self.schema, labels, len(events))
        labels = {task: values[shown] for task, values in labels.items()}
        return History(rows[shown].astype(np.int32), request[shown].astype(np.int32), times[shown], labels)

    def told(self, events: UserEvents, before: int | None) -> History:
        """Stored events that a history may show, strictly earlier than ``before`` (None: all of them).

        Equal times share a request.
        """
        times = np.asarray(events.time, np.int64)
        labels = {task: np.full(len(events), np.nan, np.float32) for task in self.tasks}
        labels |= {task: np.asarray(values, np.float32) for task, values in events.labels.items() if task in labels}
        shown = shown_events(self.schema, labels, len(events))
        if before is not None:
            shown &= times < before
        rows = np.asarray([self.items.row(item_id) for item_id in events.item], np.int32)[shown]
        times = times[shown]
        request = np.cumsum(np.diff(times, prepend=times[:1]) != 0, dtype=np.int32)
        if self.schema.timestamp is None:  # they order the events, the models were trained without
            times = np.zeros_like(times)
        return History(rows, request, times, {task: values[shown] for task, values in labels.items()})

    def strange(self, items: Sequence[TextItem]) -> list[str]:
        """Warnings about attributes of described items that say nothing to the models; they repeat no values."""
        rows = [item.attributes for item in items if item.attributes]
        if not rows:
            return []
        found = [f"attributes.{column}: {what}" for column, what in self.item.strange(rows).items()]
        read = {f.column for f in self.item.features} | {self.schema.title}
        read |= set(template_fields(self.schema.text)) if self.schema.text else set()
        if unread := sorted({name for row in rows for name in row} - read):
            names = ", ".join(f"attributes.{name[:40]}" for name in unread[:5])
            found.append(f"not used by this release: {names}{', …' if len(unread) > 5 else ''}")
        return found

    def label_problems(
        self, events: Sequence[HistoryEvent | FeedbackEvent], where: str = "history"
    ) -> list[tuple[str, str]]:
        """(field, rule) of the first labels that no task of the release could have; ``where``: the events' field."""
        units = {t.name: t for t in self.schema.event_tasks}
        problems = []
        for i, event in enumerate(events):
            for name, value in event.labels.items():
                task, field = units.get(name), f"{where}.{i}.labels.{name}"
                if task is None:
                    problems.append((field, f"unknown task{meant(name, units)}; one of {', '.join(units)}"))
                elif isinstance(task, RegressionTask) and not task.low <= value <= task.high:
                    problems.append((field, f"must lie in {task.low:g}..{task.high:g}"))
                elif not isinstance(task, RegressionTask) and value not in (0, 1):
                    problems.append((field, "must be 0 or 1"))
                if len(problems) == MOST_PROBLEMS:  # names that are meant are sought: 64,000 would take seconds
                    return problems
        return problems

    def weight_problems(self, weights: Mapping[str, float] | None) -> list[tuple[str, str]]:
        """(field, rule) of fusion weights that the release cannot follow."""
        if weights is None:
            return []
        unknown = [name for name in weights if name not in self.tasks]
        if not unknown and not any(weights.values()):
            return [("weights", "one weight at least must not be zero")]
        known = ", ".join(self.tasks)
        return [(f"weights.{name}", f"unknown task{meant(name, self.tasks)}; one of {known}") for name in unknown]


class ColdBuilder:
    """Collects the described items of one request, each once."""

    def __init__(self, encoder: RequestEncoder) -> None:
        self._encoder = encoder
        self._items: dict[str, TextItem] = {}
        self._rows: dict[str, int] = {}

    def row(self, item: TextItem) -> int:
        """Row ``DESCRIBED + j`` of a described item."""
        key = _identity(item)
        self._items.setdefault(key, item)
        return self._rows.setdefault(key, DESCRIBED + len(self._rows))

    @property
    def items(self) -> list[TextItem]:
        """Those that were collected."""
        return list(self._items.values())

    def build(self) -> ColdItems:
        """All of them, encoded."""
        if not self._items:
            return ColdItems()
        found = list(self._items.values())
        schema = self._encoder.schema
        texts = tuple(i.text or item_text(schema, i.attributes) for i in found)
        return ColdItems(tuple(self._items), texts, self._encoder.item([i.attributes for i in found]))


def _identity(item: TextItem) -> str:
    given = json.dumps([item.item_id, item.text, item.attributes], sort_keys=True)
    return hashlib.sha256(given.encode()).hexdigest()


def _filled(times: Sequence[int | None], now: int) -> np.ndarray:
    known = [t for t in times if t is not None]
    last = known[0] if known else now
    filled = []
    for t in times:
        last = t if t is not None else last
        filled.append(last)
    return np.asarray(filled, np.int64)
