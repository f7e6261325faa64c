"""Rows of the two tables, found again by the hash of what made them, and the claims that follow from them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import results
from benchmarks.distill.arms import DISTILLED, TABLE, TEACHER, UNDISTILLED
from benchmarks.distill.figures import LEAST, NEAR, Paired
from benchmarks.distill.quality import COLUMNS, PROTOCOLS, SLICES
from benchmarks.results import Row, Table
from rayrank.pipeline.comparison import kept_lift

NAME, CLAIMS = "distill", "distill_claims"
VERSION = 2
"""Raise it when what a row means changes: rows of earlier versions are then computed again."""
QUALITY = Table(
    title="Distillation: the student, its teacher, and itself without one",
    command="python -m benchmarks.distill --sections quality",
    note=(
        "Test part. Models are chosen on valid only; every student gets the same search, the passes of the first stage "
        "(3, 5 or 8) that one seed does best with on valid. Students have one shape: the undistilled one takes nothing "
        "from the teacher, the next its item table (where items have texts), the distilled one its opinions too. "
        f"Calibration: predicted ÷ observed; on slices of the context (of user attributes where there is none) with "
        f"{LEAST:,} positives and negatives; a slice is off when it is outside {NEAR[0]}–{NEAR[1]} and more than two "
        "standard errors from 1. ml1m-user is MovieLens-1M, users 1–2999; KuaiRand is Pure's second half."
    ),
    labels=("data", "task", "model", "protocol"),
    columns=(*COLUMNS, *SLICES),
)
CLAIMED = Table(
    title="Distillation: what is kept, gained and saved",
    command="python -m benchmarks.distill",
    note=(
        "One thread; arms in one run and in turn, medians; load: average over the last minute when it was measured. "
        "speed_ratio: student ÷ teacher in candidates/s, requests of 500: warm, its item vectors are there; cold, it "
        "reads every candidate's text; cross, the literal form. student_vs_naive_forward: against the training pass "
        "with a row per candidate and nothing precomputed. label_vs_naive: against a loop over padded rows that reads "
        "each one's text. ndcg_at_budget: a user's positives of the test part among unseen items to 500, student ÷ "
        "teacher that re-scores the student's best as far as the milliseconds go. kd_gain in AUC points, streaming; "
        "its interval is Student's over paired seeds, 95 %."
    ),
    labels=("data", "claim"),
    columns=("value", "load"),
)
Values = Mapping[str, float | None]


class Kept:
    """The rows of one dataset in a results file."""

    def __init__(self, file: Path, data: str, fingerprint: str) -> None:
        self.file, self.data, self.fingerprint = file, data, fingerprint

    def key(self, *parts: object) -> str:
        """Of what made a row."""
        return results.key_of(NAME, VERSION, self.fingerprint, *parts)

    def has(self, key: str) -> bool:
        """Whether a section's rows are there."""
        return any(row.key.startswith(key) for row in results.load(self.file).rows)

    def keep_claims(self, key: str, seed: int | None, found: Mapping[str, float], timed: bool = True) -> None:
        """Rows of the claims' table; ``key`` begins those of all that was measured together."""
        load = os.getloadavg()[0] if timed else None
        rows = [
            Row(
                key=f"{key}-{results.key_of(claim)[:4]}", table=CLAIMS, arm=(self.data, claim), seed=seed,
                values={"value": value, "load": load}, **results.stamp(),
            )
            for claim, value in found.items()
        ]  # fmt: skip
        results.record(CLAIMS, CLAIMED, rows, self.file)

    def keep_quality(self, key: str, seed: int, arm: tuple[str, str], found: Mapping[str, Values]) -> None:
        """Rows of one model (name, protocol), one per task; ``key`` is of that protocol alone."""
        rows = [
            Row(
                key=f"{key}-{results.key_of(task)[:4]}", table=NAME, arm=(self.data, task, *arm), seed=seed,
                values=dict(values), **results.stamp(),
            )
            for task, values in found.items()
        ]  # fmt: skip
        results.record(NAME, QUALITY, rows, self.file)

    def claimed(self, seeds: Sequence[int]) -> dict[str, float]:
        """Measured claim -> mean over the seeds that have it."""
        found: dict[str, dict[int | None, float]] = {}
        for row in results.load(self.file).rows:
            if row.table == CLAIMS and row.arm[0] == self.data and row.seed in seeds:
                found.setdefault(row.arm[1], {})[row.seed] = float(row.values["value"] or 0.0)
        return {claim: mean(values.values()) for claim, values in found.items()}

    def judged(self, seeds: Sequence[int]) -> Quality | None:
        """The quality rows, when every seed has them, by every protocol."""
        rows = {
            (row.arm[1:], row.seed): row.values
            for row in results.load(self.file).rows
            if row.table == NAME and row.arm[0] == self.data and row.seed in seeds
        }
        there = {(*arm[1:], seed) for arm, seed in rows}
        wanted = product((UNDISTILLED, DISTILLED, TEACHER), PROTOCOLS, seeds)
        return Quality(rows, tuple(seeds)) if there.issuperset(wanted) else None


class Quality:
    """Claims that compare models."""

    def __init__(self, rows: Mapping[tuple[tuple[str, ...], int | None], Values], seeds: tuple[int, ...]) -> None:
        self.rows, self.seeds = rows, seeds
        self.tasks = tuple(dict.fromkeys(arm[0] for arm, _ in rows))
        self.models = {arm[1] for arm, _ in rows}

    def values(self, task: str, model: str, protocol: str, column: str) -> list[float]:
        """One per seed; NaN where there is none."""
        found = [self.rows[(task, model, protocol), seed].get(column) for seed in self.seeds]
        return [float("nan") if value is None else value for value in found]

    @property
    def binary(self) -> tuple[str, ...]:
        """Tasks that have an AUC."""
        return tuple(
            t for t in self.tasks if self.rows[(t, TEACHER, "streaming"), self.seeds[0]].get("AUC") is not None
        )

    def lift_kept(self) -> dict[str, float]:
        """Task -> share of the teacher's lift over chance that the student keeps."""
        return {t: mean(kept_lift(s, k) for s, k in self._pairs(t, "AUC")) for t in self.binary}

    def logloss_ratio(self) -> dict[str, float]:
        """Task -> LogLoss of the student ÷ the teacher's."""
        return {t: mean(s / k for s, k in self._pairs(t, "LogLoss")) for t in self.binary}

    def rmse_ratio(self) -> dict[str, float]:
        """Regression task -> RMSE of the student ÷ the teacher's."""
        return {t: mean(s / k for s, k in self._pairs(t, "RMSE")) for t in self.tasks if t not in self.binary}

    def calibration(self) -> dict[str, dict[str, float]]:
        """Task -> the student's predicted ÷ observed, how many slices were judged and how many of them were off."""
        names = {"overall": "calibration", "slices": "slices", "slices off": "slices off", "worst slice": "worst slice"}
        return {
            t: {n: mean(self.values(t, DISTILLED, "streaming", column)) for n, column in names.items()}
            for t in self.binary
        }

    def kd_gain(self, task: str) -> dict[str, Any]:
        """AUC points over the undistilled student; of them what came by the item table, and what by the soft loss."""
        plain, distilled = (self.values(task, arm, "streaming", "AUC") for arm in (UNDISTILLED, DISTILLED))
        table = self.values(task, TABLE, "streaming", "AUC") if TABLE in self.models else plain
        before, after = (self.values(task, arm, "snapshot", "GAUC") for arm in (UNDISTILLED, DISTILLED))
        return {
            "auc_points": _points(distilled, plain),
            "by_item_table": _points(table, plain) if TABLE in self.models else None,
            "by_soft_loss": _points(distilled, table),
            "snapshot_gauc_undistilled": mean(before),
            "snapshot_gauc_distilled": mean(after),
            "snapshot_gauc_points": _points(after, before),
        }

    def _pairs(self, task: str, column: str) -> list[tuple[float, float]]:
        student, teacher = (self.values(task, arm, "streaming", column) for arm in (DISTILLED, TEACHER))
        return list(zip(student, teacher, strict=True))


def _points(after: Sequence[float], before: Sequence[float]) -> dict[str, float | None]:
    found = Paired.of([100 * (a - b) for a, b in zip(after, before, strict=True)])
    return {"mean": found.mean, "low": found.low, "high": found.high}
