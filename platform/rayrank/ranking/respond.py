"""Rows back to ids and titles: the flow's answer as a response message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rayrank.messages import RankedItem, RankRequest, RankResponse, RecommendRequest
from rayrank.ranking.flow import Ranked
from rayrank.ranking.fusion import shown
from rayrank.ranking.items import Items
from rayrank.schema import DatasetSchema


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
    )


def ranked_items(request: RankRequest | RecommendRequest, ranked: Ranked, named: Named) -> list[RankedItem]:
    """One line per ranked row."""
    values = {task: v.astype(float) for task, v in shown(ranked.scores, named.schema).items()}
    given = request.candidates if isinstance(request, RankRequest) else None
    lines = []
    for i, (row, position) in enumerate(zip(ranked.rows.tolist(), ranked.positions.tolist(), strict=True)):
        cold = not 0 < row < len(named.items)
        lines.append(
            RankedItem(
                item_id=given[position].item_id if given is not None and cold else named.items.item_id(row),
                position=position if given is not None else None,
                title=named.items.title(row),
                score=float(ranked.score[i]),
                scores={task: float(v[i]) for task, v in values.items() if np.isfinite(v[i])},
                scored_by=ranked.scored_by[i],
                cold=cold,
                stages=_stages(ranked, i) if request.explain else {},
            )
        )
    return lines


def _stages(ranked: Ranked, i: int) -> dict[str, float]:
    return {stage: float(v[i]) for stage, v in ranked.stages.items() if np.isfinite(v[i])}
