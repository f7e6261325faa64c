"""Batch scoring with the serving code: targets of dataset shards, or a table of requests, to a table of scores.

Every target is asked exactly like an online request: the same scorer, the same window of history, candidates of one
request together. Knows tables and scorers; knows nothing about Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from rayrank.config import ConfigError
from rayrank.messages import ErrorField, RankedItem, RankRequest, RecommendRequest, error_fields
from rayrank.ranking.context import ColdItems, UserContext
from rayrank.ranking.fusion import fused, shown
from rayrank.ranking.graph import RankingGraph, RequestError
from rayrank.ranking.scorer import Scorer
from rayrank.ranking.store import History
from rayrank.schema import PARTS, TEST, CategoricalFeature, DatasetSchema
from rayrank.sources.dataset import feature_tensor

Protocol = Literal["streaming", "snapshot"]


@dataclass(frozen=True)
class Asked:
    """Which targets of a shard are scored, and how much history they see."""

    part: Literal["train", "valid", "test"]
    protocol: Protocol
    weights: Mapping[str, float]


class ShardScorer:
    """Scores the targets of row groups with the models of a release, by role."""

    def __init__(self, graph: RankingGraph, roles: Sequence[str], asked: Asked) -> None:
        self._scorers = {role: Scorer(b) for role in roles if (b := getattr(graph.bundles, role)) is not None}
        self._schema, self._asked, self._items = graph.bundles.first.info.data_schema, asked, graph.items
        self._users = _user_ids(graph)

    def table(self, rows: pa.Table) -> pa.Table:
        """One line per target: ids, time, label columns, ``<role>_<task>``, ``<role>_score``, ``score``."""
        found: list[pa.Table] = []
        for row in _sequences(rows, self._schema):
            found += [self._request(row, at) for at in self._targets(row)]
        return pa.concat_tables(found) if found else self.empty()

    def empty(self) -> pa.Table:
        """No lines, with the columns of :meth:`table`."""
        return self._schema_of_output().empty_table()

    def _targets(self, row: _Sequence) -> Iterator[np.ndarray]:
        """Positions of the targets of each request; a request whose context differs within is split."""
        wanted = np.flatnonzero(row.lists["part"] == PARTS[self._asked.part])
        keys = [(int(row.lists["request"][i]), *(float(c[i]) for c in row.context.values())) for i in wanted]
        for key in dict.fromkeys(keys):
            yield wanted[[k == key for k in keys]]

    def _request(self, row: _Sequence, at: np.ndarray) -> pa.Table:
        before = int(row.lists["request"][at[0]])
        if self._asked.protocol == "snapshot" and self._asked.part != "train":
            before = min(before, row.test_from if PARTS[self._asked.part] == TEST else row.valid_from)
        visible = (row.lists["request"] < before) & row.lists["history"]
        history = History(
            row.lists["item"][visible],
            row.lists["request"][visible],
            row.lists["time"][visible],
            {task: values[visible] for task, values in row.labels.items()},
        )
        context = UserContext(
            history=history,
            time=int(row.lists["time"][at[0]]),
            user=row.user,
            features=row.features,
            context={name: values[at[0]] for name, values in row.context.items()},
        )
        candidates = row.lists["item"][at].astype(np.int64)
        columns: dict[str, Any] = {
            "user_id": [self._users.get(row.user)] * len(at),
            "item_id": [self._items.item_id(int(i)) for i in candidates],
            "time": row.lists["time"][at],
            "row": row.lists["row"][at],
        }
        columns |= {f"label_{task}": values[at] for task, values in row.labels.items()}
        for role, scorer in self._scorers.items():
            scores = scorer.score(context, candidates, ColdItems()).scores
            columns |= {f"{role}_{task}": v for task, v in shown(scores, self._schema).items()}
            columns[f"{role}_score"] = fused(scores, self._asked.weights)
        columns["score"] = columns[f"{list(self._scorers)[-1]}_score"]
        return pa.table(columns, self._schema_of_output())

    def _schema_of_output(self) -> pa.Schema:
        tasks = [t.name for t in self._schema.event_tasks]
        fields = [("user_id", pa.string()), ("item_id", pa.string()), ("time", pa.int64()), ("row", pa.int64())]
        fields += [(f"label_{task}", pa.float32()) for task in tasks]
        fields += [(f"{role}_{what}", pa.float32()) for role in self._scorers for what in (*tasks, "score")]
        return pa.schema([*fields, ("score", pa.float32())])


class RequestScorer:
    """Answers request bodies (as the HTTP service takes them) in this process."""

    def __init__(self, graph: RankingGraph, now: int | None = None) -> None:
        self._graph, self._now = graph, now
        self._tasks = graph.parts.tasks

    def table(self, bodies: Sequence[Mapping[str, Any]], first: int, where: str) -> pa.Table:
        """One line per ranked item; ``request`` numbers the bodies from ``first``.

        Raises:
            ConfigError: a body breaks a rule; names file, line and field.
        """
        lines: list[dict[str, Any]] = []
        for number, body in enumerate(bodies, start=first):
            try:
                request = parse_body(body)
                response = self._graph.respond(request, self._now)
            except RequestError as error:
                problem = error.fields[0]
                place = f"{where}: request {number}: {problem.field}"
                raise ConfigError(place, None, problem.problem, "correct the request") from None
            user = request.user_id
            lines += [self._line(number, user, i, item) for i, item in enumerate(response.items, start=1)]
        return pa.Table.from_pylist(lines, self._schema_of_output())

    def _line(self, number: int, user_id: str | None, rank: int, item: RankedItem) -> dict[str, Any]:
        fields: dict[str, Any] = {"request": number, "user_id": user_id, "rank": rank, "item_id": item.item_id}
        fields |= {"position": item.position, "score": item.score, "scored_by": item.scored_by, "cold": item.cold}
        return {**fields, **item.scores}

    def _schema_of_output(self) -> pa.Schema:
        fields = [("request", pa.int64()), ("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string())]
        fields += [("position", pa.int32()), ("score", pa.float32()), ("scored_by", pa.string()), ("cold", pa.bool_())]
        return pa.schema([*fields, *((task, pa.float32()) for task in self._tasks)])


def parse_body(body: Mapping[str, Any]) -> RankRequest | RecommendRequest:
    """A request body: with ``candidates`` it is ranked, without it items are recommended. Null columns are left out.

    Raises:
        RequestError: it breaks a rule of the messages.
    """
    given = {name: _plain(value) for name, value in body.items() if value is not None}
    for name in given.keys() & {"history", "candidates", "context", "user"}:
        if isinstance(given[name], str):
            given[name] = _json(given[name], name)
    cls: type[BaseModel] = RankRequest if "candidates" in given else RecommendRequest
    try:
        return cls.model_validate(given)  # type: ignore[return-value]
    except ValidationError as error:
        raise RequestError(error_fields(error.errors(include_input=False))) from None


def _plain(value: Any) -> Any:
    """Nested columns of Parquet come with explicit nulls: leave them out."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _json(text: str, name: str) -> Any:
    """Flat tables may hold nested fields as JSON text."""
    try:
        return json.loads(text)
    except ValueError:
        raise RequestError([ErrorField(field=name, problem="must be JSON where it is given as text")]) from None


@dataclass(frozen=True)
class _Sequence:
    """One row of a shard as arrays."""

    user: int
    valid_from: int
    test_from: int
    lists: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    context: Mapping[str, np.ndarray]
    features: Mapping[str, np.ndarray]


def _sequences(table: pa.Table, schema: DatasetSchema) -> Iterator[_Sequence]:
    tasks = [t.name for t in schema.event_tasks]
    plain = {name: _cut(table, name) for name in ("item", "request", "time", "row", "part", "history")}
    labels = {task: _cut(table, f"label_{task}") for task in tasks}
    context = {
        f.name: _cut(table, f"context_{f.name}", np.int64 if isinstance(f, CategoricalFeature) else np.float32)
        for f in schema.context_features
    }
    users = {f.name: feature_tensor(f, table[f"user_{f.name}"]).numpy() for f in schema.user_features}
    numbers = {name: table.column(name).to_numpy() for name in ("user", "valid_from", "test_from")}
    for i in range(len(table)):
        yield _Sequence(
            user=int(numbers["user"][i]),
            valid_from=int(numbers["valid_from"][i]),
            test_from=int(numbers["test_from"][i]),
            lists={name: rows[i] for name, rows in plain.items()},
            labels={name: rows[i] for name, rows in labels.items()},
            context={name: rows[i] for name, rows in context.items()},
            features={name: values[i] for name, values in users.items()},
        )


def _cut(table: pa.Table, name: str, kind: type | None = None) -> list[np.ndarray]:
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    offsets, values = array.offsets.to_numpy(), array.values.to_numpy(zero_copy_only=False)
    values = values if kind is None else values.astype(kind)
    return [values[a:b] for a, b in pairwise(offsets)]


def _user_ids(graph: RankingGraph) -> dict[int, str]:
    users = graph.bundles.first.users
    return {} if users is None else {i: str(u) for i, u in enumerate(users.column("user_id").to_pylist(), start=1)}
