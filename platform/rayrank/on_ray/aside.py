"""Calls beside ranking, in an ingress replica: titles sought, items kept, users listed. Each kind has a thread.

Neither the loop that answers requests nor another kind of call waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rayrank.on_ray.pool import BusyError, Pool, StageFullError
from rayrank.ranking.flow import StageError


class Aside:
    """One thread for one kind of call, ``most`` calls at it, each waited for up to ``wait_s`` seconds."""

    def __init__(self, what: str, most: int, wait_s: float) -> None:
        self._what, self._most, self._wait_s = what, most, wait_s
        self._pool = Pool(most, what)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``.

        Raises:
            BusyError: too many calls are at it already.
            StageError: no answer in time; what was begun may still be done.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                return await self._pool.run(function, *arguments)
        except StageFullError:
            raise BusyError(self._most) from None
        except TimeoutError:
            raise StageError(f"{self._what}: no answer within {self._wait_s:g} s") from None
