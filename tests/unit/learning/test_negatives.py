"""Negatives of retrieval tasks: what they weigh against counting them, and the loss against one slow query by query."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rayrank.batch import Catalogue
from rayrank.config import ConfigError
from rayrank.learning.inputs import TrainSpec
from rayrank.learning.labels import Sampler, Teacher
from rayrank.learning.mining import POOL_SEED, mined
from rayrank.learning.negatives import Negatives, NegativeSampler, Positives
from rayrank.objectives.losses import check_negatives, sampled_softmax
from rayrank.objectives.spec import ObjectiveSpec
from tests.tiny_models import SCHEMA, catalogue, model_of
from tests.tiny_runs import LEARNING, batches, curve, fresh, on_ranks, run

COUNT_N = torch.tensor([0.0, 1.0, 8.0, 3.0, 20.0, 2.0, 30.0])
ROWS = torch.arange(len(COUNT_N))
USERS = torch.tensor([1, 1, 2, 3, 3, 3])
ITEMS = torch.tensor([4, 6, 4, 2, 6, 1])  # users 1 and 2 share item 4, users 1 and 3 item 6


def drawn(seed: int = 0, **changes: object) -> Negatives:
    return NegativeSampler.of(Catalogue({}, COUNT_N), ObjectiveSpec(**changes)).draw(seed)


def vectors() -> tuple[Tensor, Tensor]:
    """Of the six users asked, and of the items."""
    generator = torch.Generator().manual_seed(3)
    user_PR = torch.randn(len(ITEMS), 4, generator=generator, requires_grad=True)
    return user_PR, torch.randn(len(COUNT_N), 4, generator=generator, requires_grad=True)


def slow(user_PR: Tensor, table_NR: Tensor, spec: ObjectiveSpec, found: Positives, samples: list[int]) -> Tensor:
    """The loss from its definition: one query, one negative at a time."""
    weight = [0.0] + [(count + 1) ** spec.negative_power for count in COUNT_N[1:].tolist()]
    whole, losses = float(COUNT_N.sum()), []
    for query, item in enumerate(ITEMS.tolist()):
        others = [p for p in range(len(ITEMS)) if USERS[p] != USERS[query]] if spec.in_batch else []

        def corrected(row: int, vector_R: Tensor, others: int = len(others)) -> Tensor:
            expected = spec.negatives * weight[row] / sum(weight) + others * float(COUNT_N[row]) / whole
            return vector_R @ table_NR[row] - math.log(expected)

        against = [*samples, *(int(ITEMS[p]) for p in others)]
        own = corrected(item, user_PR[query])
        terms = [own, *(corrected(row, user_PR[query]) for row in against if row != item)]
        if found.mined_PM is not None and found.mined_log_q_PM is not None:
            for row, log_q in zip(found.mined_PM[query].tolist(), found.mined_log_q_PM[query], strict=True):
                terms += [user_PR[query] @ table_NR[row] - log_q] if row else []
        losses.append(torch.logsumexp(torch.stack(terms), 0) - own)
    return torch.stack(losses).sum()


MINED = torch.tensor([[3, 5], [2, 3], [3, 0], [0, 0], [5, 3], [4, 2]])  # 0: none


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"negatives": 5}, {"negatives": 5, "in_batch": True}, {"negatives": 0, "in_batch": True}],
    ids=["sampled", "mixed", "in-batch"],
)
def test_loss_and_gradients_are_those_of_the_slow_one(changes: dict[str, object], mined: bool) -> None:
    user_PR, table_NR = vectors()
    negatives, positives = drawn(**changes), Positives(ITEMS, USERS)
    if mined:
        log_q_PM = torch.where(MINED > 0, (0.1 * MINED).log(), torch.nan)
        positives = Positives(ITEMS, USERS, MINED, log_q_PM)
    expected = slow(user_PR, table_NR, ObjectiveSpec(**changes), positives, negatives.item_S.tolist())
    expected_by = torch.autograd.grad(expected, (user_PR, table_NR))
    found = sampled_softmax(negatives.against(positives, user_PR, ROWS, table_NR))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found, (user_PR, table_NR)), expected_by, rtol=1e-4, atol=1e-5)


def test_the_correction_of_the_mixture_is_the_mean_count_of_each_item_among_the_negatives() -> None:
    """Four users of three positives each, drawn as often as they were counted; twenty sampled items beside them."""
    generator, rounds, counted_N = torch.Generator().manual_seed(1), 4000, torch.zeros(len(COUNT_N))
    user_P = torch.arange(4).repeat_interleave(3)
    for number in range(rounds):
        item_P = torch.multinomial(COUNT_N, len(user_P), replacement=True, generator=generator)
        negatives = drawn(number, negatives=20, in_batch=True)
        seen = torch.cat([negatives.item_S, item_P[user_P != 0]])  # by a query of the first user
        counted_N += torch.bincount(seen, minlength=len(COUNT_N)) / rounds
    told_N = negatives.log_q(ROWS, torch.tensor(9)).exp()
    torch.testing.assert_close(told_N[1:], counted_N[1:], rtol=0.02, atol=0.01)


def test_sampled_items_alone_are_corrected_by_popularity() -> None:
    weight_N = (COUNT_N[1:] + 1).sqrt()
    found = drawn(negatives=7).log_q(ROWS[1:], torch.tensor(99))
    torch.testing.assert_close(found, (7 * weight_N / weight_N.sum()).log())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_positives_without_a_negative_have_loss_and_gradient_zero(count: int) -> None:
    """No positive at all, one alone, or several of one user."""
    user_PR, table_NR = vectors()
    found = Positives(ITEMS[3 : 3 + count], USERS[3 : 3 + count])
    compared = drawn(negatives=0, in_batch=True).against(found, user_PR[:count], ROWS, table_NR)
    loss = sampled_softmax(compared)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (user_PR, table_NR)):
        assert (gradient == 0).all()


def test_no_negatives_at_all_are_refused() -> None:
    check_negatives(ObjectiveSpec(negatives=0, in_batch=True), SCHEMA)
    without = SCHEMA.model_copy(update={"tasks": SCHEMA.tasks[:3]})
    check_negatives(ObjectiveSpec(negatives=0), without)
    with pytest.raises(ConfigError, match=r"^objective\.negatives: got 0; .*objective\.in_batch"):
        check_negatives(ObjectiveSpec(negatives=0), SCHEMA)


@pytest.mark.parametrize("negatives", [0, 64])
def test_ranks_agree_when_positives_are_each_others_negatives(negatives: int) -> None:
    given, spec = batches(), TrainSpec(LEARNING, ObjectiveSpec(negatives=negatives, in_batch=True))
    alone = run(fresh("student"), given, spec)
    first, second = on_ranks(2, lambda: fresh("student"), given, spec)
    torch.testing.assert_close(curve(first, "loss/next"), curve(alone, "loss/next"), rtol=0, atol=1e-4)
    torch.testing.assert_close(curve(second), curve(first), rtol=0, atol=0)
    assert not torch.allclose(
        curve(alone, "loss/next"), curve(run(fresh("student"), given, TrainSpec(LEARNING)), "loss/next")
    )


def test_ranks_agree_on_mined_negatives_and_the_switch_leaves_them_out() -> None:
    teachers, pool = [Teacher.of(model_of("teacher"), catalogue())], Sampler(catalogue().count_N, 16, seed=POOL_SEED)
    plain, given = batches(), [mined(teachers, one, pool, 3) for one in batches()]
    spec = TrainSpec(LEARNING, ObjectiveSpec(negatives=32))
    alone = run(fresh("student"), given, spec)
    first, _ = on_ranks(2, lambda: fresh("student"), given, spec)
    torch.testing.assert_close(curve(first, "loss/next"), curve(alone, "loss/next"), rtol=0, atol=1e-4)
    without = run(fresh("student"), plain, spec)
    assert (curve(alone, "loss/next")[0] > curve(without, "loss/next")[0]).all()
    off = run(fresh("student"), given, TrainSpec(LEARNING, ObjectiveSpec(negatives=32, mined=False)))
    assert torch.equal(curve(off), curve(without))


def test_training_without_any_negative_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.negatives"):
        run(fresh("student"), batches(1), TrainSpec(LEARNING, ObjectiveSpec(negatives=0)))
