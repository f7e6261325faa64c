"""What is said to be on disk is: flushed before it gets its name, and its name flushed too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rayrank.ranking import durable
from rayrank.ranking.release import load_release, set_alias
from rayrank.ranking.served_log import ServedLog, ServedLogSpec
from rayrank.ranking.store import build_store
from rayrank.sources.dataset import Dataset
from tests.tiny_release import TinyWorld, make_world
from tests.unit.ranking.test_served_log import shown


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed and renamed, in order."""
    found: list[tuple[str, str]] = []
    flush, rename = os.fsync, os.replace

    def flushed(opened: int) -> None:
        found.append(("flush", Path(os.readlink(f"/proc/self/fd/{opened}")).name))
        flush(opened)

    def renamed(old: Path, new: Path) -> None:
        found.append(("rename", Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("tiny"))


def put(_: TinyWorld, folder: Path) -> str:
    (folder / ".t").write_text("x")
    durable.put(folder / ".t", folder / "file")
    return "file"


def alias(tiny: TinyWorld, _: Path) -> str:
    release = load_release(tiny.releases)
    place = set_alias(tiny.releases, release.release_id, "other")
    return place.name


def histories(tiny: TinyWorld, folder: Path) -> str:
    build_store(folder / "h.sqlite", Dataset.open(str(tiny.dataset)))
    return "h.sqlite"


@pytest.mark.parametrize("write", [put, alias, histories])
def test_a_file_is_flushed_before_it_gets_its_name_and_its_folder_after(
    tiny: TinyWorld, tmp_path: Path, steps: list[tuple[str, str]], write: Callable[[TinyWorld, Path], str]
) -> None:
    name = write(tiny, tmp_path)
    (before, renamed, after) = steps[-3:]
    assert before[0] == "flush"
    assert before[1].startswith(".")
    assert renamed == ("rename", name)
    assert after == ("flush", "releases" if write is alias else tmp_path.name)


def test_a_new_file_of_the_served_log_is_found_after_a_crash(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    log = ServedLog(ServedLogSpec(path=str(tmp_path / "log"), flush_s=60))
    for _ in range(2):
        log.note(shown())
        log.flush()
    (file,) = (p.name for p in (tmp_path / "log").glob("*.jsonl"))
    assert steps == [("flush", file), ("flush", "log"), ("flush", file)]
    log.close()
