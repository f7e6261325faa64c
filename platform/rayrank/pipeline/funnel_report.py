"""What the ``funnel`` job found as people and programs read it: tables for terminal and Markdown, and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rayrank.pipeline import tabulate
from rayrank.pipeline.compare_report import Table, finite, signed
from rayrank.pipeline.funnel_charts import PLOTS
from rayrank.pipeline.tabulate import Row
from rayrank.sources import storage

if TYPE_CHECKING:
    from rayrank.pipeline.funnel import FunnelResult
    from rayrank.pipeline.funnel_found import PairFound

MUCH = 0.2
"""Share of the teacher's best that a release had better not lose."""


def pairs(result: FunnelResult) -> Table:
    """One line per (N₁, N₂)."""
    budget_ms, share = result.budget
    rows: list[Row] = [
        {
            "N1": str(one.pool),
            "N2": str(one.rerank),
            "lost: retrieve": _share(one.lost_retrieve),
            "student": _share(one.lost_prerank),
            "final": _share(one.lost_final),
            "in all": f"{_share(one.lost.value)} [{_share(one.lost.low)}, {_share(one.lost.high)}]",
            f"NDCG@{result.k}": f"{one.ndcg:.4f}",
            "beside the teacher": signed(one.ndcg_gain),
            "median ms": f"{one.median_ms:.1f}",
            f"p{100 * share:g} ms": f"{one.latency_ms:.1f}",
            "retrieve + student + teacher": " + ".join(
                f"{one.stages_ms.get(stage, 0.0):.1f}" for stage in ("retrieve", "student", "teacher")
            ),
            "": "chosen" if one.pair == result.choice.pair else "late" if one.latency_ms > budget_ms else "ok",
        }
        for one in result.pairs
    ]
    return list(rows[0]), rows, 0


def segments(result: FunnelResult) -> Table:
    """One line per segment of requests and of items."""
    rows: list[Row] = [
        {
            "segment": one.name,
            "requests": str(one.requests),
            f"overlap@{result.k}": _share(one.overlap),
            "Kendall τ": _share(one.tau),
            "Spearman ρ": _share(one.rho),
            "lost: retrieve": _share(one.lost_retrieve),
            "student": _share(one.lost_prerank),
            "in all": _share(one.lost),
        }
        for one in result.segments
    ]
    return list(rows[0]), rows, 1


def as_text(result: FunnelResult) -> list[str]:
    """Both tables with what they are about."""
    out = [_about(result), ""]
    columns, rows, left = pairs(result)
    out += [*tabulate.as_text(columns, rows, left), "", _orders(result), ""]
    columns, rows, left = segments(result)
    return [*out, _segments_of(result), *tabulate.as_text(columns, rows, left), "", *_method(result)]


def verdict(result: FunnelResult) -> str:
    """The pair to serve with, and a warning where even that one loses much."""
    if result.choice.pair is None:
        return f"Nothing to serve with: {result.choice.reason}."
    chosen = next(one for one in result.pairs if one.pair == result.choice.pair)
    told = f"{_flow(chosen)}: {result.choice.reason}."
    if chosen.lost.value <= MUCH:
        return f"Serve with {told}"
    return f"Best of the pairs tried is {told} Warning: {_loses_much(chosen, result)}."


def _loses_much(chosen: PairFound, result: FunnelResult) -> str:
    """Where most is lost, and which pair or change would lose less."""
    steps = {"retrieval": chosen.lost_retrieve, "the student": chosen.lost_prerank, "the end": chosen.lost_final}
    where = max(steps, key=lambda step: steps[step])
    said = f"it loses more than {MUCH:g} of what the teacher would show, most of it in {where}"
    least = min(result.pairs, key=lambda one: one.lost.value)
    if least.lost.value < chosen.lost.value - MUCH / 10:
        return f"{said}; {_flow(least)} loses {least.lost.value:.3f} in {least.latency_ms:.1f} ms (raise budget_ms)"
    wider = "larger pools" if where == "retrieval" else "larger reranks"
    return f"{said}; no pair tried loses clearly less: try {wider}, or a student that agrees better with its teacher"


def _flow(one: PairFound) -> str:
    return f"flow.pool={one.pool} and flow.rerank={one.rerank}"


def _about(result: FunnelResult) -> str:
    return (
        f"{result.dataset}, {result.part}, release {result.release.release_id}: "
        f"{result.requests} users at their first request of the part"
    )


def _orders(result: FunnelResult) -> str:
    told = ", ".join(f"{name} {value:.4f}" for name, value in result.orders.items())
    return f"NDCG@{result.k} of the whole catalogue in one model's order: {told}"


def _segments_of(result: FunnelResult) -> str:
    pool, rerank = result.segments_of
    return f"By segment; what is lost with N1 = {pool}, N2 = {rerank}"


def _method(result: FunnelResult) -> list[str]:
    k, task, share = result.k, result.task, result.budget[1]
    return [
        f"Lost: share of the teacher's best {k} unseen items of the whole catalogue that each cut drops: not among the",
        f"N1 retrieved, not among the N2 that the student hands on, not among the {k} shown. Segments: of one pair.",
        f"NDCG@{k}: gain 1 for every item with a positive '{task}' in the part that the user had not met before the",
        "request, 0 for all others of the catalogue; beside the teacher's order of everything, paired by request.",
        "Agreement (τ-b, ρ): of both models' fused scores on the largest pool; overlap: of their best of everything.",
        f"Times: the graph's own flow in this process on one thread; {100 * share:g} % of requests stay within.",
        f"{100 * result.same:.1f} % of its answers were the very lists judged. {result.surroundings.line()}",
    ]


def write(result: FunnelResult) -> None:
    """``funnel.md`` and, last, ``funnel.json``."""
    lines = [f"# Funnel of {result.release.release_id}", "", f"{_about(result)}.", "", verdict(result), ""]
    for title, (columns, rows, left) in (("Cuts", pairs(result)), (_segments_of(result), segments(result))):
        lines += [f"## {title}", "", *tabulate.as_markdown(columns, rows, left), ""]
    lines += [_orders(result) + ".", "", *_method(result), "", *(f"![{name}]({name}.png)" for name in PLOTS)]
    lines.append("")
    storage.write_bytes(storage.join(result.output, "funnel.md"), "\n".join(lines).encode())
    text = json.dumps(finite(as_json(result)), indent=1, allow_nan=False)
    storage.write_bytes(storage.join(result.output, "funnel.json"), text.encode())


def as_json(result: FunnelResult) -> dict[str, Any]:
    """Everything."""
    return {
        "dataset": result.dataset,
        "part": result.part,
        "task": result.task,
        "release_id": result.release.release_id,
        "fusion": result.release.fusion,
        "k": result.k,
        "requests": result.requests,
        "budget_ms": result.budget[0],
        "share": result.budget[1],
        "choice": asdict(result.choice),
        "pairs": [asdict(one) for one in result.pairs],
        "orders": result.orders,
        "segments": [asdict(one) for one in result.segments],
        "segments_of": result.segments_of,
        "answers_equal": result.same,
        "surroundings": asdict(result.surroundings),
    }


def _share(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.3f}"
