"""Items put and removed while serving: every stage knows them, whichever process it runs in, and after a restart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rayrank.batch import Catalogue
from rayrank.messages import ItemsRequest, RankRequest, RecommendRequest
from rayrank.ranking.desk import BacklogError
from rayrank.ranking.flow import FlowParts, FlowSettings, Missed, Ranked, rank_flow
from rayrank.ranking.graph import RankingGraph, bundle_ids, flow_parts, open_bundles
from rayrank.ranking.item_log import ItemsSpec
from rayrank.ranking.items import Items
from rayrank.ranking.release import Release
from rayrank.ranking.respond import Named, respond
from rayrank.ranking.store import UserStore
from tests.shop import NOW, SPEC, Shop
from tests.tiny_release import ITEMS, TinyWorld, save_teacher, tokens_of

NEW = {"item_id": "new", "text": "red dog story", "attributes": {"genres": "War", "year": 1995}, "title": "A red dog"}
ALL = [f"i{n}" for n in range(1, ITEMS + 1)]


def driven(request: Any, parts: FlowParts, stages: Mapping[str, Callable[..., Any]]) -> Ranked:
    """The flow's answer from these stages."""
    flow, result = rank_flow(request, parts), None
    while True:
        try:
            call = flow.send(result)
        except StopIteration as done:
            found: Ranked = done.value
            return found
        result = stages[call.stage](*call.arguments)


def test_a_put_item_is_retrieved_named_and_ranked_as_if_it_were_described(shop: Shop) -> None:
    same = {"item_id": "other", "text": NEW["text"], "attributes": NEW["attributes"]}
    described = shop.ask(candidates=[same], history=["i3"]).items[0]
    answer = shop.tell(NEW)
    assert (answer.new, answer.updated, answer.removed, answer.warnings) == (1, 0, 0, [])
    known = shop.ask(candidates=["new"], history=["i3"])
    assert known.warnings == []
    assert (known.items[0].title, known.items[0].cold) == ("A red dog", False)
    assert known.items[0].score == pytest.approx(described.score, abs=1e-6)
    found = shop.ask(k=ITEMS + 1, user_id="u3", exclude_seen=False, pool=40)
    assert {i.item_id for i in found.items} == {*ALL, "new"}
    vector = {i.item_id: i.sources.get("vector", 0) for i in found.items}
    assert sorted(vector.values()) == list(range(1, ITEMS + 2)), "it has a place in the index"
    assert "new" in shop.ids(query="red dog", k=40, history=["i3"])
    assert [h.item_id for h in shop.graph.items.search("red dog")] == ["new"]


def test_the_student_has_the_teachers_vector_from_the_first_request_on(shop: Shop) -> None:
    shop.tell(NEW)
    first, second = (shop.ask(candidates=["new", "i1"], history=["i3"]) for _ in range(2))
    assert [i.stages for i in first.items] == [i.stages for i in second.items]
    student = shop.graph.bundles.student
    assert student is not None
    vector = shop.follower.log.vectors(bundle_ids(shop.graph.release)["teacher"], 1)
    part = Catalogue(
        {"genres": torch.tensor([[3, 0]]), "year": torch.tensor([0.5])}, torch.zeros(1), vectors_ND=torch.tensor(vector)
    )
    expected = student.model.item_vectors(part, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(shop.graph.scorer("student").put.rows_AW, expected, rtol=1e-5, atol=1e-6)


def test_a_removed_item_is_never_answered_until_it_is_put_again(shop: Shop) -> None:
    assert "i2" in shop.ids(user_id="u3", k=40)
    answer = shop.tell(NEW, remove=("i2", "nowhere"))
    assert (answer.removed, answer.warnings) == (
        1,
        ["1 id without a description not in the catalogue that this replica knows"],
    )
    assert shop.desk.status("nowhere") is None
    assert shop.desk.status("i2").status == "removed"  # type: ignore[union-attr]
    for body in ({"user_id": "u3"}, {"user_id": "stranger"}, {"query": "title 2"}, {"history": ["i2"]}):
        assert "i2" not in shop.ids(k=40, pool=40, **body)
    ranked = shop.ask(candidates=["i1", "i2", {"item_id": "nowhere", "text": "dog"}])
    assert [i.item_id for i in ranked.items] == ["i1"]
    assert ranked.items[0].position == 0
    assert ranked.warnings[-1] == "2 candidates removed or not available: left out"
    assert shop.ask(candidates=["i2"]).items == []
    assert len(shop.ids(user_id="stranger", k=ITEMS, pool=40)) == ITEMS, "another takes its place"
    shop.tell({"item_id": "i2"}, {"item_id": "nowhere", "text": "dog"}, remove=("new",))
    found = shop.ids(user_id="stranger", k=40, pool=40)
    assert {"i2", "nowhere"} <= set(found)
    assert "new" not in found


def test_popular_items_without_the_retriever_leave_out_what_is_gone(shop: Shop) -> None:
    shop.tell(remove=("i1",))
    request = RecommendRequest(k=40)
    stages = {**shop.graph.stages(NOW), "retrieve": lambda *_: Missed("full")}
    assert sorted(driven(request, shop.graph.parts, stages).rows.tolist()) == list(range(2, ITEMS + 1))


def test_availability_is_told_by_the_id_alone(shop: Shop) -> None:
    assert shop.tell({"item_id": "i1", "available": False}).availability == 1
    shop.tell(NEW | {"available": False})  # type: ignore[operator]
    assert not {"i1", "new"} & set(shop.ids(k=40, pool=40))
    assert shop.desk.status("new").status == "unavailable"  # type: ignore[union-attr]
    shop.tell({"item_id": "i1"}, {"item_id": "new", "available": True})
    assert {"i1", "new"} <= set(shop.ids(k=40, pool=40))


def test_a_known_item_is_changed_keeps_its_trained_id_and_stays_seen(shop: Shop) -> None:
    before = shop.ask(candidates=["i16", "i2"], history=["i3"])
    answer = shop.tell({"item_id": "i16", "text": "space war", "attributes": {"genres": "Comedy", "year": 2010}})
    assert (answer.new, answer.updated) == (0, 1)
    after = shop.ask(candidates=["i16", "i2"], history=["i3"])
    old, new = ({i.item_id: i.score for i in r.items} for r in (before, after))
    assert old["i2"] == new["i2"]
    assert abs(old["i16"] - new["i16"]) > 1e-3
    assert "i16" not in shop.ids(user_id="u3", k=40, pool=40), "u3 saw it under its row in the release"
    assert shop.ids(user_id="u1", k=40, pool=40).count("i16") == 1
    teacher = shop.graph.bundles.teacher
    assert teacher is not None
    ids, offsets = tokens_of(["space war"])
    part = Catalogue({"genres": torch.tensor([[2, 0]]), "year": torch.tensor([2.0])}, torch.zeros(1), ids, offsets[1:])
    expected = teacher.model.item_vectors(part, torch.tensor([16]))
    torch.testing.assert_close(shop.graph.scorer("teacher").put.rows_AW, expected, rtol=1e-5, atol=1e-6)


def test_a_restart_and_every_stage_in_a_process_of_its_own_answer_the_same(
    shop: Shop, world: TinyWorld, release: Release, store: UserStore, tmp_path: Path
) -> None:
    from rayrank.on_ray.graph_spec import GraphSpec
    from rayrank.on_ray.serve import PreRank, ReRank, Retrieve, UserState

    shop.tell(NEW, {"item_id": "i16", "text": "space war"}, remove=("i5",))
    shop.tell({"item_id": "later", "attributes": {"title": "Later", "genres": "Drama"}})
    bodies: list[dict[str, Any]] = [
        {"user_id": "u3", "k": 40, "pool": 40},
        {"history": ["new", {"item_id": "i16", "labels": {"like": 1}}], "k": 9},
        {"candidates": ["later", "i5", "new", "i16", "lost"], "user_id": "u5"},
    ]
    expected = [shop.ask(**body).items for body in bodies]
    again = Shop(release, tmp_path / "items", store)
    assert [again.ask(**body).items for body in bodies] == expected

    places = {"releases": str(world.releases), "histories": str(tmp_path / "h.sqlite"), "state": None}
    spec = GraphSpec(**places, flow=FlowSettings(pool=40, rerank=5, cold=2), items=SPEC)
    spec = spec.model_copy(update={"items": ItemsSpec(path=str(tmp_path / "items"), poll_s=30)})
    raw = {"spec": spec.model_dump(mode="json"), "release": release.model_dump(mode="json")}
    work: dict[str, Callable[..., Any]] = {
        name: stage(raw)._work.one
        for name, stage in {"user": UserState, "retrieve": Retrieve, "student": PreRank, "teacher": ReRank}.items()
    }
    prepare = work["user"]
    work["user"] = lambda request: prepare(request, NOW)
    for body, items in zip(bodies, expected, strict=True):
        cls = RankRequest if "candidates" in body else RecommendRequest
        request = cls.model_validate({"time": NOW, "explain": True, **body})
        ranked = driven(request, shop.graph.parts, work)
        assert respond(request, ranked, shop.graph.named, "r", {"total": 1.0}).items == items


def test_stages_that_have_not_followed_yet_answer_without_the_new_item(shop: Shop, release: Release) -> None:
    bundles = open_bundles(release)
    behind = Items.of(bundles.first.items)
    parts = flow_parts(release, FlowSettings(pool=40), bundles.first.info.data_schema, behind)
    named = Named("r", {}, behind, bundles.first.info.data_schema)
    shop.tell(NEW)

    request = RecommendRequest(user_id="u1", k=40, exclude_seen=False)
    answer = respond(request, driven(request, parts, shop.graph.stages(NOW)), named, "r", {})
    assert {i.item_id for i in answer.items} == set(ALL), "the retriever knows a row without a name here"
    late = RankingGraph.open(release, FlowSettings(pool=40))
    rows = np.asarray([1, shop.graph.items.row("new")])
    context = shop.graph.user.prepare(request, NOW).context  # type: ignore[union-attr]
    cold = shop.graph.user.prepare(request, NOW).cold  # type: ignore[union-attr]
    for role in ("student", "teacher"):
        early = late.scorer(role).score(context, rows, cold).scores["like"]
        unknown = late.scorer(role).score(context, np.asarray([1, 0]), cold).scores["like"]
        np.testing.assert_allclose(early, unknown, atol=1e-6)


def test_a_younger_release_encodes_again_and_drops_what_it_knows_better(
    shop: Shop, release: Release, tmp_path: Path
) -> None:
    shop.tell(NEW, {"item_id": "i16", "text": "space war"}, remove=("i5",), now=1_700_000_000)
    shop.tell({"item_id": "i17", "text": "space war"}, now=1_900_000_000)
    save_teacher(tmp_path / "teacher")
    manifest = tmp_path / "teacher" / "bundle.json"
    manifest.write_text(manifest.read_text() + " ")  # the same model under another id
    younger = release.model_copy(
        update={"release_id": "tiny-2", "teacher": str(tmp_path / "teacher"), "created": "2026-01-01T00:00:00+00:00"}
    )
    teacher_id = bundle_ids(younger)["teacher"]
    after = Shop(younger, tmp_path / "items")
    after.follower.refresh()
    assert after.follower.log.vectors(teacher_id, 1) is not None
    assert after.desk.counts() == {"put": 2, "removed": 1, "waiting": 0, "dropped": 1, "room": 7}
    assert after.graph.items.row("i16") == 16
    assert after.graph.items.row("i17") > ITEMS
    assert "new" in after.ids(k=40, pool=40)
    assert "i5" not in after.ids(k=40, pool=40), "what was removed stays removed"


def test_policies_hold_for_put_items(release: Release, store: UserStore, tmp_path: Path) -> None:
    policy = {"block": [{"column": "genres", "values": ["Comedy"]}], "pins": [{"item": "new", "position": 1}]}
    policy |= {"boosts": [{"items": ["last"], "add": -9}], "diversity": {"relevance": 0.5, "top": 20}}
    policy |= {"caps": [{"column": "genres", "most": 2, "first": 3}]}
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(policy))
    shop = Shop(release, tmp_path / "items", store, str(file))
    shop.tell(NEW, {"item_id": "blocked", "attributes": {"genres": "Comedy"}}, {"item_id": "last", "text": "dog"})
    found = shop.ids(user_id="u3", k=40, pool=40)
    assert (found[1], found[-1]) == ("new", "last")
    assert "blocked" not in found
    assert shop.ids(candidates=["blocked", "i1"]) == ["i1"]
    shop.tell(remove=("new",))
    assert "new" not in shop.ids(user_id="u3", k=40, pool=40)


def test_the_answer_warns_of_values_that_say_nothing(shop: Shop) -> None:
    odd = {"item_id": "odd", "attributes": {"genres": "Comdy|War", "year": "soon", "moon": "full", "plot": "x"}}
    answer = shop.tell(odd)
    assert answer.warnings == [
        "attributes.genres: 1 value that the release does not know, or knew too rarely (did you mean 'Comedy'?)",
        "attributes.year: 1 value that is no number",
        "not used by this release: attributes.moon",
    ]
    asked = shop.ask(candidates=[{"attributes": odd["attributes"]}])
    assert asked.warnings[:3] == answer.warnings


def test_too_many_waiting_items_are_refused_and_nothing_of_them_is_kept(shop: Shop) -> None:
    shop.desk.accept(
        ItemsRequest.model_validate({"items": [{"item_id": f"n{n}", "text": "x"} for n in range(4)]}), "r", 1
    )
    assert shop.desk.status("n1").status == "waiting"  # type: ignore[union-attr]
    with pytest.raises(BacklogError, match="4 items wait"):
        shop.tell({"item_id": "a", "text": "x"}, {"item_id": "b", "text": "x"})
    assert shop.desk.status("a") is None
    shop.follower.refresh()
    assert shop.desk.status("n1").status == "served"  # type: ignore[union-attr]
