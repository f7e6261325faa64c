"""What init makes of columns by their names, and what it says of the split it picks."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import load, parse
from rayrank.pipeline.init import InitConfig, init
from rayrank.schema import DatasetSchema
from rayrank.sources.guess import guess_outcomes, guess_text
from rayrank.sources.profile import profile

ROWS = 200


def _events(**more: list[object]) -> dict[str, list[object]]:
    times = [datetime(2024, 1, 1) + timedelta(minutes=k) for k in range(ROWS)]
    rows: dict[str, list[object]] = {"user_id": [k % 9 for k in range(ROWS)], "item_id": [k % 31 for k in range(ROWS)]}
    return rows | {"ts": [*times], "click": [k % 2 for k in range(ROWS)]} | more


def _init(folder: Path, events: dict[str, list[object]]) -> tuple[str, str]:
    """The dataset YAML, and what the job prints."""
    pq.write_table(pa.table(events), folder / "events.parquet")
    raw = {"interactions": str(folder / "events.parquet"), "out": str(folder / "made")}
    result = init(parse(InitConfig, raw), lambda _: None)
    return Path(result.dataset).read_text(), "\n".join(result.summary())


@pytest.mark.parametrize("name", ["title", "headline", "name", "news_title", "articleHeadline"])
@pytest.mark.parametrize("more", ["summary", "description", "abstract", "long_description"])
def test_titles_and_descriptions_by_name_are_text_even_when_they_repeat(name: str, more: str) -> None:
    items = {"key": range(100), "topic": ["a", "b"] * 50, name: ["One of a few", "Two", "Three", "Four"] * 25}
    items[more] = [f"This is said {k % 5} times" if k % 4 == 0 else None for k in range(100)]  # type: ignore[assignment]
    title, text, columns = guess_text(profile(pa.table({n: list(v) for n, v in items.items()})), ["key"])
    assert (title, text, columns) == (name, f"{{{name}}}. {{{more}}}", [name, more])


def test_names_of_others_are_no_title() -> None:
    items = pa.table({"author_name": ["Ann", "Bob"] * 5, "brand": ["x", "y"] * 5})
    assert guess_text(profile(items), []) == (None, None, [])


def test_a_timestamp_column_is_not_called_text(tmp_path: Path) -> None:
    text, _ = _init(tmp_path, _events())
    assert "timestamp: ts  # its values are timestamps" in text


def test_outcomes_are_offered_as_regression_tasks(tmp_path: Path) -> None:
    more = {"dwell_ms": [float(k % 50) for k in range(ROWS)], "basket": [k * 13 % 170 for k in range(ROWS)]}
    text, _ = _init(tmp_path, _events(**more))  # type: ignore[arg-type]
    line = "  # - {kind: regression, name: dwell_ms, column: dwell_ms, low: 0.0, high: 49.0}"
    assert line in text
    assert "column: dwell_ms}" not in text  # not offered as context, which would give the answer away
    assert "# - {kind: numeric, name: basket, column: basket}" in text
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace(line, line.replace("# ", "")))
    assert "dwell_ms" in [task.name for task in load(DatasetSchema, changed).event_tasks]


@pytest.mark.parametrize("name", ["dwell", "watch_time", "watchTime", "duration_watched", "user_rating", "play_time_s"])
def test_names_of_outcomes(name: str) -> None:
    columns = profile(pa.table({name: [2.5, 7.0, 4.0], "price": [1.5, 2.5, 3.5], "video_duration": [10, 20, 30]}))
    assert [(task.column, task.low, task.high) for task in guess_outcomes(columns, [])] == [(name, 0.0, 7.0)]


def test_a_time_split_that_leaves_test_users_without_training_rows_is_told(tmp_path: Path) -> None:
    visitors: list[object] = [k // 4 for k in range(ROWS)]  # each comes once, for four rows
    text, said = _init(tmp_path, _events(user_id=visitors))
    warning = (
        "100% of the test users of a split by time have no training rows (in the sample): write split: {kind: user}"
    )
    assert warning in said
    assert f"# WARNING: {warning}" in text


def test_users_who_come_back_need_no_warning(tmp_path: Path) -> None:
    assert "no training rows" not in "".join(_init(tmp_path, _events()))
