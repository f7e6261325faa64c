"""A policy over a tiny release: what is shown, where, and what happens when the file is edited."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayrank.config import ConfigError, parse
from rayrank.messages import ItemsRequest, RankedItem, RankRequest, RankResponse, RecommendRequest
from rayrank.ranking.context import ColdItems
from rayrank.ranking.flow import FlowSettings, Terms
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.policy import Candidates, ItemFacts, Policy
from rayrank.ranking.policy_file import PolicyFile
from rayrank.ranking.policy_spec import PolicySpec, read_policy
from rayrank.ranking.release import load_release
from rayrank.ranking.respond import difference
from rayrank.ranking.store import UserStore
from tests.tiny_release import ITEMS, START, TinyWorld

NOW = START + 9 * 86_400
GENRES = ("Drama", "Comedy", "War")  # of item i<n>: GENRES[(n − 1) % 3]
ALL = [f"i{n}" for n in range(1, ITEMS + 1)]


def genre(item: RankedItem) -> str:
    assert item.item_id is not None
    return GENRES[(int(item.item_id[1:]) - 1) % 3]


class Desk:
    """One graph, asked under many policies."""

    def __init__(self, graph: RankingGraph) -> None:
        self.graph, self.facts = graph, ItemFacts.of(graph.bundles.first, graph.items)

    def policy(self, **spec: Any) -> Policy:
        return Policy(parse(PolicySpec, spec), self.facts)

    def ask(self, body: dict[str, Any], key: str = "r", **spec: Any) -> list[RankedItem]:
        """The items under a policy; the graph's own is put back."""
        cls = RankRequest if "candidates" in body else RecommendRequest
        request = cls.model_validate({"user_id": "u3", "time": NOW, "explain": True, **body})
        self.graph.policy = _Fixed(self.policy(**spec)) if spec else None  # type: ignore[assignment]
        return self.graph.respond(request, NOW, key).items


class _Fixed:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def terms(self, request_id: str) -> Terms:
        return Terms(request_id, self.policy)


@pytest.fixture
def desk(graph: RankingGraph) -> Desk:
    return Desk(graph)


def ids(items: list[RankedItem]) -> list[str | None]:
    return [item.item_id for item in items]


def test_an_empty_policy_changes_nothing(desk: Desk) -> None:
    for body in ({"k": 12}, {"candidates": ALL}):
        plain, policed = desk.ask(body), desk.ask(body, dedupe={})
        assert [i.model_dump() for i in plain] == [i.model_dump() for i in policed]
        assert all(i.propensity == 1 for i in policed)


@pytest.mark.parametrize("user", ["u3", "stranger"])
def test_blocked_items_are_neither_retrieved_nor_ranked(desk: Desk, user: str) -> None:
    best = ids(desk.ask({"k": 3, "user_id": user}))
    rules = {"block": [{"items": [best[0], "not in the catalogue"]}, {"column": "genres", "values": ["War"]}]}
    shown = desk.ask({"k": ITEMS, "user_id": user}, **rules)
    assert {genre(i) for i in shown} == {"Drama", "Comedy"}
    assert best[0] not in ids(shown)
    left = [i for i in desk.ask({"k": ITEMS, "user_id": user}) if genre(i) != "War" and i.item_id != best[0]]
    assert set(ids(shown)) == set(ids(left)), "others take their places"
    ranked = desk.ask({"candidates": [*ALL, "x", {"item_id": "y", "text": "dog"}]}, block=[{"items": ["x", "y", "i2"]}])
    assert set(ids(ranked)) == {*ALL} - {"i2"}


def test_only_what_is_available_is_shown(desk: Desk) -> None:
    some = {"available": [{"items": ["i1", "i7"]}, {"column": "genres", "values": ["War"]}]}
    new = {"item_id": "new", "text": "dog", "attributes": {"genres": "Comedy|War"}}
    shown = ids(desk.ask({"candidates": [*ALL, new, {"text": "cat"}]}, **some))
    assert set(shown) == {"new", "i1", "i7", *(i for n, i in enumerate(ALL) if n % 3 == 2)}
    assert desk.ask({"candidates": ["i1"]}, available=[{"items": ["i2"]}]) == []


def test_positions_are_those_of_the_request(desk: Desk) -> None:
    items = desk.ask({"candidates": ["i1", "i2", "i3", "i4"]}, block=[{"items": ["i1", "i3"]}])
    assert {(i.item_id, i.position) for i in items} == {("i2", 1), ("i4", 3)}


def test_boosts_move_items_and_leave_the_shown_score_alone(desk: Desk) -> None:
    last = desk.ask({"candidates": ALL})[-1]
    lifted = desk.ask({"candidates": ALL, "k": 5}, boosts=[{"items": [last.item_id], "add": 100.0}])
    assert (last.scored_by, lifted[0].item_id) == ("student", last.item_id)
    assert (lifted[0].policy, lifted[1].policy) == (["boosted"], [])
    assert lifted[0].scored_by == "teacher", "a boost counts where the teacher's candidates are chosen"
    assert lifted[0].score < 100
    buried = desk.ask({"candidates": ALL}, boosts=[{"column": "genres", "values": ["War"], "times": 0.001, "add": -50}])
    by_teacher = [i for i in buried if i.scored_by == "teacher"]
    assert all(genre(i) == "War" for i in buried[-10:])
    assert all(genre(i) != "War" for i in by_teacher)


def test_many_boosts_of_one_item_still_order(desk: Desk) -> None:
    up, down = {"items": ["i1", "i2"], "times": 1e6, "add": 1e6}, {"items": ["i2"], "times": 1e6, "add": -1e6}
    shown = ids(desk.ask({"candidates": ["i2", "i3", "i1"]}, boosts=[up] * 20 + [down] * 20))
    assert sorted(shown) == ["i1", "i2", "i3"]  # type: ignore[type-var]
    rows = np.asarray([desk.facts.items.row("i1"), desk.facts.items.row("i2")])
    moved = desk.policy(boosts=[up] * 20 + [down] * 20).moved(
        Candidates(rows, ColdItems(), {}), np.zeros(2, np.float32)
    )
    assert np.isfinite(moved).all()


def test_a_boost_raises_and_never_buries_below_zero(desk: Desk) -> None:
    asked = Candidates(np.full(3, desk.facts.items.row("i1")), ColdItems(), {})
    for boosts, expected in (
        ([{"times": 2.0}], [-1.5, 0.0, 6.0]),
        ([{"times": 0.5}], [-6.0, 0.0, 1.5]),
        ([{"add": 1.0}, {"times": 2.0}], [0.5, 2.0, 8.0]),
        ([{"add": -4.0}, {"times": 2.0}], [-3.5, -2.0, 4.0]),
    ):
        policy = desk.policy(boosts=[{"items": ["i1"], **boost} for boost in boosts])
        assert policy.moved(asked, np.asarray([-3.0, 0.0, 3.0], np.float32)).tolist() == expected


@pytest.mark.parametrize("wrong", [{"times": 1e7}, {"add": 1e300}, {"add": -1e7}, {"add": float("nan")}])
def test_boosts_beyond_all_use_are_refused(desk: Desk, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"boosts\.0\.(times|add)"):
        desk.policy(boosts=[{"items": ["i1"], **wrong}])


def test_each_item_once_unless_asked_otherwise(desk: Desk) -> None:
    body = {"candidates": ["i1", "i2", "i1"]}
    assert sorted(ids(desk.ask(body, dedupe={}))) == ["i1", "i2"]  # type: ignore[type-var]
    assert len(desk.ask(body, dedupe={"items": False})) == 3


def test_caps_hold_in_the_first_places(desk: Desk) -> None:
    items = desk.ask({"k": 9}, caps=[{"column": "genres", "most": 2, "first": 6}])
    assert max([genre(i) for i in items[:6]].count(g) for g in GENRES) == 2
    assert len(items) == 9


@pytest.mark.parametrize(
    "spec",
    [
        {"caps": [{"column": "genres", "most": 1, "first": 6}]},
        {"diversity": {"relevance": 0.1, "top": 10}},
        {"boosts": [{"items": ["lost", "gone"], "add": 1000}]},
        {"exploration": {"share": 1, "top": 9}},
    ],
)
def test_ids_that_nobody_knows_come_last_unless_they_are_pinned(desk: Desk, spec: dict[str, Any]) -> None:
    body = {"candidates": ["lost", "i1", "i4", "i7", "gone"]}  # three of one genre
    assert ids(desk.ask({**body, "k": 4}, **spec))[3] in ("lost", "gone")
    assert set(ids(desk.ask(body, **spec))[3:]) == {"lost", "gone"}
    assert set(ids(desk.ask({**body, "k": 3}, **spec))) == {"i1", "i4", "i7"}
    assert ids(desk.ask(body, **spec, pins=[{"item": "gone", "position": 0}]))[0] == "gone"


def test_pins_are_shown_though_the_retriever_does_not_find_them(desk: Desk) -> None:
    seen = "i16"  # in the history of u3, so not retrieved
    assert seen not in ids(desk.ask({"k": ITEMS}))
    items = desk.ask({"k": 4}, pins=[{"item": seen, "position": 2}, {"item": "gone", "position": 0}])
    assert ids(items)[2] == seen
    assert items[2].policy == ["pinned"]
    assert seen not in ids(desk.ask({"candidates": ["i1", "i2"]}, pins=[{"item": seen, "position": 0}]))
    blocked = desk.ask({"k": 4}, pins=[{"item": seen, "position": 2}], block=[{"items": [seen]}])
    assert seen not in ids(blocked)


def test_diversity_puts_unlike_items_first(desk: Desk) -> None:
    def likeness(items: list[RankedItem]) -> float:
        rows = [desk.graph.items.row(i.item_id) for i in items]
        assert desk.facts.vectors_ND is not None
        unit = desk.facts.vectors_ND[rows] / np.linalg.norm(desk.facts.vectors_ND[rows], axis=1, keepdims=True)
        return float((unit @ unit.T).sum())

    desk.graph.parts = replace(desk.graph.parts, settings=FlowSettings(pool=20, rerank=0))
    plain, spread = desk.ask({"k": 4}), desk.ask({"k": 4}, diversity={"relevance": 0.2})
    assert likeness(spread) < likeness(plain)
    assert spread[0].item_id == plain[0].item_id
    assert ids(desk.ask({"k": 4}, diversity={"relevance": 1.0})) == ids(plain)


def test_a_pin_that_is_never_shown_is_told(desk: Desk) -> None:
    rules = {"pins": [{"item": f"i{n}", "position": n} for n in (1, 2, 3)] + [{"item": "unknown", "position": 0}]}
    assert desk.policy(**rules).lost_pins is None
    rules |= {"block": [{"items": ["i2"]}]}
    policy = desk.policy(**rules)
    assert policy.lost_pins == "policy: pinned items left out: pins.1 filtered"
    assert policy.lost_pins is policy.lost_pins, "requests look it up"
    desk.graph.add_items(ItemsRequest(remove=["i3"]))
    said = "policy: pinned items left out: pins.1 filtered; pins.2 removed or not available"
    assert (policy.lost_pins, desk.policy(**rules).lost_pins) == (said, said)
    desk.graph.policy = _Fixed(desk.policy(**rules))  # type: ignore[assignment]
    assert said in desk.graph.respond(RecommendRequest(user_id="u3"), NOW).warnings
    assert desk.graph.respond(RankRequest(candidates=["i1"], user_id="u3"), NOW).warnings == []


def test_exploration_tells_its_propensities_and_spares_pins(desk: Desk) -> None:
    rules = {"exploration": {"share": 0.5, "top": 5}, "pins": [{"item": "i1", "position": 1}]}
    plain = ids(desk.ask({"k": 4}, pins=rules["pins"]))
    found = [desk.ask({"k": 4}, f"r{n}", **rules) for n in range(8)]
    for items in found:
        assert items[1].item_id == "i1"
        for place, item in enumerate(items):
            expected = 1.0 if place == 1 else 0.5 if item.item_id == plain[place] else 0.1
            assert item.propensity == pytest.approx(expected)
            assert ("explored" in item.policy) == (expected == 0.1)
    assert len({tuple(ids(items)) for items in found}) > 1
    assert ids(desk.ask({"k": 4}, "r3", **rules)) == ids(found[3])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"block": [{"column": "genre", "values": ["War"]}]}, r"block\.0\.column.*one of: genres"),
        ({"block": [{"column": "genres", "values": ["Wars"]}]}, r"block\.0\.values.*for example: War"),
        ({"block": [{"column": "genres"}]}, "name items, or a column with values"),
        ({"caps": [{"column": "year", "most": 1}]}, r"caps\.0\.column"),
        ({"dedupe": {"columns": ["genres"]}}, "one value an item"),
        ({"pins": [{"item": "a", "position": 0}, {"item": "b", "position": 0}]}, "share their position"),
        ({"boost": []}, "did you mean 'boosts'"),
    ],
)
def test_mistakes_are_explained(desk: Desk, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        desk.policy(**spec)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    spec = {"block": [{"items": ["1", "2"]}], "pins": [{"item": "x", "position": 3}]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "p.json").write_text(json.dumps(spec))
    assert read_policy(tmp_path / "p.yaml") == read_policy(tmp_path / "p.json") == parse(PolicySpec, spec)
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(ConfigError, match="must be an object"):
        read_policy(tmp_path / "p.json")


def test_an_edit_is_followed_and_a_bad_one_is_not(desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("{}")
    followed = PolicyFile(path, desk.facts, poll_s=0.05)
    first = followed.terms("r").policy
    path.write_text("block: [{items: [i1]}]\n")
    time.sleep(0.5)  # nobody asks meanwhile
    assert followed.terms("r").policy is not first, "also the first request after an edit"
    second = _waited(lambda: found if (found := followed.terms("r").policy) is not first else None)
    assert second.spec.block[0].items == ("i1",)
    with caplog.at_level(logging.ERROR):
        path.write_text("block: [{items: [i1], colour: red}]\n")
        warning = _waited(lambda: followed.terms("r").warning)
    assert second.hash in warning
    assert "colour" in caplog.text
    told = followed.told()
    assert (told["policy"], told["policy_warning"]) == (second.hash, warning)
    assert "colour" in (told["policy_reason"] or "")
    assert not [word for word in ("colour", path.name) if word in warning], "health, which is open, tells the warning"
    assert followed.terms("r").policy is second
    path.unlink()
    followed.refresh()
    assert followed.terms("r").policy is second
    path.write_text("{}")
    assert _waited(lambda: not followed.terms("r").warning)
    assert followed.told() == {"policy": first.hash, "policy_warning": None, "policy_reason": None}
    with pytest.raises(ConfigError):
        PolicyFile(tmp_path / "none.yaml", desk.facts)


@pytest.mark.parametrize("text", ["{{ items }}", "[a]: b", "block: 2024-13-45", "[" * 5000], ids=lambda text: text[:20])
def test_no_bad_edit_ends_the_following(desk: Desk, tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("{}")
    followed = PolicyFile(path, desk.facts, poll_s=0.02)
    first = followed.terms("r").policy
    path.write_text(text)
    assert "not valid" in _waited(lambda: followed.terms("r").warning)
    assert followed.terms("r").policy is first
    path.write_text("block: [{items: [i1]}]\n")
    assert _waited(lambda: followed.terms("r").policy is not first)
    assert followed.terms("r").warning is None


def test_an_error_that_nobody_thought_of_does_not_end_it_either(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("{}")
    followed = PolicyFile(path, desk.facts, poll_s=0.02)
    followed.facts = None  # type: ignore[assignment]
    path.write_text("caps: [{column: genres, most: 1}]\n")
    assert "not valid" in _waited(lambda: followed.terms("r").warning)
    assert "AttributeError" in (followed.reason or "")
    followed.facts = desk.facts
    path.write_text("caps: [{column: genres, most: 2}]\n")
    assert _waited(lambda: not followed.terms("r").warning)


def test_half_of_an_edit_in_place_is_never_in_force(desk: Desk, tmp_path: Path) -> None:
    """Nor told: of this file every line more is a policy, and nothing at all the empty one."""
    for wait_s in (0.4, 1.0, 2.5):  # longer where the machine is too busy to write in small steps
        if _edited_slowly(desk, tmp_path / f"policy-{wait_s}.yaml", wait_s):
            return
    raise AssertionError("this machine never wrote two lines within a second")


def _edited_slowly(desk: Desk, path: Path, wait_s: float) -> bool:
    """Whether the lines came as fast as was meant; then the half-written file must never have been in force."""
    path.write_text("block: [{items: [i1]}]\n")
    followed, seen, gap, last = PolicyFile(path, desk.facts, poll_s=wait_s), set[object](), 0.0, time.monotonic()
    with path.open("w") as slow:
        for line in ("", "block:\n", *(f"- {{items: [i{n % 9 + 1}]}}\n" for n in range(60))):
            slow.write(line)
            slow.flush()
            time.sleep(wait_s / 20)
            terms = followed.terms("r")
            seen.add((len(terms.policy.spec.block), terms.warning))  # type: ignore[union-attr]
            gap, last = max(gap, time.monotonic() - last), time.monotonic()
    if gap > wait_s / 2:
        return False
    assert seen == {(1, None)}
    assert _waited(lambda: len(followed.terms("r").policy.spec.block) == 60)  # type: ignore[union-attr]
    return True


def test_json_that_is_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="RecursionError"):
        read_policy(tmp_path / "p.json")


def _waited(look: Any) -> Any:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError("nothing changed")


def test_the_graph_follows_a_file_and_says_which(world: TinyWorld, store: UserStore, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("block: [{column: genres, values: [War]}]\n")
    settings, release = FlowSettings(pool=20, rerank=5, cold=2), load_release(world.releases)
    graph = RankingGraph.open(release, settings, store, str(path))
    answer: RankResponse = graph.respond(RecommendRequest(user_id="u3", k=5), NOW)
    assert answer.policy == graph.policy.terms("").policy.hash  # type: ignore[union-attr]
    assert "War" not in {genre(i) for i in answer.items}
    assert answer.warnings == []
    path.write_text("[]")
    graph.policy.refresh()  # type: ignore[union-attr]
    again = graph.respond(RecommendRequest(user_id="u3", k=5), NOW)
    assert "not valid since its last edit" in again.warnings[-1]
    assert ids(again.items) == ids(answer.items)


def test_a_dry_run_shows_both_orders(desk: Desk) -> None:
    desk.graph.parts = replace(desk.graph.parts, settings=FlowSettings(pool=ITEMS, rerank=ITEMS))
    request = RecommendRequest(user_id="u3", k=3, time=NOW)
    plain = desk.ask({"k": 4})
    tried = desk.policy(block=[{"items": [plain[1].item_id]}], pins=[{"item": plain[3].item_id, "position": 0}])
    orders = [desk.graph.answer(request, NOW, Terms("r", policy))[0] for policy in (desk.policy(), tried)]
    found = difference(request, orders[0], orders[1], desk.graph.named).items
    a, b, c, d = ids(plain)
    assert [(i.item_id, i.before, i.after) for i in found] == [(d, None, 0), (a, 0, 1), (c, 2, 2), (b, 1, None)]
    assert [i.policy for i in found] == [["pinned"], [], [], []]


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"block": [{"items": ["a"]}] * 201}, "block"),
        ({"available": [{"items": ["a"]}] * 201}, "available"),
        ({"boosts": [{"items": ["a"]}] * 524_000}, "boosts"),
        ({"block": [{"items": ["a"] * 100_001}]}, "block.0.items"),
        ({"block": [{"column": "genres", "values": ["War"] * 1001}]}, "block.0.values"),
        ({"caps": [{"column": "genres", "most": 1}] * 51}, "caps"),
        ({"dedupe": {"columns": ["genres"] * 51}}, "dedupe.columns"),
        ({"pins": [{"item": f"i{n}", "position": n % 400} for n in range(501)]}, "pins"),
    ],
)
def test_lists_of_rules_end_somewhere(raw: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=f"policy: {where}.*at most"):
        parse(PolicySpec, raw, "policy")
