"""Requests to arrays: rows, features, times, labels."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank.messages import HistoryEvent, RankRequest, RecommendRequest
from rayrank.ranking.context import Prepared
from rayrank.ranking.encode import MOST_PROBLEMS
from rayrank.ranking.graph import RankingGraph, RequestError
from rayrank.ranking.items import DESCRIBED
from rayrank.ranking.user import Rejected
from tests.tiny_release import START

NOW, DAY = 2_000_000_000, 86_400


def prepared(graph: RankingGraph, request: RankRequest | RecommendRequest) -> Prepared:
    found = graph.user.prepare(request, NOW)
    assert isinstance(found, Prepared)
    return found


def ranking(**changes: object) -> RankRequest:
    return RankRequest.model_validate({"candidates": ["i1"], **changes})


def test_events_are_put_in_time_order_and_equal_times_share_a_request(graph: RankingGraph) -> None:
    events = [("i5", 300), ("i2", 100), ("i3", 300), ("i4", 100)]
    history = [{"item_id": item, "time": time, "labels": {"like": 1}} for item, time in events]
    found = prepared(graph, ranking(history=history)).context.history
    assert found.item.tolist() == [2, 4, 5, 3]
    assert found.request.tolist() == [1, 1, 2, 2]
    assert found.labels["like"].tolist() == [1, 1, 1, 1]
    assert np.isnan(found.labels["rating"]).all()


def test_missing_times_come_from_the_neighbours_and_stay_requests_of_their_own(graph: RankingGraph) -> None:
    history = ["i1", {"item_id": "i2", "time": 100}, "i3", {"item_id": "i4", "time": 200}]
    found = prepared(graph, ranking(history=history)).context.history
    assert found.time.tolist() == [100, 100, 100, 200]
    assert found.request.tolist() == [1, 2, 3, 4]
    assert prepared(graph, ranking(history=["i1", "i2"])).context.history.time.tolist() == [NOW, NOW]


def test_described_items_are_appended_once_and_known_ids_win(graph: RankingGraph) -> None:
    item = {"item_id": "new", "attributes": {"genres": "War|Drama|Comedy", "year": 2010, "title": "A film"}}
    found = prepared(graph, ranking(candidates=["i7", item, "lost", {"item_id": "i2", "text": "x"}], history=[item]))
    assert found.candidates is not None
    assert found.candidates.tolist() == [7, DESCRIBED, 0, 2]
    assert found.context.history.item.tolist() == [DESCRIBED]
    assert found.cold.texts == ("A film. War, Drama, Comedy.",)
    assert found.cold.features["genres"].tolist() == [[3, 1]]  # max_values 2
    assert found.cold.features["year"].tolist() == [2.0]
    assert found.warnings == ("1 candidate neither in the catalogue nor described, ranked last: candidates.2",)


def test_candidates_that_nobody_knows_are_named_by_their_places(graph: RankingGraph) -> None:
    found = prepared(graph, ranking(candidates=["I2", "i7", *(f"secret{n}" for n in range(6))]))
    assert found.warnings[0] == (
        "7 candidates neither in the catalogue nor described, ranked last: candidates.0 (did you mean 'i2'?),"
        " candidates.2, candidates.3, candidates.4, candidates.5, …"
    )


def test_a_list_says_what_the_separated_text_says(graph: RankingGraph) -> None:
    listed, joined = ({"text": "x", "attributes": {"genres": g}} for g in (["War", "Drama"], "War|Drama"))
    one, other = (prepared(graph, ranking(candidates=[item])).cold.features["genres"] for item in (listed, joined))
    assert one.tolist() == other.tolist() != [[0, 0]]


def test_known_users_have_their_row_features_and_stored_history(graph: RankingGraph) -> None:
    context = prepared(graph, RecommendRequest(user_id="u3")).context
    assert context.user == 3
    assert context.features["age"] == 1
    assert context.history.item.tolist() == [16, 17, 18, 19, 20]
    assert context.time == NOW


def test_an_asked_time_hides_what_was_not_yet_known(graph: RankingGraph) -> None:
    context = prepared(graph, RecommendRequest(user_id="u3", time=START + DAY)).context
    assert context.history.item.tolist() == [16, 17]


def test_inline_history_and_columns_overrule_what_is_stored(graph: RankingGraph) -> None:
    request = RecommendRequest(user_id="u3", history=[HistoryEvent(item_id="i1")], user={"age": "old"})
    context = prepared(graph, request).context
    assert (context.history.item.tolist(), context.features["age"]) == ([1], 2)


def test_strangers_are_answered_with_a_warning(graph: RankingGraph) -> None:
    found = prepared(graph, RecommendRequest(user_id="nobody", context={"device": "tv", "moon": "full"}))
    assert found.context.user == 0
    assert found.context.features["age"] == 0
    assert found.context.context["device"] == 2
    assert found.warnings == (
        "unknown user: answered from popularity and context",
        "not used by this release: context.moon",
    )
    assert "no history is known" in prepared(graph, RecommendRequest(user_id="u6")).warnings[0]


def test_labels_must_be_those_of_the_tasks(graph: RankingGraph) -> None:
    labels = [{"liked": 1}, {"like": 0.5}, {"rating": 9}, {"like": 1, "rating": 4.5}]
    history = [{"item_id": "i1", "labels": given} for given in labels]
    found = graph.user.prepare(ranking(history=history), NOW)
    assert isinstance(found, Rejected)
    assert {f.field: f.problem for f in found.fields} == {
        "history.0.labels.liked": "unknown task (did you mean 'like'?); one of like, rating",
        "history.1.labels.like": "must be 0 or 1",
        "history.2.labels.rating": "must lie in 1..5",
    }


def test_only_the_first_problems_are_looked_into(graph: RankingGraph) -> None:
    history = [HistoryEvent(item_id="i1", labels={f"task{i}": 1 for i in range(60)}) for _ in range(9)]
    found = graph.user.encoder.label_problems(history)
    assert len(found) == MOST_PROBLEMS
    assert found[0][0] == "history.0.labels.task0"


@pytest.mark.parametrize(
    ("weights", "field"), [({"likes": 1.0}, "weights.likes"), ({"next": 1}, "weights.next"), ({"like": 0}, "weights")]
)
def test_weights_must_be_those_of_the_tasks(graph: RankingGraph, weights: dict[str, float], field: str) -> None:
    with pytest.raises(RequestError) as error:
        graph.respond(RecommendRequest(weights=weights))
    assert [f.field for f in error.value.fields] == [field]
