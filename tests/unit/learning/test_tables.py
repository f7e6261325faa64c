"""Large id tables learn what they would learn if every step updated them whole; gradients are never that large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrank.batch import SequenceBatch
from rayrank.learning.collectives import Solo
from rayrank.learning.inputs import Hooks, Snapshot, TrainSpec
from rayrank.learning.optimiser import Rates
from rayrank.learning.plan import take
from rayrank.learning.spec import LearningSpec
from rayrank.learning.state import StageState
from rayrank.models.layers import IdTable, id_table
from rayrank.models.ranker import Ranker
from rayrank.models.spec import Inputs
from tests.tiny_models import batch, model_of
from tests.tiny_runs import LEARNING, batches, curve, fresh, keep_in, on_ranks, run

LAZY = LEARNING.model_copy(update={"dense_rows": 0})
ROWS, WIDTH, STEPS = 40, 3, 640


class Two(torch.nn.Module):
    """Two id tables and a parameter that is always updated whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = id_table(ROWS, WIDTH), id_table(ROWS, WIDTH)
        self.plain = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))

    def id_tables(self) -> list[IdTable]:
        return [self.first, self.second]


def stage_of(model: Two, dense_rows: int) -> StageState:
    rates = Rates(0.02, 0.03, 0.01, 0.5)
    return StageState.of(model, list(model.parameters()), rates, (0.98, dense_rows))  # type: ignore[arg-type]


def learn(model: Two, state: StageState, steps: range) -> None:
    """Rows of the first half are met now and then, those of the second in one step of three hundred."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        often = torch.randint(0, ROWS // 2, (2, 3), generator=generator)
        rare = torch.randint(ROWS // 2, ROWS, (2, 2 if step % 300 == 20 else 0), generator=generator)
        wanted = torch.randn(WIDTH, generator=generator)
        with state.collecting():
            for index in torch.cat([often, rare], dim=1):  # two micro-batches
                found = (model.first(index) @ model.plain + model.second(index.flip(0)) - wanted).square()
                (found.mean(1) * 10.0 ** -(index % 6).float()).sum().backward()  # of very different sizes
        state.update(0.1 + step % 7 / 7, 0.5, Solo())  # most steps are clipped
        state.follow()


def everything(model: Two, state: StageState) -> dict[str, Tensor]:
    with state.averaged():  # brings all rows up to date
        averaged = {f"averaged {name}": p.detach().clone() for name, p in model.named_parameters()}
    return averaged | {name: p.detach().clone() for name, p in model.named_parameters()}


def test_rows_are_as_if_every_step_had_updated_them() -> None:
    whole, lazy = Two(), Two()
    of_whole, of_lazy = stage_of(whole, ROWS), stage_of(lazy, ROWS - 1)
    assert len(of_whole.parameters) == 3
    assert len(of_lazy.parameters) == 1
    for part in (range(310), range(310, STEPS)):
        learn(whole, of_whole, part)
        learn(lazy, of_lazy, part)
        stale = lazy.first.weight.detach().clone()
        expected, found = everything(whole, of_whole), everything(lazy, of_lazy)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.allclose(stale, found["first.weight"], atol=1e-3), "nothing was left to make up for"
    assert whole.first.weight.grad is not None
    assert lazy.first.weight.grad is None


def test_many_steps_at_once_are_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seldom, often = Two(), Two()
    of_seldom, of_often = stage_of(seldom, 0), stage_of(often, 0)
    learn(seldom, of_seldom, range(330))
    monkeypatch.setattr("rayrank.learning.tables._FLUSH", 1)
    learn(often, of_often, range(330))
    expected = everything(often, of_often)
    for name, value in everything(seldom, of_seldom).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_a_gradient_as_large_as_its_table_is_an_error() -> None:
    model = Two()
    state = stage_of(model, 0)
    with state.collecting():
        model.first.weight.sum().backward()
    with pytest.raises(AssertionError, match="as large as itself"):
        state.update(1.0, 1.0, Solo())


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_gives_the_numbers_of_whole_updates(kind: str, world: int) -> None:
    given, whole, lazy = batches(5), list[Ranker](), list[Ranker]()
    expected = on_ranks(world, made(kind, whole), given, TrainSpec(LEARNING))[0]
    found = on_ranks(world, made(kind, lazy), given, TrainSpec(LAZY))[0]
    torch.testing.assert_close(curve(found), curve(expected), rtol=0, atol=1e-5)
    for name, value in weights_of(whole[0]).items():
        torch.testing.assert_close(lazy[0].state_dict()[name], value, rtol=0, atol=1e-5, msg=name)
    for model in lazy:
        assert all(table.weight.grad is None for table in model.id_tables())
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, lazy[0].state_dict()[name], rtol=0, atol=0, msg=name)


def weights_of(model: Ranker) -> dict[str, Tensor]:
    """Without the items' retrieval biases: one of them is the same for all items, so its gradient is rounding alone,
    which AdamW makes as large as any other."""
    return {name: value for name, value in model.state_dict().items() if name != "items.retrieval.bias"}


def made(kind: str, into: list[Ranker]) -> Callable[[], Ranker]:
    def make() -> Ranker:
        into.append(fresh(kind))
        return into[-1]

    return make


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_goes_on_at_any_step_to_the_same_weights(world: int) -> None:
    given, saved, models = batches(4), [list[Snapshot]() for _ in range(world)], list[Ranker]()

    def hooks(rank: int) -> Hooks:
        return Hooks(due=lambda: True, on_snapshot=keep_in(saved[rank]))

    whole = on_ranks(world, made("teacher", models), given, TrainSpec(LAZY), hooks)[0]
    assert any("tables/0/last" in taken.tensors for taken in saved[0])
    for taken in saved[0][:: 3 if world == 1 else 5]:
        again = list[Ranker]()
        rest = on_ranks(world, made("teacher", again), given, TrainSpec(LAZY), lambda _, t=taken: Hooks(resume=t))[0]
        torch.testing.assert_close(curve(rest), curve(whole), rtol=0, atol=0)
        for name, value in models[0].state_dict().items():
            torch.testing.assert_close(again[0].state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_best_weights_hold_no_copy_of_what_the_second_stage_leaves_alone() -> None:
    saved: list[Snapshot] = []
    run(fresh("teacher"), batches(2), TrainSpec(LAZY), hooks=Hooks(on_epoch=keep_in(saved)))
    assert "model/static.user_id.weight" in saved[-1].tensors
    best = {name for name in saved[-1].tensors if name.startswith("best/")}
    assert "best/reader.factor.weight" in best
    assert not any(name.startswith("best/static.") for name in best)


def test_lanes_of_a_process_are_accumulated() -> None:
    """A step of several micro-batches is the step of one as large as all of them."""
    large = [batch(sequences=8, seed=10 + n, first_key=10 * n) for n in range(3)]
    small: list[SequenceBatch] = []
    for one in large:
        small += [take(one, torch.arange(start, start + 2)) for start in (0, 2, 4, 6)]
    learning: dict[str, Any] = LEARNING.model_dump() | {"batch_events": 10_000}
    models = [fresh("teacher") for _ in range(2)]
    whole = run(models[0], large, TrainSpec(LearningSpec.model_validate(learning | {"lanes": 1})))
    parts = run(models[1], small, TrainSpec(LearningSpec.model_validate(learning | {"lanes": 4})))
    assert len(whole.curve) == len(parts.curve) == 6
    torch.testing.assert_close(curve(parts), curve(whole), rtol=0, atol=1e-5)
    expected = weights_of(models[0])
    for name, value in weights_of(models[1]).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_without_user_ids_there_is_no_table_of_them(kind: str) -> None:
    model = model_of(kind, inputs=Inputs(user_id=False))
    assert not any("user_id" in name for name in model.state_dict())
    assert len(model.id_tables()) == 3
    run(model, batches(2), TrainSpec(LEARNING))
