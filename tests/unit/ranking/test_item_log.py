"""The log of items: whole files, in order, from many writers; and how a process follows it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from rayrank.config import ConfigError
from rayrank.ranking.item_log import ItemChange, ItemLog, ItemLogError
from rayrank.ranking.items import Items


def put(item_id: str, title: str = "", available: bool | None = None) -> ItemChange:
    return ItemChange(kind="put", item_id=item_id, time=7, title=title or item_id, available=available)


def remove(item_id: str) -> ItemChange:
    return ItemChange(kind="remove", item_id=item_id, time=7)


def shelve(item_id: str, available: bool) -> ItemChange:
    return ItemChange(kind="shelve", item_id=item_id, time=7, available=available)


def test_what_was_told_is_read_back_in_order_by_anybody(tmp_path: Path) -> None:
    first, other = ItemLog(tmp_path), ItemLog(tmp_path)
    assert [first.append([put("a"), remove("b")], "mark"), other.append([put("c")]), first.append([put("d")])] == [
        1,
        2,
        3,
    ]
    found = list(ItemLog(tmp_path).parts())
    assert [(p.number, p.mark, [c.item_id for c in p.changes]) for p in found] == [
        (1, "mark", ["a", "b"]),
        (2, None, ["c"]),
        (3, None, ["d"]),
    ]
    assert [c.item_id for c in found[0].puts] == ["a"]
    assert [p.number for p in other.parts(2)] == [3]


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    def write(name: str) -> None:
        log = ItemLog(tmp_path)
        for n in range(20):
            log.append([put(f"{name}{n}")])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [p.changes[0].item_id for p in ItemLog(tmp_path).parts()]
    assert sorted(told) == sorted(f"{name}{n}" for name in "abc" for n in range(20))
    assert [i for i in told if i[0] == "a"] == [f"a{n}" for n in range(20)]


def test_files_that_are_half_written_do_not_exist_and_damaged_ones_stop_the_reader(tmp_path: Path) -> None:
    log = ItemLog(tmp_path)
    log.append([put("a")])
    (tmp_path / ".part-00000002.json.0123abcd").write_text('{"format":1,"chan')
    assert [p.number for p in log.parts()] == [1]
    (tmp_path / "part-00000002.json").write_text('{"format":1,"chan')
    with pytest.raises(ItemLogError, match=r"part-00000002\.json cannot be read"):
        list(log.parts(1))
    (tmp_path / "part-00000002.json").write_text('{"format":9,"changes":[]}')
    with pytest.raises(ItemLogError, match="another version"):
        list(log.parts(1))


def test_a_file_that_is_missing_stops_the_reader_too(tmp_path: Path) -> None:
    log = ItemLog(tmp_path)
    parts = [tmp_path / f"part-{log.append([put(item)]):08d}.json" for item in "abcd"]
    parts[1].unlink()
    parts[2].unlink()
    for reader in (log, ItemLog(tmp_path), ItemLog(tmp_path, read_only=True)):
        with pytest.raises(ItemLogError, match=r"part-00000002\.json is missing, though"):
            list(reader.parts())
        assert reader.last() == 1
    parts[3].unlink()
    assert [p.number for reader in (log, ItemLog(tmp_path)) for p in reader.parts()] == [1, 1], "nothing lies behind"
    follower = ItemLog(tmp_path)
    assert follower.last() == 1
    for item in "bc":
        ItemLog(tmp_path).append([put(item)])
    parts[1].unlink()
    with pytest.raises(ItemLogError, match=r"part-00000002\.json is missing"):
        list(follower.parts(1))
    assert list(ItemLog(tmp_path / "nowhere", read_only=True).parts()) == []


def test_vectors_are_kept_by_teacher_and_the_first_writer_wins(tmp_path: Path) -> None:
    log = ItemLog(tmp_path)
    assert log.vectors("t1", 1) is None
    log.keep_vectors("t1", 1, np.ones((2, 3)))
    ItemLog(tmp_path).keep_vectors("t1", 1, np.zeros((2, 3)))
    assert log.vectors("t1", 1).tolist() == [[1, 1, 1]] * 2  # type: ignore[union-attr]
    assert log.vectors("t2", 1) is None


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"items\.path"):
        ItemLog(tmp_path / "file")


def test_names_follow_in_the_order_of_the_changes() -> None:
    items = Items(["a", "b", "c"], ["A", "B", "C"], np.asarray([3, 9, 1]))
    changes = [put("d"), put("b", "New B"), remove("a"), put("e", available=False), shelve("c", False), put("d", "Two")]
    items.apply(changes, ["d", "New B", "e", "Two"])
    assert [items.row(i) for i in "abcde"] == [1, 5, 3, 7, 6]
    assert items.title(5) == "New B"
    assert items.hidden.tolist() == [1, 2, 3, 4, 6]
    assert items.popular.tolist() == [5, 7], "b keeps its place; d comes last"
    assert [items.state(i) for i in "abcdex"] == ["removed", "served", "unavailable", "served", "unavailable", None]
    assert items.current(np.asarray([1, 2, 4, 7])).tolist() == [1, 5, 7, 7]
    assert items.released_rows(["b", "d", "a", "x"]).tolist() == [2, 0, 1, 0]
    assert [h.item_id for h in items.search("")] == ["b", "d"]
    items.apply([shelve("c", True), shelve("a", True), remove("x"), put("b", "Third")], ["Third"])
    assert items.popular.tolist() == [8, 1, 3, 7]
    assert items.current(np.asarray([2, 5])).tolist() == [8, 8]
    assert items.state("x") == "removed"
    assert items.popularity.tolist() == pytest.approx([0, 1 / 2, 0, 1 / 3, 0, 0, 0, 1 / 4, 1])
