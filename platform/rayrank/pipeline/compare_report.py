"""What the ``compare`` job found as people and programs read it: tables for terminal and Markdown, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rayrank.metrics.bootstrap import Interval
from rayrank.pipeline import tabulate
from rayrank.pipeline.differences import Difference, least_corrected, place
from rayrank.pipeline.tabulate import Row
from rayrank.sources import storage
from rayrank.wording import counted

if TYPE_CHECKING:
    from rayrank.pipeline.compare import CompareResult

PLOTS = ("differences", "calibration", "slices", "quality_cost")
Table = tuple[Sequence[str], list[Row], int]
"""Columns, rows, and how many of the first columns are words."""


def models(result: CompareResult) -> Table:
    """One line per model and protocol: the judged task, cost and size."""
    columns, rows = tabulate.table(result.comparison)
    for row, entry in zip(rows, result.comparison.entries, strict=True):
        size = result.sizes[entry.model]
        row["p95 ms"] = f"{entry.cost.quantile_ms(0.95):.1f}" if entry.cost else None
        row["weights MB"], row["bundle MB"] = f"{size.weights_mb:.1f}", f"{size.bundle_mb:.1f}"
    return [*columns, "p95 ms", "weights MB", "bundle MB"], rows, 2


def metrics(result: CompareResult) -> Table:
    """One line per metric of a model beside the reference."""
    rows: list[Row] = [
        {
            "model": d.model,
            "protocol": d.protocol,
            "metric": f"{d.task} {d.metric}",
            result.reference: _number(d.reference),
            "value": _number(d.value),
            "difference": signed(d.gain),
            "p": _p(d.p),
            "Holm": _p(d.corrected),
            "shown": d.word(result.level) if math.isfinite(d.p) else "–",
        }
        for d in result.differences
    ]
    names = ("model", "protocol", "metric", result.reference, "value", "difference", "p", "Holm", "shown")
    return names, rows, 3


def slices(result: CompareResult) -> Table:
    """One line per slice, task and model: size, order, calibration, and LogLoss beside the reference's."""
    rows: list[Row] = []
    differing = {(d.model, d.task, d.where): d for d in result.by_slice}
    for entry in result.comparison.entries:
        for one in entry.evidence.slices if entry.protocol == result.protocol else ():
            row: Row = {"model": entry.model, "task": one.task, "slice": place(one)}
            row |= {"positives": str(one.positives), "negatives": str(one.negatives)}
            if one.metrics:
                row |= {"AUC": one.metrics["auc"], "calibration": _around(one.calibration)}
                row["calibrated"] = "yes" if one.calibrated else "NO"
            if (d := differing.get((entry.model, one.task, place(one)))) is not None:
                row |= {"LogLoss difference": signed(d.gain), "Holm": _p(d.corrected), "shown": d.word(result.level)}
            rows.append(row)
    names = ("model", "task", "slice", "positives", "negatives", "AUC", "calibration", "calibrated")
    return (*names, "LogLoss difference", "Holm", "shown"), rows, 3


def as_text(result: CompareResult) -> list[str]:
    """The first two tables; of the slices what stands out."""
    out = [_about(result)]
    for table in (models, metrics):
        columns, rows, left = table(result)
        out += ["", *tabulate.as_text(columns, rows, left)]
    return [*out, "", _method(result), *_slices_in_short(result)]


def _about(result: CompareResult) -> str:
    found = result.comparison
    return f"{found.schema.name}, {found.part}; AUC, GAUC, LogLoss, NE and NDCG@10 are of '{found.task}'"


def _method(result: CompareResult) -> str:
    resamples = len(result.comparison.resamples.weights)
    tests = sum(math.isfinite(d.p) for d in result.differences)
    least = max(least_corrected(family, resamples) for family in (result.differences, result.by_slice))
    coarse = (
        f" Corrected p-values below {least:.3f} may be out of reach: give more resamples."
        if least >= result.level
        else ""
    )
    return (
        f"Differences are model − {result.reference} on the same rows, with 95 % intervals from {resamples:,} paired "
        f"resamples of users; p is two-sided. Holm: corrected for all {tests} tests of this table (slices: for all "
        f"{len(result.by_slice)} of theirs); shown: corrected p below {result.level:g}.{coarse}"
    )


def _slices_in_short(result: CompareResult) -> list[str]:
    judged = [
        (entry.model, one)
        for entry in result.comparison.entries
        if entry.protocol == result.protocol
        for one in entry.evidence.slices
        if one.metrics
    ]
    off = [
        f"{model}, {one.task}, {place(one)}: {_around(one.calibration)}" for model, one in judged if not one.calibrated
    ]
    shown = [
        f"{d.model}, {d.task}, {d.where}: LogLoss {signed(d.gain)}, {d.word(result.level)}"
        for d in result.by_slice
        if d.word(result.level) != "not shown"
    ]
    lines = [f"{counted(len(judged), 'slice')} of a model judged ({result.protocol}); all of them in compare.md"]
    lines += [f"  calibration off by more than 3 % and two standard errors: {line}" for line in off]
    return lines + [f"  differs from {result.reference}: {line}" for line in shown]


def verdicts(result: CompareResult) -> list[str]:
    """A sentence for each model but the reference."""
    lines = []
    for model in result.comparison.models:
        mine = [d for d in result.differences if d.model == model and math.isfinite(d.p)]
        if model == result.reference:
            continue
        by_word = {word: [d for d in mine if d.word(result.level) == word] for word in ("better", "worse", "differs")}
        told = [f"{word} in {_listed(found)}" for word, found in by_word.items() if found]
        rest = len(mine) - sum(map(len, by_word.values()))
        told.append(f"no difference shown in {rest} of {len(mine)} tests")
        lines.append(f"{model} against {result.reference}: {'; '.join(told)}; {_costs(result, model)}.")
    return lines


def _listed(found: Sequence[Difference]) -> str:
    names: dict[str, list[str]] = {}
    for d in found:
        names.setdefault(f"{d.task} {d.metric}", []).append(d.protocol)
    return ", ".join(f"{name} ({' and '.join(protocols)})" for name, protocols in names.items())


def _costs(result: CompareResult, model: str) -> str:
    mine, base = (result.comparison.find(name, result.protocol) for name in (model, result.reference))
    assert mine is not None
    assert base is not None
    assert mine.cost is not None
    assert base.cost is not None
    speed = mine.cost.candidates_per_s / base.cost.candidates_per_s
    size = result.sizes[model].weights_mb / result.sizes[result.reference].weights_mb
    return f"{speed:.2f} times the candidates/s, {size:.2f} times the weights"


def write(result: CompareResult) -> None:
    """``compare.md`` and, last, ``compare.json``."""
    parts: list[tuple[str, Callable[[CompareResult], Table]]] = [
        ("Models", models),
        ("Metrics", metrics),
        (f"Slices, {result.protocol}", slices),
    ]
    lines = [f"# {' / '.join(result.comparison.models)}", "", _about(result) + ".", "", _method(result), ""]
    lines += [f"* {line}" for line in verdicts(result)]
    for title, table in parts:
        columns, rows, left = table(result)
        lines += ["", f"## {title}", "", *tabulate.as_markdown(columns, rows, left)]
    lines += ["", *(f"![{name}]({name}.png)" for name in PLOTS), "", f"Measured {result.surroundings.line()}.", ""]
    storage.write_bytes(storage.join(result.output, "compare.md"), "\n".join(lines).encode())
    text = json.dumps(finite(as_json(result)), indent=1, allow_nan=False)
    storage.write_bytes(storage.join(result.output, "compare.json"), text.encode())


def as_json(result: CompareResult) -> dict[str, Any]:
    """Everything but the scores."""
    found = result.comparison
    whole = tabulate.as_json(found, " ".join(verdicts(result)))
    for line, entry in zip(whole["entries"], found.entries, strict=True):
        line |= asdict(result.sizes[entry.model])
        line["slices"] = [
            {"task": s.task, "dimension": s.dimension, "value": s.value, "positives": s.positives}
            | {"negatives": s.negatives, **s.metrics}
            | ({"calibration_interval": asdict(s.calibration), "calibrated": s.calibrated} if s.metrics else {})
            for s in entry.evidence.slices
        ]
    return whole | {
        "reference": result.reference,
        "resamples": len(found.resamples.weights),
        "correction": "Holm",
        "level": result.level,
        "differences": [asdict(d) | {"shown": d.word(result.level)} for d in result.differences],
        "slice_differences": [asdict(d) | {"shown": d.word(result.level)} for d in result.by_slice],
        "surroundings": asdict(result.surroundings),
    }


def finite(value: Any) -> Any:
    """For JSON: what is no finite number becomes null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def signed(gain: Interval) -> str:
    """A difference with its interval."""
    digits = 1 if max(abs(gain.low), abs(gain.high), abs(gain.value)) >= 10 else 4
    return f"{gain.value:+.{digits}f} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"


def _around(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def _p(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.4f}"
