"""Batch scoring with the serving code: targets of dataset shards, or a table of requests, to a table of scores.

Knows tables, models and requests; knows nothing about Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from rayrank.batch import Events, Queries
from rayrank.bundle import Bundle
from rayrank.config import ConfigError
from rayrank.learning.windows import windowed
from rayrank.messages import ErrorField, RankedItem, RankRequest, RecommendRequest, error_fields
from rayrank.objectives.targets import pack
from rayrank.ranking.fusion import fused, shown, task_scores
from rayrank.ranking.graph import RankingGraph, RequestError
from rayrank.schema import PARTS
from rayrank.sources.collate import collate

_PIECE = 16_384
"""Padded positions scored at once."""

Protocol = Literal["streaming", "snapshot"]


@dataclass(frozen=True)
class Asked:
    """Which targets of a shard are scored, and how much history they see."""

    part: Literal["train", "valid", "test"]
    protocol: Protocol
    weights: Mapping[str, float]


class ShardScorer:
    """Scores the targets of row groups with the models of a release, by role.

    A user's sequence is read once and every target of it asked with what it may see, as in training; targets that see
    more than a request brings are asked alone, with the last events only, as online.
    """

    def __init__(self, graph: RankingGraph, roles: Sequence[str], asked: Asked) -> None:
        self._bundles = {role: found for role in roles if (found := getattr(graph.bundles, role)) is not None}
        self._schema, self._asked, self._items = graph.bundles.first.info.data_schema, asked, graph.items
        self._users = _user_ids(graph)

    def table(self, rows: pa.Table) -> pa.Table:
        """One line per target: ids, time, label columns, ``<role>_<task>``, ``<role>_score``, ``score``."""
        return pa.concat_tables([self.empty(), *(self._scored(piece) for piece in _pieces(rows))])

    def empty(self) -> pa.Table:
        """No lines, with the columns of :meth:`table`."""
        return self._schema_of_output().empty_table()

    def _scored(self, rows: pa.Table) -> pa.Table:
        batch = collate(rows, self._schema)
        everything = batch.streaming() if self._asked.protocol == "streaming" else batch.snapshot()
        queries, asked_BQ, place_BQ = pack(everything, batch.part_BT == PARTS[self._asked.part])

        def column(values_BT: Tensor) -> np.ndarray:
            return np.asarray(values_BT.gather(1, place_BQ)[asked_BQ].numpy())

        user = batch.events.user_B.unsqueeze(1).expand_as(asked_BQ)[asked_BQ]
        columns: dict[str, Any] = {
            "user_id": [self._users.get(number) for number in user.tolist()],
            "item_id": [self._items.item_id(number) for number in column(batch.events.item_BT).tolist()],
            "time": column(batch.events.time_BT),
            "row": column(batch.row_BT),
        }
        columns |= {f"label_{task}": column(values) for task, values in batch.events.labels_BT.items()}
        for role, bundle in self._bundles.items():
            scores = task_scores(_logits(bundle, (batch.events, queries, asked_BQ)), self._schema)
            columns |= {f"{role}_{task}": v for task, v in shown(scores, self._schema).items()}
            columns[f"{role}_score"] = fused(scores, self._asked.weights)
        columns["score"] = columns[f"{list(self._bundles)[-1]}_score"]
        return pa.table(columns, self._schema_of_output())

    def _schema_of_output(self) -> pa.Schema:
        tasks = [t.name for t in self._schema.event_tasks]
        fields = [("user_id", pa.string()), ("item_id", pa.string()), ("time", pa.int64()), ("row", pa.int64())]
        fields += [(f"label_{task}", pa.float32()) for task in tasks]
        fields += [(f"{role}_{what}", pa.float32()) for role in self._bundles for what in (*tasks, "score")]
        return pa.schema([*fields, ("score", pa.float32())])


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    """Rows of a row group in pieces of bounded padded size."""
    longest = pc.max(pc.list_value_length(rows["item"])).as_py() or 1
    step = max(1, _PIECE // longest)
    for start in range(0, len(rows), step):
        yield rows.slice(start, step).combine_chunks()


def _logits(bundle: Bundle, asked: tuple[Events, Queries, Tensor]) -> dict[str, np.ndarray]:
    """Event task -> logits of the asked queries."""
    with torch.inference_mode():
        model, items_NW = bundle.model, bundle.items_NW
        found = windowed(model, items_NW, asked, bundle.info.window, lambda s, q: model.score(s, q, items_NW))
    return {task: logits.float().numpy() for task, logits in found.items()}


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


def _user_ids(graph: RankingGraph) -> dict[int, str]:
    users = graph.bundles.first.users
    return {} if users is None else {i: str(u) for i, u in enumerate(users.column("user_id").to_pylist(), start=1)}
