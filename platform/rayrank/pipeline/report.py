"""One self-contained ``report.html``: verdict, table, gates and plots, in light and dark, no outside resources.

Takes a plain :class:`Report`, so that any job, benchmark or notebook can call it. Knows nothing about models or Ray.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from pydantic import Field

from rayrank.config import Config
from rayrank.pipeline import charts
from rayrank.pipeline.report_style import CSS


class GateLine(Config):
    """One promotion gate as shown."""

    name: str = Field(description="what was checked")
    value: str = Field(description="what was found")
    threshold: str = Field(description="what was asked")
    passed: bool = Field(description="whether it passed")
    explanation: str = Field("", description="one sentence")


class CurveData(Config):
    """Reliability bins of one model."""

    prediction: tuple[float, ...] = Field(description="mean prediction by bin")
    label: tuple[float, ...] = Field(description="mean label by bin")
    count: tuple[float, ...] = Field(description="targets by bin")


class SpotData(Config):
    """Quality and cost of one model."""

    name: str = Field(description="model")
    candidates_per_s: float = Field(gt=0, description="candidates scored per second on one thread")
    auc: float = Field(description="AUC")
    low: float | None = Field(None, description="lower end of the interval")
    high: float | None = Field(None, description="upper end of the interval")


class Report(Config):
    """Everything the page shows; parts left empty are left out."""

    title: str = Field(description="heading")
    subtitle: str = Field("", description="dataset, split and date in one line")
    verdict: str = Field("", description="one plain sentence")
    facts: dict[str, str] = Field({}, description="a few numbers in large type, label -> value")
    columns: tuple[str, ...] = Field((), description="columns of the table, in order")
    rows: tuple[dict[str, str | float | None], ...] = Field((), description="rows of the table")
    table_note: str = Field("", description="how to read the table")
    losses: dict[str, dict[str, tuple[tuple[float, float], ...]]] = Field(
        {}, description="run -> task -> (step, loss) points"
    )
    losses_note: str = Field("", description="how to read the losses")
    calibration: dict[str, CurveData] = Field({}, description="model -> reliability bins of the first binary task")
    spots: tuple[SpotData, ...] = Field((), description="models by quality and cost")
    floors: dict[str, float] = Field({}, description="baseline -> AUC, drawn as lines")
    latency_ms: dict[str, tuple[float, ...]] = Field({}, description="kind of request -> response times")
    steps_s: dict[str, float] = Field({}, description="step -> seconds, in order")
    gates: tuple[GateLine, ...] = Field((), description="promotion gates")
    notes: tuple[str, ...] = Field((), description="closing lines")


def render(report: Report) -> str:
    """The whole page as one string."""
    body = [
        f"<header><h1>{_text(report.title)}</h1>{_tag('p', report.subtitle, 'sub')}</header>",
        _tag("p", report.verdict, "verdict"),
        _facts(report),
        _table(report),
        *_figures(report),
        _gates(report),
        f"<footer>{''.join(_tag('p', note) for note in report.notes)}</footer>" if report.notes else "",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{_text(report.title)}</title><style>{CSS}</style>'
    )
    inner = "\n".join(part for part in body if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{inner}\n</main></body></html>\n'


def _figures(report: Report) -> Iterable[str]:
    palette = charts.MARKERS
    pair = []
    if report.spots:
        spots = [charts.Spot(**spot.model_dump()) for spot in report.spots]
        figure = charts.quality_cost(spots, report.floors, palette)
        pair.append(_figure("Quality against cost", figure, "AUC over candidates per second"))
    if report.calibration:
        curves = {n: charts.Curve(c.prediction, c.label, c.count) for n, c in report.calibration.items()}
        pair.append(_figure("Calibration", charts.calibration(curves, palette), "mean label over mean prediction"))
    if any(report.latency_ms.values()):
        kept = {name: values for name, values in report.latency_ms.items() if values}
        pair.append(_figure("Latency", charts.latency(kept, palette), "distribution of response times"))
    if pair:
        yield f'<div class="grid">{"".join(pair)}</div>'
    if any(report.losses.values()):
        figure = charts.losses(report.losses, palette)
        yield _figure("Loss by task", figure, "training loss by task over steps", report.losses_note)
    if report.steps_s:
        yield _figure("Where the time went", charts.timeline(report.steps_s, palette), "seconds of each step")


def _figure(title: str, figure: charts.Figure, label: str, note: str = "") -> str:
    return f"<section><h2>{_text(title)}</h2>{charts.to_svg(figure, label)}{_tag('p', note, 'note')}</section>"


def _facts(report: Report) -> str:
    tiles = "".join(
        f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in report.facts.items()
    )
    return f'<div class="facts">{tiles}</div>' if tiles else ""


def _table(report: Report) -> str:
    if not report.rows:
        return ""
    best = {column: _best(report, column) for column in report.columns}
    words = {c for c in report.columns if any(_is_word(row.get(c)) for row in report.rows)}
    head = "".join(f'<th class="{"t" if column in words else "n"}">{_text(column)}</th>' for column in report.columns)
    lines = []
    for row in report.rows:
        cells = []
        for column in report.columns:
            value = row.get(column)
            number = isinstance(value, int | float)
            mark = " best" if number and value == best[column] else ""
            cells.append(
                f'<td class="{"n" if number or value is None else "t"}{mark}">{_text(cell(column, value))}</td>'
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    note = _tag("p", report.table_note, "note")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<section><h2>Results</h2><div class="scroll">{table}</div>{note}</section>'


def _gates(report: Report) -> str:
    if not report.gates:
        return ""
    lines = "".join(
        f'<tr><td class="{"ok" if gate.passed else "no"}">{"passed" if gate.passed else "failed"}</td>'
        f'<td class="t">{_text(gate.name)}</td><td class="n">{_text(gate.value)}</td>'
        f'<td class="n">{_text(gate.threshold)}</td><td class="t why">{_text(gate.explanation)}</td></tr>'
        for gate in report.gates
    )
    head = '<tr><th></th><th class="t">gate</th><th>found</th><th>asked</th><th></th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{lines}</tbody></table>"
    return f'<section><h2>Promotion gates</h2><div class="scroll">{table}</div></section>'


def cell(column: str, value: str | float | None) -> str:
    """A value as a table shows it: counts in k and M, rates with four digits, a dash for no data."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if column in _COUNTS or abs(value) >= 1000:
        return short_count(value)
    return f"{value:.4f}"


def short_count(value: float) -> str:
    """Three digits and a unit: 312k, 23.3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


_COUNTS = frozenset({"parameters", "candidates/s"})
_LOWER_IS_BETTER = frozenset({"LogLoss", "NE", "RMSE", "MAE"})
_HIGHER_IS_BETTER = frozenset({"AUC", "GAUC", "NDCG@10", "Recall@100"})


def _best(report: Report, column: str) -> float | None:
    values = [v for row in report.rows if isinstance(v := row.get(column), int | float) and not math.isnan(v)]
    if not values:
        return None
    if column in _LOWER_IS_BETTER:
        return min(values)
    return max(values) if column in _HIGHER_IS_BETTER else None


def _is_word(value: str | float | None) -> bool:
    return isinstance(value, str) and not value[:1].isdigit()


def _text(value: object) -> str:
    return html.escape(str(value))


def _tag(name: str, text: str, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f"<{name}{kind}>{_text(text)}</{name}>" if text else ""
