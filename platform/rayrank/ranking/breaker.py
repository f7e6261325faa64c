"""A circuit breaker: after some failures in a row a stage is left alone for a while instead of costing its budget.

A request in a hurry waits for less than a stage's budget. What it missed counts by the share that it waited: a dead
stage is found out by callers of any patience, and takes the same time of theirs in all; one caller's haste says little
of a healthy stage, and the next answer wipes it out. So it is with the trials of a stage that is left alone: a hasty
one that fails puts the next off by its share of the rest.

Pure; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic


@dataclass
class Breaker:
    """Counts failures in a row; open (stage skipped) for ``rest_s`` after ``failures`` of them, then one trial."""

    failures: int = 3
    rest_s: float = 5.0
    clock: Callable[[], float] = monotonic
    _count: float = field(default=0.0, init=False)
    _open_until: float = field(default=0.0, init=False)

    def allows(self, share: float = 1.0) -> bool:
        """Whether the stage may be asked now; saying yes to a trial puts the next one off by ``share`` of a rest.

        ``share``: what the caller can wait, as a share of the stage's budget.
        """
        if self._count < self.failures:
            return True
        if self.clock() < self._open_until:
            return False
        self._rest(share)
        return True

    def succeeded(self) -> None:
        """The stage answered in time."""
        self._count = 0.0

    def failed(self, weight: float = 1.0) -> None:
        """The stage was broken or late; ``weight``: the share of its budget that was waited; ``failures``: at once."""
        opens = self._count < self.failures
        self._count += weight
        if self._count >= self.failures:
            self._rest(1.0 if opens else weight)

    def _rest(self, share: float) -> None:
        """Never ends a longer rest: a request that came before it may fail in it."""
        self._open_until = max(self._open_until, self.clock() + self.rest_s * min(share, 1.0))
