"""The served log: never in the way of an answer; what it cannot keep is counted."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError
from rayrank.messages import RankedItem, RankResponse
from rayrank.ranking.served_log import ServedLog, ServedLogSpec, Shown


def shown(
    request_id: str = "r",
    user_id: str | None = "u",
    propensity: float = 1.0,
    device: str = "tv",
    size: int = 2,
    **more: Any,
) -> Shown:
    items = [RankedItem(item_id=f"i{n}", score=1 / 3, scored_by="student", propensity=propensity) for n in range(size)]
    response = RankResponse(
        items=items, request_id=request_id, release_id="x", bundles={}, answered_by="student", timings_ms={}
    )
    return Shown(user_id, {"device": device}, response, 100, **more)


def log_of(tmp_path: Path, **changes: Any) -> ServedLog:
    return ServedLog(ServedLogSpec(path=str(tmp_path / "log"), **{"flush_s": 60.0, **changes}))


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(li) for file in (tmp_path / "log").glob("*.jsonl") for li in file.read_text().splitlines()]


def test_a_line_says_what_was_shown(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.note(shown(history_until=90))
    log.note(shown("s", None, propensity=0.25))
    log.close()
    first, second = lines(tmp_path)
    assert first == {
        "request_id": "r", "user_id": "u", "time": 100, "items": ["i0", "i1"], "scores": [0.333333, 0.333333],
        "propensity": [1.0, 1.0], "context": {"device": "tv"}, "release_id": "x", "policy": None,
        "answered_by": "student",
        "history_until": 90,
    }  # fmt: skip
    assert (second["user_id"], second["propensity"], second["history_until"]) == (None, [0.25, 0.25], None)
    assert (log.written, log.dropped) == (2, 0)


@pytest.mark.parametrize("propensity", [6.7e-7, 3e-7, 1 / 3, 1 - 1e-7])
def test_a_small_propensity_is_neither_none_nor_another(tmp_path: Path, propensity: float) -> None:
    log = log_of(tmp_path)
    log.note(shown(propensity=propensity))
    log.close()
    (line,) = lines(tmp_path)
    assert line["propensity"] == pytest.approx([propensity] * 2, rel=1e-5)


def test_lines_are_written_after_the_interval(tmp_path: Path) -> None:
    log = log_of(tmp_path, flush_s=0.05)
    log.note(shown())
    end = time.monotonic() + 20
    while not lines(tmp_path) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(lines(tmp_path)) == 1
    log.close()


def test_what_finds_no_room_is_counted_here_and_in_the_log(tmp_path: Path) -> None:
    log = log_of(tmp_path, waiting=2)
    for n in range(5):
        log.note(shown(f"r{n}"))
    log.close()
    assert (log.written, log.dropped) == (2, 3)
    assert lines(tmp_path)[2] == {"dropped": 3}


def test_large_answers_are_dropped_before_they_are_many(tmp_path: Path) -> None:
    log = log_of(tmp_path, waiting_items=1000)
    for n in range(9):
        log.note(shown(f"r{n}", size=400))
    log.flush()
    assert (log.written, log.dropped) == (3, 6), "1,000 items are passed with the third"
    log.note(shown("large", size=5000))
    log.note(shown("late"))
    log.close()
    assert (log.written, log.dropped) == (4, 7)
    assert [line for line in lines(tmp_path) if "dropped" in line] == [{"dropped": 6}, {"dropped": 1}]


def test_what_a_hanging_disk_holds_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, hangs, goes_on = log_of(tmp_path, waiting_items=100), threading.Event(), threading.Event()
    fsync = os.fsync

    def hanging(file: int) -> None:
        hangs.set()
        assert goes_on.wait(20)
        fsync(file)

    monkeypatch.setattr(os, "fsync", hanging)
    log.note(shown("first", size=100))
    writing = threading.Thread(target=log.flush)
    writing.start()
    assert hangs.wait(20)
    log.note(shown("meanwhile"))
    goes_on.set()
    writing.join(20)
    log.note(shown("after"))
    log.close()
    assert (log.written, log.dropped) == (2, 1)
    assert [line["request_id"] for line in lines(tmp_path) if "dropped" not in line] == ["first", "after"]


def test_a_folder_that_goes_away_costs_lines_but_no_answers(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    shutil.rmtree(tmp_path / "log")
    log.note(shown("lost"))
    log.flush()
    assert (log.written, log.dropped) == (0, 1)
    (tmp_path / "log").mkdir()
    log.note(shown("kept"))
    log.close()
    assert [line.get("request_id") or line for line in lines(tmp_path)] == ["kept", {"dropped": 1}]


def test_large_files_are_followed_by_new_ones_and_users_are_sampled_whole(tmp_path: Path) -> None:
    log = log_of(tmp_path, file_mb=1, sample=0.5)
    for n in range(4000):
        log.note(shown(f"r{n}", f"u{n % 40}", device="x" * 900))
        if n % 1000 == 999:
            log.flush()
    log.close()
    users = [line["user_id"] for line in lines(tmp_path)]
    assert 5 < len(set(users)) < 35
    assert len(users) == 100 * len(set(users))
    sizes = sorted(file.stat().st_size for file in (tmp_path / "log").glob("*.jsonl"))
    assert len(sizes) >= 2
    assert all(2**20 < size < 2 * 2**20 for size in sizes[1:]), "each but the last has grown beyond file_mb, once"


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(ConfigError, match="must be writable"):
        log_of(tmp_path)
