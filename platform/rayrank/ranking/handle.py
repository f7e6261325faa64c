"""``rayrank.load(path).rank(history, candidates)``: a bundle or a release in plain Python, without Ray."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, ValidationError

from rayrank.bundle import load_bundle
from rayrank.bundle.info import MANIFEST
from rayrank.config import ConfigError
from rayrank.messages import (
    HistoryEvent,
    ItemsRequest,
    Omittable,
    RankedItem,
    RankRequest,
    RankResponse,
    RecommendRequest,
    TextItem,
    error_fields,
)
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import Bundles, RankingGraph, RequestError
from rayrank.ranking.release import Release, load_release

Event = str | tuple[str, Mapping[str, float]] | Mapping[str, Any] | HistoryEvent
Candidate = str | Mapping[str, Any] | TextItem

M = TypeVar("M", bound=BaseModel)


class Options(TypedDict, total=False):
    """What a request may say besides; the fields of ``RankRequest`` and ``RecommendRequest``."""

    user_id: str | None
    user: Mapping[str, Any]  # raw user columns
    context: Mapping[str, Any]  # raw context columns
    time: int | None  # unix seconds of the request; None: now
    block: Sequence[str]  # ids to leave out
    weights: Mapping[str, float] | None  # event task -> fusion weight
    min_score: float | None
    rerank: int | None  # items the teacher scores
    timeout_ms: int | None
    explain: bool  # also each stage's own score
    without: Sequence[Omittable]  # stages to leave out


class CatalogueOptions(Options, total=False):
    """The same, and what only ``recommend`` knows."""

    pool: int | None  # items the retriever hands on
    query: str | None  # items whose title holds these words join the candidates
    exclude_seen: bool


class RankerHandle:
    """Ranks and recommends in this process."""

    def __init__(self, graph: RankingGraph) -> None:
        self.graph = graph

    def rank(
        self,
        history: Sequence[Event] | None,
        candidates: Sequence[Candidate],
        k: int | None = None,
        **options: Unpack[Options],
    ) -> list[RankedItem]:
        """Candidates in the order this user should see them, best first.

        ``history`` is oldest first: ids, ``(id, labels)`` pairs or mappings like ``{"item_id": …, "labels": {…}}``;
        candidates are ids or mappings with ``text`` and ``attributes``. The first ``k`` are returned, all by default.
        What an HTTP response says under ``warnings`` (a text that this bundle cannot read) is a Python warning here.

        Raises:
            RequestError: names the field and the rule.
        """
        request = {"candidates": list(candidates), "history": _events(history), "k": k, **options}
        return self._items(_parse(RankRequest, request))

    def recommend(
        self, history: Sequence[Event] | None, k: int = 10, **options: Unpack[CatalogueOptions]
    ) -> list[RankedItem]:
        """The k best unseen items of the whole catalogue.

        Raises:
            RequestError: names the field and the rule.
        """
        return self._items(_parse(RecommendRequest, {"history": _events(history), "k": k, **options}))

    def respond(self, request: RankRequest | RecommendRequest) -> RankResponse:
        """The full response: items, stage timings, who answered, warnings."""
        return self.graph.respond(request)

    def _items(self, request: RankRequest | RecommendRequest) -> list[RankedItem]:
        response = self.respond(request)
        for line in response.warnings:
            warnings.warn(line, stacklevel=3)
        return response.items

    def add_items(self, items: Sequence[Mapping[str, Any]], remove: Sequence[str] = ()) -> int:
        """Put items into the catalogue of this process, or change or remove them, as ``POST /v1/items`` does.

        Each is a mapping with ``item_id`` and ``text``, ``attributes``, ``title`` or ``available``. Returns how many
        texts the teacher encoded.

        Raises:
            RequestError: names the field and the rule.
        """
        return self.graph.add_items(_parse(ItemsRequest, {"items": list(items), "remove": list(remove)}))


def open_ranker(path: str | Path, fusion: Mapping[str, float] | None = None) -> RankerHandle:
    """Open one bundle, one release or a releases folder (its champion).

    ``fusion`` replaces the release's weights; a lone bundle weighs all event tasks alike by default.

    Raises:
        ConfigError: nothing to open, a damaged bundle, or weights of unknown tasks.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        try:
            release = load_release(folder)
        except ConfigError as error:
            rule = "holds neither a bundle (bundle.json) nor a release"
            raise ConfigError(str(path), None, rule, error.fix) from None
        if fusion is not None:
            release = release.model_copy(update={"fusion": dict(fusion)})
        return RankerHandle(RankingGraph.open(release))
    bundle = load_bundle(folder)
    weights = dict(fusion or {t.name: 1.0 for t in bundle.info.data_schema.event_tasks})
    release = Release(release_id=f"bundle-{bundle.bundle_id}", student=str(folder), fusion=weights)
    is_student = bundle.info.role == "student"
    bundles = Bundles(bundle if is_student else None, None if is_student else bundle)
    return RankerHandle(RankingGraph(bundles, release, FlowSettings(), None))


def _events(history: Sequence[Event] | None) -> list[Any] | None:
    return None if history is None else [_event(e) for e in history]


def _event(event: Event) -> Any:
    if isinstance(event, tuple):
        item, labels = event
        return {"item_id": item, "labels": labels}
    return dict(event) if isinstance(event, Mapping) else event


def _parse(cls: type[M], value: Any) -> M:
    try:
        return cls.model_validate(dict(value) if isinstance(value, Mapping) else value)
    except ValidationError as error:
        raise RequestError(error_fields(error.errors(include_input=False))) from None
