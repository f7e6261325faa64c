"""A circuit breaker: after some failures in a row a stage is left alone for a while instead of costing its budget.

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
    _count: int = field(default=0, init=False)
    _open_until: float = field(default=0.0, init=False)

    def allows(self) -> bool:
        """Whether the stage may be asked now; saying yes to a trial puts the next one off by another rest."""
        if self._count < self.failures:
            return True
        if self.clock() < self._open_until:
            return False
        self._open_until = self.clock() + self.rest_s
        return True

    def succeeded(self) -> None:
        """The stage answered in time."""
        self._count = 0

    def failed(self, enough: bool = False) -> None:
        """The stage was late or broken; ``enough``: so costly that this one failure opens."""
        self._count = self.failures if enough else self._count + 1
        if self._count >= self.failures:
            self._open_until = self.clock() + self.rest_s
