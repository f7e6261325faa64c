"""The first stage: who asks, what they did before, what they ask about; ids become rows, columns become features."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from rayrank.bundle import Bundle
from rayrank.features.derived import request_columns
from rayrank.messages import ErrorField, RankRequest, RecommendRequest, id_of
from rayrank.ranking.breaker import Breaker
from rayrank.ranking.context import Prepared, UserContext
from rayrank.ranking.encode import MOST_PROBLEMS, ColdBuilder, RequestEncoder
from rayrank.ranking.items import Items
from rayrank.ranking.state import StateError, StateLateError, StateStore, UserEvents
from rayrank.ranking.store import History, UserStore, empty_history, joined
from rayrank.schema import Feature, past_features
from rayrank.sources.dataset import feature_tensor
from rayrank.wording import counted, near_id

_NAMED = 5
"""Candidates that a warning names by their places."""


@dataclass(frozen=True)
class Rejected:
    """The request breaks a rule that only the release knows (its tasks); becomes a 422 answer."""

    fields: tuple[ErrorField, ...]


class UserStage:
    """Turns a request into arrays."""

    def __init__(
        self, bundle: Bundle, items: Items, store: UserStore | None = None, state: StateStore | None = None
    ) -> None:
        self.encoder = RequestEncoder(bundle.info.data_schema, bundle.features, items)
        self._state, self._breaker = state, Breaker()
        self._store, self._window, self._schema = store, bundle.info.window, bundle.info.data_schema
        self._of_items, self._knows_past = past_features(self._schema), bundle.past is not None
        self._rows: dict[str, int] = {}
        self._features: Mapping[str, np.ndarray] = {}
        if bundle.users is not None:
            ids = bundle.users.column("user_id").to_pylist()
            self._rows = {str(user_id): i + 1 for i, user_id in enumerate(ids)}
            table = bundle.users
            self._features = {
                f.name: feature_tensor(f, table[f.name], unknown_row=True).numpy() for f in self._schema.user_features
            }

    def prepare(self, request: RankRequest | RecommendRequest, now: int) -> Prepared | Rejected:
        """Arrays of one request; ``now`` (unix seconds) counts where the request has no time."""
        problems = self.encoder.label_problems(request.history or ()) + self.encoder.weight_problems(request.weights)
        if problems:
            return Rejected(tuple(ErrorField(field=f, problem=p) for f, p in problems[:MOST_PROBLEMS]))
        time = request.time if request.time is not None else now
        if self._schema.timestamp is None:  # trained without times
            time = 0
        cold, warnings = ColdBuilder(self.encoder), list[str]()
        history, warning, missed = self._history(request, (time, now), cold)
        candidates = None
        if isinstance(request, RankRequest):
            candidates = self.encoder.rows(request.candidates, cold)
            if unknown := np.flatnonzero(candidates == 0).tolist():
                near = self.encoder.items.near(id_of(request.candidates[unknown[0]]) or "")
                where = ", ".join(f"candidates.{i}{near if i == unknown[0] else ''}" for i in unknown[:_NAMED])
                what = f"{counted(len(unknown), 'candidate')} neither in the catalogue nor described"
                warnings.append(f"{what}, ranked last: {where}{', …' if len(unknown) > _NAMED else ''}")
        warnings += self.encoder.strange(cold.items)
        warnings += [w for w in (warning, self._unused(request), self._without_past(request)) if w]
        row = self._rows.get(request.user_id or "", 0)
        context = UserContext(
            history=history.last(self._window),
            time=time,
            user=row,
            features=self._user_features(row, request.user),
            context=self._context(request, time, history),
            older=history.item[: -self._window],
        )
        return Prepared(context, cold.build(), candidates, tuple(warnings), (missed,) if missed else ())

    def examples(self, limit: int) -> list[str]:
        """Some known user ids."""
        with suppress(StateError):
            if self._store is not None:
                return self._store.user_ids(limit)
            return self._state.user_ids(limit) if self._state is not None else []
        return []

    def _history(
        self, request: RankRequest | RecommendRequest, when: tuple[int, int], cold: ColdBuilder
    ) -> tuple[History, str | None, str | None]:
        """The inline history, else the known one, else none and why; last, why a part of it could not be read.

        ``when``: the request's time and the present.
        """
        if request.history is not None:
            return self.encoder.history(request.history, when[0], cold), None, None
        empty = empty_history(self.encoder.tasks)
        if request.user_id is None:
            return empty, "no user and no history: answered from popularity and context", None
        stored, lost = self._stored(request.user_id)
        told, late = self._told(request.user_id, when[1])
        missed = "; ".join(why for why in (lost, late) if why) or None
        if stored is not None or told is not None:
            history = empty if stored is None else self._current(_before(stored, request.time))
            if told is not None:
                history = joined(history, self.encoder.told(told, request.time))
            return history, None, missed
        known = request.user_id in self._rows
        why = "no history is known of this user" if known else f"unknown user{near_id(request.user_id, self._rows)}"
        return empty, f"{why}: answered from popularity and context", missed

    def _current(self, history: History) -> History:
        """Stored rows are those of the release; an item that was put again since has another."""
        return replace(history, item=self.encoder.items.current(history.item))

    def _stored(self, user_id: str) -> tuple[History | None, str | None]:
        """What the data knows of the user, or why it cannot be read."""
        if self._store is None:
            return None, None
        try:
            return self._store.history(user_id), None
        except StateError as error:
            return None, f"user histories: {error}; without what the dataset knows"

    def _told(self, user_id: str, now: int) -> tuple[UserEvents | None, str | None]:
        """What the user's feedback tells, or why it cannot be read; a store that is down is not asked every time."""
        if self._state is None:
            return None, None
        if not self._breaker.allows():
            return None, "user state: left alone after it missed; without the latest events"
        try:
            found = self._state.events(user_id, now)
        except StateError as error:
            # Requests wait for each other here: were each to wait in vain, all behind the first ones would be too late.
            self._breaker.failed(self._breaker.failures if isinstance(error, StateLateError) else 1)
            return None, f"user state: {error}; without the latest events"
        self._breaker.succeeded()
        return found, None

    def _user_features(self, row: int, given: Mapping[str, object]) -> dict[str, np.ndarray]:
        """Features of the known user, overruled by the columns given in the request."""
        found = {name: values[row] for name, values in self._features.items()} if row else {}
        fresh = self.encoder.user.one(given)
        features: tuple[Feature, ...] = self._schema.user_features
        return {f.name: fresh[f.name] if f.column in given or not found else found[f.name] for f in features}

    def _context(self, request: RankRequest | RecommendRequest, time: int, history: History) -> dict[str, np.ndarray]:
        """Features that all candidates share; those of items only where the client gives a value for all of them."""
        given = _given(request.context)
        found = self.encoder.context.one(request_columns(self._schema, time, history.time) | given)
        for feature in self._of_items:
            if feature.column not in given:
                del found[feature.name]
        return found

    def _without_past(self, request: RankRequest | RecommendRequest) -> str | None:
        if self._knows_past or not self._of_items:
            return None
        columns = {f.column for f in self._of_items} - _given(request.context).keys()
        return (
            f"the bundle holds no item pasts: {', '.join(sorted(columns))} count as missing; train it again"
            if columns
            else None
        )

    def _unused(self, request: RankRequest | RecommendRequest) -> str | None:
        used = {f.column for f in self._schema.user_features}, {f.column for f in self._schema.context_features}
        given = request.user.keys(), request.context.keys()
        left = [sorted(names - known) for names, known in zip(given, used, strict=True)]
        names = [f"{where}.{name}" for where, some in zip(("user", "context"), left, strict=True) for name in some]
        told = ", ".join(name[:40] for name in names[:5])  # the client's own words, but not any number of them
        return f"not used by this release: {told}{', …' if len(names) > 5 else ''}" if names else None


def _given(columns: Mapping[str, object]) -> dict[str, object]:
    """Without nulls: batch requests from Parquet leave them out, and a computed column is no less known for them."""
    return {name: value for name, value in columns.items() if value is not None}


def _before(history: History, time: int | None) -> History:
    """Stored events strictly earlier than an asked time; all of them when no time is asked for."""
    if time is None or not len(history) or history.time[-1] < time:
        return history
    keep = history.time < time
    return replace(
        history,
        item=history.item[keep],
        request=history.request[keep],
        time=history.time[keep],
        labels={task: values[keep] for task, values in history.labels.items()},
    )
