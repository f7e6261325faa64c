"""The first stage: who asks, what they did before, what they ask about; ids become rows, columns become features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rayrank.bundle import Bundle
from rayrank.features.derived import request_columns
from rayrank.messages import ErrorField, RankRequest, RecommendRequest
from rayrank.ranking.context import Prepared, UserContext
from rayrank.ranking.encode import ColdBuilder, RequestEncoder
from rayrank.ranking.items import Items
from rayrank.ranking.store import History, UserStore, empty_history
from rayrank.schema import Feature, past_features
from rayrank.sources.dataset import feature_tensor
from rayrank.wording import counted


@dataclass(frozen=True)
class Rejected:
    """The request breaks a rule that only the release knows (its tasks); becomes a 422 answer."""

    fields: tuple[ErrorField, ...]


class UserStage:
    """Turns a request into arrays."""

    def __init__(self, bundle: Bundle, items: Items, store: UserStore | None = None) -> None:
        self.encoder = RequestEncoder(bundle.info.data_schema, bundle.features, items)
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
            return Rejected(tuple(ErrorField(field=f, problem=p) for f, p in problems[:20]))
        time = request.time if request.time is not None else now
        if self._schema.timestamp is None:  # trained without times
            time = 0
        cold, warnings = ColdBuilder(self.encoder), list[str]()
        history, warning = self._history(request, time, cold)
        candidates = None
        if isinstance(request, RankRequest):
            candidates = self.encoder.rows(request.candidates, cold)
            if unknown := int((candidates == 0).sum()):
                warnings.append(f"{counted(unknown, 'candidate')} neither in the catalogue nor described")
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
        return Prepared(context, cold.build(), candidates, tuple(warnings))

    def _history(
        self, request: RankRequest | RecommendRequest, time: int, cold: ColdBuilder
    ) -> tuple[History, str | None]:
        """The inline history, else the stored one (events up to ``time``), else none and why."""
        if request.history is not None:
            return self.encoder.history(request.history, time, cold), None
        stored = self._store.history(request.user_id) if self._store and request.user_id else None
        if stored is not None:
            return _before(stored, request.time), None
        if request.user_id is None:
            return empty_history(self.encoder.tasks), "no user and no history: answered from popularity and context"
        known = request.user_id in self._rows
        why = "no history is known of this user" if known else "unknown user"
        return empty_history(self.encoder.tasks), f"{why}: answered from popularity and context"

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
        left = [sorted(set(given) - known) for given, known in zip((request.user, request.context), used, strict=True)]
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
