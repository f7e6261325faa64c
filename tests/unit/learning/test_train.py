"""The loop: equal numbers for any number of ranks, resumable, averaged weights, texts encoded once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, zip_longest
from typing import Any

import pytest
import torch

from rayrank.batch import SequenceBatch
from rayrank.learning.inputs import DivergedError, Hooks, Snapshot, TrainData, TrainSpec, Used
from rayrank.learning.optimiser import Average, schedule
from rayrank.learning.spec import RowsSpec
from rayrank.learning.train import TrainResult, _Run, train
from rayrank.models.ranker import Ranker
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from tests.tiny_models import batch, catalogue, steps_of, with_labels
from tests.tiny_runs import LEARNING, Threads, batches, curve, fresh, keep_in, on_ranks, run


@pytest.mark.parametrize("kind", ["attentive", "student", "sequence", "two_tower"])
def test_one_and_two_ranks_agree_on_the_loss_curve(kind: str) -> None:
    given, spec = batches(), TrainSpec(LEARNING)
    alone = run(fresh(kind), given, spec)
    first, second = on_ranks(2, lambda: fresh(kind), given, spec)
    assert len(alone.curve) == 6
    for name in alone.curve[0]:
        torch.testing.assert_close(curve(first, name), curve(alone, name), rtol=0, atol=1e-4)
        torch.testing.assert_close(curve(second, name), curve(first, name), rtol=0, atol=0)
    for name, value in alone.metrics.items():
        assert first.metrics[name] == pytest.approx(value, abs=1e-3, nan_ok=True)


def test_ranks_agree_when_one_has_no_label_of_a_task() -> None:
    given = batches(4)
    for n in (1, 3):  # the second lane, so the second rank
        given[n] = with_labels(given[n], stars=torch.full_like(given[n].events.labels_BT["stars"], float("nan")))
    spec = TrainSpec(LEARNING)
    alone = run(fresh("teacher"), given, spec)
    first, _ = on_ranks(2, lambda: fresh("teacher"), given, spec)
    torch.testing.assert_close(curve(first), curve(alone), rtol=0, atol=1e-4)
    torch.testing.assert_close(curve(first, "loss/stars"), curve(alone, "loss/stars"), rtol=0, atol=1e-4)


def test_ranks_agree_when_lanes_are_uneven_and_a_rank_has_nothing() -> None:
    given = batches(1)
    alone = run(fresh("teacher"), given, TrainSpec(LEARNING))
    first, second = on_ranks(2, lambda: fresh("teacher"), given, TrainSpec(LEARNING))
    torch.testing.assert_close(curve(first), curve(alone), rtol=0, atol=1e-4)
    assert len(second.curve) == len(alone.curve) == 2


def test_a_rank_with_three_times_the_rows_finishes_with_the_other() -> None:
    """Blocks of prime sizes; the short rank has no step left and still answers every collective call."""
    sizes = ((5, 7, 11, 13, 5, 7), (3, 13))
    lanes = [[batch(sequences=n, seed=n + 9 * k, first_key=50 * k) for k, n in enumerate(lane)] for lane in sizes]

    def fed(model: Ranker, mine: list[list[SequenceBatch]], collectives: Threads | None) -> TrainResult:
        steps = [[one for one in step if one is not None] for step in zip_longest(*mine)]
        every = [one for lane in mine for one in lane]
        data = TrainData(catalogue(), lambda _, start: iter(steps[start:]), max(map(len, sizes)), lambda: iter(every))
        return train(model, data, TrainSpec(LEARNING), None, collectives)

    alone = fed(fresh("teacher"), lanes, None)
    shared: dict[str, Any] = {"barrier": threading.Barrier(2)}
    models = [fresh("teacher") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(fed, models[r], [lanes[r]], Threads(r, 2, shared)) for r in range(2)]
        first, second = (one.result(120) for one in runs)
    torch.testing.assert_close(curve(first), curve(alone), rtol=0, atol=1e-4)
    assert len(second.curve) == len(alone.curve) == 2 * 6


def test_a_bad_prediction_on_one_rank_ends_all_ranks_with_the_same_mistake() -> None:
    given, bad = batches(2), batches(2)[1]
    bad = with_labels(bad, stars=torch.full_like(bad.events.labels_BT["stars"], float("inf")))
    shared: dict[str, Any] = {"barrier": threading.Barrier(2)}

    def fed(rank: int) -> TrainResult:
        valid = [given[0], bad][rank]
        data = TrainData(catalogue(), lambda _, start: iter([[given[rank]]][start:]), 1, lambda: iter([valid]))
        return train(models[rank], data, TrainSpec(LEARNING), None, Threads(rank, 2, shared))

    models = [fresh("teacher") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for run_of_rank in [pool.submit(fed, rank) for rank in range(2)]:
            with pytest.raises(DivergedError, match="predictions on valid are no numbers"):
                run_of_rank.result(60)


def test_equal_seeds_give_equal_numbers_and_others_do_not() -> None:
    given = batches(3)
    first, second = (run(fresh("teacher"), given, TrainSpec(LEARNING)) for _ in range(2))
    torch.testing.assert_close(curve(first), curve(second), rtol=0, atol=0)
    other = run(fresh("teacher"), given, TrainSpec(LEARNING.model_copy(update={"seed": 1})))
    assert not torch.allclose(curve(first), curve(other), atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one() -> None:
    given, saved = batches(3), []
    whole = run(fresh("teacher"), given, TrainSpec(LEARNING), hooks=Hooks(on_epoch=keep_in(saved)))
    model = fresh("teacher")
    resumed = run(model, given, TrainSpec(LEARNING), hooks=Hooks(resume=saved[0]))
    torch.testing.assert_close(curve(resumed), curve(whole), rtol=0, atol=1e-6)
    assert resumed.metrics == pytest.approx(whole.metrics, nan_ok=True)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_goes_on_at_any_step_to_the_same_weights(world: int, encoder: bool) -> None:
    """Every snapshot of both stages, taken after every step, leads to the weights of the uninterrupted run."""
    given, make = batches(4), lambda: fresh("teacher", encoder)
    saved: list[list[Snapshot]] = [[] for _ in range(world)]

    def hooks(rank: int) -> Hooks:
        # Only the last rank asks; all of them must hear it.
        return Hooks(due=lambda: rank == world - 1, on_snapshot=keep_in(saved[rank]))

    whole = on_ranks(world, make, given, TrainSpec(LEARNING), hooks)[0]
    places = [(s.meta["stage"], s.meta["epoch"], s.meta["position"]) for s in saved[0]]
    assert {stage for stage, _, _ in places} == {"rows", "sequences"}
    assert len(set(map(str, places))) == len(places)
    for number in range(0, len(places), 3 if world == 1 else 7):
        taken = saved[0][number]  # one rank's snapshot serves all, as after a restart
        rest = on_ranks(world, make, given, TrainSpec(LEARNING), lambda _, t=taken: Hooks(resume=t))[0]
        torch.testing.assert_close(curve(rest), curve(whole), rtol=0, atol=0)
        assert rest.metrics == pytest.approx(whole.metrics, abs=0, nan_ok=True), places[number]


@pytest.mark.parametrize("world", [2, 3])
def test_metrics_of_valid_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    still = {"learning_rate": 1e-30, "id_learning_rate": 1e-30, "epochs": 1, "lanes": 3, "choose_blend": False}
    spec = TrainSpec(LEARNING.model_copy(update=still | {"rows": RowsSpec(epochs=0)}))
    given = batches(5)  # no rank has what another has
    alone = run(fresh("teacher"), given, spec).metrics
    assert {name.split("/")[0] for name in alone} == {"streaming", "snapshot"}
    for ranked in on_ranks(world, lambda: fresh("teacher"), given, spec):
        assert ranked.metrics == pytest.approx(alone, abs=1e-9, rel=0, nan_ok=True)


@pytest.mark.parametrize(("errors", "best"), [([3.0, 4.0, 1.0, 1.0], 0), ([3.0, 2.0, 4.0, 1.0], 1)])
def test_a_run_that_patience_ends_ends_there_too_when_it_goes_on(errors: Any, best: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(_Run, "_evaluate", lambda self: {"streaming/stars/rmse": errors[self.epoch]})
    spec = TrainSpec(LEARNING.model_copy(update={"epochs": 4, "patience": 1}))
    saved: list[Snapshot] = []
    whole = run(fresh("student"), batches(3), spec, hooks=Hooks(on_epoch=keep_in(saved)))
    assert (whole.best_epoch, len(whole.history)) == (best, best + 2)
    for taken in saved:
        rest = run(fresh("student"), batches(3), spec, hooks=Hooks(resume=taken))
        assert (rest.best_epoch, len(rest.history)) == (whole.best_epoch, len(whole.history))
        assert rest.metrics == whole.metrics


def test_every_target_is_used_once_an_epoch_and_also_after_going_on() -> None:
    given, saved, used = batches(4), list[Snapshot](), dict[tuple[str, int, int], list[int]]()

    def note(one: Used) -> None:
        used[one.stage, one.epoch, one.step] = one.row.tolist()

    hooks = Hooks(due=lambda: len(saved) < 3, on_snapshot=keep_in(saved), on_used=note)
    run(fresh("teacher"), given, TrainSpec(LEARNING), hooks=hooks)
    whole = dict(used)
    every = sorted(int(r) for b in given for r in b.row_BT[b.part_BT == 1])
    for stage, epochs in (("rows", 1), ("sequences", 2)):
        for epoch in range(epochs):
            rows = [r for (s, e, _), found in whole.items() if (s, e) == (stage, epoch) for r in found]
            assert sorted(rows) == every
    used.clear()
    run(fresh("teacher"), given, TrainSpec(LEARNING), hooks=Hooks(on_used=note, resume=saved[2]))
    before = {place: rows for place, rows in whole.items() if place not in used}
    assert before | used == whole
    assert len(before) == 3


def test_learning_lowers_the_loss_and_keeps_the_best_epoch() -> None:
    learning = LEARNING.model_copy(update={"epochs": 8, "learning_rate": 2e-2, "horizon": 0.0})
    result = run(fresh("student"), batches(4), TrainSpec(learning))
    losses = curve(result, "loss/stars")
    assert float(losses[-2:].mean()) < 0.7 * float(losses[:2].mean())
    errors = [entry["metrics"]["streaming/stars/rmse"] for entry in result.history]
    assert result.best_epoch == errors.index(min(errors))
    assert result.metrics["streaming/stars/rmse"] == min(errors)


@pytest.mark.parametrize(("found", "best"), [([9.0, 3.0, 4.0], 1), (["nan", 3.0, "nan"], 1), (["inf", "nan", 5.0], 2)])
def test_an_epoch_without_a_number_is_beaten_by_any_with_one(found: list[Any], best: int, monkeypatch: Any) -> None:
    values = iter(found)
    monkeypatch.setattr(_Run, "_evaluate", lambda _: {"streaming/stars/rmse": float(next(values))})
    result = run(fresh("student"), batches(2), TrainSpec(LEARNING.model_copy(update={"epochs": 3})))
    assert result.best_epoch == best


def test_a_student_learns_from_soft_labels_alone() -> None:
    given = []
    for one in batches(3):
        nothing = {n: torch.full_like(v, float("nan")) for n, v in one.events.labels_BT.items()}
        soft = {n: torch.full_like(v, 0.9) for n, v in one.events.labels_BT.items()}
        given.append(replace(one, events=replace(one.events, labels_BT=nothing), soft_BT=soft))
    learning = LEARNING.model_copy(update={"epochs": 6, "learning_rate": 5e-2})
    objective = ObjectiveSpec(distillation=DistillationSpec(mix=1.0), weights={"stars": 1.0})
    data = TrainData(catalogue(), lambda _, start: islice(steps_of(given, 1), start, None), 3)
    result = train(fresh("student"), data, TrainSpec(learning, objective))
    assert curve(result, "loss/stars")[-1] < 0.2 * curve(result, "loss/stars")[0]


@pytest.mark.parametrize("key", ["learning.rows.learning_rate", "learning.learning_rate"])
@pytest.mark.parametrize("world", [1, 2])
def test_divergence_names_the_learning_rate_of_its_stage(key: str, world: int) -> None:
    huge = {"learning_rate": 1e30}
    rows = LEARNING.rows.model_copy(update=huge if "rows" in key else {})
    learning = LEARNING.model_copy(update={"rows": rows, **({} if "rows" in key else huge)})
    shared: dict[str, Any] = {"barrier": threading.Barrier(world)}
    caught: list[DivergedError] = []

    def work(rank: int) -> None:
        with pytest.raises(DivergedError, match=r"no numbers at step|loss is|no solution") as found:
            run(fresh("student"), batches(), TrainSpec(learning), Threads(rank, world, shared))
        caught.append(found.value)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [(error.key, error.value) for error in caught] == [(key, 1e30)] * world


def test_unknown_weights_and_metrics_are_mistakes() -> None:
    with pytest.raises(ValueError, match="unknown tasks"):
        run(fresh("teacher"), batches(1), TrainSpec(LEARNING, ObjectiveSpec(weights={"nope": 1.0})))
    wrong = LEARNING.model_copy(update={"choose": "stars/nope"})
    with pytest.raises(ValueError, match="metrics of task stars: rmse"):
        run(fresh("teacher"), batches(1), TrainSpec(wrong))


def test_the_blend_is_chosen_on_valid_between_the_two_paths() -> None:
    model = fresh("teacher")
    result = run(model, batches(4), TrainSpec(LEARNING))
    assert result.history
    shares = model.static_share_K
    assert ((shares >= 0) & (shares <= 1)).all()
    off = fresh("teacher")
    run(off, batches(2), TrainSpec(LEARNING.model_copy(update={"rows": RowsSpec(epochs=0)})))
    assert torch.equal(off.static_share_K, torch.zeros(2))


def test_averaged_weights_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average = Average([weight], 0.5)
    expected = 1.0
    for number, value in enumerate((3.0, 5.0), start=1):
        weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert weight.item() == pytest.approx(expected)
    assert weight.item() == 5.0


def test_the_schedule_rises_and_falls() -> None:
    assert schedule(0.05, 0.1, 0.02) == pytest.approx(0.5)
    assert schedule(0.1, 0.1, 0.02) == pytest.approx(1.0)
    assert schedule(0.55, 0.1, 0.02) == pytest.approx(0.51)
    assert schedule(1.0, 0.1, 0.02) == pytest.approx(0.02)
