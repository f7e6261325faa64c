"""Behaviours and the impressions they belong to, where ids of requests repeat, are unknown or are missing."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rayrank.config import parse
from rayrank.schema import DatasetSchema
from rayrank.sources.join import AttributionJoin, JoinRule, RequestJoin, join_behaviours
from rayrank.sources.source import BEHAVIOUR

HOUR, DAY = 3600, 86_400
START = 1_700_000_000
SCHEMA = {"name": "x", "tasks": [{"kind": "binary", "name": "like", "column": "like"}]}
Row = tuple[str | None, str, str, int]  # request, user, item, seconds after START


def liked(shown: list[Row], done: list[Row], rule: JoinRule) -> tuple[list[int], int]:
    """Label of each impression, and how many behaviours found none."""
    rows = [(*row, True) for row in done] + [(*row, False) for row in shown]
    columns = {
        "request_id": pa.array([r[0] for r in rows], pa.string()),
        "user_id": pa.array([r[1] for r in rows]),
        "item_id": pa.array([r[2] for r in rows]),
        "timestamp": pa.array([START + r[3] for r in rows]),
        BEHAVIOUR: pa.array([r[4] for r in rows]),
        "row": pa.array(range(len(rows))),
        "label_like": pa.array([1.0] * len(rows), pa.float32()),
    }
    found = join_behaviours(pa.table(columns), parse(DatasetSchema, SCHEMA), rule, ("like",))
    return [int(v) for v in found.rows["label_like"].to_pylist()], found.unmatched


@pytest.mark.parametrize("apart", [HOUR, 9 * DAY])
@pytest.mark.parametrize("rule", [AttributionJoin(window_s=DAY), RequestJoin()])
def test_of_answers_with_one_id_the_latest_before_the_behaviour_has_it(apart: int, rule: JoinRule) -> None:
    shown = [("app", "u", "i", 0), ("app", "u", "i", apart), ("app", "u", "i", apart + 60)]
    assert liked(shown, [("app", "u", "i", apart + 10)], rule) == ([0, 1, 0], 0)
    assert liked(shown, [("app", "u", "i", apart)], rule) == ([0, 1, 0], 0)
    assert liked(shown, [("app", "u", "i", 10)], rule) == ([1, 0, 0], 0)


def test_nothing_is_attributed_to_what_was_shown_later_or_too_long_ago() -> None:
    rule = AttributionJoin(window_s=DAY)
    assert liked([("r", "u", "i", 5 * DAY)], [("r", "u", "i", 0)], rule) == ([0], 1)
    assert liked([("r", "u", "i", 0)], [("r", "u", "i", DAY)], rule) == ([1], 0)
    assert liked([("r", "u", "i", 0)], [("r", "u", "i", DAY + 1)], rule) == ([0], 1)


def test_a_request_join_forgives_clocks_that_disagree() -> None:
    shown = [("r", "u", "i", 5), ("r", "u", "i", 9), (None, "u", "j", 0)]
    assert liked(shown, [("r", "u", "i", 3), (None, "u", "j", 3)], RequestJoin()) == ([1, 0, 0], 1)


def test_an_id_that_the_log_lacks_says_no_more_than_none() -> None:
    rule = AttributionJoin(window_s=DAY)
    shown = [("r1", "u", "i", 0), ("r2", "u", "i", 100), ("r3", "v", "i", 150)]
    for lost in ("dropped", "r3", None):  # r3 is another user's answer
        assert liked(shown, [(lost, "u", "i", 200)], rule) == ([0, 1, 0], 0)
        assert liked(shown, [(lost, "u", "i", DAY + 101)], rule) == ([0, 0, 0], 1)
    assert liked(shown, [("r1", "u", "i", 200)], rule) == ([1, 0, 0], 0), "a known id holds against a later answer"
    assert liked(shown, [("r1", "u", "j", 200)], rule) == ([0, 0, 0], 1), "what it did not show"
    assert liked([], [("r1", "u", "i", 0)], rule) == ([], 1)
