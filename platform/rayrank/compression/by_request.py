"""A model whose scores are those of its graphs, request by request: slow, but what serving would say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from rayrank.batch import Events, Queries
from rayrank.bundle import Bundle
from rayrank.models.onnx_ranker import RequestGraphs
from rayrank.models.ranker import Ranker, UserState, shown


def judged_model(bundle: Bundle) -> Ranker:
    """What answers requests, for :func:`rayrank.learning.predict.predict`: the model, or its graphs in its place."""
    return bundle.model if bundle.graphs is None else cast(Ranker, ByRequest(bundle.model, bundle.graphs))


@dataclass(frozen=True)
class _Known(UserState):
    events: Any = None  # Events


class ByRequest:
    """Scores of the graphs, everything else of the model."""

    def __init__(self, model: Ranker, graphs: RequestGraphs) -> None:
        self._model, self._graphs = model, graphs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def user_state(self, events: Events, items_NW: Tensor) -> UserState:
        """The model's, with the events kept."""
        return _Known(**vars(self._model.user_state(events, items_NW)), events=events)

    def score(self, state: _Known, queries: Queries, items_NW: Tensor) -> dict[str, Tensor]:
        """Event task -> logits (B, Q); queries of one user that see the same events at one time are one request."""
        said = {task: torch.zeros(queries.item_BQ.shape) for task in self._model.event_tasks}
        count_BQ = state.visible_count(queries.visible_before_BQ)
        for user in range(len(count_BQ)):
            moments = torch.stack([count_BQ[user], queries.time_BQ[user]], dim=-1)
            for count, time in torch.unique(moments, dim=0).tolist():
                mine_Q = ((count_BQ[user] == count) & (queries.time_BQ[user] == time)).nonzero()[:, 0]
                found = self._graphs.score(
                    self._model, _first(state.events, user, count), _take(queries, user, mine_Q), items_NW
                )
                for task, logits in found.items():
                    said[task][user, mine_Q] = logits[0]
        return said


def _first(events: Events, user: int, count: int) -> Events:
    """The first events of one sequence; one that is not shown when there are none."""
    size = max(count, 1)

    def cut(value: Tensor) -> Tensor:
        return value[user : user + 1, :size]

    return replace(
        events,
        item_BT=cut(events.item_BT),
        request_BT=cut(events.request_BT),
        time_BT=cut(events.time_BT),
        labels_BT={name: cut(value) for name, value in events.labels_BT.items()},
        user_B=events.user_B[user : user + 1],
        user_features={name: value[user : user + 1] for name, value in events.user_features.items()},
        key_B=events.key_B[user : user + 1],
        history_BT=cut(shown(events)) & bool(count),
        whole=True,
    )


def _take(queries: Queries, user: int, mine_Q: Tensor) -> Queries:
    def pick(value: Tensor) -> Tensor:
        return value[user : user + 1].index_select(1, mine_Q)

    context = {name: pick(value) for name, value in queries.context.items()}
    return Queries(pick(queries.item_BQ), pick(queries.time_BQ), pick(queries.visible_before_BQ), context)
