"""Batch scoring of a table of users and items with the stages that serve: one line out for each line in.

Knows tables and the graph; knows nothing about Ray or files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from rayrank.config import ConfigError
from rayrank.message_values import MAX_CANDIDATES
from rayrank.messages import RankRequest, error_fields
from rayrank.ranking.fusion import fused, shown
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.user import Rejected

_OWN = ("user_id", "item_id", "time")
_Key = tuple[str | None, int | None, tuple[tuple[str, object], ...]]


class PairScorer:
    """Scores rows of a table by the models of a release.

    Rows of one user, time and context are one request, so the user's history is read once for all of them; each role
    scores all items.
    """

    def __init__(self, graph: RankingGraph, roles: Sequence[str], now: int | None = None) -> None:
        self._graph, self._now = graph, now
        self._roles = [role for role in roles if role in graph.bundles.ids]
        self._tasks, self._schema = graph.parts.tasks, graph.named.schema

    def empty(self) -> pa.Table:
        """No rows, all columns."""
        return self._fields().empty_table()

    def table(self, rows: pa.Table, first: int, where: str) -> pa.Table:
        """One line for each row, in their order; ``row`` numbers them from ``first``.

        Raises:
            ConfigError: a row breaks a rule of the messages; names it.
        """
        given = rows.to_pylist()
        columns = {name: np.full(len(given), np.nan, np.float32) for name in self._fields().names[5:]}
        known, groups = np.zeros(len(given), bool), dict[_Key, list[int]]()
        for i, row in enumerate(given):
            groups.setdefault(_key(row), []).append(i)
        for key, places in groups.items():
            for start in range(0, len(places), MAX_CANDIDATES):
                some = places[start : start + MAX_CANDIDATES]
                self._score(_request(key, [given[i] for i in some], f"{where}: row {first + some[0]}"), some, columns)
                known[some] = [self._graph.items.row(_text(given[i]["item_id"])) > 0 for i in some]
        fixed = {
            "row": np.arange(first, first + len(given)),
            "user_id": [_text(row.get("user_id")) for row in given],
            "item_id": [_text(row.get("item_id")) for row in given],
            "time": [row.get("time") for row in given],
            "known": known,
        }
        return pa.table({**fixed, **columns}, self._fields())

    def _score(self, request: RankRequest, places: list[int], columns: Mapping[str, np.ndarray]) -> None:
        prepared = self._graph.user.prepare(request, int(time.time()) if self._now is None else self._now)
        assert not isinstance(prepared, Rejected)  # it names neither labels nor weights
        if prepared.missed:  # a table has no place to say so
            fix = "remove the file of histories and start again"
            raise ConfigError("histories", None, "; ".join(prepared.missed), fix)
        assert prepared.candidates is not None
        for role in self._roles:
            said = self._graph.scorer(role).score(prepared.context, prepared.candidates, prepared.cold)
            total = fused(said.scores, self._graph.parts.weights)
            for task, values in shown(said.scores, self._schema).items():
                columns[f"{role}_{task}"][places] = values
            columns[f"{role}_score"][places] = total
            columns["score"][places] = total

    def _fields(self) -> pa.Schema:
        fields = [("row", pa.int64()), ("user_id", pa.string()), ("item_id", pa.string()), ("time", pa.int64())]
        fields += [("known", pa.bool_())]
        fields += [(f"{role}_{what}", pa.float32()) for role in self._roles for what in (*self._tasks, "score")]
        return pa.schema([*fields, ("score", pa.float32())])


def _key(row: Mapping[str, Any]) -> _Key:
    """What the rows of one request share."""
    cells = ((n, tuple(v) if isinstance(v, list) else v) for n, v in row.items() if n not in _OWN and v is not None)
    context = tuple(sorted(cells))  # a list is refused with the request that it is in
    return _text(row.get("user_id")), row.get("time"), context


def _request(key: _Key, rows: Sequence[Mapping[str, Any]], where: str) -> RankRequest:
    user_id, asked, context = key
    body = {"user_id": user_id, "time": asked, "context": dict(context)}
    try:
        return RankRequest.model_validate({**body, "candidates": [{"item_id": _text(r["item_id"])} for r in rows]})
    except ValidationError as error:
        wrong = error_fields(error.errors(include_input=False))[0]
        raise ConfigError(f"{where}: {wrong.field}", None, wrong.problem, "mend the table") from None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
