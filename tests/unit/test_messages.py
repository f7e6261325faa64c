"""Limits of the wire messages: every mistake names its field and repeats nothing that was sent."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from rayrank.features.state import category_text
from rayrank.message_values import MAX_CANDIDATES, MAX_HISTORY
from rayrank.messages import RankRequest, RecommendRequest, TextItem, error_fields

NAN = math.nan
SECRET = "my secret diary"


def problems(cls: type, body: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        cls.model_validate(body)
    return {f.field: f.problem for f in error_fields(caught.value.errors())}


def test_ids_may_be_given_bare() -> None:
    request = RankRequest.model_validate({"candidates": ["a", {"text": "t"}], "history": ["b"]})
    assert request.candidates == ["a", TextItem(text="t")]
    assert request.history is not None
    assert request.history[0].item_id == "b"


@pytest.mark.parametrize(
    ("body", "field", "part"),
    [
        ({"candidates": ["a"], "history": [{"item_id": "b", "labels": {"x": NAN}}]}, "history.0.labels.x", "finite"),
        ({"candidates": []}, "candidates", "at least 1"),
        ({"candidates": ["a"] * (MAX_CANDIDATES + 1)}, "candidates", "at most 2000"),
        ({"candidates": ["a"], "history": ["b"] * (MAX_HISTORY + 1)}, "history", "at most 1000"),
        ({"candidates": [{}]}, "candidates.0", "give item_id, text or attributes"),
        ({"candidates": [7]}, "candidates.0", "must be an item id or an object"),
        ({"candidates": [{"text": "x" * 8001}]}, "candidates.0.text", "at most 8000"),
        ({"candidates": ["a"], "history": [{"item_id": "b", "labels": {"like": SECRET}}]}, "history.0.labels.like", ""),
        ({"candidates": ["a"], "history": [{"item_id": "b", "time": -5}]}, "history.0.time", "greater than or equal"),
        ({"candidates": ["a"], "context": {"device": ["x"]}}, "context.device", "number, a boolean, null or"),
        ({"candidates": ["a"], "kk": 3}, "kk", "Extra"),
        ({"candidates": ["a"], "k": 0}, "k", "greater than or equal"),
        ({"candidates": ["a"], "k": True}, "k", "whole number"),
        ({"candidates": ["a"], "k": "3"}, "k", "whole number"),
        ({"candidates": ["a"], "explain": "yes"}, "explain", "valid boolean"),
        ({"candidates": ["a"], "weights": {"like": True}}, "weights.like", "valid number"),
        ({"candidates": [{"attributes": {"genres": ["a"] * 65}}]}, "candidates.0.attributes.genres", "at most 64"),
        ({"candidates": [{"attributes": {"genres": [["a"]]}}]}, "candidates.0.attributes.genres", "number, a boolean"),
        ({"candidates": ["a"], "time": 1.5}, "time", "fractional"),
        ({}, "candidates", "required"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_field(body: dict[str, Any], field: str, part: str) -> None:
    found = problems(RankRequest, body)
    assert field in found
    assert part in found[field]


def test_booleans_of_a_request_are_those_of_a_file() -> None:
    """As a category ``true`` is the text that the data plane makes of it; as a label it is 1."""
    body = {"candidates": ["a"], "context": {"promoted": True}, "history": [{"item_id": "b", "labels": {"like": True}}]}
    asked = RankRequest.model_validate(body)
    assert category_text(asked.context["promoted"]) == "true"
    assert asked.history is not None
    assert asked.history[0].labels == {"like": 1.0}


def test_a_whole_number_of_a_table_with_gaps_is_one() -> None:
    assert RankRequest.model_validate({"candidates": ["a"], "time": 1.7e9}).time == 1_700_000_000


def test_attributes_may_hold_several_values() -> None:
    item = TextItem.model_validate({"attributes": {"genres": ["Drama", "War"], "size": [1, 2.5]}})
    assert item.attributes == {"genres": ["Drama", "War"], "size": [1, 2.5]}


def test_the_total_of_texts_is_limited() -> None:
    body = {"candidates": [{"text": "x" * 8000}] * 51}
    assert "400000 characters" in next(iter(problems(RankRequest, body).values()))
    body = {"candidates": [{"attributes": {"genres": ["x" * 1000] * 64}}] * 7}
    assert "400000 characters" in next(iter(problems(RankRequest, body).values()))


def test_nothing_that_was_sent_comes_back() -> None:
    bodies: list[dict[str, Any]] = [
        {"k": SECRET},
        {"user_id": {"x": SECRET}},
        {"history": [{"item_id": "b", "labels": {SECRET: "x"}}]},
        {SECRET: 1},
        {"time": SECRET},
    ]
    for body in bodies:
        assert SECRET not in str(problems(RecommendRequest, body))


def test_broken_json_is_a_problem_of_the_body() -> None:
    errors = [{"type": "json_invalid", "loc": ("body", 11), "msg": "JSON decode error", "ctx": {"error": SECRET}}]
    assert [(f.field, f.problem) for f in error_fields(errors)] == [("body", "body must be valid JSON")]


def test_a_query_has_a_few_words() -> None:
    assert RecommendRequest(query="a " * 16).query is not None
    with pytest.raises(ValidationError, match="at most 16 words"):
        RecommendRequest(query="a " * 17)
