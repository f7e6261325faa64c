"""A comparison as people and programs read it: table, CSV, JSON, one verdict sentence."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from rayrank.metrics.bootstrap import Interval
from rayrank.pipeline.comparison import Comparison, Entry, kept_lift
from rayrank.pipeline.report import CurveData, SpotData, cell
from rayrank.schema import MulticlassTask, RegressionTask, RetrievalTask
from rayrank.sources import storage
from rayrank.wording import counted

Row = dict[str, str | float | None]
_SHOWN, _CLEAR = 100, 1.5
_SEEN = {
    "streaming": "popularity's leaves out all that the user had seen before (streaming)",
    "snapshot": "popularity's leaves out what the user had seen before the part (snapshot)",
}
_SO = (
    "it hardly finds a user's items in the whole catalogue; train longer or on more data, and serve a larger flow.pool"
)


def table(found: Comparison) -> tuple[tuple[str, ...], list[Row]]:
    """Columns and rows of the short table; the CSV and the JSON hold every metric."""
    rows = [_row(found, entry) for entry in found.entries]
    return tuple(rows[0]), rows


def _row(found: Comparison, entry: Entry) -> Row:
    def metric(task: str, name: str) -> float | None:
        value = entry.metrics.get(f"{task}/{name}")
        return None if value is None or math.isnan(value) else value

    judged = {"AUC": "auc", "GAUC": "gauc", "LogLoss": "log_loss", "NE": "normalised_entropy", "NDCG@10": "ndcg_10"}
    row: Row = {"model": entry.model, "protocol": entry.protocol}
    row |= {column: metric(found.task, name) for column, name in judged.items()}
    if regression := found.schema.of_kind(RegressionTask):
        row["RMSE"] = metric(regression[0].name, "rmse")
    for task in found.schema.of_kind(MulticlassTask):
        accuracy, majority = metric(task.name, "accuracy"), metric(task.name, "majority")
        row[f"{task.name} (majority)"] = (
            f"{accuracy:.3f} ({majority:.3f})" if accuracy is not None and majority is not None else None
        )
    if retrieval := found.schema.of_kind(RetrievalTask):
        row["Recall@100"] = metric(retrieval[0].name, "recall_100")
    row["parameters"] = float(entry.parameters)
    row["candidates/s"] = entry.cost.candidates_per_s if entry.cost else None
    return row


def as_text(columns: Sequence[str], rows: Sequence[Row], left: int = 2) -> list[str]:
    """The table for a terminal, one string per line; the first ``left`` columns are words."""
    cells = [list(columns), *([cell(c, row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        "  ".join(v.ljust(w) if i < left else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]


def as_markdown(columns: Sequence[str], rows: Sequence[Row], left: int = 2) -> list[str]:
    """The same as a Markdown table."""
    rule = [":--" if i < left else "--:" for i in range(len(columns))]
    cells = [list(columns), rule, *([cell(c, row.get(c)) for c in columns] for row in rows)]
    return [f"| {' | '.join(value.replace('|', '/') for value in line)} |" for line in cells]


def verdict(found: Comparison) -> str:
    """One plain sentence: better than the best baseline or not, by how much, how calibrated, what the student keeps."""
    parts = [_against_baseline(found, name) for name in found.models]
    if {"teacher", "student"} <= set(found.models):
        kept = kept_lift(_auc(found, "student"), _auc(found, "teacher"))
        fast, slow = (_speed(found, name) for name in ("student", "teacher"))
        times = f" at {fast / slow:,.1f} times its speed" if fast and slow else ""
        parts.append(f"the student keeps {100 * kept:.1f} % of the teacher's lift{times}")
    sentence = "; ".join(part for part in parts if part)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else "Nothing to judge: no model was given."


def _against_baseline(found: Comparison, model: str) -> str:
    entry, live, best = found.find(model, "snapshot"), found.find(model, "streaming"), found.best_baseline("gauc")
    if entry is None or live is None:
        return ""
    name = f"the {model}"
    calibration = f"calibration {live.metrics[f'{found.task}/calibration']:.2f}"
    if best is None:
        auc = entry.metrics[f"{found.task}/auc"]
        return f"{name} reaches AUC {auc:.4f} ({entry.protocol}), no baseline to compare with, {calibration}"
    auc_best = found.best_baseline("auc") or best
    gauc, auc_gain = found.gain("gauc", entry, best), found.gain("auc", entry, auc_best)
    other = "" if auc_best.model == best.model else f" against {auc_best.model}"
    return f"{name} {_words(gauc, best.model)}, {points(auc_gain)} of AUC{other} ({entry.protocol}), {calibration}"


def _words(gain: Interval, baseline: str) -> str:
    size = f"{points(gain)} points of GAUC"
    if gain.low > 0:
        return f"ranks better than the best baseline ({baseline}): {size}"
    if gain.high < 0:
        return f"ranks worse than the best baseline ({baseline}): {size}"
    return f"does not rank measurably better than the best baseline ({baseline}): {size}"


def points(gain: Interval) -> str:
    """A difference in points (hundredths) with half its interval."""
    return f"{100 * gain.value:+.2f} ± {100 * gain.half_width:.2f}".replace("-", "−")


def _auc(found: Comparison, model: str) -> float:
    entry = found.find(model, "streaming")
    assert entry is not None
    return entry.metrics[f"{found.task}/auc"]


def _speed(found: Comparison, model: str) -> float | None:
    entry = found.find(model, "streaming")
    return entry.cost.candidates_per_s if entry and entry.cost else None


def about_retrieval(found: Comparison) -> list[str]:
    """What Recall@100 is to be measured by, and a warning for each model that is no better than that."""
    retrieval = found.schema.of_kind(RetrievalTask)
    if not retrieval or not found.items:
        return []
    name, under = f"{retrieval[0].name}/recall_100", found.ranked_under
    chance = min(1.0, _SHOWN / found.items)
    counts = {e.model: e.metrics[name] for e in found.entries if e.baseline and name in e.metrics}
    seen = f"; {_SEEN[under]}" if counts else ""
    lines = [f"Recall@100 by chance: {chance:.4f} (100 of {counted(found.items, 'item')}){seen}"]
    if chance == 1.0:
        return lines
    for model in found.models:
        entry = found.find(model, under)
        value = entry.metrics.get(name) if entry else None
        if value is None or math.isnan(value):
            continue
        best = max(counts, key=lambda other: counts[other], default=None)
        below = [f"that of {best} ({counts[best]:.4f})"] if best and counts[best] > value else []
        below += [f"{_CLEAR} times chance"] if value < min(_CLEAR * chance, 1.0) else []
        if below:
            lines.append(
                f"warning: Recall@100 of the {model} ({under}) is {value:.4f}, below {' and '.join(below)}: {_SO}"
            )
    return lines


def as_json(found: Comparison, sentence: str) -> dict[str, Any]:
    """Everything but the scores; NaN becomes null."""
    return {
        "dataset": found.schema.name,
        "part": found.part,
        "task": found.task,
        "verdict": sentence,
        "entries": [
            {
                "model": entry.model,
                "protocol": entry.protocol,
                "baseline": entry.baseline,
                "bundle_id": entry.bundle_id,
                "parameters": entry.parameters,
                "candidates_per_s": entry.cost.candidates_per_s if entry.cost else None,
                "p95_ms": entry.cost.quantile_ms(0.95) if entry.cost else None,
                "metrics": {k: None if math.isnan(v) else v for k, v in entry.metrics.items()},
            }
            for entry in found.entries
        ],
    }


def write_outputs(folder: str, found: Comparison, sentence: str) -> None:
    """``metrics.csv`` and, last, ``evaluation.json``."""
    storage.write_bytes(storage.join(folder, "metrics.csv"), _csv(found).encode())
    text = json.dumps(as_json(found, sentence), indent=1, allow_nan=False)
    storage.write_bytes(storage.join(folder, "evaluation.json"), text.encode())


def _csv(found: Comparison) -> str:
    names = sorted({name for entry in found.entries for name in entry.metrics})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "protocol", "parameters", "candidates_per_s", *names])
    for entry in found.entries:
        speed = entry.cost.candidates_per_s if entry.cost else ""
        values = [entry.metrics.get(name, "") for name in names]
        writer.writerow([entry.model, entry.protocol, entry.parameters, speed, *values])
    return out.getvalue()


def curves(found: Comparison, protocol: str = "streaming") -> dict[str, CurveData]:
    """Reliability of every model on the judged task."""
    made = {}
    for name in found.models:
        entry = found.find(name, protocol)
        if entry is not None:
            curve = entry.evidence.curve
            made[name] = CurveData(
                prediction=tuple(curve.prediction), label=tuple(curve.label), count=tuple(map(float, curve.count))
            )
    return made


def spots(found: Comparison, protocol: str = "streaming") -> tuple[SpotData, ...]:
    """Every timed model by candidates per second and AUC, with the interval of its AUC over users."""
    made = []
    for name in found.models:
        entry = found.find(name, protocol)
        if entry is None or entry.cost is None:
            continue
        auc = found.interval("auc", entry)
        rate = entry.cost.candidates_per_s
        made.append(SpotData(name=name, candidates_per_s=rate, auc=auc.value, low=auc.low, high=auc.high))
    return tuple(made)


def floors(found: Comparison) -> dict[str, float]:
    """AUC of every baseline."""
    return {
        e.model: e.metrics[f"{found.task}/auc"]
        for e in found.entries
        if e.baseline and f"{found.task}/auc" in e.metrics
    }
