"""Lines of progress on their way from a worker to the driver.

A module of its own, and a light one: the actor's process imports it, and torch would cost that process seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BEAT = ""
"""A line that nobody is shown: the worker that wrote it is alive."""
_POLL_S = 0.5
_ANSWER_S = 10.0


class Board:
    """Keeps lines until the driver takes them."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Called by a worker."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Called by the driver: everything new."""
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def progress_board(progress: Callable[[str], None]) -> Iterator[Any]:
    """A handle whose ``add.remote(line)`` reaches ``progress`` of this process while the block lasts."""
    import ray

    board: Any = ray.remote(num_cpus=0)(Board).remote()
    ended = threading.Event()

    def pump() -> None:
        while True:
            last = ended.wait(_POLL_S)
            try:
                for line in ray.get(board.take.remote(), timeout=_ANSWER_S):
                    progress(line)
            except ray.exceptions.RayError:
                if not last:
                    continue
            if last:
                return

    thread = threading.Thread(target=pump, name="progress", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join(timeout=_ANSWER_S + 2 * _POLL_S)
        ray.kill(board)
