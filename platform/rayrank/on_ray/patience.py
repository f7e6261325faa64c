"""Waiting that ends: for the next block of a stream, and for work that must show signs of life.

Whatever hangs becomes an error that names the config key with the limit. Knows threads and clocks; knows nothing about
Ray or what is waited for.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from rayrank.config import ConfigError

T = TypeVar("T")
_LOOK_S = 0.5
_END_S = 5.0
"""Longest wait at the end of the process for threads that read ahead."""
_FIX = "see whether the cluster has CPUs left for it and what its workers say (cluster.worker_logs=true), or raise it"


class Limit(NamedTuple):
    """How long is waited, which config key says so, and for what."""

    path: str
    seconds: float
    what: str

    def error(self) -> ConfigError:
        """What is raised when the time is over."""
        return ConfigError(self.path, self.seconds, f"no {self.what} came within so many seconds", _FIX)


class Pulse:
    """When something last gave a sign of life."""

    def __init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        """A sign of life."""
        self._last = time.monotonic()

    def check(self, limit: Limit) -> None:
        """Raise the limit's error if the last sign is too long ago."""
        if time.monotonic() - self._last > limit.seconds:
            raise limit.error()


SILENCE_S = 10.0
"""Seconds between lines for people while a long step goes on."""


class Beat:
    """Passes signs of life on, at most one every ``seconds``. Called by the work itself: what hangs is not heard."""

    def __init__(self, tell: Callable[[], object], seconds: float) -> None:
        self._tell, self._seconds, self._last = tell, seconds, time.monotonic()

    def __call__(self) -> None:
        """A sign of life; costs a look at the clock."""
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._last = now
            self._tell()

    @staticmethod
    def often_enough(limit_s: float) -> float:
        """Seconds between beats such that several are due within a limit."""
        return min(30.0, limit_s / 4)


def alive_through(items: Iterator[T], alive: Callable[[], None]) -> Iterator[T]:
    """The same items; ``alive`` is called as each of them comes."""

    def passed(item: T) -> T:
        alive()
        return item

    return map(passed, items)


def attended(work: Callable[[], T], pulse: Pulse, limit: Limit) -> T:
    """``work()`` on a thread of its own, given up when ``pulse`` stands still for longer than the limit.

    What is given up goes on in its thread, which does not keep the process alive.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="attended", daemon=True).start()
    while True:
        try:
            return done.result(_LOOK_S)
        except NotYetError:
            if done.done():  # the work itself raised this kind of error
                raise
            pulse.check(limit)


class ReadAhead(Iterator[T], Generic[T]):
    """The same items, fetched by a thread that starts now and stays at most ``depth`` of them ahead.

    The thread ends with the items, when this iterator is forgotten, or with the process: a thread inside a library's
    C++ while the interpreter ends would abort it. An item that does not come within the limit is an error.
    """

    def __init__(self, items: Iterator[T], depth: int, limit: Limit) -> None:
        self._limit = limit
        self._ready: queue.Queue[_Fetched[T]] = queue.Queue(max(1, depth))
        self._closed = threading.Event()
        # The thread must not hold this object, or it would never be forgotten.
        arguments = (items, self._ready, self._closed)
        thread = threading.Thread(target=_fetch_ahead, args=arguments, name="read-ahead", daemon=True)
        _reading[thread] = self._closed
        thread.start()

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        try:
            fetched = self._ready.get(timeout=self._limit.seconds)
        except queue.Empty:
            self._closed.set()
            raise self._limit.error() from None
        if isinstance(fetched, _End):
            self._closed.set()
            raise fetched.error or StopIteration
        return fetched[0]

    def __del__(self) -> None:
        self._closed.set()


_reading: WeakKeyDictionary[threading.Thread, threading.Event] = WeakKeyDictionary()
"""Threads that read ahead, and what tells them to end."""


@atexit.register
def _end_reading() -> None:
    threads = list(_reading.items())
    for _, closed in threads:
        closed.set()
    until = time.monotonic() + _END_S
    for thread, _ in threads:
        thread.join(max(0.0, until - time.monotonic()))


class _End(NamedTuple):
    error: BaseException | None


_Fetched = tuple[T] | _End


def _fetch_ahead(items: Iterator[T], ready: queue.Queue[_Fetched[T]], closed: threading.Event) -> None:
    def put(entry: _Fetched[T]) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                ready.put(entry, timeout=0.2)
                return

    try:
        for item in items:
            put((item,))
            if closed.is_set():
                return
        put(_End(None))
    except BaseException as error:  # whoever reads must hear of it
        put(_End(error))
