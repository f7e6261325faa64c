"""The served log and the feedback as tables: one row per item that was shown, one per event that was told.

Knows the lines that ``ranking.served_log`` and ``ranking.feedback`` write, and the schema of the release that was
served; knows nothing about serving.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrank.features.state import category_text
from rayrank.schema import BinaryTask, CategoricalFeature, DatasetSchema, Feature, HistoryRule, Task, TimeSplit
from rayrank.sources.checks import FIRST_INSTANT, LAST_INSTANT
from rayrank.sources.join import BEHAVIOUR_TIME

_OWN = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "time": pa.int64(),
    "request_id": pa.string(),
    "position": pa.int32(),
    "score": pa.float32(),
    "propensity": pa.float32(),
    "release_id": pa.string(),
    "answered_by": pa.string(),
    "history_until": pa.int64(),
}
"""Columns of every log; ``position`` counts from 0, ``propensity`` is 1 where nothing was left to chance."""


@dataclass
class Tally:
    """What was read and what could not be used."""

    requests: int = 0
    shown: int = 0
    events: int = 0
    dropped: int = 0  # answers that the service could not write down
    anonymous: int = 0  # answers without user_id
    torn: int = 0  # lines cut short by a crash
    unnamed: int = 0  # shown items without an id
    untimely: int = 0  # answers and events whose client told a time that prepare would refuse


def served_schema(schema: DatasetSchema, window_s: int) -> DatasetSchema:
    """The schema of tables made from a log: the release's tasks and features, labels told by behaviours.

    A label is known when its behaviour happens, and none after ``window_s`` means no. Histories show what was told, as
    they do when serving, and not what was merely shown.
    """
    late = {"available_after_s": window_s, "time_column": BEHAVIOUR_TIME}
    changes: dict[str, Any] = {
        "name": f"{schema.name}-served",
        "user_id": "user_id",
        "item_id": "item_id",
        "timestamp": "time",
        "time_unit": "s",
        "request_id": "request_id",
        "tasks": tuple(_served_task(task, schema, late) for task in schema.tasks),
        "split": TimeSplit(),
        "history_lag_s": 0,
        "sampled_negatives": 0,
        "order": "row",
    }
    if schema.of_kind(BinaryTask):
        changes["history"] = HistoryRule(show="positives", tasks=schema.history.tasks, last=schema.history.last)
    return DatasetSchema.model_validate({**dict(schema), **changes})


def impressions(file: str | Path, schema: DatasetSchema, tally: Tally) -> pa.Table:
    """The items that one file of the log says were shown, in the order of its lines."""
    context = [f for f in schema.context_features if not f.column.startswith("@") and f.column not in _OWN]
    rows: dict[str, list[Any]] = {name: [] for name in (*_OWN, *(f.column for f in context))}
    for said in _lines(file, tally):
        tally.dropped += said.get("dropped", 0)
        if "request_id" not in said:
            continue
        tally.requests += 1
        if said["user_id"] is None:
            tally.anonymous += 1
            continue
        if not _plausible(said["time"]):
            tally.untimely += 1
            continue
        cells = {f.column: _cell(said["context"].get(f.column), f) for f in context}
        for position, item_id in enumerate(said["items"]):
            if item_id is None:
                tally.unnamed += 1
                continue
            own = {name: said[name] for name in ("user_id", "time", "request_id", "release_id", "answered_by")}
            own |= {"item_id": item_id, "position": position, "score": said["scores"][position]}
            own |= {"propensity": said["propensity"][position], "history_until": said["history_until"]}
            for name, value in (own | cells).items():
                rows[name].append(value)
    tally.shown += len(rows["item_id"])
    types = _OWN | {f.column: pa.string() if isinstance(f, CategoricalFeature) else pa.float64() for f in context}
    return pa.table({name: pa.array(values, types[name]) for name, values in rows.items()})


def behaviours(lines: Iterable[str], tasks: Iterable[str], tally: Tally) -> pa.Table:
    """One row per told event: keys, time, request_id where it was told, a label column for each task."""
    told = [json.loads(line) for line in lines]
    found = [event for event in told if _plausible(event["time"])]
    tally.events, tally.untimely = tally.events + len(found), tally.untimely + len(told) - len(found)
    columns = {name: pa.array([e[name] for e in found], _OWN[name]) for name in ("user_id", "item_id", "time")}
    columns["request_id"] = pa.array([e["request_id"] for e in found], pa.string())
    columns |= {task: pa.array([e["labels"].get(task) for e in found], pa.float64()) for task in tasks}
    return pa.table(columns)


def _plausible(time: int) -> bool:
    """Whether ``prepare`` would take it for unix seconds."""
    return FIRST_INSTANT <= time <= LAST_INSTANT


def _served_task(task: Task, schema: DatasetSchema, late: Mapping[str, Any]) -> Task:
    if task not in schema.event_tasks:
        return task
    changes = dict(late) | {"column": task.name}
    return task.model_copy(update=changes | ({"at_least": None} if isinstance(task, BinaryTask) else {}))


def _lines(file: str | Path, tally: Tally) -> Iterator[dict[str, Any]]:
    with Path(file).open("rb") as lines:
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                tally.torn += 1
                continue
            yield said


def _cell(value: object, feature: Feature) -> str | float | None:
    if isinstance(feature, CategoricalFeature):
        return category_text(value)  # type: ignore[arg-type]
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except ValueError:
        return None
