"""How a process follows the log of items: in which order, past damage, and with how many rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrank.messages import ItemsRequest
from rayrank.ranking import growth
from rayrank.ranking.context import ColdItems
from rayrank.ranking.desk import FullError
from rayrank.ranking.graph import bundle_ids
from rayrank.ranking.item_log import ItemChange, ItemLogError
from rayrank.ranking.release import Release
from rayrank.ranking.store import UserStore
from tests.shop import NOW, ROWS, Shop
from tests.tiny_release import ITEMS

NEW = {"item_id": "new", "text": "red dog story", "attributes": {"genres": "War", "year": 1995}, "title": "A red dog"}


def test_a_damaged_file_stops_only_what_lies_behind_it(shop: Shop) -> None:
    shop.desk.accept(ItemsRequest.model_validate({"items": [NEW]}), "r", NOW)
    (shop.follower.log.path / "part-00000002.json").write_text("{")
    shop.follower.refresh(encode=False)
    assert shop.follower.trouble is not None
    assert "part-00000002.json cannot be read" in shop.follower.trouble
    assert "no put" not in shop.follower.trouble
    assert shop.ids(k=40, pool=40).count("new") == 0
    shop.follower.refresh()
    assert shop.ids(k=40, pool=40).count("new") == 1


def test_a_removal_does_not_wait_for_texts_before_it(shop: Shop) -> None:
    body = {"items": [{"item_id": "slow", "text": "dog"}, {"item_id": "i4", "text": "war"}], "remove": ["i2"]}
    shop.desk.accept(ItemsRequest.model_validate(body), "r", NOW)
    shop.desk.accept(ItemsRequest(remove=["i3", "slow"]), "r", NOW)
    shop.desk.accept(ItemsRequest.model_validate({"items": [{"item_id": "i5", "available": False}]}), "r", NOW)
    found = shop.ids(k=40, pool=40)
    assert not {"i2", "i3", "i5", "slow"} & set(found)
    assert shop.desk.counts() == {"put": 0, "removed": 0, "waiting": 2, "dropped": 0, "room": 7}
    shop.follower.refresh()
    assert set(shop.ids(k=40, pool=40)) == set(found)
    assert shop.desk.counts() == {"put": 2, "removed": 3, "waiting": 0, "dropped": 0, "room": 7}


def test_a_removal_holds_while_a_put_before_it_is_applied(shop: Shop) -> None:
    for body in (
        {"items": [{"item_id": "x", "text": "dog"}]},
        {"items": [{"item_id": "slow", "text": "war"}]},
        {"remove": ["x"]},
    ):
        shop.desk.accept(ItemsRequest.model_validate(body), "r", NOW)
    assert shop.desk.status("x").status == "waiting"  # type: ignore[union-attr]
    assert shop.graph.items.state("x") == "removed"
    lost = shop.desk.accept(ItemsRequest(remove=["slow", "nowhere"]), "r", NOW)
    assert lost.removed == 1, "slow is known by a put that waits"
    assert shop.desk.status("nowhere") is None
    log, reader = shop.follower.log, bundle_ids(shop.graph.release)["teacher"]
    log.keep_vectors(reader, 1, np.zeros((1, 16), np.float32))
    shop.follower.refresh(encode=False)
    assert (shop.graph.items.row("x"), shop.follower.waiting) == (ITEMS + 1, 1), "its put is applied, slow's is not"
    assert "x" not in shop.ids(k=40, pool=40)
    shop.follower.refresh()
    assert not {"x"} & set(shop.ids(k=40, pool=40))
    assert shop.desk.counts() == {"put": 2, "removed": 3, "waiting": 0, "dropped": 0, "room": 7}


def test_damaged_vectors_hold_up_neither_what_lies_before_nor_removals(shop: Shop) -> None:
    shop.desk.accept(ItemsRequest.model_validate({"items": [{"item_id": "x", "text": "dog"}]}), "r", NOW)
    shop.desk.accept(ItemsRequest.model_validate({"items": [{"item_id": "y", "text": "war"}]}), "r", NOW)
    log, reader = shop.follower.log, bundle_ids(shop.graph.release)["teacher"]
    log.keep_vectors(reader, 1, np.zeros((1, 16), np.float32))
    (log.path / f"vectors-{reader}" / "part-00000002.safetensors").write_bytes(b"{")
    shop.desk.accept(ItemsRequest(remove=["i2"]), "r", NOW)
    shop.follower.refresh(encode=False)
    assert "part-00000002.safetensors cannot be read" in (shop.follower.trouble or "")
    found = set(shop.ids(k=40, pool=40))
    assert ("x" in found, "y" in found, "i2" in found) == (True, False, False)


def test_of_what_was_put_again_and_again_a_start_keeps_the_last(
    shop: Shop, release: Release, store: UserStore, tmp_path: Path
) -> None:
    texts = ("red dog", "war story", "blue love")
    for text in texts:
        shop.tell({"item_id": "new", "text": text}, {"item_id": "i16", "text": text, "available": text != texts[-1]})
    shop.tell({"item_id": "other", "text": "dog"}, remove=("i4", "new"))
    shop.tell({"item_id": "i4", "text": "dog"})
    shop.tell({"item_id": "back", "text": "x"}, remove=("i6",))
    bodies: list[dict[str, Any]] = [
        {"user_id": "u3", "k": 40, "pool": 40},
        {"candidates": ["i16", "i4", "i5", "new", "other"], "history": ["new", "i16", "i4"]},
        {"query": "title 1", "user_id": "u1", "k": 40},
    ]
    expected = [shop.ask(**body).items for body in bodies]
    assert (shop.desk.counts()["put"], shop.desk.counts()["room"]) == (9, 0)
    last = shop.follower.log.last()
    again = Shop(release, tmp_path / "items", store, folded=last)
    found = [again.ask(**body).items for body in bodies]
    assert [[(i.item_id, i.sources) for i in items] for items in found] == [
        [(i.item_id, i.sources) for i in items] for items in expected
    ]
    for some, others in zip(found, expected, strict=True):
        assert [i.score for i in some] == pytest.approx([i.score for i in others], abs=1e-6)
    assert len(again.graph.items) == ITEMS + 1 + 5, "new, i16, other, i4, back"
    assert len(again.graph.scorer("student").put.rows_AW) == 5
    states = {i: (shop.graph.items.state(i), again.graph.items.state(i)) for i in ("new", "i16", "i4", "i6", "back")}
    assert all(before == after for before, after in states.values()), states
    again.tell({"item_id": "new", "text": "later"})
    late = Shop(release, tmp_path / "items", store, folded=last)
    assert len(late.graph.items) == len(again.graph.items), "a replica that starts later gives the same rows"
    assert [late.graph.items.row(i) for i in states] == [again.graph.items.row(i) for i in states]


@pytest.mark.parametrize("folded", [0, 9])
def test_a_younger_release_takes_the_last_word_on_availability_from_puts_that_it_drops(
    release: Release, store: UserStore, tmp_path: Path, folded: int
) -> None:
    old, texts = Shop(release, tmp_path / "items", store), ("red dog", "war story")
    old.tell({"item_id": "i2", "text": texts[0], "available": False}, remove=("i3", "i4"), now=1_700_000_000)
    old.tell(*({"item_id": item_id, "text": texts[0]} for item_id in ("i2", "i3", "i4")), now=1_700_000_001)
    old.tell({"item_id": "i3", "text": texts[1]}, now=1_700_000_002)
    old.tell({"item_id": "i5", "text": texts[0]}, remove=("i6",), now=1_700_000_003)
    old.tell({"item_id": "i5", "text": texts[1], "available": False}, now=1_700_000_004)
    old.follower.log.append([ItemChange(kind="put", item_id="i6", time=1_700_000_005, text=texts[0])])
    old.follower.refresh()
    younger = release.model_copy(update={"release_id": "tiny-2", "created": "2026-01-01T00:00:00+00:00"})
    after = Shop(younger, tmp_path / "items", store, folded=min(folded, old.follower.log.last()))
    states = {item_id: after.graph.items.state(item_id) for item_id in ("i2", "i3", "i4", "i5", "i6")}
    assert states == {"i2": "served", "i3": "served", "i4": "served", "i5": "unavailable", "i6": "served"}
    assert {i for i in after.ids(k=40, pool=40) if i in states} == set(states) - {"i5"}
    assert len(after.graph.items) == ITEMS + 1, "what the release knows better needs no row"
    assert after.desk.counts()["put"] == 0
    assert after.desk.counts()["dropped"] == (8 if not folded else 5)


def test_nothing_is_put_before_all_that_is_folded_can_be_read(shop: Shop, release: Release, tmp_path: Path) -> None:
    shop.tell({"item_id": "a", "text": "dog"}, remove=("i2",))
    file = tmp_path / "items" / "part-00000002.json"
    file.write_text("{")
    assert shop.follower.log.last() == 1
    again = Shop(release, tmp_path / "items", folded=2)
    assert "part-00000002.json cannot be read" in (again.follower.trouble or "")
    assert "no put is applied" in (again.follower.trouble or "")
    assert (again.graph.items.state("a"), again.graph.items.state("i2")) == (None, "removed")
    file.unlink()
    shop.tell({"item_id": "a", "text": "war"})
    again.follower.refresh()
    assert again.follower.trouble is None
    assert len(again.graph.items) == ITEMS + 2


def test_a_file_that_is_missing_is_told_to_whoever_asks_and_whoever_puts(
    shop: Shop, release: Release, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for item in "ab":
        shop.tell({"item_id": item, "text": "dog"})
    first, last = (tmp_path / "items" / f"part-0000000{n}.json" for n in (1, 2))
    whole = first.read_bytes()
    first.unlink()
    again = Shop(release, tmp_path / "items", folded=2)
    said = "part-00000001.json is missing, though files behind it are there; no put is applied until it is mended"
    assert (again.desk.trouble, said in caplog.text) == (said, True)
    with pytest.raises(ItemLogError, match=r"part-00000001\.json is missing"):
        again.tell({"item_id": "c", "text": "dog"})
    first.write_bytes(whole)
    again.follower.refresh()
    assert (again.desk.trouble, again.graph.items.state("b")) == (None, "served")
    last.unlink()
    late = Shop(release, tmp_path / "items", folded=3)
    assert late.desk.trouble == "1 of 3 files are there that are to be folded; no put is applied until it is mended"
    assert "trouble: 2 of 3 files" in late.tell({"item_id": "c", "text": "dog"}).warnings[-1]
    assert late.tell({"item_id": "d", "text": "dog"}).warnings == []
    assert {late.graph.items.state(i) for i in "acd"} == {"served"}


def test_a_running_service_holds_so_many_puts_and_says_what_to_do(shop: Shop) -> None:
    for n in range(ROWS):
        shop.tell({"item_id": f"n{n % 3}", "text": "dog"})
    with pytest.raises(FullError, match=r"at most 9 puts \(items\.rows\); promote a release that knows them"):
        shop.tell({"item_id": "more", "text": "dog"})
    assert shop.desk.status("more") is None
    assert shop.desk.counts()["room"] == 0
    shop.tell({"item_id": "i1", "available": False}, remove=("n1",))
    assert not {"i1", "n1"} & set(shop.ids(k=40, pool=40))


def test_processes_that_encode_at_the_same_time_share_the_work(
    shop: Shop, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, 6):
        put = ItemChange(kind="put", item_id=f"n{n}", time=NOW, text="red dog")
        shop.follower.log.append([put, put.model_copy(update={"kind": "remove", "item_id": "i2"})])
    follower, encode, seen = shop.follower, shop.follower._encode, list[str]()
    other = Shop(release, tmp_path / "items")

    def watched(cold: ColdItems) -> np.ndarray | None:
        seen.extend(map(str, cold.keys))
        if len(seen) == 1:
            other.follower._read(other.follower._waiting[0])  # quicker
        return encode(cold) if encode else None

    monkeypatch.setattr(follower, "_encode", watched)
    monkeypatch.setattr(growth.random, "choice", lambda parts: parts[-1])
    follower.look()
    follower.refresh()
    assert seen == ["n1", "n5", "n4", "n3", "n2"], "in order until another is seen to encode the same"
    other.follower.refresh()
    names = [f"n{n}" for n in range(1, 6)]
    assert [shop.graph.items.row(name) for name in names] == list(range(ITEMS + 1, ITEMS + 6))
    assert [other.graph.items.row(name) for name in names] == list(range(ITEMS + 1, ITEMS + 6))
    assert (follower.waiting, other.follower.waiting, follower.trouble) == (0, 0, None)


def test_a_process_alone_encodes_in_order(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(1, 4):
        shop.follower.log.append([ItemChange(kind="put", item_id=f"n{n}", time=NOW, text="red dog")])
    encode, seen = shop.follower._encode, list[str]()

    def watched(cold: ColdItems) -> np.ndarray | None:
        seen.extend(map(str, cold.keys))
        return encode(cold) if encode else None

    monkeypatch.setattr(shop.follower, "_encode", watched)
    shop.follower.refresh()
    assert seen == ["n1", "n2", "n3"]
