"""The embedded state store: one sqlite file, written ahead and flushed to disk before anything is acknowledged."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rayrank.config import ConfigError
from rayrank.ranking.state import StateError, StateLateError, StateSpec, UserEvents, kept, merged, pack, unpack

FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS users(user_id TEXT PRIMARY KEY, last INTEGER NOT NULL, events BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS log(number INTEGER PRIMARY KEY, time INTEGER NOT NULL, line TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS marks(mark TEXT PRIMARY KEY);
CREATE INDEX IF NOT EXISTS users_by_last ON users(last);
CREATE INDEX IF NOT EXISTS log_by_time ON log(time);
"""
_SWEEP_S, _SWEPT_AT_ONCE = 3600, 200
_READ_S = 0.05
"""Longest wait of a reader for a lock, which writers ahead of the file hardly ever hold: it may be the event loop."""
_LOST = "its file was removed or replaced while it was in use; start the service again"
_log = logging.getLogger(__name__)


class SqliteState:
    """See :class:`rayrank.ranking.state.StateStore`. Several processes of one machine may share the file.

    A damaged file does not keep this from being made: every call then raises ``StateError`` until it is mended.

    Raises:
        ConfigError: the file cannot be made, is not there to be read only, or another version wrote it.
    """

    def __init__(self, path: str | Path, spec: StateSpec, read_only: bool = False) -> None:
        self.path, self.spec, self._read_only = Path(path), spec, read_only
        self._reader = _Connection(self, min(_READ_S, spec.timeout_s))
        self._writer = _Connection(self, spec.timeout_s)
        self._swept, self.lost = 0, False
        if read_only:
            if not self.path.is_file():
                fix = "give the state.path, or the state.url, of the service"
                raise ConfigError("state.path", str(path), "no file of user state is there", fix)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._writer.use():
                pass
        except OSError as error:
            raise self._unusable(type(error).__name__) from None
        except StateError as error:
            if "unable to open" in str(error) or "readonly" in str(error):
                raise self._unusable(str(error)) from None
            _log.error("user state %s: %s", self.path, error)

    def events(self, user_id: str, now: int) -> UserEvents | None:
        """See the protocol."""
        with self._reader.use() as connection:
            row = connection.execute("SELECT events FROM users WHERE user_id = ?", (user_id,)).fetchone()
        found = None if row is None else kept(unpack(row[0]), self.spec, now)
        return found if found else None

    def append(self, user_id: str, told: UserEvents, lines: Sequence[str], now: int) -> int:
        """See the protocol."""
        with self._writer.use() as connection, _transaction(connection):
            fresh = self._merge(connection, user_id, told, now)
            rows = [(told.time[i], lines[i]) for i in fresh]
            connection.executemany("INSERT INTO log(time, line) VALUES (?, ?)", rows)
            self._sweep(connection, now)
        return len(fresh)

    def load(self, histories: Mapping[str, UserEvents], now: int, mark: str | None = None) -> None:
        """See the protocol."""
        with self._writer.use() as connection, _transaction(connection):
            for user_id, events in histories.items():
                self._merge(connection, user_id, events, now, loaded=True)
            if mark is not None:
                connection.execute("INSERT OR IGNORE INTO marks VALUES (?)", (mark,))

    def marks(self) -> set[str]:
        """See the protocol."""
        with self._reader.use() as connection:
            return {mark for (mark,) in connection.execute("SELECT mark FROM marks")}

    def log(self) -> Iterator[str]:
        """See the protocol."""
        last = 0
        while True:
            with self._reader.use() as connection:
                rows = connection.execute(
                    "SELECT number, line FROM log WHERE number > ? ORDER BY number LIMIT 10000", (last,)
                ).fetchall()
            if not rows:
                return
            yield from (line for _, line in rows)
            last = rows[-1][0]

    def user_ids(self, limit: int) -> list[str]:
        """See the protocol."""
        with self._reader.use() as connection:
            rows = connection.execute("SELECT user_id FROM users ORDER BY rowid LIMIT ?", (limit,))
            return [user_id for (user_id,) in rows]

    def size(self) -> tuple[int, int, int]:
        """See the protocol; everything is the file and what is written ahead of it."""
        with self._reader.use() as connection:
            users, packed = connection.execute(
                "SELECT count(*), coalesce(sum(length(events) + length(CAST(user_id AS BLOB))), 0) FROM users"
            ).fetchone()
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return int(users), int(packed), sum(f.stat().st_size for f in files if f.exists())

    def close(self) -> None:
        """See the protocol."""
        self._reader.close()
        self._writer.close()

    def open(self, wait_s: float) -> sqlite3.Connection:
        """A connection whose commits are on disk, and which waits so long for locks; makes the tables of a new file."""
        place = f"{self.path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}"
        connection = sqlite3.connect(place, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                rule = f"format {version} was written by another version of rayrank; this one reads {FORMAT}"
                raise ConfigError(str(self.path), None, rule, "give state.path another file")
            if self._read_only:
                return connection
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            if version == 0:
                connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={FORMAT};COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection

    def _merge(
        self, connection: sqlite3.Connection, user_id: str, told: UserEvents, now: int, loaded: bool = False
    ) -> list[int]:
        row = connection.execute("SELECT events FROM users WHERE user_id = ?", (user_id,)).fetchone()
        before = unpack(row[0], whole=True) if row else UserEvents()
        after, fresh = merged(before, told, self.spec, now, loaded)
        if fresh:
            connection.execute(
                "INSERT INTO users VALUES (?, ?, ?) ON CONFLICT(user_id) DO UPDATE SET last = excluded.last, "
                "events = excluded.events",
                (user_id, after.time[-1], pack(after, self.spec)),
            )
        return fresh

    def _sweep(self, connection: sqlite3.Connection, now: int) -> None:
        since = self.spec.since(now)
        if since is None or abs(now - self._swept) < _SWEEP_S:
            return
        # Within the transaction of somebody's feedback, so a part at a time: the next ones take the rest.
        some = (since, _SWEPT_AT_ONCE)
        users = connection.execute(
            "DELETE FROM users WHERE rowid IN (SELECT rowid FROM users WHERE last < ? LIMIT ?)", some
        )
        lines = connection.execute(
            "DELETE FROM log WHERE number IN (SELECT number FROM log WHERE time < ? LIMIT ?)", some
        )
        if max(users.rowcount, lines.rowcount) < _SWEPT_AT_ONCE:
            self._swept = now

    def _unusable(self, why: str) -> ConfigError:
        rule = f"the file of user state cannot be made ({why})"
        return ConfigError(str(self.path), None, rule, "give state.path a file on a local disk, or set state=null")


class _Connection:
    """One connection used by one thread at a time; opened when it is needed, and anew after any error."""

    def __init__(self, state: SqliteState, wait_s: float) -> None:
        self._state, self._wait_s, self._lock = state, wait_s, threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._inode = 0

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """The connection, for the time of the block.

        Raises:
            StateError: the file is locked, full or damaged.
        """
        if not self._lock.acquire(timeout=self._wait_s):
            raise StateLateError(f"busy for {self._wait_s * 1000:.0f} ms")
        try:
            if self._state.lost or (self._open is not None and self._moved()):
                self._state.lost = True  # an open connection would write into a file that nobody finds any more
                raise StateError(_LOST)
            if self._open is None:
                self._open = self._state.open(self._wait_s)
                self._inode = os.stat(self._state.path).st_ino
            yield self._open
        except (sqlite3.Error, OSError) as error:
            self._drop()
            # Python gives the extended code, which says in its higher bits why it is busy.
            locked = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            said = str(error) if isinstance(error, sqlite3.Error) else type(error).__name__
            raise (StateLateError if locked else StateError)(said) from None
        except StateError:
            self._drop()
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close it; the next use opens it again."""
        with self._lock:
            self._drop()

    def _moved(self) -> bool:
        try:
            return os.stat(self._state.path).st_ino != self._inode
        except OSError:
            return True

    def _drop(self) -> None:
        if self._open is not None and not self._state.lost:  # closing would delete what another file of the name has
            with suppress(sqlite3.Error):
                self._open.close()
            self._open = None


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
