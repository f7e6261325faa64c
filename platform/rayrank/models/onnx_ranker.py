"""Requests answered by two graphs on ONNX Runtime instead of torch: the user's events read, the candidates scored.

A graph knows one request: B is 1, every candidate sees all events and is asked for at one time. Rows of items and of
the user's id are looked up outside (tables are shared by all replicas, graphs are not). Knows the bytes of the graphs;
who makes them is :mod:`rayrank.compression.ranker_graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from rayrank.batch import FAR, Events, Queries
from rayrank.models.onnx_session import open_session
from rayrank.models.ranker import Ranker, shown

READ, SCORE = "user_state.onnx", "score.onnx"
GRAPH_FILES = (READ, SCORE)
LOGITS = "logits_BQK"
USER, CONTEXT = "user.", "context."
"""Prefixes of the inputs that hold features."""


class RequestGraphs:
    """Both graphs, open."""

    def __init__(self, graphs: Mapping[str, bytes]) -> None:
        self._read, self._score = (open_session(graphs[name], "ranker") for name in (READ, SCORE))
        self._read_in, self._score_in = ([i.name for i in s.get_inputs()] for s in (self._read, self._score))
        self._state = [output.name for output in self._read.get_outputs()]

    def score(self, model: Ranker, events: Events, queries: Queries, items_NW: Tensor) -> dict[str, Tensor]:
        """Event task -> logits (1, Q): what ``model`` says of one user whose queries see all events that are shown."""
        user = model.static_state(events)
        shown_BT = shown(events) & (events.request_BT < FAR)
        given = {
            "request_BT": events.request_BT,
            "shown_BT": shown_BT & bool(model.spec.inputs.history),
            "time_BT": events.time_BT,
            "item_TW": items_NW.index_select(0, events.item_BT[0]),
            "user_BU": user.user_BU,
            "known_B": user.known_B,
            **{f"label.{name}": value for name, value in events.labels_BT.items()},
            **{USER + name: _typed(value) for name, value in events.user_features.items()},
            "item_QW": items_NW.index_select(0, queries.item_BQ[0]),
            "time_BQ": queries.time_BQ[:, :1],
            **{CONTEXT + name: _typed(value) for name, value in queries.context.items()},
        }
        arrays = {name: value.numpy() for name, value in given.items()}
        state = self._read.run(self._state, {name: arrays[name] for name in self._read_in})
        arrays |= dict(zip(self._state, state, strict=True))
        (logits_BQK,) = self._score.run([LOGITS], {name: arrays[name] for name in self._score_in})
        return model.by_task(from_numpy(_writable(logits_BQK)))


def graphs_of(files: Mapping[str, bytes]) -> RequestGraphs | None:
    """The graphs of a bundle; None where it has none."""
    return RequestGraphs(files) if files else None


def _typed(feature: Tensor) -> Tensor:
    """Of the type that a graph takes; torch would not mind another width."""
    return feature.float() if feature.is_floating_point() else feature.long()


def _writable(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values if values.flags.writeable else values.copy()
