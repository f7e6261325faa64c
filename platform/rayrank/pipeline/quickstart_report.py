"""What a quickstart tells at its end: a table for the terminal, summary.json and report.html."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rayrank.pipeline import tabulate
from rayrank.pipeline.evaluate import EvaluateResult, report
from rayrank.pipeline.label import LabelResult
from rayrank.pipeline.prepare import PrepareResult
from rayrank.pipeline.probe import Probe
from rayrank.pipeline.promote import PromoteResult
from rayrank.pipeline.report import render
from rayrank.pipeline.score import ScoreResult
from rayrank.pipeline.training import TrainingResult
from rayrank.pipeline.tune import TuneResult
from rayrank.sources import storage

_POINTS = 120
"""Points of a loss curve that the page draws."""


@dataclass
class Made:
    """What the jobs made, and how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)
    prepare: PrepareResult | None = None
    teacher: TrainingResult | None = None
    label: LabelResult | None = None
    tune: TuneResult | None = None
    student: TrainingResult | None = None
    evaluate: EvaluateResult | None = None
    promote: PromoteResult | None = None
    probe: Probe | None = None
    score: ScoreResult | None = None


def write_summary(output: str, made: Made, seconds: float) -> list[str]:
    """Write summary.json and report.html below ``output``; returns the lines for the terminal."""
    summary = summarise(made, seconds)
    storage.write_json(storage.join(output, "summary.json"), summary)
    storage.write_bytes(storage.join(output, "report.html"), _page(made, seconds).encode())
    return _lines(output, made, seconds)


def summarise(made: Made, seconds: float) -> dict[str, Any]:
    """What happened, as plain values."""
    assert made.prepare is not None
    assert made.evaluate is not None
    assert made.promote is not None
    manifest = made.prepare.manifest
    found: dict[str, Any] = {
        "seconds_total": round(seconds, 2),
        "seconds": made.seconds,
        "dataset": manifest.dataset_schema.name,
        "counts": manifest.counts.model_dump(),
        "oracle_auc": dict(manifest.oracle),
        "table": list(made.evaluate.rows),
        "verdict": made.evaluate.verdict,
        "promoted": made.promote.promoted,
        "gates": {gate.key: {"found": gate.found, "passed": gate.passed} for gate in made.promote.gates},
    }
    if made.tune is not None:
        found["tuned"] = made.tune.best
    if made.probe is not None:
        found["latency_ms"] = {
            kind: {"p50": round(made.probe.median(kind), 2), "p95": round(made.probe.percentile(kind, 0.95), 2)}
            for kind in made.probe.latency_ms
        }
        found["refused"] = made.probe.refused
    if made.score is not None:
        found["scored"] = made.score.summary()
    return found


def _page(made: Made, seconds: float) -> str:
    assert made.evaluate is not None
    assert made.promote is not None
    facts = {"seconds for the whole path": f"{seconds:.0f}"}
    if made.student is not None and made.teacher is not None:
        facts["parameters, teacher → student"] = (
            f"{_million(made.teacher.parameters)} → {_million(made.student.parameters)}"
        )
    if made.probe is not None:
        kind = next(iter(made.probe.latency_ms))
        facts[f"ms, median: {kind}"] = f"{made.probe.median(kind):.1f}"
    more: dict[str, Any] = {
        "title": "rayrank quickstart",
        "facts": facts,
        "losses": {
            name: _losses(run.curve) for name, run in (("teacher", made.teacher), ("student", made.student)) if run
        },
        "latency_ms": made.probe.latency_ms if made.probe else {},
        "steps_s": made.seconds,
        "gates": tuple(gate.line() for gate in made.promote.gates),
    }
    return render(report(made.evaluate.comparison, made.evaluate.verdict, **more))


def _losses(curve: list[dict[str, float]]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Task -> (step, loss), each point the mean of a stretch of steps."""
    stride = max(1, -(-len(curve) // _POINTS))
    names = [name for name in (curve[0] if curve else {}) if name.startswith("loss/")]
    stretches = [(i, curve[i : i + stride]) for i in range(0, len(curve), stride)]
    return {
        name.removeprefix("loss/"): tuple((float(i), sum(s[name] for s in part) / len(part)) for i, part in stretches)
        for name in names
    }


def _lines(output: str, made: Made, seconds: float) -> list[str]:
    assert made.evaluate is not None
    assert made.promote is not None
    lines = ["", *tabulate.as_text(made.evaluate.columns, list(made.evaluate.rows)), ""]
    if made.prepare is not None and made.prepare.manifest.oracle:
        known = ", ".join(f"{task} {auc:.4f}" for task, auc in made.prepare.manifest.oracle.items())
        lines.append(f"best possible AUC on this data (the oracle): {known}")
    lines += made.promote.summary()
    if made.probe is not None:
        lines += [
            f"HTTP: {kind}: median {made.probe.median(kind):.1f} ms, p95 {made.probe.percentile(kind, 0.95):.1f} ms"
            for kind in made.probe.latency_ms
        ]
    lines += made.score.summary() if made.score else []
    lines.append("  ".join(f"{name} {value:.0f} s" for name, value in made.seconds.items()))
    lines.append(made.evaluate.verdict)
    lines.append(f"whole path in {seconds:.0f} s; report: {storage.join(output, 'report.html')}")
    return lines


def _million(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
