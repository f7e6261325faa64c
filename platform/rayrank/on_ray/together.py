"""Calls of one stage that wait for the same place: whoever is there when it becomes free is worked on together.

Nobody is waited for, so a call that comes alone costs what it always did. Queues, their bounds and what becomes of
calls that nobody waits for any more are those of :mod:`rayrank.on_ray.pool`. Knows nothing about what is worked on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rayrank.on_ray.pool import Pool, Turns


@dataclass(frozen=True)
class Work:
    """What a stage does with a call, and with several: answers of ``many`` are in the order of their arguments."""

    one: Callable[..., Any]
    many: Callable[[Sequence[tuple[Any, ...]]], Sequence[Any]] | None = None  # None: it takes calls one by one


@dataclass(eq=False)
class _Asked:
    """A call and, once it was worked on, what came of it."""

    arguments: tuple[Any, ...]
    done: bool = False
    answer: Any = None
    error: Exception | None = None


class Together:
    """The calls at one place, up to ``most`` of them at a time."""

    def __init__(self, place: Turns | Pool, most: int) -> None:
        self._place, self._most = place, most
        self._waiting: dict[_Asked, None] = {}  # in the order in which they came
        self._lock = threading.Lock()  # the loop puts calls in, the thread of a pool takes them out

    async def run(self, work: Work, *arguments: Any) -> Any:
        """What ``work`` says; an error of one call is that call's alone.

        Raises:
            StageFullError: too many calls wait already.
        """
        if work.many is None or self._most == 1:
            return await self._place.run(work.one, *arguments)
        asked = _Asked(arguments)
        with self._lock:
            self._waiting[asked] = None
        try:
            return await self._place.run(self._answer, asked, work)
        finally:
            with self._lock:
                self._waiting.pop(asked, None)  # refused, or out of time: nobody asks any more

    def _answer(self, asked: _Asked, work: Work) -> Any:
        """When it is the call's turn: its answer, which an earlier turn may have brought."""
        if not asked.done:
            _work_on(self._taken(asked), work)
        if asked.error is not None:
            raise asked.error
        return asked.answer

    def _taken(self, asked: _Asked) -> list[_Asked]:
        with self._lock:
            self._waiting.pop(asked, None)
            taken = list(islice(self._waiting, self._most - 1))
            for other in taken:
                del self._waiting[other]
        return [asked, *taken]


def _work_on(taken: Sequence[_Asked], work: Work) -> None:
    if len(taken) > 1 and work.many is not None:
        try:
            answers = work.many([asked.arguments for asked in taken])
        except Exception:  # whose fault it is shows when each is worked on by itself
            answers = None
        if answers is not None:
            for asked, answer in zip(taken, answers, strict=True):
                asked.answer, asked.done = answer, True
            return
    for asked in taken:
        try:
            asked.answer = work.one(*asked.arguments)
        except Exception as error:
            asked.error = error
        asked.done = True
