"""Requests as they would have come: users at their first request of a part, with what they did before and liked after.

Streams a dataset; holds the sampled requests. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rayrank.metrics.scores import Array
from rayrank.pipeline.comparison import Part
from rayrank.pipeline.targets import part_columns
from rayrank.ranking.context import UserContext
from rayrank.ranking.store import History, UserStore, empty_history
from rayrank.schema import PARTS, past_features
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset


@dataclass(frozen=True)
class Sampling:
    """Which requests."""

    part: Part
    positive: str  # binary task
    requests: int
    window: int  # events that models read
    seed: int


@dataclass(frozen=True)
class PastRequest:
    """One user's first request of the part."""

    context: UserContext
    liked: Array  # int64, distinct items with a positive target of the part that the user had not met before


@dataclass(frozen=True)
class _First:
    """What the shards tell of it; the smallest request number of a user's chunks counts."""

    request: int
    time: int
    context: Mapping[str, Array]
    features: Mapping[str, Array]


def sample_requests(dataset: Dataset, store: UserStore, asked: Sampling) -> list[PastRequest]:
    """At most ``asked.requests`` users with a positive target, drawn by the seed, in the order of their numbers.

    Users whose every positive item was met before are left out: what was met is not recommended.
    """
    chosen = _draw(dataset, asked)
    first, liked = _read(dataset, chosen, asked)
    ids = dataset.users_table()["user_id"]
    tasks = tuple(task.name for task in dataset.schema.event_tasks)
    found = []
    for user in sorted(first):
        told = store.history(str(ids[user - 1])) if user else None
        history = _before(told, first[user].request) if told is not None else empty_history(tasks)
        context = _context(dataset, user, history, first[user])
        new = np.setdiff1d(liked[user], history.item).astype(np.int64)
        if len(new):
            older, latest = history.item[: -asked.window], history.last(asked.window)
            found.append(PastRequest(replace(context, history=latest, older=older), new))
    return found


def _draw(dataset: Dataset, asked: Sampling) -> Array:
    """Sorted distinct users with a positive target."""
    label = f"label_{asked.positive}"
    blocks = part_columns(dataset, PARTS[asked.part], ["user", label])
    users = np.unique(np.concatenate([block["user"][block[label] == 1] for block in blocks]))
    users = users[users > 0]
    size = min(asked.requests, len(users))
    return np.sort(np.random.default_rng(asked.seed).choice(users, size, replace=False))


def _read(dataset: Dataset, chosen: Array, asked: Sampling) -> tuple[dict[int, _First], dict[int, Array]]:
    first: dict[int, _First] = {}
    liked: dict[int, Array] = {}
    for shard, group in dataset.groups():
        info = dataset.manifest.shards[shard].row_groups[group]
        if not getattr(info, asked.part) or not np.isin(_users(dataset, shard, group), chosen).any():
            continue
        batch = collate(dataset.read_group(shard, group), dataset.schema)
        events = batch.events
        for row in np.flatnonzero(np.isin(events.user_B.numpy(), chosen)).tolist():
            targets = np.flatnonzero(batch.part_BT[row].numpy() == PARTS[asked.part])
            if not len(targets):
                continue
            user, at = int(events.user_B[row]), int(targets[0])
            request = int(events.request_BT[row, at])
            if user not in first or request < first[user].request:
                context = {name: values[row, at].numpy() for name, values in batch.context.items()}
                features = {name: values[row].numpy() for name, values in events.user_features.items()}
                first[user] = _First(request, int(events.time_BT[row, at]), context, features)
            mine = targets[events.labels_BT[asked.positive][row, targets].numpy() == 1]
            items = events.item_BT[row, mine].numpy()
            liked[user] = np.union1d(liked.get(user, np.zeros(0, np.int64)), items[items > 0])
    return first, liked


def _users(dataset: Dataset, shard: int, group: int) -> Array:
    return np.asarray(dataset.read_group(shard, group, ["user"])["user"].to_numpy())


def _before(history: History, request: int) -> History:
    """Events of strictly earlier requests."""
    keep = history.request < request
    labels = {task: values[keep] for task, values in history.labels.items()}
    return History(history.item[keep], history.request[keep], history.time[keep], labels)


def _context(dataset: Dataset, user: int, history: History, first: _First) -> UserContext:
    """Without what is told of items' pasts, which each scorer looks up for every candidate."""
    looked_up = {feature.name for feature in past_features(dataset.schema)}
    shared = {name: value for name, value in first.context.items() if name not in looked_up}
    return UserContext(history, first.time, user, first.features, shared)
