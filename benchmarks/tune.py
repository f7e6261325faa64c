"""What a trial of a search costs beside its training, once the first one has started its process.

A search of small students on a generated log, one trial at a time, on a local Ray as the job starts it. Of every trial
after the first: the time from the end of the trial before to its own end, less what its training loop took (both
stages and the evaluation of every epoch). What is left is Tune, the trial's set-up, reading the dataset, building the
model and telling. Medians over searches of the mean over trials.

    python -m benchmarks.tune [--rounds 3] [--trials 8]
    python -m benchmarks.tune --quick      one search of four trials; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from benchmarks import results
from benchmarks.results import Row, Table
from rayrank.config import parse
from rayrank.pipeline.tune import TuneConfig, TuneResult, tune
from rayrank.sources.build import build, run_here
from rayrank.sources.spec import BuildSpec

NAME, VERSION = "tune", 2
SOURCE = {"kind": "synthetic", "num_rows": 20_000, "num_users": 400, "num_items": 300}
SAMPLERS = {
    "objective.weights.like": {"kind": "loguniform", "low": 0.05, "high": 1.0},
    "learning.learning_rate": {"kind": "loguniform", "low": 0.001, "high": 0.01},
}
TABLE = Table(
    title="Trials of a search",
    command="python -m benchmarks.tune",
    note=(
        "Undistilled students without text on a generated log of 20,000 rows, one trial at a time on a local Ray. "
        "Overhead: time from one trial's end to the next one's, less its training loop, mean of all trials but the "
        "first; medians over searches. Load: average over the last minute."
    ),
    labels=("search",),
    columns=("overhead s per trial", "training s per trial", "first trial s", "trials", "load"),
)


@dataclass(frozen=True)
class Search:
    """When the trials of a search ended, seconds from its start, and how long each one's training loop took."""

    ended_s: tuple[float, ...]
    training_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.ended_s) < 2 or len(self.ended_s) != len(self.training_s):
            raise ValueError("a search of two trials at least, each with its training time")

    @property
    def overhead_s(self) -> float:
        """Mean over the trials after the first."""
        gaps = [b - a for a, b in zip(self.ended_s, self.ended_s[1:], strict=False)]
        return mean(gap - training for gap, training in zip(gaps, self.training_s[1:], strict=True))


class Clock:
    """Hears the lines of a search; notes when each trial ended."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.ended_s: dict[int, float] = {}

    def __call__(self, line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)
        found = re.match(r"trial (\d+):", line)
        if found:
            self.ended_s[int(found[1])] = time.monotonic() - self._began

    def search(self, result: TuneResult) -> Search:
        """With the training times that the trials told, in the order in which they ended."""
        training = {trial.number: trial.training_s for trial in result.trials}
        order = sorted(self.ended_s, key=self.ended_s.__getitem__)
        return Search(tuple(self.ended_s[n] for n in order), tuple(training[n] for n in order))


def run(dataset: str, folder: str, trials: int) -> Search:
    """One search from nothing."""
    student = {"kind": "student", "inputs": {"text": False}}
    learning = {"epochs": 2, "rows": {"epochs": 1}}
    distill = {"dataset": dataset, "output": f"{folder}/student", "model": student, "learning": learning}
    raw = {
        "distill": {**distill, "objective": {"distillation": None}, "tracking": {"kind": "none"}},
        "output": f"{folder}/tune",
        "samplers": SAMPLERS,
        "trials": trials,
        "search": {"max_concurrent": 1},
        "tracking": {"kind": "none"},
        "again": True,
    }
    clock = Clock()
    return clock.search(tune(parse(TuneConfig, raw), clock))


def rows_of(found: Sequence[Search]) -> list[Row]:
    """The row of the results table."""
    return [
        Row(
            key=results.key_of(NAME, VERSION, SOURCE, SAMPLERS, len(found[0].ended_s)), table=NAME,
            arm=("random, fifo",),
            values={
                "overhead s per trial": median(one.overhead_s for one in found),
                "training s per trial": median(mean(one.training_s[1:]) for one in found),
                "first trial s": median(one.ended_s[0] for one in found),
                "trials": float(len(found[0].ended_s)),
                "load": os.getloadavg()[0],
            },
            **results.stamp(),
        )
    ]  # fmt: skip


def claims_of(found: Sequence[Search]) -> dict[str, Any]:
    """The claim, and what it is made of."""
    return {
        "seconds_per_trial_overhead": round(median(one.overhead_s for one in found), 3),
        "by_search": [round(one.overhead_s, 3) for one in found],
        "training_s_per_trial": round(median(mean(one.training_s[1:]) for one in found), 3),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure, keep the row, print the claim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one search of four trials; nothing is kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8)
    options = parser.parse_args()
    rounds, trials = (1, 4) if options.quick else (options.rounds, options.trials)
    with tempfile.TemporaryDirectory(prefix="rayrank-tune-") as folder:
        dataset = f"{folder}/dataset"
        build(parse(BuildSpec, {"source": SOURCE, "path": dataset}), run_here, lambda _: None)
        found = [run(dataset, f"{folder}/{number}", trials) for number in range(rounds)]
    if not options.quick:
        results.record(NAME, TABLE, rows_of(found))
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({"benchmark": NAME, **claims_of(found), "quick": options.quick})


if __name__ == "__main__":
    main()
