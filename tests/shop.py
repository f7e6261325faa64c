"""A graph of the tiny release in one process that follows a log of items, and the desk that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayrank.messages import ItemsRequest, ItemsResponse, RankRequest, RankResponse, RecommendRequest
from rayrank.ranking.desk import ItemDesk
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.follow import ItemSource
from rayrank.ranking.graph import RankingGraph, Records
from rayrank.ranking.item_log import ItemLog, ItemsSpec
from rayrank.ranking.release import Release
from rayrank.ranking.store import UserStore
from tests.tiny_release import START

NOW = START + 9 * 86_400
ROWS = 9
SPEC = ItemsSpec(poll_s=30, waiting=5, rows=ROWS)  # tests look at the log themselves


class Shop:
    """A graph in one process that follows a log, and its desk."""

    def __init__(
        self,
        release: Release,
        folder: Path,
        store: UserStore | None = None,
        policy: str | None = None,
        folded: int | None = None,
    ) -> None:
        spec = SPEC.model_copy(update={"folded": folded})
        source = ItemSource(ItemLog(folder), spec)
        settings = FlowSettings(pool=40, rerank=5, cold=2)
        self.graph = RankingGraph.open(release, settings, store, policy, Records(items=source))
        assert self.graph.follower is not None
        self.follower = self.graph.follower
        self.desk = ItemDesk(self.graph.user.encoder, self.graph.items, self.follower, spec)

    def tell(self, *items: Any, remove: tuple[str, ...] = (), now: int = NOW) -> ItemsResponse:
        found = self.desk.accept(ItemsRequest.model_validate({"items": items, "remove": remove}), "r", now)
        self.follower.refresh()
        return found

    def ask(self, **body: Any) -> RankResponse:
        cls = RankRequest if "candidates" in body else RecommendRequest
        return self.graph.respond(cls.model_validate({"time": NOW, "explain": True, **body}), NOW, "r")

    def ids(self, **body: Any) -> list[str | None]:
        return [item.item_id for item in self.ask(**body).items]
