"""An event counts once, however long ago it was told and however little of it a history still shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrank.config import parse
from rayrank.ranking.state import StateSpec, StateStore, UserEvents, open_state

NOW, DAY = 1_700_000_000, 86_400


def open_at(path: Path, **changes: object) -> StateStore:
    return open_state(parse(StateSpec, {"path": str(path / "s.sqlite"), **changes}), "")


def told(items: list[str], times: list[int], keys: list[str] | None = None) -> UserEvents:
    return UserEvents(items, times, {"like": [1.0] * len(items)}, keys or [None] * len(items))


def tell(store: StateStore, events: UserEvents, now: int = NOW) -> int:
    return store.append("u", events, list(events.item), now)


def history(store: StateStore, now: int = NOW) -> list[str]:
    found = store.events("u", now)
    return [] if found is None else list(found.item)


def test_an_event_older_than_a_full_history(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    names = [f"i{n}" for n in range(1000)]
    assert tell(store, told(names, [NOW - 1000 + n for n in range(1000)])) == 1000
    old = told(["old"], [NOW - 9999], ["e1"])
    assert [tell(store, old) for _ in range(3)] == [1, 0, 0]
    assert list(store.log()) == [*names, "old"]
    assert history(store) == names


def test_an_expired_event_is_not_kept_at_all(tmp_path: Path) -> None:
    store = open_at(tmp_path, expire_days=1)
    for time in (NOW - 3 * DAY, NOW - DAY - 1):
        assert [tell(store, told(["old"], [time], ["e1"])) for _ in range(2)] == [0, 0]
    assert tell(store, told(["new"], [NOW - DAY])) == 1
    assert (list(store.log()), history(store)) == (["new"], ["new"])


@pytest.mark.parametrize("with_times", [False, True])
def test_more_events_at_once_than_a_history_holds(tmp_path: Path, with_times: bool) -> None:
    store = open_at(tmp_path, max_events=50)
    names = [f"i{n}" for n in range(1000)]
    for again in range(3):
        now = NOW + 5 * again
        events = told(names, [NOW] * 1000) if with_times else told(names, [now] * 1000, [f"post-1/{i}" for i in names])
        assert tell(store, events, now) == (0 if again else 1000)
        assert history(store, now) == names[-50:]
    assert list(store.log()) == names


def test_what_left_even_the_spare_is_never_new(tmp_path: Path) -> None:
    store = open_at(tmp_path, max_events=10)
    parts = [told([f"i{p}-{n}" for n in range(400)], [NOW + 400 * p + n for n in range(400)]) for p in range(4)]
    assert [tell(store, part, NOW + 2000) for part in parts] == [400, 400, 400, 400]
    assert [tell(store, part, NOW + 2000) for part in reversed(parts)] == [0, 0, 0, 0]
    assert len(list(store.log())) == 1600
    assert history(store, NOW + 2000) == [f"i3-{n}" for n in range(390, 400)]
    assert tell(store, told(["later"], [NOW + 2000]), NOW + 2000) == 1


def test_a_longer_history_shows_what_was_spare(tmp_path: Path) -> None:
    store = open_at(tmp_path, max_events=2)
    tell(store, told(["a", "b", "c"], [NOW, NOW + 1, NOW + 2]))
    assert history(store) == ["b", "c"]
    tell(longer := open_at(tmp_path, max_events=9), told(["d"], [NOW + 3]))
    assert history(longer) == ["a", "b", "c", "d"]


def loaded(store: StateStore, labels: dict[str, list[float | None]], times: tuple[int, ...] = (NOW,)) -> list[str]:
    """The history after a dataset's copy of events of item x has been loaded."""
    store.load({"u": UserEvents(["x"] * len(times), times, labels, [None] * len(times))}, NOW)
    return history(store)


def test_a_datasets_copy_has_no_key(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    tell(store, told(["x"], [NOW], ["e1"]))
    assert loaded(store, {"like": [1.0]}) == ["x"]
    assert tell(store, told(["x"], [NOW + 5], ["e1"])) == 0, "its key is still known"
    assert loaded(store, {"like": [1.0]}, (NOW + 1,)) == ["x", "x"]


def test_a_datasets_labels_are_rounded(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    store.append("u", UserEvents(["x"], [NOW], {"stars": [3.7]}, [None]), ["x"], NOW)
    assert loaded(store, {"stars": [3.700000047683716]}) == ["x"]
    assert loaded(store, {"stars": [3.8]}) == ["x", "x"]


def test_a_dataset_may_tell_more_or_fewer_labels(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    tell(store, told(["x"], [NOW]))
    assert loaded(store, {"like": [1.0], "stars": [4.0]}) == ["x"]
    assert loaded(store, {"like": [None]}) == ["x"]
    assert loaded(store, {"like": [0.0], "stars": [4.0]}) == ["x", "x"]
    assert loaded(store, {"like": [1.0, None], "stars": [None, 5.0]}, (NOW + 1, NOW + 1)) == ["x"] * 4


def test_what_was_loaded_is_not_new_when_it_is_told_with_a_key(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    loaded(store, {"like": [1.0]})
    assert tell(store, told(["x"], [NOW], ["e1"])) == 0
    assert tell(store, told(["x", "x"], [NOW + 1] * 2, ["e2", "e3"])) == 2, "of two keys the keys decide"
