"""Hard negatives against scoring each pool item by item, by a teacher who is shown nothing but the past."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayrank.batch import SequenceBatch
from rayrank.learning import mining, plan
from rayrank.learning.labels import Sampler, Teacher
from rayrank.learning.mining import POOL_SEED, mined
from rayrank.learning.plan import take, trim
from rayrank.schema import TRAIN
from tests.tiny_models import batch, catalogue, model_of, only, with_labels

POOL, KEEP = 12, 4


def pool(size: int = POOL) -> Sampler:
    return Sampler(catalogue().count_N, size, seed=POOL_SEED)


def teacher(kind: str = "teacher", weight: float = 1.0) -> Teacher:
    return replace(Teacher.of(model_of(kind), catalogue()), weight=weight)


def given() -> SequenceBatch:
    return batch(sequences=6, length=16)


def asked(of: SequenceBatch) -> torch.Tensor:
    return (of.part_BT == TRAIN) & (of.events.labels_BT["like"] == 1.0)


def slow_scores(one: Teacher, of: SequenceBatch, sequence: int, place: int) -> torch.Tensor:
    """Of all items, for the user with nothing but the earlier requests."""
    request = of.events.request_BT[sequence, place]
    earlier = (of.events.request_BT[sequence] < request).nonzero()[:, 0]
    alone = only(of.events, sequence, earlier if len(earlier) else torch.tensor([place]))
    with torch.no_grad():
        state = one.model.user_state(alone, one.items_NW)
        return one.model.retrieval_items(one.items_NW) @ one.model.retrieval(state, request.view(1, 1))[0, 0]


@pytest.mark.parametrize("teachers", [[teacher()], [teacher(), teacher("student", weight=3.0)]], ids=["one", "two"])
def test_the_teachers_best_of_the_pool_are_kept(teachers: list[Teacher]) -> None:
    of = given()
    found = mined(teachers, of, pool(), KEEP)
    assert found.mined_item_BTM is not None
    assert asked(of).sum() > 20
    weight_N = (catalogue().count_N[1:] + 1).sqrt()
    for sequence, place in asked(of).nonzero().tolist():
        own = set(of.events.item_BT[sequence][asked(of)[sequence]].tolist())
        score_N = sum(one.weight * slow_scores(one, of, sequence, place) for one in teachers)
        drawn = [n for n in pool().draw(of.row_BT[sequence, place]).tolist() if n not in own]
        best = sorted(drawn, key=lambda item: -float(score_N[item]))[:KEEP]
        assert found.mined_item_BTM[sequence, place].tolist() == best
        log_q = (POOL * weight_N[torch.tensor(best) - 1] / weight_N.sum()).log()
        torch.testing.assert_close(found.mined_log_q_BTM[sequence, place], log_q)  # type: ignore[index]


def test_only_positive_train_targets_have_any() -> None:
    of = given()
    found = mined([teacher()], of, pool(), KEEP)
    assert found.mined_item_BTM is not None
    assert found.mined_log_q_BTM is not None
    assert (found.mined_item_BTM[~asked(of)] == 0).all()
    assert (found.mined_item_BTM[asked(of)] > 0).all()
    assert torch.equal(found.mined_log_q_BTM.isnan(), found.mined_item_BTM == 0)


def test_what_comes_later_changes_nothing() -> None:
    of = given()
    late_BT, labels = of.part_BT > TRAIN, of.events.labels_BT
    other = replace(of.events, item_BT=torch.where(late_BT, (of.events.item_BT + 3) % 20, of.events.item_BT))
    changed = with_labels(replace(of, events=other), like=torch.where(late_BT, 1.0, labels["like"]))
    first, second = (mined([teacher()], one, pool(), KEEP).mined_item_BTM for one in (of, changed))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_events_behind_the_last_train_target_are_not_asked_what_the_user_likes() -> None:
    of = given()
    part_BT = torch.where(of.part_BT > TRAIN, 0, of.part_BT)  # as late labels are: history alone
    found = mining.liked(replace(of, part_BT=part_BT), model_of("teacher").schema)
    assert torch.equal(found, asked(of))


def test_pieces_chunks_and_the_order_of_sequences_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    of, rows = given(), torch.tensor([4, 0, 3])
    whole = mined([teacher()], of, pool(), KEEP)
    monkeypatch.setattr(plan, "_PIECE", 32)
    monkeypatch.setattr(mining, "_CHUNK", 2)
    some = mined([teacher()], take(of, rows), pool(), KEEP)
    assert whole.mined_item_BTM is not None
    assert whole.mined_log_q_BTM is not None
    assert some.mined_item_BTM is not None
    assert some.mined_log_q_BTM is not None
    assert torch.equal(some.mined_item_BTM, whole.mined_item_BTM[rows])
    assert torch.equal(some.mined_log_q_BTM.nan_to_num(), whole.mined_log_q_BTM[rows].nan_to_num())


def test_a_pool_without_enough_leaves_places_empty() -> None:
    """Every item is liked: nothing is left of any pool."""
    of = given()
    every = torch.arange(1, 21)[:16].expand(6, 16).contiguous()
    liked = with_labels(replace(of, events=replace(of.events, item_BT=every)), like=torch.ones(6, 16))
    small = Sampler(torch.cat([torch.ones(9), -torch.ones(12)]), POOL, seed=POOL_SEED)  # draws items 1 to 8 alone
    found = mined([teacher()], liked, small, KEEP)
    assert found.mined_item_BTM is not None
    assert found.mined_log_q_BTM is not None
    assert (found.mined_item_BTM == 0).all()
    assert found.mined_log_q_BTM.isnan().all()


def test_trimming_cuts_them_too() -> None:
    cut = trim(mined([teacher()], given(), pool(), KEEP))
    assert cut.mined_item_BTM is not None
    assert cut.mined_log_q_BTM is not None
    assert cut.mined_item_BTM.shape == cut.mined_log_q_BTM.shape == (*cut.part_BT.shape, KEEP)
