"""Events that users send while the graph is served: checked against the release, kept, shown to the next request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rayrank.messages import ErrorField, FeedbackEvent, FeedbackRequest
from rayrank.ranking.encode import RequestEncoder
from rayrank.ranking.flow import Missed
from rayrank.ranking.state import StateError, StateStore, UserEvents
from rayrank.ranking.user import Rejected

AGAIN = "it may have been kept; sent again with this request_id as its x-request-id it counts once"
"""What is said of feedback whose fate nobody knows: the store may still do what it was no longer waited for."""


@dataclass(frozen=True)
class Accepted:
    """Events of one request that are on disk now, and those that had been there before."""

    new: int
    old: int


class FeedbackStage:
    """Takes events in; nothing is acknowledged before it is on disk."""

    def __init__(self, encoder: RequestEncoder, state: StateStore | None) -> None:
        self._encoder, self._state = encoder, state

    def accept(self, request: FeedbackRequest, request_id: str, now: int) -> Accepted | Rejected | Missed:
        """Keep the events; ``now`` (unix seconds) is the time of those that tell none.

        An event counts once: by its ``event_id``, else by item, time and labels, else (no time told) by ``request_id``,
        its place and what it says, so that a client may send again what was not answered, and two POSTs under one
        trace id are two.
        """
        problems = self._encoder.label_problems(request.events, "events")
        if problems:
            return Rejected(tuple(ErrorField(field=f, problem=p) for f, p in problems[:20]))
        if self._state is None:
            return Missed("this service keeps no user state")
        told = _columns(request.events, request_id, now)
        lines = [_line(request.user_id, event, told.time[i]) for i, event in enumerate(request.events)]
        try:
            new = self._state.append(request.user_id, told, lines, now)
        except StateError as error:
            return Missed(f"{error}; {AGAIN}")
        return Accepted(new, len(lines) - new)


def _columns(events: Sequence[FeedbackEvent], request_id: str, now: int) -> UserEvents:
    tasks = dict.fromkeys(task for event in events for task in event.labels)
    return UserEvents(
        [e.item_id for e in events],
        [now if e.time is None else e.time for e in events],
        {task: [e.labels.get(task) for e in events] for task in tasks},
        [e.event_id or (f"{request_id}/{i}/{_said(e)}" if e.time is None else None) for i, e in enumerate(events)],
    )


def _said(event: FeedbackEvent) -> str:
    """A digest of what an event says: 16 hex digits."""
    said = json.dumps([event.item_id, sorted(event.labels.items()), event.request_id])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _line(user_id: str, event: FeedbackEvent, time: int) -> str:
    """What training reads of the event later; see ``sources.served``."""
    said = {"user_id": user_id, "item_id": event.item_id, "time": time, "request_id": event.request_id}
    return json.dumps(said | {"labels": dict(event.labels)})
