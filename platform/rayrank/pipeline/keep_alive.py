"""A lean HTTP/1.1 client for load: keep-alive connections over asyncio, no retries, nothing hidden.

A client that costs more than the service would measure itself. Knows the wire; knows nothing about what is asked.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from rayrank.config import ConfigError


class Answer(NamedTuple):
    """One response; header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class WireError(RuntimeError):
    """No whole response came; the text says why in a word or two."""


@dataclass(frozen=True)
class Place:
    """Where a service listens."""

    host: str
    port: int
    secure: bool = False
    prefix: str = ""

    @classmethod
    def of(cls, url: str) -> Place:
        """From ``http://host:port/prefix``.

        Raises:
            ConfigError: not such a URL.
        """
        found = urlsplit(url)
        try:
            port = found.port
        except ValueError:
            port = 0
        if found.scheme not in ("http", "https") or not found.hostname or port == 0:
            raise ConfigError("url", url, "must be http://host:port", "for example http://127.0.0.1:8000")
        secure = found.scheme == "https"
        return cls(found.hostname, port or (443 if secure else 80), secure, found.path.rstrip("/"))

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """The bytes of a POST with a JSON body."""
        head = f"POST {self.prefix}{path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self.usable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.usable = transport, True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            found = parsed(self._buffer)
        except ValueError:
            self._end(WireError("not HTTP"))
            return
        if found is None:
            return
        answer, used = found
        del self._buffer[:used]
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why does not matter
        self._end(WireError("connection closed"))

    def _end(self, error: WireError) -> None:
        self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def close(self) -> None:
        """Hang up."""
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer."""
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting


class Client:
    """At most ``most`` connections to one place; each carries one request at a time and is used again."""

    def __init__(self, place: Place, most: int, timeout_s: float) -> None:
        self.place, self._most, self._timeout_s = place, most, timeout_s
        self._idle: list[_Connection] = []
        self._open = 0

    async def ask(self, request: bytes) -> Answer:
        """Send the bytes of a request; its answer.

        Raises:
            WireError: all connections are in use, or no whole answer came in time.
        """
        connection: _Connection | None = None
        while self._idle and connection is None:
            last = self._idle.pop()
            if last.usable:
                connection = last
            else:
                self._open -= 1
        if connection is None and self._open >= self._most:
            raise WireError("no free connection")
        self._open += connection is None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = connection or await self._connect()
                answer = await connection.ask(request)
        except TimeoutError:
            self._drop(connection)
            raise WireError("timeout") from None
        except OSError:
            self._drop(connection)
            raise WireError("no connection") from None
        except BaseException:
            self._drop(connection)
            raise
        self._idle.append(connection)
        return answer

    async def _connect(self) -> _Connection:
        secure = ssl.create_default_context() if self.place.secure else None
        loop = asyncio.get_running_loop()
        _, found = await loop.create_connection(_Connection, self.place.host, self.place.port, ssl=secure)
        return found

    def _drop(self, connection: _Connection | None) -> None:
        self._open -= 1
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Hang up all idle connections."""
        for connection in self._idle:
            connection.close()
        self._open -= len(self._idle)
        self._idle.clear()


def parsed(buffer: bytes | bytearray) -> tuple[Answer, int] | None:
    """The response at the start of ``buffer`` and its length in bytes; None: not whole yet.

    Raises:
        ValueError: this is no response.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError("no status line")
    status = int(rest[:3])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    start = end + 4
    if headers.get("transfer-encoding", "").lower() == "chunked":
        found = _chunks(buffer, start)
        return None if found is None else (Answer(status, headers, found[0]), found[1])
    size = int(headers.get("content-length", "0"))
    if len(buffer) < start + size:
        return None
    return Answer(status, headers, bytes(buffer[start : start + size])), start + size


def _chunks(buffer: bytes | bytearray, start: int) -> tuple[bytes, int] | None:
    """The body of a chunked response and where it ends; None: not whole yet."""
    body = bytearray()
    while (end := buffer.find(b"\r\n", start)) >= 0:
        size = int(bytes(buffer[start:end]).partition(b";")[0], 16)
        start = end + 2
        if len(buffer) < start + size + 2:
            return None
        body += buffer[start : start + size]
        start += size + 2
        if size == 0:
            return bytes(body), start
    return None
