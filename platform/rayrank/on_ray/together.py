"""Calls of one stage that wait for the same place: whoever is there when it becomes free is worked on together.

Nobody is waited for, so a call that comes alone costs what it always did. Queues, their bounds and what becomes of
calls that nobody waits for any more are those of :mod:`rayrank.on_ray.pool`. Knows nothing about what is worked on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rayrank.on_ray.pool import Pool, Turns

_log = logging.getLogger(__name__)
Calls = Sequence[tuple[Any, ...]]
"""The arguments of several calls."""


@dataclass(frozen=True)
class Shared:
    """What a stage does with several calls at once."""

    answers: Callable[[Calls], Sequence[Any]]  # in the order of the calls
    company: Callable[[Calls], Sequence[int]]  # numbers of the calls that gain by going with the first one


@dataclass(frozen=True)
class Work:
    """What a stage does with a call, and with several if it can."""

    one: Callable[..., Any]
    shared: Shared | None = None


@dataclass(eq=False)
class _Asked:
    """A call and, where another one's turn brought it, its answer."""

    arguments: tuple[Any, ...]
    done: bool = False
    answer: Any = None


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
        if work.shared is None or self._most == 1:
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
        if asked.done:
            return asked.answer
        assert work.shared is not None
        try:
            taken = self._taken(asked, work.shared)
            answers = work.shared.answers([a.arguments for a in taken]) if len(taken) > 1 else ()
        except Exception as error:  # whose fault it is shows when each is worked on by itself, in its own turn
            _log.warning("calls together failed (%s): each by itself now", type(error).__name__)
            answers = ()
        if not answers:
            return work.one(*asked.arguments)
        for other, answer in zip(taken, answers, strict=True):
            other.answer, other.done = answer, True
        return asked.answer

    def _taken(self, asked: _Asked, shared: Shared) -> list[_Asked]:
        """The call and those behind it that gain by going with it; all others keep their turns."""
        with self._lock:
            self._waiting.pop(asked, None)
            behind = list(islice(self._waiting, self._most - 1))
        if not behind:
            return [asked]
        chosen = [behind[n - 1] for n in shared.company([a.arguments for a in (asked, *behind)]) if n]
        with self._lock:
            still = [other for other in chosen if other in self._waiting]
            for other in still:
                del self._waiting[other]
        return [asked, *still]
