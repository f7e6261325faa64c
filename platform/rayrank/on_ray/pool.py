"""Bounded waiting inside a replica: a gate at its door, and for each stage a queue that has an end.

Long work and work that waits has a thread of its own. Short work is done by the event loop itself: handing 2 ms of it
to a thread and back costs another millisecond (two wake-ups, and caches that have gone cold).

Knows threads and asyncio; knows nothing about what is worked on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from rayrank.wording import counted


class BusyError(RuntimeError):
    """More requests than there is room for; the caller may try again after ``retry_s`` seconds."""

    retry_s = 1

    def __init__(self, most: int) -> None:
        super().__init__(f"busy: {counted(most, 'request')} {'is' if most == 1 else 'are'} being worked on already")


class StageFullError(RuntimeError):
    """The queue of a stage is full; the request goes on without it."""


class Gate:
    """Lets ``most`` requests of an event loop in at a time; entering beyond raises :class:`BusyError`."""

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0

    def __enter__(self) -> None:
        if self._inside >= self._most:
            raise BusyError(self._most)
        self._inside += 1

    def __exit__(self, *_: object) -> None:
        self._inside -= 1


class Turns:
    """Calls done by the event loop itself, one after the other, at most ``most`` waiting; for work of a few ms.

    Between two calls the loop looks at its sockets: those who arrive meanwhile are counted, and told when it is full.
    """

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0
        self._turn = asyncio.Lock()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)`` when it is its turn.

        Raises:
            StageFullError: too many calls wait already.
        """
        if self._inside >= self._most:
            raise StageFullError("too many calls are waiting")
        self._inside += 1
        try:
            async with self._turn:
                await asyncio.sleep(0)
                return function(*arguments)
        finally:
            self._inside -= 1


class Pool:
    """One worker thread with at most ``most`` calls at it; threads that share cores make a 2 ms call take 100 ms.

    A call that nobody waits for any more keeps its place until the thread has passed it, so that a stuck thread
    cannot gather calls without end.
    """

    def __init__(self, most: int, name: str = "stage") -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._room = threading.BoundedSemaphore(most)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)`` on the thread.

        Raises:
            StageFullError: too many calls wait already.
        """
        if not self._room.acquire(blocking=False):
            raise StageFullError("too many calls are waiting")
        abandoned = threading.Event()

        def work() -> Any:
            try:
                return None if abandoned.is_set() else function(*arguments)
            finally:
                self._room.release()

        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError:  # the replica is being shut down
            self._room.release()
            raise
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            abandoned.set()
            running.add_done_callback(_forget)
            raise


def _forget(done: asyncio.Future[Any]) -> None:
    """Nobody asks for this result any more: its error must not be reported as one that was overlooked."""
    with suppress(asyncio.CancelledError):
        done.exception()
