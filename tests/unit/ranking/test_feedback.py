"""Feedback: kept, counted once, seen by the next request; without its store the ranking goes on and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrank.config import ConfigError
from rayrank.messages import FeedbackRequest, RecommendRequest
from rayrank.ranking.context import Prepared
from rayrank.ranking.flow import FlowSettings, StageError
from rayrank.ranking.graph import RankingGraph, Records, RequestError
from rayrank.ranking.release import load_release
from rayrank.ranking.state import StateError, StateSpec, StateStore, UserEvents, open_state
from rayrank.ranking.store import History, UserStore, empty_history, joined
from tests.tiny_release import START, TinyWorld

DAY = 86_400
NOW = START + 9 * DAY


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateStore]:
    made = open_state(StateSpec(path=str(tmp_path / "s.sqlite"), timeout_s=0.2), "")
    yield made
    made.close()


@pytest.fixture
def graph(world: TinyWorld, store: UserStore, state: StateStore) -> RankingGraph:
    return RankingGraph.open(
        load_release(world.releases), FlowSettings(pool=20, rerank=5, cold=2), store, None, Records(state)
    )


def tell(graph: RankingGraph, user: str, *events: dict[str, Any], request_id: str | None = None) -> tuple[int, int]:
    request = FeedbackRequest.model_validate({"user_id": user, "events": events})
    found = graph.tell(request, NOW, request_id)
    return found.accepted, found.duplicates


def seen(graph: RankingGraph, user: str, **asked: Any) -> History:
    prepared = graph.user.prepare(RecommendRequest(user_id=user, k=1, **asked), NOW)
    assert isinstance(prepared, Prepared)
    return prepared.context.history


def test_the_next_request_sees_what_was_told(graph: RankingGraph) -> None:
    before = graph.respond(RecommendRequest(user_id="u1", k=30), NOW)
    told = before.items[0].item_id
    assert tell(graph, "u1", {"item_id": told, "labels": {"like": 1}, "time": NOW - 1}) == (1, 0)
    after = graph.respond(RecommendRequest(user_id="u1", k=30), NOW)
    assert told not in [i.item_id for i in after.items], "it has been seen"
    scores = {i.item_id: i.score for i in before.items}
    assert any(abs(scores[i.item_id] - i.score) > 1e-4 for i in after.items), "the models know of it"
    ranked, _ = graph.answer(RecommendRequest(user_id="u1", k=3), NOW)
    assert ranked.history_until == NOW - 1
    history = seen(graph, "u1")
    assert history.time[-1] == NOW - 1
    assert (history.labels["like"][-1], np.isnan(history.labels["rating"][-1])) == (1, True)
    assert len(seen(graph, "u1", time=NOW - 1)) == len(history) - 1, "not before it happened"


def test_a_stranger_is_known_after_the_first_event(graph: RankingGraph) -> None:
    assert graph.respond(RecommendRequest(user_id="new", k=1), NOW).warnings
    tell(graph, "new", {"item_id": "i4"}, {"item_id": "i5", "labels": {"rating": 3}})
    assert graph.respond(RecommendRequest(user_id="new", k=1), NOW).warnings == []
    history = seen(graph, "new")
    assert (history.item.tolist(), history.time.tolist()) == ([4, 5], [NOW, NOW])
    assert history.request.tolist() == [0, 0], "equal times are one request"


def test_what_is_sent_again_counts_once(graph: RankingGraph) -> None:
    event = {"item_id": "i4", "labels": {"like": 1}}
    assert tell(graph, "u2", event, request_id="post-1") == (1, 0)
    assert tell(graph, "u2", event, request_id="post-1") == (0, 1), "the same POST again"
    assert tell(graph, "u2", event, request_id="post-2") == (1, 0)
    assert tell(graph, "u2", event | {"event_id": "e"}) == (1, 0)
    assert tell(graph, "u2", event | {"event_id": "e"}, event | {"event_id": "f"}) == (1, 1)
    assert tell(graph, "u2", event | {"time": NOW - 5}) == (1, 0)
    assert tell(graph, "u2", event | {"time": NOW - 5}, event | {"time": NOW - 5}) == (0, 2)


def test_two_posts_under_one_trace_id_are_both_kept(graph: RankingGraph) -> None:
    likes = {"item_id": "i4", "labels": {"like": 1}}
    assert tell(graph, "u2", likes, request_id="trace") == (1, 0)
    assert tell(graph, "u2", likes | {"item_id": "i5"}, request_id="trace") == (1, 0), "another item"
    assert tell(graph, "u2", likes | {"labels": {"like": 0}}, request_id="trace") == (1, 0), "another label"
    assert tell(graph, "u2", likes, request_id="trace") == (0, 1), "the first one again"
    assert seen(graph, "u2").item.tolist()[-3:] == [4, 5, 4]


def test_labels_are_those_of_the_release(graph: RankingGraph) -> None:
    with pytest.raises(RequestError) as caught:
        tell(graph, "u2", {"item_id": "i1"}, {"item_id": "i1", "labels": {"like": 0.5, "bought": 1, "rating": 9}})
    assert [f.field for f in caught.value.fields] == [f"events.1.labels.{t}" for t in ("like", "bought", "rating")]
    assert len(seen(graph, "u2")) == 4, "all or none"


def test_items_become_known_later(graph: RankingGraph) -> None:
    from rayrank.messages import ItemsRequest

    tell(graph, "new", {"item_id": "fresh", "labels": {"like": 1}, "time": NOW - 9})
    assert seen(graph, "new").item.tolist() == [0]
    graph.add_items(ItemsRequest.model_validate({"items": [{"item_id": "fresh", "text": "red dog story"}]}))
    assert seen(graph, "new").item.tolist() == [31]
    assert graph.respond(RecommendRequest(user_id="new", k=1), NOW).degraded is None


class Down:
    """A store that fails as it is told to, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def events(self, *_: object) -> UserEvents | None:
        self.asked += 1
        raise StateError("database is locked")

    append = load = marks = log = user_ids = size = close = events


def test_without_the_store_the_ranking_goes_on_and_says_so(world: TinyWorld, store: UserStore) -> None:
    down = Down()
    records = Records(down)  # type: ignore[arg-type]
    graph = RankingGraph.open(load_release(world.releases), FlowSettings(pool=20), store, None, records)
    for _ in range(20):
        found = graph.respond(RecommendRequest(user_id="u3", k=2), NOW)
        assert found.degraded is not None
        assert "without the latest events" in found.degraded
        assert (found.answered_by, len(found.items)) == ("teacher", 2)
    assert down.asked == 3, "then it is left alone"
    assert graph.respond(RecommendRequest(history=["i1"], k=2), NOW).degraded is None, "nobody had to ask it"
    assert len(seen(graph, "u3")) == 5, "what the data knows is still known"
    assert graph.respond(RecommendRequest(user_id="stranger", k=2), NOW).answered_by == "teacher"


def test_feedback_that_cannot_be_kept_is_an_error(graph: RankingGraph, tmp_path: Path, world: TinyWorld) -> None:
    tell(graph, "u2", {"item_id": "i1"})
    (tmp_path / "s.sqlite").unlink()
    with pytest.raises(StageError, match=r"feedback: its file was removed.*it may have been kept; sent again"):
        tell(graph, "u2", {"item_id": "i1"})
    with pytest.raises(StageError, match="keeps no user state"):
        tell(RankingGraph.open(load_release(world.releases)), "u2", {"item_id": "i1"})


def test_a_store_that_is_said_to_be_loaded_is(tmp_path: Path) -> None:
    from rayrank.on_ray.graph_spec import GraphSpec, check_loaded

    place = StateSpec(path=str(tmp_path / "state.sqlite"))
    spec = GraphSpec(releases="r", state=place.model_copy(update={"loaded": True}))
    with pytest.raises(ConfigError, match="state"):
        check_loaded(spec, 1)  # there is no such file, and none is made
    check_loaded(spec, 2)  # it may be where the replica is
    assert not list(tmp_path.iterdir())
    store = open_state(place, "r")
    with pytest.raises(ConfigError, match=r"state\.loaded: got true; load_state has put nothing into this store"):
        check_loaded(spec, 1)
    store.load({}, 7, "a part")
    check_loaded(spec, 1)
    check_loaded(GraphSpec(releases="r", state=place), 1)
    check_loaded(GraphSpec(releases="r", state=StateSpec(url="redis://127.0.0.1:1", loaded=True, timeout_s=0.1)), 1)


def test_one_file_is_not_shared_by_machines() -> None:
    from rayrank.on_ray.graph_spec import GraphSpec, Replicas, check_machines

    many, url = Replicas(user=2), StateSpec(url="redis://h")
    check_machines(GraphSpec(releases="r", replicas=many), 1)
    check_machines(GraphSpec(releases="r"), 2)
    check_machines(GraphSpec(releases="r", replicas=many, state=url), 2)
    check_machines(GraphSpec(releases="r", replicas=many, state=None), 2)
    check_machines(GraphSpec(releases="r", replicas=many, fused=True), 2)
    with pytest.raises(ConfigError, match=r"2 replicas on 2 machines cannot share one file.*state.url"):
        check_machines(GraphSpec(releases="r", replicas=many), 2)
    with pytest.raises(ConfigError, match=r"replicas.ingress"):
        check_machines(GraphSpec(releases="r", replicas=Replicas(ingress=3), fused=True), 2)


def history(*events: tuple[int, int, float, int]) -> History:
    """(item, time, like, request) rows."""
    item, time, like, request = (np.array(column) for column in zip(*events, strict=True))
    return History(
        item.astype(np.int32), request.astype(np.int32), time.astype(np.int64), {"like": like.astype(np.float32)}
    )


def rows(found: History) -> list[tuple[int, int, float, int]]:
    return list(zip(*(v.tolist() for v in (found.item, found.time, found.labels["like"], found.request)), strict=True))


def test_later_events_follow_what_the_data_knows() -> None:
    base, more = history((1, 10, 1, 3), (2, 11, 0, 3)), history((3, 12, 1, 0), (4, 13, 0, 1))
    assert rows(joined(base, more)) == [(1, 10, 1, 3), (2, 11, 0, 3), (3, 12, 1, 4), (4, 13, 0, 5)]
    assert rows(joined(empty_history(("like",)), more)) == rows(more)
    assert rows(joined(base, empty_history(("like",)))) == rows(base)


def test_earlier_events_take_their_place_and_none_counts_twice() -> None:
    base = history((1, 10, 1, 0), (2, 20, 0, 1), (5, 21, 1, 1), (3, 30, 1, 2))
    more = history((2, 20, 0, 0), (4, 20, 1, 0), (2, 25, 1, 1), (3, 30, 0, 2), (6, 40, 1, 3))
    assert rows(joined(base, more)) == [
        (1, 10, 1, 0),
        (2, 20, 0, 1),
        (4, 20, 1, 1),  # of the same second: the same request
        (5, 21, 1, 1),
        (2, 25, 1, 2),
        (3, 30, 1, 3),
        (3, 30, 0, 3),  # another label of it is no repetition
        (6, 40, 1, 4),
    ]
