"""What users did since the data was prepared: events by user id, appended while serving, kept on disk.

The store knows ids and times, no catalogue rows: a release with another catalogue reads the same events. Here are its
protocol, its config and what both kinds of store do alike: how a user's events are packed, merged and cut. Knows
nothing about requests or models.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from pydantic import Field, model_validator

from rayrank.config import Config, DataPath
from rayrank.message_values import MAX_HISTORY
from rayrank.ranking.release import releases_folder

FILE = "state.sqlite"
_DAY = 86_400
_SPARE = MAX_HISTORY
"""Events kept beyond a history, by which those that were cut are known when they are told again: as many as a request
may hold."""
Labels = frozenset[tuple[str, float]]
"""Task and value, as float32 rounds it: what a dataset keeps of a label."""
_Said = tuple[str, int, Labels]


class StateError(RuntimeError):
    """The store gives no answer; the message names no user."""


class StateLateError(StateError):
    """It was waited for in vain: whoever asks next waits as long."""


class StateSpec(Config):
    """Where events that users send are kept, how many and for how long."""

    path: DataPath | None = Field(None, description=f"sqlite file on a local disk; None: {FILE} in the releases folder")
    url: str | None = Field(
        None, description="redis://… of a Redis-compatible server instead; needed with user stages on many machines"
    )
    prefix: str = Field("rayrank", description="begin of every key on that server", pattern=r"^[\w.-]{1,64}$")
    max_events: int = Field(1000, ge=1, description="events of a user's history that are used; the oldest go first")
    expire_days: float | None = Field(None, gt=0, description="events older than this are dropped; None: none are")
    timeout_s: float = Field(
        0.5, gt=0, description="longest wait for a step of the store; then it counts as down, seconds"
    )
    loaded: bool = Field(
        False, description="load_state has put the dataset's histories into the store: no cache of them is made or read"
    )

    @model_validator(mode="after")
    def _one_place(self) -> StateSpec:
        if self.path is not None and self.url is not None:
            raise ValueError("give path or url, not both")
        if self.url is not None and not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("url must begin with redis://, rediss:// or unix://")
        return self

    def since(self, now: int) -> int | None:
        """The instant (unix seconds) before which events have expired; None: they never do."""
        return None if self.expire_days is None else now - int(self.expire_days * _DAY)


@dataclass(frozen=True)
class UserEvents:
    """Events of one user in time order, by columns of equal length."""

    item: Sequence[str] = ()
    time: Sequence[int] = ()  # unix seconds
    labels: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # task -> value, None where not told
    key: Sequence[str | None] = ()  # names that make an event count once; None: its item, time and labels do

    def __len__(self) -> int:
        return len(self.item)

    def chosen(self, places: Sequence[int]) -> UserEvents:
        """The events at ``places``, in that order."""
        labels = {task: [values[i] for i in places] for task, values in self.labels.items()}
        return UserEvents(
            [self.item[i] for i in places], [self.time[i] for i in places], labels, [self.key[i] for i in places]
        )

    def told(self) -> list[Labels]:
        """The labels of each event."""
        found: list[list[tuple[str, float]]] = [[] for _ in self.item]
        with np.errstate(over="ignore"):
            for task, values in self.labels.items():
                for told, value in zip(found, np.asarray(values, np.float32).tolist(), strict=True):
                    if value == value:
                        told.append((task, value))
        return [frozenset(told) for told in found]


class StateStore(Protocol):
    """Events by user id. Safe to use from several threads; several processes may share one.

    Every method raises :class:`StateError` when the store is down, locked, full or damaged; :class:`StateLateError` as
    soon as one step of it (a connection, a command, a lock) was waited for ``timeout_s``: none is tried again then.
    """

    def events(self, user_id: str, now: int) -> UserEvents | None:
        """What is known of the user and has not expired; None: nothing."""

    def append(self, user_id: str, told: UserEvents, lines: Sequence[str], now: int) -> int:
        """Keep new events, all or none; on disk when this returns. ``lines[i]`` goes to the log with event ``i``.

        Returns how many were new: those told before are left out, of the log too, and so are those of which nobody can
        say that any more (expired, or not later than everything that is kept).
        """

    def load(self, histories: Mapping[str, UserEvents], now: int, mark: str | None = None) -> None:
        """Merge many histories at once, without the log, and remember ``mark``.

        They are a dataset's: an event counts once too where one of both sides tells labels that the other does not.
        """

    def marks(self) -> set[str]:
        """The marks of everything that was loaded."""

    def log(self) -> Iterator[str]:
        """The lines of all appended events that have not expired, oldest first."""

    def user_ids(self, limit: int) -> list[str]:
        """Some users with events."""

    def size(self) -> tuple[int, int, int]:
        """Users, their events as packed bytes with the ids, and bytes of everything."""

    def close(self) -> None:
        """Let go of the file or the connection."""


def merged(
    old: UserEvents, new: UserEvents, spec: StateSpec, now: int, loaded: bool = False
) -> tuple[UserEvents, list[int]]:
    """Old and new events in time order (of equal times the older first); places of what was new.

    Up to ``_SPARE`` events more than ``spec`` shows. What is not later than all of them, when there are so many, or has
    expired may have been told and cut before: it is not new. ``loaded``: ``new`` is what a dataset knows, which may
    tell more or fewer labels of an event than feedback did.
    """
    there = kept(old, spec, now, _SPARE)
    fresh = _fresh(there, new, _floor(there, spec, now), loaded)
    return kept(_joined(there, new if len(fresh) == len(new) else new.chosen(fresh)), spec, now, _SPARE), fresh


def _fresh(old: UserEvents, new: UserEvents, floor: int | None, loaded: bool) -> list[int]:
    """Places of the new events that are later than ``floor`` and not known.

    Of two events with keys the keys decide; else item, time and labels do.
    """
    times = set(new.time)  # looking at all old events would cost more than the rest
    near = old.chosen([i for i, time in enumerate(old.time) if time in times])
    keys = {key for key in old.key if key is not None}
    said = (set[_Said](), set[_Said]())  # of events without and with a key
    there: dict[tuple[str, int], list[Labels]] = {}
    for item, time, labels, key in zip(near.item, near.time, near.told(), near.key, strict=True):
        said[key is not None].add((item, time, labels))
        there.setdefault((item, time), []).append(labels)
    fresh: list[int] = []
    for i, labels in enumerate(new.told()):
        item, time, key = new.item[i], new.time[i], new.key[i]
        says, keyed = (item, time, labels), key is not None
        known = says in said[False] or (key in keys if keyed else says in said[True])
        if loaded and not known:
            known = any(labels <= other or other <= labels for other in there.get((item, time), ()))
        if known or (floor is not None and time <= floor):
            continue
        said[keyed].add(says)
        if key is not None:
            keys.add(key)
        fresh.append(i)
    return fresh


def _floor(there: UserEvents, spec: StateSpec, now: int) -> int | None:
    """The latest time (unix seconds) of events that may have been cut; None: none was."""
    since = spec.since(now)
    if len(there) >= spec.max_events + _SPARE:  # the older of them have not expired: they are later than ``since``
        return there.time[0]
    return None if since is None else since - 1


def kept(events: UserEvents, spec: StateSpec, now: int, spare: int = 0) -> UserEvents:
    """The latest events that have not expired, in time order; ``spare`` more than ``spec`` shows."""
    times, since, most = events.time, spec.since(now), spec.max_events + spare
    rising = all(a <= b for a, b in pairwise(times))
    if rising and len(times) <= most and (since is None or not times or times[0] >= since):
        return events
    places = sorted(range(len(times)), key=times.__getitem__)
    if since is not None:
        places = [i for i in places if times[i] >= since]
    return events.chosen(places[-most:])


def pack(events: UserEvents, spec: StateSpec) -> bytes:
    """Compressed: what ``spec`` shows, then, by itself, what is kept beyond that, which readers need not unpack."""
    places = range(len(events))
    shown, spare = (events.chosen(some) for some in (places[-spec.max_events :], places[: -spec.max_events]))
    return _packed(shown) + (_packed(spare) if len(spare) else b"")


def unpack(blob: bytes, whole: bool = False) -> UserEvents:
    """The events of :func:`pack` that are shown; ``whole``: all of them.

    Raises:
        StateError: the bytes are none of ours.
    """
    reader = zlib.decompressobj()
    try:
        shown = _unpacked(reader.decompress(blob))
        if not reader.eof:
            raise StateError("damaged (cut off)")
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise StateError(f"damaged ({type(error).__name__})") from None
    return _joined(unpack(reader.unused_data), shown) if whole and reader.unused_data else shown


def _packed(events: UserEvents) -> bytes:
    """Compressed JSON: times as differences, keys only where there are any."""
    times = list(events.time)
    columns: dict[str, object] = {
        "i": list(events.item),
        "t": [after - before for before, after in zip([0, *times], times, strict=False)],
        "l": {task: _short(values) for task, values in events.labels.items()},
    }
    if any(key is not None for key in events.key):
        columns["k"] = list(events.key)
    return zlib.compress(json.dumps(columns, separators=(",", ":")).encode(), 1)


def _unpacked(text: bytes) -> UserEvents:
    columns = json.loads(text)
    times, total = [], 0
    for step in columns["t"]:
        total += step
        times.append(total)
    return UserEvents(columns["i"], times, columns["l"], columns.get("k") or [None] * len(times))


def _short(values: Sequence[float | None]) -> list[float | int | None]:
    return [int(v) if v is not None and v == int(v) else v for v in values]


def _joined(old: UserEvents, new: UserEvents) -> UserEvents:
    if not len(old):
        return new
    labels: dict[str, Sequence[float | None]] = {}
    for task in dict.fromkeys([*old.labels, *new.labels]):
        before, after = old.labels.get(task), new.labels.get(task)
        labels[task] = [*(before or [None] * len(old)), *(after or [None] * len(new))]
    return UserEvents([*old.item, *new.item], [*old.time, *new.time], labels, [*old.key, *new.key])


def open_state(spec: StateSpec, releases: str, read_only: bool = False) -> StateStore:
    """The store that ``spec`` names; without a name a file in the folder of releases. ``read_only``: no file is made.

    Raises:
        ConfigError: the file cannot be made; nothing is there to be read only; or the server's settings lose what it
            acknowledges.
    """
    if spec.url is not None:
        from rayrank.ranking.state_redis import RedisState

        return RedisState(spec, read_only)
    from rayrank.ranking.state_sqlite import SqliteState

    return SqliteState(spec.path or releases_folder(releases) / FILE, spec, read_only)
