"""The teacher's best candidates of each request, against scoring every item one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayrank.batch import FAR, SequenceBatch
from rayrank.learning import best as module
from rayrank.learning import plan
from rayrank.learning.best import Finder, best
from rayrank.learning.inputs import TrainSpec
from rayrank.learning.labels import Sampler, Teacher, taught
from rayrank.learning.plan import take, trim
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.objectives.targets import training_targets
from rayrank.schema import TRAIN
from tests.tiny_models import ITEMS, batch, catalogue, model_of
from tests.tiny_runs import LEARNING, batches, curve, fresh, on_ranks, run

KEEP, OF = 3, 8


def finder(of: int = OF, task: str = "like", power: float | None = None) -> Finder:
    return Finder.of(catalogue().count_N, (KEEP, of), task, power)


def teacher(kind: str = "teacher", weight: float = 1.0) -> Teacher:
    return replace(Teacher.of(model_of(kind), catalogue()), weight=weight)


def given() -> SequenceBatch:
    of = batch(sequences=5, length=12)
    shown_BT = torch.arange(12).expand(5, 12) % 5 != 1  # the others are sampled negatives, which nobody has met
    return replace(of, events=replace(of.events, history_BT=shown_BT))


def met(of: SequenceBatch, place: tuple[int, int]) -> set[int]:
    """The items of the events that a request may see, which serving leaves out."""
    sequence, position = place
    events = of.events
    shown = range(position) if events.history_BT is None else events.history_BT[sequence, :position].nonzero()[:, 0]
    request = events.request_BT[sequence]
    return {int(events.item_BT[sequence, t]) for t in shown if request[t] < request[position]}


def slow(teachers: list[Teacher], of: SequenceBatch, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(retrieval scores, logits of "like") of every item at a place, averaged by weight."""
    sequence, position = place
    named, liked, whole = 0.0, 0.0, sum(one.weight for one in teachers)
    with torch.no_grad():
        for one in teachers:
            state = one.model.user_state(of.events, one.items_NW)
            user_BQR = one.model.retrieval(state, of.streaming().visible_before_BQ)
            found = one.model.retrieval_items(one.items_NW) @ user_BQR[sequence, position]
            said = []
            for item in range(ITEMS + 1):
                asked = replace(of.streaming(), item_BQ=torch.full_like(of.events.item_BT, item))
                said.append(one.model.score(state, asked, one.items_NW)["like"][sequence, position])
            named, liked = named + found * one.weight / whole, liked + torch.stack(said) * one.weight / whole
    return named, liked


@pytest.mark.parametrize("teachers", [[teacher()], [teacher(), teacher("student", weight=3.0)]], ids=["one", "two"])
def test_the_first_of_the_retrieval_head_are_scored_and_the_best_kept(teachers: list[Teacher]) -> None:
    of = given()
    found = best(teachers, of, finder())
    assert found.best_item_BTK is not None
    places = of.begins().nonzero().tolist()
    assert len(places) > 10
    for sequence, position in places:
        named, liked = slow(teachers, of, (sequence, position))
        ranked = [n + 1 for n in named[1:].argsort(descending=True).tolist()]
        first = [item for item in ranked if item not in met(of, (sequence, position))][:OF]
        expected = sorted(first, key=lambda item: -float(liked[item]))[:KEEP]
        assert found.best_item_BTK[sequence, position].tolist() == expected
        told = found.best_soft_BTK["like"][sequence, position]
        torch.testing.assert_close(told, liked[torch.tensor(expected)], rtol=1e-4, atol=1e-5)
    assert bool(found.best_spread_BTK) == (len(teachers) > 1)


def test_a_request_is_asked_about_once_at_its_first_train_target() -> None:
    of = given()
    begins = of.begins()
    for sequence in range(5):
        requests = of.events.request_BT[sequence]
        train = (of.part_BT[sequence] == TRAIN).nonzero()[:, 0].tolist()
        first = {int(requests[place]): place for place in reversed(train)}
        assert begins[sequence].nonzero()[:, 0].tolist() == sorted(first.values())
    assert int(begins.sum()) < int((of.part_BT == TRAIN).sum())  # some requests have two
    found = best([teacher()], of, finder())
    assert found.best_item_BTK is not None
    assert torch.equal((found.best_item_BTK > 0).any(-1), begins)
    assert torch.equal(found.best_soft_BTK["stars"].isnan(), found.best_item_BTK == 0)


def test_drawn_candidates_are_scored_once_each_and_the_best_kept() -> None:
    of, one = given(), teacher()
    drawing = finder(of=6, power=0.5)
    found = best([one], of, drawing)
    assert found.best_item_BTK is not None
    assert drawing.drawn is not None
    for sequence, position in of.begins().nonzero().tolist():
        _, liked = slow([one], of, (sequence, position))
        drawn = set(drawing.drawn.draw(of.row_BT[sequence, position]).tolist()) - met(of, (sequence, position))
        expected = sorted(drawn, key=lambda item: -float(liked[item]))[:KEEP]
        assert [n for n in found.best_item_BTK[sequence, position].tolist() if n] == expected


def test_a_small_catalogue_leaves_places_empty() -> None:
    count_N = torch.full((ITEMS + 1,), -1.0)  # may not be candidates
    count_N[4:6] = 1.0
    of = given()
    found = best([teacher()], of, Finder.of(count_N, (KEEP, 90), "stars", None))
    assert found.best_item_BTK is not None
    for sequence, position in of.begins().nonzero().tolist():
        items = found.best_item_BTK[sequence, position].tolist()
        left = {4, 5} - met(of, (sequence, position))
        assert sorted(items[: len(left)]) == sorted(left)
        assert not any(items[len(left) :])


def test_pieces_and_the_order_of_sequences_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    of, rows = given(), torch.tensor([4, 0, 3])
    whole = best([teacher()], of, finder())
    monkeypatch.setattr(plan, "_PIECE", 24)
    monkeypatch.setattr(module, "_CELLS", 50)
    some = best([teacher()], take(of, rows), finder())
    assert whole.best_item_BTK is not None
    assert some.best_item_BTK is not None
    assert torch.equal(some.best_item_BTK, whole.best_item_BTK[rows])
    one, other = some.best_soft_BTK["stars"], whole.best_soft_BTK["stars"][rows]
    torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-5, atol=1e-5)
    cut = trim(whole)
    assert cut.best_item_BTK is not None
    assert cut.best_item_BTK.shape == (*cut.part_BT.shape, KEEP)
    assert cut.best_soft_BTK["like"].shape == cut.best_item_BTK.shape


def test_a_step_asks_them_once_a_request_with_the_requests_view() -> None:
    of = taught([teacher()], given(), Sampler(catalogue().count_N, 2))
    of = best([teacher()], of, finder())
    nobody = torch.full_like(of.valid_from_B, FAR)
    unseen = torch.full(of.part_BT.shape, 0.3)
    plain, found = training_targets(of, nobody, unseen), training_targets(of, nobody, unseen, 1, 2)
    width = plain.asked_BQ.shape[1]
    assert found.best_BQ is not None
    assert not found.best_BQ[:, :width].any()
    for name in ("asked_BQ", "unseen_BQ", "share_BQ", "request_BQ", "place_BQ"):
        assert torch.equal(getattr(found, name)[:, :width], getattr(plain, name)), name
    assert of.best_item_BTK is not None
    asked = []
    for sequence, query in found.best_BQ.nonzero().tolist():
        place = int(found.place_BQ[sequence, query])
        item = int(found.queries.item_BQ[sequence, query])
        number = of.best_item_BTK[sequence, place].tolist().index(item)
        asked.append((sequence, place, number))
        assert found.soft_BQ["like"][sequence, query] == of.best_soft_BTK["like"][sequence, place, number]
        assert found.queries.visible_before_BQ[sequence, query] == of.events.request_BT[sequence, place]
        assert found.queries.time_BQ[sequence, query] == of.events.time_BT[sequence, place]
        assert found.request_BQ[sequence, query] == of.events.request_BT[sequence, place]
        assert found.share_BQ[sequence, query] == 0.5
        assert found.labels_BQ["like"][sequence, query].isnan()
    assert sorted(asked) == [(s, p, n) for s, p in of.begins().nonzero().tolist() for n in (0, 1)]
    assert training_targets(of, nobody, unseen).best_BQ is None


def test_both_stages_learn_from_them_on_any_number_of_ranks() -> None:
    teachers = [teacher(), teacher("student")]
    told = [taught(teachers, one, Sampler(catalogue().count_N, 3)) for one in batches()]
    told = [best(teachers, one, finder()) for one in told]
    about = {"best": 0.5, "best_items": 2, "agreement": 0.1, "listwise": {}, "relaxed": {"top": 2, "among": "best"}}
    spec = TrainSpec(LEARNING, ObjectiveSpec(distillation=DistillationSpec.model_validate(about)))
    alone = run(fresh("student"), told, spec)
    for result in on_ranks(2, lambda: fresh("student"), told, spec):
        for name in ("loss", "loss/like", "loss/stars"):
            torch.testing.assert_close(curve(result, name), curve(alone, name), rtol=1e-4, atol=1e-5)
    off = TrainSpec(LEARNING, ObjectiveSpec(distillation=DistillationSpec()))
    without = [replace(one, best_item_BTK=None, best_soft_BTK={}, best_spread_BTK={}) for one in told]
    one, other = (run(fresh("student"), found, off) for found in (told, without))
    torch.testing.assert_close(curve(one), curve(other), rtol=0, atol=0)  # labels that nobody asks for change nothing
    assert curve(alone)[0] != curve(one)[0]
