"""What a quickstart tells at its end: a table for the terminal, summary.json and report.html."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rayrank.pipeline.evaluate import EvaluateResult, report
from rayrank.pipeline.label import LabelResult
from rayrank.pipeline.prepare import PrepareResult
from rayrank.pipeline.probe import Probe
from rayrank.pipeline.promote import PromoteResult
from rayrank.pipeline.report import render
from rayrank.pipeline.score import ScoreResult
from rayrank.pipeline.surroundings import Surroundings
from rayrank.pipeline.training import TrainingResult
from rayrank.pipeline.tune import TuneResult
from rayrank.sources import storage

_POINTS = 120
"""Points of a loss curve that the page draws."""
_LOSSES_NOTE = (
    "The student's losses are sums over the logged labels and the teacher's soft ones, at unseen items too: "
    "compare their course with the teacher's, not their height."
)


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
    where = Surroundings.now()
    storage.write_json(storage.join(output, "summary.json"), {**asdict(where), **summarise(made, seconds)})
    storage.write_bytes(storage.join(output, "report.html"), _page(made, seconds, where).encode())
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
            kind: {
                "p50": round(made.probe.percentile(kind, 0.5), 2),
                "p95": round(made.probe.percentile(kind, 0.95), 2),
            }
            for kind in made.probe.latency_ms
        }
        found["refused"] = made.probe.refused
    if made.score is not None:
        found["scored"] = made.score.summary()
    return found


def _page(made: Made, seconds: float, where: Surroundings) -> str:
    assert made.prepare is not None
    assert made.evaluate is not None
    assert made.promote is not None
    facts, task = {"seconds for the whole path": f"{seconds:.0f}"}, made.evaluate.comparison.task
    if task in made.prepare.manifest.oracle:
        facts[f"best possible AUC of {task} (oracle)"] = f"{made.prepare.manifest.oracle[task]:.4f}"
    if made.student is not None and made.teacher is not None:
        facts["parameters, teacher → student"] = (
            f"{_million(made.teacher.parameters)} → {_million(made.student.parameters)}"
        )
    if made.probe is not None:
        kind = next(iter(made.probe.latency_ms))
        facts[f"ms, median: {kind}"] = f"{made.probe.percentile(kind, 0.5):.1f}"
    more: dict[str, Any] = {
        "title": "rayrank quickstart",
        "facts": facts,
        "losses": {
            name: _losses(run.curve) for name, run in (("teacher", made.teacher), ("student", made.student)) if run
        },
        "losses_note": _LOSSES_NOTE,
        "latency_ms": made.probe.latency_ms if made.probe else {},
        "steps_s": made.seconds,
        "gates": tuple(gate.line() for gate in made.promote.gates),
        "notes": (where.line(),),
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
    lines = ["", *made.evaluate.table_lines(), ""]
    if made.prepare is not None and made.prepare.manifest.oracle:
        known = ", ".join(f"{task} {auc:.4f}" for task, auc in made.prepare.manifest.oracle.items())
        lines.append(f"best possible AUC on this data (the oracle): {known}")
    lines += made.promote.summary()
    if made.probe is not None:
        for kind in made.probe.latency_ms:
            median, p95 = (made.probe.percentile(kind, share) for share in (0.5, 0.95))
            lines.append(f"HTTP: {kind}: median {median:.1f} ms, p95 {p95:.1f} ms")
    lines += made.score.summary() if made.score else []
    lines.append("  ".join(f"{name} {value:.0f} s" for name, value in made.seconds.items()))
    lines.append(made.evaluate.verdict)
    lines.append(f"whole path in {seconds:.0f} s; report: {storage.join(output, 'report.html')}")
    return lines


def _million(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
