"""The gates of promotion: what a release must show before it serves. Knows a comparison; changes nothing.

NaN never passes: what could not be measured was not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from rayrank.config import Config
from rayrank.metrics.bootstrap import Interval
from rayrank.pipeline.comparison import Comparison, Entry, kept_lift
from rayrank.pipeline.cost import Cost
from rayrank.pipeline.report import GateLine

Gate = Literal["gain_auc", "gain_gauc", "lift", "calibration", "latency"]


class GatesConfig(Config):
    """Thresholds of the gates."""

    gain: float = Field(0.0, description="gain over the best baseline, AUC and GAUC: its interval must lie above this")
    lift: float = Field(0.97, description="least share of the teacher's AUC − 0.5 that the student keeps")
    calibration_low: float = Field(0.9, gt=0, description="least sum of predictions over sum of labels")
    calibration_high: float = Field(1.1, gt=0, description="most sum of predictions over sum of labels")
    latency_ms: float = Field(50.0, gt=0, description="most milliseconds of the student's 95th percentile request")
    candidates: int = Field(500, ge=1, description="candidates of a timed request")
    requests: int = Field(100, ge=20, description="timed requests")
    skip: tuple[Gate, ...] = Field((), description="gates left out; every release says so")

    @model_validator(mode="after")
    def _ordered(self) -> GatesConfig:
        if self.calibration_low >= self.calibration_high:
            raise ValueError("calibration_low must be below calibration_high")
        return self


@dataclass(frozen=True)
class GateResult:
    """What one gate found."""

    gate: Gate
    name: str
    value: float
    found: str
    asked: str
    passed: bool
    explanation: str

    @property
    def remedy(self) -> str:
        """The keys of the config that this gate goes by."""
        return f"gates.{_KEYS[self.gate]}, or gates.skip=[{self.gate}]"

    @property
    def key(self) -> str:
        """The name as trackers and files spell it."""
        return self.name.lower().replace(" ", "_")

    def line(self) -> GateLine:
        """As a report shows it."""
        return GateLine(
            name=self.name, value=self.found, threshold=self.asked, passed=self.passed, explanation=self.explanation
        )


_KEYS: dict[Gate, str] = {
    "gain_auc": "gain",
    "gain_gauc": "gain",
    "lift": "lift",
    "calibration": "calibration_low and calibration_high",
    "latency": "latency_ms",
}


def judge(found: Comparison, gates: GatesConfig) -> list[GateResult]:
    """All gates that are not skipped; needs entries named teacher and student."""
    teacher, student = (_need(found, name, "snapshot") for name in ("teacher", "student"))
    live_teacher, live_student = (_need(found, name, "streaming") for name in ("teacher", "student"))
    auc = f"{found.task}/auc"
    results = [
        _gain(found, "auc", teacher, gates.gain),
        _gain(found, "gauc", teacher, gates.gain),
        lift_gate(live_student.metrics[auc], live_teacher.metrics[auc], gates.lift),
        *(calibration_gate(entry, found.task, gates) for entry in (live_teacher, live_student)),
        latency_gate(student.cost, gates.latency_ms),
    ]
    return [result for result in results if result.gate not in gates.skip]


def _gain(found: Comparison, metric: Literal["auc", "gauc"], teacher: Entry, threshold: float) -> GateResult:
    best = found.best_baseline(metric)
    if best is None:
        return gain_gate(metric, None, "no baseline", threshold)
    return gain_gate(metric, found.gain(metric, teacher, best), best.model, threshold)


def gain_gate(metric: Literal["auc", "gauc"], gain: Interval | None, baseline: str, threshold: float) -> GateResult:
    """The teacher is better than the best baseline by more than chance (same targets, resampled by user)."""
    nan = float("nan")
    value, low, high = (gain.value, gain.low, gain.high) if gain else (nan, nan, nan)
    name = metric.upper()
    return GateResult(
        "gain_auc" if metric == "auc" else "gain_gauc",
        f"gain in {name} over the best baseline",
        value,
        f"{value:+.4f} [{low:+.4f}, {high:+.4f}]",
        f"interval above {threshold:g}",
        low > threshold,
        f"Snapshot {name} of the teacher less that of {baseline}, same targets, with a 95 % interval over users.",
    )


def lift_gate(student_auc: float, teacher_auc: float, least: float) -> GateResult:
    """The student keeps the teacher's lift over chance."""
    kept = kept_lift(student_auc, teacher_auc)
    return GateResult(
        "lift",
        "lift kept by the student",
        kept,
        f"{kept:.3f}",
        f"≥ {least:g}",
        kept >= least,
        f"AUC − 0.5, student over teacher: {student_auc - 0.5:.4f} / {teacher_auc - 0.5:.4f} (streaming).",
    )


def calibration_gate(entry: Entry, task: str, gates: GatesConfig) -> GateResult:
    """Predicted and observed positives agree."""
    ratio = entry.metrics.get(f"{task}/calibration", float("nan"))
    return GateResult(
        "calibration",
        f"calibration of the {entry.model}",
        ratio,
        f"{ratio:.3f}",
        f"{gates.calibration_low:g} to {gates.calibration_high:g}",
        gates.calibration_low <= ratio <= gates.calibration_high,
        f"Sum of predicted '{task}' over sum of observed ({entry.protocol}).",
    )


def latency_gate(cost: Cost | None, budget_ms: float) -> GateResult:
    """The student is fast enough to score everything that is retrieved."""
    p95 = cost.quantile_ms(0.95) if cost else float("nan")
    size = cost.candidates if cost else 0
    return GateResult(
        "latency",
        "latency of the student",
        p95,
        f"{p95:.1f} ms",
        f"≤ {budget_ms:g} ms",
        p95 <= budget_ms,
        f"95th percentile of scoring {size} candidates, one thread, in process.",
    )


def _need(found: Comparison, model: str, protocol: str) -> Entry:
    entry = found.find(model, protocol)
    if entry is None:
        raise ValueError(f"the comparison holds no {model}")
    return entry
