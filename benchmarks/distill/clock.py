"""Arms in turn, by the wall's clock and by the processor's: the second hardly notices what else a machine is doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.train.timing import ratio

PROCESSOR = ", processor time"
"""End of the names of what was measured by the processor's clock."""


@dataclass(frozen=True)
class Times:
    """Seconds of every arm, round by round."""

    wall: Mapping[str, list[float]]
    processor: Mapping[str, list[float]]

    def ratios(self, claim: str, slow: str, fast: str, scale: float = 1.0) -> dict[str, float]:
        """How many times faster ``fast`` was than ``slow``, under the claim's name, by both clocks."""
        return {
            claim + end: ratio(dict(found), slow, fast, scale)
            for end, found in (("", self.wall), (PROCESSOR, self.processor))
        }

    def rates(self, claim: str, arm: str, work: float) -> dict[str, float]:
        """``work`` ÷ the arm's median seconds, by both clocks."""
        return {claim + end: work / median(found[arm]) for end, found in (("", self.wall), (PROCESSOR, self.processor))}


def timed(arms: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Run every arm once untimed, then ``rounds`` times in turn."""
    for work in arms.values():
        work()
    wall: dict[str, list[float]] = {name: [] for name in arms}
    processor: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, work in arms.items():
            began = time.perf_counter(), time.process_time()
            work()
            wall[name].append(time.perf_counter() - began[0])
            processor[name].append(time.process_time() - began[1])
    return Times(wall, processor)
