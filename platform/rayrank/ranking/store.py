"""User histories by user id in one sqlite file, built from a dataset's shards.

The file is a cache: it is written under a temporary name, renamed when complete, and rebuilt when the dataset it was
made from changes. Knows users, events and sqlite; knows nothing about models or requests.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayrank.config import ConfigError
from rayrank.ranking import durable
from rayrank.ranking.state import StateError
from rayrank.sources.dataset import Dataset

_FORMAT = "1"
_COLUMNS = (("item", np.int32), ("request", np.int32), ("time", np.int64))
_BUSY_S = 0.05  # nobody writes a finished file
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """Events of one user in time order; ``item`` are catalogue rows, 0 unknown."""

    item: np.ndarray  # int32
    request: np.ndarray  # int32, equal within a request
    time: np.ndarray  # int64, unix seconds
    labels: Mapping[str, np.ndarray]  # event task -> float32, NaN where missing

    def __len__(self) -> int:
        return len(self.item)

    def last(self, n: int) -> History:
        """The n latest events."""
        labels = {task: v[-n:] for task, v in self.labels.items()}
        return History(self.item[-n:], self.request[-n:], self.time[-n:], labels)


def joined(base: History, told: History) -> History:
    """What the data knows and what was told since, in time order; an event that both know counts once.

    Equal times share a request; so does what happened between the events of one request of ``base``.
    """
    if not len(told) or not len(base):
        return told if len(told) else base
    later = told.time[0] > base.time[-1]
    if not later:
        told = _unknown_to(base, told)
    item, time = (np.concatenate([getattr(h, name) for h in (base, told)]) for name in ("item", "time"))
    labels = {task: np.concatenate([base.labels[task], told.labels[task]]) for task in base.labels}
    request = np.concatenate([base.request, told.request + (base.request[-1] + 1)])
    if not later:
        before = np.searchsorted(base.time, told.time, side="right") - 1
        after = np.minimum(before + 1, len(base) - 1)
        inside = (base.time[before] == told.time) | ((base.request[before] == base.request[after]) & (after > before))
        inside &= before >= 0
        request[len(base) :][inside] = base.request[before[inside]]
        order = np.argsort(time, kind="stable")
        item, time, request = item[order], time[order], request[order]
        labels = {task: values[order] for task, values in labels.items()}
        request = np.cumsum(np.diff(request, prepend=request[:1]) != 0, dtype=np.int32)
    return History(item, request, time, labels)


def _unknown_to(base: History, told: History) -> History:
    """Without events whose item, time and labels ``base`` has."""
    first = np.searchsorted(base.time, told.time[0])
    known = {
        (int(base.item[i]), int(base.time[i])): {t: float(v[i]) for t, v in base.labels.items()}
        for i in range(int(first), len(base))
    }
    new = np.ones(len(told), bool)
    for i in range(len(told)):
        there = known.get((int(told.item[i]), int(told.time[i])))
        new[i] = there is None or any(not np.isnan(v[i]) and there[t] != v[i] for t, v in told.labels.items())
    return History(told.item[new], told.request[new], told.time[new], {t: v[new] for t, v in told.labels.items()})


def empty_history(tasks: tuple[str, ...]) -> History:
    """No events."""
    return History(
        np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64), {t: np.zeros(0, np.float32) for t in tasks}
    )


class UserStore:
    """Histories by user id. Open with :meth:`open`; safe to read from several threads and processes."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._connection = sqlite3.connect(
            f"file:{self.path}?mode=ro", uri=True, timeout=_BUSY_S, check_same_thread=False
        )
        self._lock, self._told = threading.Lock(), False
        meta = dict(self._connection.execute("SELECT key, value FROM meta"))
        self.tasks: tuple[str, ...] = tuple(json.loads(meta["tasks"]))
        self.latest: int = int(meta["latest"])
        self.users: int = int(meta["users"])

    @classmethod
    def open(cls, path: str | Path, dataset: Dataset, progress: Callable[[str], None] = lambda _: None) -> UserStore:
        """The store of ``dataset`` at ``path``; built when absent, damaged or made from other data.

        Raises:
            ConfigError: the folder of ``path`` cannot be written.
        """
        if _made_from(path) != _identity(dataset):
            progress("loading user histories")
            build_store(path, dataset)
        return cls(path)

    def history(self, user_id: str) -> History | None:
        """All known events of the user, oldest first; None for an unknown user.

        Raises:
            StateError: the file is damaged.
        """
        with self._reading():
            row = self._connection.execute("SELECT events FROM histories WHERE user_id = ?", (user_id,)).fetchone()
            return None if row is None else _unpack(row[0], self.tasks)

    def user_ids(self, limit: int = 20) -> list[str]:
        """Some known users, in import order.

        Raises:
            StateError: the file is damaged.
        """
        with self._reading():
            rows = self._connection.execute("SELECT user_id FROM histories ORDER BY rowid LIMIT ?", (limit,)).fetchall()
        return [r[0] for r in rows]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, TypeError, ValueError) as error:
            if not self._told:  # once; every answer says so
                _log.error("user histories: %s: %s; remove the file and start again", self.path, error)
                self._told = True
            raise StateError(f"damaged ({type(error).__name__})") from None


def build_store(path: str | Path, dataset: Dataset) -> None:
    """Write the store of a dataset: chunks first, then one merged row per user, renamed into place at the end."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(temporary)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            str(target), None, f"must be writable ({type(error).__name__})", "choose another folder"
        ) from None
    try:
        _fill(connection, dataset)
        connection.close()
        durable.put(temporary, target)
    finally:
        connection.close()
        temporary.unlink(missing_ok=True)


def _fill(connection: sqlite3.Connection, dataset: Dataset) -> None:
    tasks = tuple(t.name for t in dataset.schema.event_tasks)
    connection.executescript(
        "PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF;"
        "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT);"
        "CREATE TABLE histories(user_id TEXT PRIMARY KEY, events BLOB NOT NULL);"
        "CREATE TEMP TABLE chunks(user INTEGER, events BLOB, rows BLOB);"
    )
    connection.executemany("INSERT INTO chunks VALUES (?, ?, ?)", _chunks(dataset, tasks, dataset.groups()))
    connection.execute("CREATE INDEX temp.by_user ON chunks(user)")
    ids = dataset.users_table().column("user_id").to_pylist()
    latest = users = 0
    scan = connection.execute("SELECT user, events, rows FROM chunks ORDER BY user")
    for user, history in _merged(scan, tasks):
        if 0 < user <= len(ids):
            connection.execute("INSERT INTO histories VALUES (?, ?)", (str(ids[user - 1]), _pack(history, tasks)))
            latest, users = max(latest, int(history.time[-1])), users + 1
    meta = {"format": _FORMAT, "made_from": _identity(dataset), "tasks": json.dumps(tasks)}
    meta |= {"latest": str(latest), "users": str(users)}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
    connection.commit()


def shard_histories(dataset: Dataset, shard: int) -> Iterator[tuple[int, History]]:
    """User index and history of everyone who has events in a shard; the shard's histories are held in memory."""
    tasks = tuple(t.name for t in dataset.schema.event_tasks)
    chunks = _chunks(dataset, tasks, [place for place in dataset.groups() if place[0] == shard])
    return _merged(sorted(chunks, key=itemgetter(0)), tasks)


def _chunks(
    dataset: Dataset, tasks: tuple[str, ...], groups: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, bytes, bytes]]:
    names = ["user", "row", "history", *(c for c, _ in _COLUMNS), *(f"label_{t}" for t in tasks)]
    for shard, group in groups:
        table = dataset.read_group(shard, group, columns=names)
        users = table.column("user").to_numpy()
        lists = {name: _lists(table, name) for name in names[1:]}
        for i, user in enumerate(users):
            part = {name: values[offsets[i] : offsets[i + 1]] for name, (offsets, values) in lists.items()}
            shows = part.pop("history")  # sampled negatives were never seen by anybody
            part = {name: values[shows] for name, values in part.items()}
            labels = {t: part[f"label_{t}"] for t in tasks}
            history = History(part["item"], part["request"], part["time"], labels)
            yield int(user), _pack(history, tasks), part["row"].astype(np.int64).tobytes()


def _lists(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return array.offsets.to_numpy(), array.values.to_numpy(zero_copy_only=False)


def _merged(scan: Any, tasks: tuple[str, ...]) -> Iterator[tuple[int, History]]:
    """One history per user from overlapping chunks: an interaction (its source row) counts once."""
    current, parts, rows = -1, [], []  # type: int, list[History], list[np.ndarray]
    for user, events, row in scan:
        if user != current and parts:
            yield current, _merge(parts, rows, tasks)
            parts, rows = [], []
        current = user
        parts.append(_unpack(events, tasks))
        rows.append(np.frombuffer(row, np.int64))
    if parts:
        yield current, _merge(parts, rows, tasks)


def _merge(parts: list[History], rows: list[np.ndarray], tasks: tuple[str, ...]) -> History:
    row, first = np.unique(np.concatenate(rows), return_index=True)
    item, request, time = (np.concatenate([getattr(p, f"{c}") for p in parts])[first] for c, _ in _COLUMNS)
    labels = {t: np.concatenate([p.labels[t] for p in parts])[first] for t in tasks}
    order = np.lexsort((row, request))
    return History(item[order], request[order], time[order], {t: v[order] for t, v in labels.items()})


def _pack(history: History, tasks: tuple[str, ...]) -> bytes:
    arrays = [np.asarray(getattr(history, f"{name}"), kind) for name, kind in _COLUMNS]
    arrays += [np.asarray(history.labels[t], np.float32) for t in tasks]
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def _unpack(blob: bytes, tasks: tuple[str, ...]) -> History:
    kinds = [*(kind for _, kind in _COLUMNS), *(np.float32 for _ in tasks)]
    size = len(blob) // sum(np.dtype(k).itemsize for k in kinds)
    arrays, offset = [], 0
    for kind in kinds:
        arrays.append(np.frombuffer(blob, kind, size, offset))
        offset += arrays[-1].nbytes
    return History(arrays[0], arrays[1], arrays[2], dict(zip(tasks, arrays[3:], strict=True)))


def _identity(dataset: Dataset) -> str:
    return f"{_FORMAT}:{dataset.manifest.data_fingerprint}"


def _made_from(path: str | Path) -> str | None:
    """What a file was made from; None: there is none, or a damaged one."""
    if not Path(path).is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):  # 0.7 s a GB
                _log.warning("user histories: %s is damaged and made anew", path)
                return None
            row = connection.execute("SELECT value FROM meta WHERE key = 'made_from'").fetchone()
    except sqlite3.DatabaseError:
        return None
    return None if row is None else str(row[0])
