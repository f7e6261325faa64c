"""Rows back to ids and titles: the flow's answer as a response message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from pydantic import TypeAdapter

from rayrank.features.text import template_fields
from rayrank.messages import (
    DryRunAnswer,
    MovedItem,
    RankedItem,
    RankRequest,
    RankResponse,
    RecommendRequest,
    ReleaseInfo,
    TaskInfo,
    id_of,
)
from rayrank.ranking.flow import Ranked
from rayrank.ranking.fusion import shown
from rayrank.ranking.items import DESCRIBED, Items
from rayrank.ranking.release import Release
from rayrank.schema import DatasetSchema, Feature, RegressionTask

_LINES = TypeAdapter(list[RankedItem])
"""All lines in one call: half the time of making them one by one."""


@dataclass(frozen=True)
class Named:
    """What every response says about where it comes from."""

    release_id: str
    bundles: Mapping[str, str]  # role -> bundle id
    items: Items
    schema: DatasetSchema


def respond(
    request: RankRequest | RecommendRequest, ranked: Ranked, named: Named, request_id: str, timings: Mapping[str, float]
) -> RankResponse:
    """The response message; ``timings`` are milliseconds by stage."""
    return RankResponse(
        items=ranked_items(request, ranked, named),
        request_id=request_id,
        release_id=named.release_id,
        bundles=dict(named.bundles),
        answered_by=ranked.answered_by,
        degraded=ranked.degraded,
        timings_ms={stage: round(ms, 3) for stage, ms in timings.items()},
        warnings=list(ranked.warnings),
        policy=ranked.policy,
    )


def ranked_items(request: RankRequest | RecommendRequest, ranked: Ranked, named: Named) -> list[RankedItem]:
    """One line per ranked row."""
    tasks = {task: v.tolist() for task, v in shown(ranked.scores, named.schema).items()}
    stages = {stage: v.tolist() for stage, v in ranked.stages.items()} if request.explain else {}
    found = {name: ranks.tolist() for name, ranks in ranked.sources.items()} if request.explain else {}
    given = request.candidates if isinstance(request, RankRequest) else None
    rows, positions, score = ranked.rows.tolist(), ranked.positions.tolist(), ranked.score.tolist()
    propensity = [1.0] * len(rows) if ranked.propensity is None else ranked.propensity.tolist()
    lines = list[dict[str, object]]()
    for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
        known = 0 < row < DESCRIBED
        line = {
            "item_id": named.items.item_id(row) if known or given is None else id_of(given[position]),
            "position": None if given is None else position,
            "title": named.items.title(row),
            "score": score[i],
            "scores": _finite(tasks, i),
            "scored_by": ranked.scored_by[i],
            "cold": not known,
            "stages": _finite(stages, i) if stages else {},
            "sources": {name: ranks[i] for name, ranks in found.items() if ranks[i]} if found else {},
            "propensity": propensity[i],
            "policy": list(ranked.marks[i]) if request.explain and ranked.marks else [],
        }
        lines.append(line)
    return _LINES.validate_python(lines)


def difference(request: RankRequest | RecommendRequest, before: Ranked, after: Ranked, named: Named) -> DryRunAnswer:
    """The same request under two policies, side by side."""
    explained = request.model_copy(update={"explain": True})
    old, new = (_by_identity(explained, ranked, named) for ranked in (before, after))
    places = [{identity: place for place, identity in enumerate(found)} for found in (old, new)]
    items = [
        MovedItem(
            item_id=line.item_id,
            title=line.title,
            before=places[0].get(identity),
            after=places[1].get(identity),
            policy=line.policy if identity in new else [],
        )
        for identity, line in (new | {i: line for i, line in old.items() if i not in new}).items()
    ]
    return DryRunAnswer(items=items, degraded=after.degraded or before.degraded)


def _by_identity(
    request: RankRequest | RecommendRequest, ranked: Ranked, named: Named
) -> dict[tuple[int, int], RankedItem]:
    """(row, place among the candidates) -> line; recommended items have a row only."""
    given = isinstance(request, RankRequest)
    keys = [(int(r), int(p) if given else 0) for r, p in zip(ranked.rows, ranked.positions, strict=True)]
    return dict(zip(keys, ranked_items(request, ranked, named), strict=True))


def _finite(columns: Mapping[str, list[float]], i: int) -> dict[str, float]:
    return {name: values[i] for name, values in columns.items() if isfinite(values[i])}


def release_info(named: Named, release: Release) -> ReleaseInfo:
    """What is served, as far as it does not change."""
    tasks = [
        TaskInfo(name=t.name, kind=t.kind, low=t.low, high=t.high)
        if isinstance(t, RegressionTask)
        else TaskInfo(name=t.name, kind=t.kind)
        for t in named.schema.event_tasks
    ]
    return ReleaseInfo(
        release_id=named.release_id,
        bundles=dict(named.bundles),
        dataset=named.schema.name,
        tasks=tasks,
        columns=_columns(named.schema),
        fusion=dict(release.fusion),
        items=len(named.items) - 1,
    )


def _columns(schema: DatasetSchema) -> dict[str, dict[str, str]]:
    """Where a request may give raw columns -> column -> how it is read; what only titles and texts read is text."""
    texts = [*([schema.title] if schema.title else []), *(template_fields(schema.text) if schema.text else [])]
    return {
        "context": _kinds(schema.context_features),
        "user": _kinds(schema.user_features),
        "item": dict.fromkeys(texts, "text") | _kinds(schema.item_features),
    }


def _kinds(features: Sequence[Feature]) -> dict[str, str]:
    return {f.column: f.kind for f in features if not f.train_only}
