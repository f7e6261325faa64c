"""The state stores: one battery for the sqlite file and for a real Redis server, then what each does alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayrank.config import ConfigError, parse
from rayrank.ranking.state import (
    StateError,
    StateLateError,
    StateSpec,
    StateStore,
    UserEvents,
    open_state,
    pack,
    unpack,
)
from rayrank.ranking.state_sqlite import SqliteState, _Connection
from tests.redis_server import DURABLE, need_redis, running

NOW, DAY = 1_700_000_000, 86_400
Make = Callable[..., StateStore]


def told(*events: tuple[str, int, float], key: str | None = None) -> UserEvents:
    """Events (item, seconds before NOW, like)."""
    items, ages, likes = zip(*events, strict=True)
    return UserEvents(items, [NOW - age for age in ages], {"like": likes}, [key] * len(items))


def lines(events: UserEvents) -> list[str]:
    return [f"line of {item}" for item in events.item]


def tell(store: StateStore, user: str, events: UserEvents) -> int:
    return store.append(user, events, lines(events), NOW)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need_redis()
    with running(tmp_path_factory.mktemp("redis"), *DURABLE) as (url, _):
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Opens stores on one and the same place."""
    opened: list[StateStore] = []
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None

    def one(**changes: object) -> StateStore:
        place = {"path": str(tmp_path / "s.sqlite")} if url is None else {"url": url, "prefix": tmp_path.name}
        opened.append(open_state(parse(StateSpec, {**place, "timeout_s": 2.0, **changes}), str(tmp_path)))
        return opened[-1]

    yield one
    for store in opened:
        store.close()


def test_what_is_appended_is_there_for_everyone(make: Make) -> None:
    store = make()
    assert store.events("a", NOW) is None
    assert tell(store, "a", told(("x", 30, 1), ("y", 20, 0))) == 2
    assert tell(store, "a", told(("z", 25, 1))) == 1
    for reader in (store, make()):
        found = reader.events("a", NOW)
        assert found is not None
        assert (list(found.item), list(found.time)) == (["x", "z", "y"], [NOW - 30, NOW - 25, NOW - 20])
        assert list(found.labels["like"]) == [1, 1, 0]
        assert reader.events("b", NOW) is None
        assert reader.user_ids(5) == ["a"]
        assert list(reader.log()) == ["line of x", "line of y", "line of z"]


def test_what_is_told_again_counts_once(make: Make) -> None:
    store = make()
    assert tell(store, "a", told(("x", 30, 1))) == 1
    assert tell(store, "a", told(("x", 30, 1), ("x", 30, 0), ("x", 29, 1))) == 2  # another label, another time
    assert tell(store, "a", told(("y", 9, 1), key="k")) == 1
    assert tell(store, "a", told(("y", 3, 1), key="k")) == 0
    assert tell(store, "b", told(("y", 3, 1), key="k")) == 1  # of another user
    found = store.events("a", NOW)
    assert found is not None
    assert list(found.item) == ["x", "x", "x", "y"]
    assert len(list(store.log())) == 5


def test_what_left_the_history_still_counts_once(make: Make) -> None:
    store = make(max_events=3, expire_days=2)
    events = told(*((f"i{n}", 600 - n, 1) for n in range(600)))
    assert [tell(store, "a", events) for _ in range(2)] == [600, 0]
    assert [tell(make(max_events=3, expire_days=2), "a", told(("old", 3 * DAY, 1), key="k"))] == [0]
    store.load({"a": told(("i5", 595, 1), ("loaded", 700, 1))}, NOW)
    assert tell(store, "a", told(("loaded", 700, 1))) == 0
    found = store.events("a", NOW)
    assert found is not None
    assert list(found.item) == ["i597", "i598", "i599"]
    assert len(list(store.log())) == 600


def test_labels_that_came_later_are_missing_before(make: Make) -> None:
    store = make()
    tell(store, "a", told(("x", 30, 1)))
    tell(store, "a", UserEvents(["x"], [NOW - 5], {"stars": [3.5]}, [None]))
    found = store.events("a", NOW)
    assert found is not None
    assert found.labels == {"like": [1, None], "stars": [None, 3.5]}


def test_the_oldest_go_first_and_expired_ones_are_not_shown(make: Make) -> None:
    store = make(max_events=3, expire_days=2)
    tell(store, "a", told(*((f"i{n}", 100 - n, 1) for n in range(5))))
    tell(store, "b", told(("old", 3 * DAY, 1), ("new", DAY, 1)))
    tell(store, "c", told(("old", 3 * DAY, 1)))
    found = {user: store.events(user, NOW) for user in "abc"}
    assert {user: list(e.item) if e else None for user, e in found.items()} == {
        "a": ["i2", "i3", "i4"],
        "b": ["new"],
        "c": None,
    }
    assert store.events("b", NOW + 2 * DAY) is None, "time passes without anybody writing"


def test_histories_are_loaded_below_what_was_told(make: Make) -> None:
    store = make()
    tell(store, "a", told(("x", 10, 1)))
    histories = {"a": told(("w", 50, 1), ("x", 10, 1)), "b": told(("v", 70, 0))}
    for _ in range(2):
        store.load(histories, NOW, "part-0")
    store.load({}, NOW)
    assert store.marks() == {"part-0"}
    found = store.events("a", NOW)
    assert found is not None
    assert list(found.item) == ["w", "x"]
    assert list(store.log()) == ["line of x"], "what was loaded is no feedback"
    users, packed, whole = store.size()
    assert users == 2
    assert 0 < packed < whole


def test_writers_at_once_lose_nothing(make: Make) -> None:
    stores = [make(timeout_s=20.0), make(timeout_s=20.0)]

    def write(number: int) -> None:
        for n in range(25):
            tell(stores[number % 2], "a", told((f"i{number}-{n}", n, 1)))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = stores[0].events("a", NOW)
    assert found is not None
    assert len(set(found.item)) == 100
    assert len(list(stores[0].log())) == 100


def test_bytes_that_are_none_of_ours_are_an_error_not_a_history() -> None:
    events = told(("x", 1, 1), ("y", 0, 0.5))
    assert unpack(pack(events, StateSpec())) == UserEvents(["x", "y"], [NOW - 1, NOW], {"like": [1, 0.5]}, [None, None])
    for blob in (b"", b"none", pack(events, StateSpec())[:-3]):
        with pytest.raises(StateError, match="damaged"):
            unpack(blob)


def sqlite_state(path: Path, **changes: object) -> StateStore:
    return open_state(parse(StateSpec, {"path": str(path), "timeout_s": 0.2, **changes}), "")


def test_a_killed_writer_has_lost_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    code = """
import sys
from rayrank.ranking.state import StateSpec, UserEvents, open_state
store = open_state(StateSpec(path=sys.argv[1]), "")
for n in range(100_000):
    store.append("a", UserEvents([f"i{n}"], [n], {}, [None]), ["line"], n)
    print(n, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "s.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 40:
                writer.kill()
                break
        acknowledged = max([40, *(int(n) for n in writer.stdout.read().split())])
    found = sqlite_state(tmp_path / "s.sqlite").events("a", NOW)
    assert found is not None
    assert list(found.item)[: acknowledged + 1] == [f"i{n}" for n in range(acknowledged + 1)]


def test_a_locked_file_is_given_up_on_in_time_and_still_read(tmp_path: Path) -> None:
    store = sqlite_state(tmp_path / "s.sqlite")
    tell(store, "a", told(("x", 1, 1)))
    with sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StateLateError, match="locked"):
            tell(store, "a", told(("y", 0, 1)))
        assert time.monotonic() - began < 5
        assert store.events("a", NOW) is not None
        other.execute("ROLLBACK")
    assert tell(store, "a", told(("y", 0, 1))) == 1


def test_a_busy_file_is_late_whatever_makes_it_busy(tmp_path: Path) -> None:
    store = sqlite_state(tmp_path / "s.sqlite")
    assert isinstance(store, SqliteState)
    tell(store, "a", told(("x", 1, 1)))

    def outrun() -> None:
        with _Connection(store, 0.5).use() as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT * FROM users").fetchall()
            tell(store, "a", told(("y", 0, 1)))
            connection.execute("DELETE FROM users")  # of what is no longer the last: SQLITE_BUSY_SNAPSHOT, 517

    with pytest.raises(StateLateError, match="locked"):
        outrun()


def test_a_damaged_file_raises_until_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_bytes(b"no database" * 1000)
    store = sqlite_state(tmp_path / "s.sqlite")
    for ask in (lambda: store.events("a", NOW), lambda: tell(store, "a", told(("x", 1, 1)))):
        with pytest.raises(StateError, match="not a database"):
            ask()
    (tmp_path / "s.sqlite").unlink()
    assert tell(store, "a", told(("x", 1, 1))) == 1


def test_a_file_that_is_taken_away_is_no_place_to_write_to(tmp_path: Path) -> None:
    store = sqlite_state(tmp_path / "s.sqlite")
    tell(store, "a", told(("x", 1, 1)))
    (tmp_path / "s.sqlite").unlink()
    for _ in range(2):
        with pytest.raises(StateError, match="removed or replaced"):
            tell(store, "a", told(("y", 1, 1)))


def test_expired_users_and_lines_leave_the_file(tmp_path: Path) -> None:
    store = sqlite_state(tmp_path / "s.sqlite", expire_days=1)
    store.append("a", told(("x", 60, 1)), ["old"], NOW)
    store.append("b", UserEvents(["y"], [NOW + 2 * DAY], {}, [None]), ["new"], NOW + 2 * DAY)
    assert store.user_ids(9) == ["b"]
    assert list(store.log()) == ["new"]


def test_many_that_expired_leave_it_a_part_at_a_time(tmp_path: Path) -> None:
    store, later = sqlite_state(tmp_path / "s.sqlite", expire_days=1), NOW + 2 * DAY
    store.load({f"u{n}": told(("x", 60, 1)) for n in range(450)}, NOW)
    left = []
    for n in range(4):
        store.append("b", UserEvents([f"y{n}"], [later], {}, [None]), ["new"], later)
        left.append(len(store.user_ids(1000)) - 1)
    assert left == [250, 50, 0, 0]


def test_where_no_file_can_be_made_and_other_formats(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        sqlite_state(tmp_path / "file" / "s.sqlite")
    with sqlite3.connect(tmp_path / "later.sqlite") as other:
        other.execute("PRAGMA user_version=9")
    with pytest.raises(ConfigError, match="format 9"):
        sqlite_state(tmp_path / "later.sqlite")


def test_what_is_read_only_sees_what_a_running_service_keeps_and_writes_nothing(tmp_path: Path) -> None:
    writer = sqlite_state(tmp_path / "a ?#%.sqlite")
    tell(writer, "a", told(("x", 1, 1)))
    reader = open_state(StateSpec(path=str(tmp_path / "a ?#%.sqlite")), "", read_only=True)
    assert list(reader.log()) == ["line of x"]
    tell(writer, "a", told(("y", 0, 1)))
    assert list(reader.log()) == ["line of x", "line of y"]
    with pytest.raises(StateError, match="readonly"):
        tell(reader, "a", told(("z", 0, 1)))
    writer.close()
    reader.close()
    again = open_state(StateSpec(path=str(tmp_path / "a ?#%.sqlite")), "", read_only=True)
    assert len(list(again.log())) == 2, "also when nobody serves"


def test_the_file_lies_beside_the_releases(tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1" / "release.json").write_text("{}")
    for place in (tmp_path, tmp_path / "r1", tmp_path / "r1" / "release.json"):
        open_state(StateSpec(), str(place)).close()
    assert [p.name for p in tmp_path.rglob("*.sqlite")] == ["state.sqlite"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [({"path": "a", "url": "redis://h"}, "not both"), ({"url": "http://h"}, "must begin with redis://")],
)
def test_configs_that_cannot_be_meant(raw: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(StateSpec, raw)


def test_a_prefix_that_nobody_wrote_under_is_not_read(redis_url: str) -> None:
    spec, event = StateSpec(url=redis_url, prefix="kept"), UserEvents(["i1"], [7], {"like": [1.0]}, [None])
    with pytest.raises(ConfigError, match=r"state\.prefix: .*kept.*no key of user state.*state\.url of"):
        open_state(spec, "", read_only=True)
    open_state(spec, "").append("u", event, ["{}"], 7)
    assert list(open_state(spec, "", read_only=True).log()) == ["{}"]
    loaded = spec.model_copy(update={"prefix": "loaded"})
    open_state(loaded, "").load({"u": event}, 7)
    assert list(open_state(loaded, "", read_only=True).log()) == []
    with pytest.raises(ConfigError, match="lodaed"):
        open_state(spec.model_copy(update={"prefix": "lodaed"}), "", read_only=True)


def test_a_server_that_loses_what_it_acknowledges_is_refused(redis_url: str, tmp_path: Path) -> None:
    del redis_url  # there is a server to start
    with running(tmp_path, "--appendonly", "no") as (url, _), pytest.raises(ConfigError, match="appendonly no"):
        open_state(StateSpec(url=url), "")


def test_a_server_that_throws_out_what_it_acknowledged_is_refused(redis_url: str, tmp_path: Path) -> None:
    del redis_url
    for policy in ("allkeys-lru", "volatile-ttl", "noeviction"):
        (folder := tmp_path / policy).mkdir()
        with running(folder, *DURABLE, "--maxmemory", "64mb", "--maxmemory-policy", policy) as (url, _):
            if policy == "noeviction":
                open_state(StateSpec(url=url), "").close()
            else:
                with pytest.raises(ConfigError, match=rf"maxmemory-policy {policy}; fix: .* noeviction"):
                    open_state(StateSpec(url=url), "")
    (tmp_path / "roomy").mkdir()
    with running(tmp_path / "roomy", *DURABLE, "--maxmemory-policy", "allkeys-lru") as (url, _):
        open_state(StateSpec(url=url), "").close()  # without a limit nothing is thrown out


def test_a_server_that_dies_keeps_what_it_acknowledged(redis_url: str, tmp_path: Path) -> None:
    del redis_url
    with running(tmp_path, *DURABLE) as (url, server):
        store = open_state(StateSpec(url=url, timeout_s=0.3), "")
        tell(store, "a", told(("x", 1, 1)))
        server.stop(signal.SIGKILL)
        began = time.monotonic()
        for ask in (lambda: store.events("a", NOW), lambda: tell(store, "a", told(("y", 0, 1)))):
            with pytest.raises(StateError, match="gives no answer"):
                ask()
        assert time.monotonic() - began < 5
        server.start()
        assert tell(store, "a", told(("y", 0, 1))) == 1
        found = store.events("a", NOW)
        assert found is not None
        assert list(found.item) == ["x", "y"]


def test_a_server_that_hangs_is_waited_for_once(redis_url: str, tmp_path: Path) -> None:
    del redis_url
    with running(tmp_path, *DURABLE) as (url, server):
        store = open_state(StateSpec(url=url, timeout_s=1.0), "")
        tell(store, "a", told(("x", 1, 1)))
        server.process.send_signal(signal.SIGSTOP)
        try:
            for ask in (lambda: store.events("a", NOW), lambda: tell(store, "a", told(("y", 0, 1)))) * 2:
                began = time.monotonic()
                with pytest.raises(StateLateError, match="no answer within 1000 ms"):
                    ask()
                assert 0.9 < time.monotonic() - began < 1.8
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert tell(store, "a", told(("z", 0, 1))) == 1
        found = store.events("a", NOW)
        assert found is not None
        assert {"x", "z"} <= set(found.item)


def test_a_server_that_was_never_there_does_not_stop_the_start() -> None:
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    store = open_state(StateSpec(url="redis://:secret@127.0.0.1:1/0", timeout_s=0.2), "")
    with pytest.raises(StateError, match="gives no answer") as caught:
        store.events("a", NOW)
    assert "secret" not in str(caught.value)
