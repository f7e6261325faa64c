"""Releases: saved, aliased, found again; mistakes are explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayrank.config import ConfigError
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.release import Release, champion, load_release, save_release, set_alias
from rayrank.ranking.respond import release_info


def a_release(name: str, **changes: object) -> Release:
    return Release.model_validate({"release_id": name, "student": "../s", "fusion": {"like": 1.0}, **changes})


def test_the_champion_is_followed_and_paths_become_absolute(tmp_path: Path) -> None:
    save_release(tmp_path, a_release("r1", teacher="s3://bucket/t"))
    save_release(tmp_path, a_release("r2"))
    assert champion(tmp_path) is None
    set_alias(tmp_path, "r1")
    found = load_release(tmp_path)
    assert (found.release_id, found.student, found.teacher) == ("r1", str(tmp_path / "s"), "s3://bucket/t")
    set_alias(tmp_path, "r2")
    assert champion(tmp_path) == load_release(tmp_path / "r2") == load_release(tmp_path / "r2" / "release.json")


def test_an_alias_names_saved_releases_only(tmp_path: Path) -> None:
    save_release(tmp_path, a_release("r1"))
    with pytest.raises(ConfigError, match=r"'?r9'?.*one of: r1"):
        set_alias(tmp_path, "r9")
    (tmp_path / "champion.json").write_text(json.dumps({"release_id": "gone"}))
    with pytest.raises(ConfigError, match="must name a saved release"):
        load_release(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"release_id": "x"}', '{"release_id": "../x", "student": "s"}'])
def test_a_broken_file_is_explained(tmp_path: Path, content: str) -> None:
    (tmp_path / "release.json").write_text(content)
    with pytest.raises(ConfigError, match=r"release\.json"):
        load_release(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run the promote job first"):
        load_release(tmp_path)


def test_urls_are_refused_instead_of_becoming_folders() -> None:
    for call in (load_release, champion, lambda path: save_release(path, a_release("r"))):
        with pytest.raises(ConfigError, match="local or mounted disk"):
            call("s3://bucket/releases")


def test_what_is_served_tells_the_columns_that_requests_may_give(graph: RankingGraph) -> None:
    assert release_info(graph.named, graph.release).columns == {
        "context": {"device": "categorical"},
        "user": {"age": "categorical"},
        "item": {"title": "text", "genres": "categorical", "plot": "text", "year": "numeric"},
    }
