"""init where tables name a key differently: given, guessed by the values, or refused with a fix that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrank.config import ConfigError, load, parse
from rayrank.pipeline.init import InitConfig, init
from rayrank.pipeline.prepare import PrepareConfig
from rayrank.pipeline.validate import ValidateConfig, validate


def _files(folder: Path, items: str = "article,video_id,headline", users: str = "reader,city") -> dict[str, object]:
    rows = [f"{k % 9},n{k * k % 31},{1_700_000_000 + k},{k % 2}" for k in range(200)]
    (folder / "clicks.csv").write_text("user_id,news_id,ts,click\n" + "\n".join(rows) + "\n")
    (folder / "items.csv").write_text(
        items + "\n" + "".join(f"n{i},v{i % 3},A headline about {i}\n" for i in range(31))
    )
    (folder / "users.csv").write_text(users + "\n" + "".join(f"{u}.0,city {u % 2}\n" for u in range(9)))
    names = {"interactions": "clicks", "items": "items", "users": "users"}
    return {kind: str(folder / f"{name}.csv") for kind, name in names.items()} | {"out": str(folder / "made")}


def _init(raw: dict[str, object]) -> str:
    return init(parse(InitConfig, raw), lambda _: None).prepare


def test_keys_of_other_names_are_found_by_their_values(tmp_path: Path) -> None:
    made = _init(_files(tmp_path))
    source = load(PrepareConfig, made).source
    assert (source.items_key, source.users_key) == ("article", "reader")  # type: ignore[union-attr]
    assert "items_key: article  # has 100% of the news_id of the interactions" in Path(made).read_text()
    assert "items_key: article" in (tmp_path / "made" / "export_served.yaml").read_text()
    findings = validate(load(ValidateConfig, made), lambda _: None).findings
    assert [f for f in findings if f.severity == "error"] == []


def test_keys_of_items_and_users_can_be_given(tmp_path: Path) -> None:
    raw = _files(tmp_path, items="news_id,video_id,headline", users="Reader,city")
    made = _init(raw | {"keys": {"items_item": "headline", "users_user": "reader"}})
    source = load(PrepareConfig, made).source
    assert (source.items_key, source.users_key) == ("headline", "Reader")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keys", "rule", "fix"),
    [
        ({"item": "article"}, "interactions .*clicks.csv, which has: user_id, news_id, ts, click", "keys.items_item"),
        ({"user": "reader"}, "interactions .*clicks.csv, which has: user_id, news_id, ts, click", "keys.users_user"),
        ({"items_item": "news_id"}, "items .*items.csv, which has: article, video_id, headline", "name one of these"),
        ({"users_user": "user_id"}, "users .*users.csv, which has: reader, city", "name one of these"),
        ({"timestamp": "when"}, "interactions .*clicks.csv, which has: user_id, news_id, ts, click", "name one of"),
    ],
)
def test_a_given_key_that_its_table_lacks_is_refused(tmp_path: Path, keys: dict[str, str], rule: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        _init(_files(tmp_path) | {"keys": keys})
    assert caught.value.path == f"keys.{next(iter(keys))}"
    assert fix in caught.value.fix


def test_a_key_of_a_table_that_was_not_given(tmp_path: Path) -> None:
    raw = _files(tmp_path) | {"items": None, "keys": {"items_item": "article"}}
    with pytest.raises(ConfigError, match="there is no items table") as caught:
        _init(raw)
    assert "items=FILE" in caught.value.fix


def test_a_table_without_the_keys_values_is_refused_with_the_way_out(tmp_path: Path) -> None:
    raw = _files(tmp_path)
    (tmp_path / "items.csv").write_text("video_id,headline\nv1,One headline\nv2,Another headline\n")
    with pytest.raises(ConfigError, match="no column has the values of news_id") as caught:
        _init(raw)
    assert "keys.items_item=<column>" in caught.value.fix
    assert "source.items_key" in caught.value.fix
