"""A ranker as two ONNX graphs: the user's events read, the candidates scored. The model's own code is traced.

Events and candidates may be any number; everything else has the size it has in a request. Tables of ids stay outside,
so a graph is small whatever the number of users and items.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rayrank.batch import Events, Queries
from rayrank.compression.exporter import exported
from rayrank.features.encode import is_multi
from rayrank.models.onnx_ranker import CONTEXT, LOGITS, READ, SCORE, USER
from rayrank.models.ranker import Ranker, UserState
from rayrank.schema import CategoricalFeature, Feature

_STATE = ("tokens_BTD", "sums_BSX", "prior_BdK")
"""What reading the events adds to a user's state."""
_EVENTS, _CANDIDATES = 7, 5
"""Sizes of the example that is traced."""


def request_graphs(model: Ranker, width: int) -> dict[str, bytes]:
    """File name -> graph; ``width`` columns make a packed item row.

    Raises:
        ConfigError: the packages of the extra ``onnx`` are missing.
    """
    read, score = _Read(model).eval(), _Score(model).eval()
    events, candidates = torch.export.Dim("events"), torch.export.Dim("candidates")
    given = _event_inputs(model, width, events)
    with torch.no_grad():
        state = dict(zip(_STATE, read({name: value for name, (value, _) in given.items()}), strict=True))
    asked = _query_inputs(model, width, candidates)
    for name, axes in (("shown_BT", {1: events}), ("time_BT", {1: events}), ("user_BU", {}), ("known_B", {})):
        asked[name] = (given[name][0], axes)
    for name, value in state.items():
        moving = value.shape[1] == _EVENTS
        asked[name] = (value, {1: events} if moving else {})
    graph, used = exported(score, asked, [LOGITS])
    read.wanted = [name for name in _STATE if name in used] or ["sums_BSX"]  # a graph puts out something
    return {READ: exported(read, given, read.wanted)[0], SCORE: graph}


class _Read(nn.Module):
    """One user's events to what the candidates need of them."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model
        self.wanted = list(_STATE)

    def forward(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        place_BT = torch.arange(given["time_BT"].shape[1]).unsqueeze(0)
        events = Events(
            item_BT=place_BT,
            request_BT=given["request_BT"],
            time_BT=given["time_BT"],
            labels_BT={task: given[f"label.{task}"] for task in self.model.event_tasks},
            user_B=torch.zeros(1, dtype=torch.int64),
            user_features={f.name: given[USER + f.name] for f in self.model.schema.user_features},
            key_B=torch.zeros(1, dtype=torch.int64),
            history_BT=given["shown_BT"],
            whole=True,
        )
        state = self.model.read(_unread(given), events, given["item_TW"])
        return tuple(getattr(state, name) for name in self.wanted)


class _Score(nn.Module):
    """Candidates of one request, given the user's state."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        place_BQ = torch.arange(given["item_QW"].shape[0]).unsqueeze(0)
        time_BQ = given["time_BQ"].expand(1, place_BQ.shape[1])
        features = self.model.schema.context_features
        queries = Queries(
            place_BQ, time_BQ, torch.zeros_like(place_BQ), {f.name: given[CONTEXT + f.name] for f in features}
        )
        state = _unread(given).with_events(given["tokens_BTD"], given["sums_BSX"], given["prior_BdK"])
        said = self.model.score(state, queries, given["item_QW"])
        return torch.stack([said[task] for task in self.model.event_tasks], dim=-1)


def _unread(given: dict[str, Tensor]) -> UserState:
    none = given["user_BU"].new_zeros(1, 1, 0)
    return UserState(
        request_BT=given["time_BT"],  # for its length: every query sees all events
        shown_BT=given["shown_BT"],
        time_BT=given["time_BT"],
        tokens_BTD=none,
        sums_BSX=none,
        prior_BdK=none,
        user_BU=given["user_BU"],
        known_B=given["known_B"],
        key_B=torch.zeros(1, dtype=torch.int64),
        whole=True,
    )


def _event_inputs(model: Ranker, width: int, events: Any) -> dict[str, tuple[Tensor, dict[int, Any]]]:
    size = (1, _EVENTS)
    found: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "request_BT": (torch.arange(_EVENTS, dtype=torch.int32).unsqueeze(0), {1: events}),
        "shown_BT": (torch.ones(size, dtype=torch.bool), {1: events}),
        "time_BT": (torch.arange(_EVENTS).unsqueeze(0) * 60, {1: events}),
        "item_TW": (torch.randn(_EVENTS, width), {0: events}),
        "user_BU": (torch.randn(1, model.static.row_width), {}),
        "known_B": (torch.ones(1), {}),
    }
    found |= {f"label.{task}": (torch.ones(size), {1: events}) for task in model.event_tasks}
    return found | {USER + f.name: (_feature(f, (1,)), {}) for f in model.schema.user_features}


def _query_inputs(model: Ranker, width: int, candidates: Any) -> dict[str, tuple[Tensor, dict[int, Any]]]:
    found: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "item_QW": (torch.randn(_CANDIDATES, width), {0: candidates}),
        "time_BQ": (torch.full((1, 1), 3600), {}),
    }
    context = model.schema.context_features
    return found | {CONTEXT + f.name: (_feature(f, (1, _CANDIDATES)), {1: candidates}) for f in context}


def _feature(feature: Feature, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(feature, CategoricalFeature):
        return torch.randn(shape)
    return torch.ones((*shape, feature.max_values) if is_multi(feature) else shape, dtype=torch.int64)
