"""The literal teacher in the training loop: it learns from words, on any number of ranks, and goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayrank.batch import SequenceBatch
from rayrank.learning.inputs import Hooks, Snapshot, TrainData, TrainSpec, Used
from rayrank.learning.predict import Wanted, predict
from rayrank.learning.spec import LearningSpec, RowsSpec
from rayrank.learning.train import train
from rayrank.metrics.summary import evaluate_scores
from rayrank.models.noise import Noise
from rayrank.models.tuning import AdaLora, Full, Lora, TuneSpec
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import some_targets
from rayrank.schema import TRAIN
from tests.tiny_models import ITEMS, SCHEMA, batch, catalogue
from tests.tiny_runs import LEARNING, batches, curve, fresh, keep_in, on_ranks, run

KINDS: list[TuneSpec] = [Full(), Lora(rank=2), AdaLora(rank=1, first_rank=2)]


def learning(**changes: object) -> LearningSpec:
    return LEARNING.model_copy(update={"encoder_learning_rate": 1e-2, **changes})


@pytest.mark.parametrize("tuned", KINDS, ids=lambda s: s.kind)
def test_the_numbers_do_not_depend_on_the_number_of_ranks(tuned: TuneSpec) -> None:
    given, how = batches(4), TrainSpec(learning(targets_per_sequence=3))
    alone = run(fresh("cross", encoder=True, tuned=tuned), given, how)
    first, second = on_ranks(2, lambda: fresh("cross", encoder=True, tuned=tuned), given, how)
    torch.testing.assert_close(curve(first), curve(alone), rtol=0, atol=1e-4)
    assert first.catalogue.vectors_ND is not None
    torch.testing.assert_close(first.catalogue.vectors_ND, alone.catalogue.vectors_ND, rtol=0, atol=1e-3)
    assert first.metrics == pytest.approx(second.metrics, nan_ok=True)


@pytest.mark.parametrize("tuned", [Full(), AdaLora(rank=1, first_rank=2)], ids=lambda s: s.kind)
def test_training_goes_on_as_if_it_had_not_stopped(tuned: TuneSpec) -> None:
    how, kept = TrainSpec(learning(targets_per_sequence=2)), list[Snapshot]()
    hooks = Hooks(due=lambda: True, on_snapshot=keep_in(kept))
    whole = run(fresh("cross", encoder=True, tuned=tuned), batches(4), how, hooks=hooks)
    last = kept[-2]
    assert (last.meta["stage"], last.meta["epoch"], last.meta["position"]) == ("sequences", 1, 1)
    again = run(fresh("cross", encoder=True, tuned=tuned), batches(4), how, hooks=Hooks(resume=last))
    torch.testing.assert_close(curve(again), curve(whole), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.catalogue.vectors_ND, whole.catalogue.vectors_ND, rtol=0, atol=1e-6)


def test_text_vectors_are_those_of_the_tuned_encoder() -> None:
    model = fresh("cross", encoder=True, tuned=Full())
    table = run(model, batches(2), TrainSpec(learning())).catalogue
    assert table.token_ids is not None
    assert table.token_offsets is not None
    with torch.no_grad():
        alone = model.encoder.encode(table.token_ids, table.token_offsets, torch.arange(len(table)))  # type: ignore
    torch.testing.assert_close(table.vectors_ND, alone, rtol=1e-5, atol=1e-5)


def worded(seed: int) -> SequenceBatch:
    """Labels that only words tell: users like items of even numbers, whose words no other item has, or the others."""
    given = batch(sequences=8, length=12, seed=seed, first_key=10 * seed)
    even_BT, likes_even_B1 = given.events.item_BT % 2 == 0, (given.events.key_B % 2 == 0).unsqueeze(1)
    like_BT = (even_BT == likes_even_B1).float()
    nobody = torch.zeros_like(given.events.user_B)
    return replace(
        given, events=replace(given.events, labels_BT={"like": like_BT, "stars": 1 + 4 * like_BT}, user_B=nobody)
    )


def test_taste_is_read_from_words() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, 17, (ITEMS + 1, 3), generator=generator) + 13 * (torch.arange(ITEMS + 1) % 2)[:, None]
    table = replace(
        catalogue(), vectors_ND=None, token_ids=words.flatten().int(), token_offsets=torch.arange(0, 3 * ITEMS + 4, 3)
    )
    given = [worded(n) for n in range(6)]
    spec = learning(epochs=8, learning_rate=2e-2, lanes=1, horizon=0.0, rows=RowsSpec(epochs=0))
    data = TrainData(table, lambda _, start: iter([[one] for one in given[start:]]), len(given))
    model = fresh("cross", encoder=True, tuned=Full())
    result = train(model, data, TrainSpec(spec, ObjectiveSpec(weights={"like": 1.0, "stars": 1.0})))
    losses = curve(result, "loss/like")
    assert float(losses[-4:].mean()) < 0.8 * float(losses[:4].mean())
    scores = predict(model, result.catalogue, [worded(50), worded(51)], Wanted("streaming", (3,), False, False))
    assert evaluate_scores(scores, SCHEMA)["like/auc"] > 0.75


def test_a_step_asks_so_many_targets_of_a_sequence_and_other_ones_the_next_time() -> None:
    given = batch(sequences=4)
    drawn = [some_targets(given, 2, Noise(0, step).uniform("targets", given.row_BT)) for step in range(9)]
    for found in drawn:
        assert ((found.part_BT == TRAIN).sum(1) == 2).all()
        assert torch.equal(found.part_BT[given.part_BT != TRAIN], given.part_BT[given.part_BT != TRAIN])
    asked = torch.stack([found.part_BT == TRAIN for found in drawn]).any(0)
    assert torch.equal(asked, given.part_BT == TRAIN)
    all_of_them = some_targets(given, 99, torch.rand(given.part_BT.shape))
    assert torch.equal(all_of_them.part_BT, given.part_BT)


def test_no_more_targets_than_asked_for_make_a_step() -> None:
    used = list[Used]()
    run(fresh("student"), batches(2), TrainSpec(learning(targets_per_sequence=1)), hooks=Hooks(on_used=used.append))
    assert {len(one.row) for one in used if one.stage == "sequences"} == {8}  # two lanes of four sequences
