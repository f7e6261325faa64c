"""The state store on a Redis-compatible server: for user stages on many machines.

Keys: ``<prefix>:user:<id>`` packed events, ``<prefix>:log`` a stream of log lines, ``<prefix>:marks`` a set. A change
reads the user, merges and writes under WATCH, so that of two writers at once one tries again. Needs ``redis``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rayrank.config import ConfigError
from rayrank.ranking.state import StateError, StateLateError, StateSpec, UserEvents, kept, merged, pack, unpack

_DURABLE = {"appendonly": "yes", "appendfsync": "always"}
_ROOM = {"maxmemory": "0", "maxmemory-policy": "noeviction"}
_log = logging.getLogger(__name__)


class RedisState:
    """See :class:`rayrank.ranking.state.StateStore`.

    A server that is down does not keep this from being made.

    Raises:
        ConfigError: the package is missing, the server acknowledges what is not on disk, or nothing is there to be read
            only.
    """

    def __init__(self, spec: StateSpec, read_only: bool = False) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            fix = "pip install 'rayrank[redis]'"
            raise ConfigError("state.url", None, "a Redis-compatible store needs the package redis", fix) from None
        self.spec, self._errors, self._late = spec, redis.RedisError, redis.TimeoutError
        self._conflict, self._refused = redis.WatchError, redis.ResponseError
        wait = spec.timeout_s
        # Once again where the connection is gone, as after a restart of the server; never after a wait in vain.
        again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        self._server: Any = redis.Redis.from_url(
            spec.url or "", socket_timeout=wait, socket_connect_timeout=wait, retry=again
        )
        self._checked = False
        try:
            self._check()
            if read_only and self._bare():
                fix = "give the state.prefix and the state.url of the service"
                raise ConfigError("state.prefix", spec.prefix, "no key of user state on the server begins with it", fix)
        except StateError as error:
            _log.error("user state: %s", error)

    def events(self, user_id: str, now: int) -> UserEvents | None:
        """See the protocol."""
        with self._answering():
            blob = self._server.get(self._key("user", user_id))
        found = None if blob is None else kept(unpack(blob), self.spec, now)
        return found if found else None

    def append(self, user_id: str, told: UserEvents, lines: Sequence[str], now: int) -> int:
        """See the protocol."""
        try:
            self._check()
        except ConfigError as error:  # it was down at the start
            raise StateError(error.rule) from None
        fresh: list[int] = []

        def note(pipe: Any, new: Mapping[str, Sequence[int]]) -> None:
            fresh[:] = new[user_id]
            since = self.spec.since(now)
            for i in fresh:
                pipe.xadd(self._key("log"), {"line": lines[i]}, minid=None if since is None else f"{since * 1000}")

        self._change({user_id: told}, now, note)
        return len(fresh)

    def load(self, histories: Mapping[str, UserEvents], now: int, mark: str | None = None) -> None:
        """See the protocol."""
        self._check()
        key = self._key("marks")
        self._change(histories, now, lambda pipe, _: None if mark is None else pipe.sadd(key, mark), loaded=True)

    def marks(self) -> set[str]:
        """See the protocol."""
        with self._answering():
            return {mark.decode() for mark in self._server.smembers(self._key("marks"))}

    def log(self) -> Iterator[str]:
        """See the protocol."""
        last = "-"
        while True:
            with self._answering():
                rows = self._server.xrange(self._key("log"), min=last, count=1000)
            if not rows:
                return
            yield from (fields[b"line"].decode() for _, fields in rows)
            last = f"({rows[-1][0].decode()}"

    def user_ids(self, limit: int) -> list[str]:
        """See the protocol."""
        begin = self._key("user", "")
        found: list[str] = []
        for key in self._users() if limit else ():
            found.append(key.decode().removeprefix(begin))
            if len(found) == limit:
                break
        return found

    def size(self) -> tuple[int, int, int]:
        """See the protocol; everything is the server's used memory, whoever uses it."""
        begin, users, packed, batch = len(self._key("user", "")), 0, 0, list[bytes]()
        for key in self._users():
            users += 1
            batch.append(key)
            if len(batch) == 1000:
                packed, batch = packed + self._bytes(batch, begin), []
        with self._answering():
            memory = int(self._server.info("memory")["used_memory"])
        return users, packed + self._bytes(batch, begin), memory

    def close(self) -> None:
        """See the protocol."""
        self._server.close()

    def _key(self, *parts: str) -> str:
        return ":".join((self.spec.prefix, *parts))

    def _bare(self) -> bool:
        """Whether nothing was ever kept under the prefix."""
        with self._answering():
            if self._server.exists(self._key("log"), self._key("marks")):
                return False
        return next(self._users(), None) is None

    def _users(self) -> Iterator[bytes]:
        with self._answering():
            yield from self._server.scan_iter(match=f"{self._key('user', '')}*", count=1000)

    def _bytes(self, keys: Sequence[bytes], begin: int) -> int:
        with self._answering(), self._server.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.strlen(key)
            return sum(pipe.execute()) + sum(len(key) - begin for key in keys)

    def _change(
        self,
        told: Mapping[str, UserEvents],
        now: int,
        note: Callable[[Any, Mapping[str, Sequence[int]]], object],
        loaded: bool = False,
    ) -> None:
        """Merge what is told into its users and ``note`` it in one transaction; again when somebody came between."""
        wait_s = self.spec.timeout_s
        users, end = list(told), time.monotonic() + wait_s
        keys = [self._key("user", user) for user in users]
        expire_s = None if self.spec.expire_days is None else max(int(self.spec.expire_days * 86_400), 1)
        with self._answering(), self._server.pipeline() as pipe:
            while True:
                try:
                    if keys:
                        pipe.watch(*keys)
                    blobs = pipe.mget(keys) if keys else []
                    pipe.multi()
                    new: dict[str, Sequence[int]] = {}
                    for user, key, blob in zip(users, keys, blobs, strict=True):
                        before = unpack(blob, whole=True) if blob else UserEvents()
                        after, new[user] = merged(before, told[user], self.spec, now, loaded)
                        if new[user]:
                            pipe.set(key, pack(after, self.spec), ex=expire_s)
                    note(pipe, new)
                    pipe.execute()
                    return
                except self._conflict:
                    if time.monotonic() > end:
                        raise StateLateError(f"busy for {wait_s * 1000:.0f} ms") from None

    def _check(self) -> None:
        """Once, at the first answer: acknowledged must mean on disk."""
        if self._checked:
            return
        with self._answering():
            try:
                found = {name: self._server.config_get(name).get(name) for name in (*_DURABLE, *_ROOM)}
            except self._refused:  # a managed server may not tell
                _log.warning("user state: the server does not tell whether what it acknowledges is on disk")
                found = _DURABLE | _ROOM
        durable, room = ({name: found[name] for name in names} for names in (_DURABLE, _ROOM))
        if durable != _DURABLE:
            rule = f"feedback that is acknowledged must be on disk; the server has {_told(durable)}"
            raise ConfigError("state.url", None, rule, f"start it with {_told(_DURABLE)}")
        if not any(room[name] == value for name, value in _ROOM.items()):  # one of the two is enough
            rule = f"feedback that is acknowledged must not be thrown out for room; the server has {_told(room)}"
            raise ConfigError("state.url", None, rule, "start it with maxmemory-policy noeviction")
        self._checked = True

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._late:
            raise StateLateError(f"the server gives no answer within {self.spec.timeout_s * 1000:.0f} ms") from None
        except self._errors as error:
            # The message may name the address, and the address may hold a password.
            raise StateError(f"the server gives no answer ({type(error).__name__})") from None


def _told(settings: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
