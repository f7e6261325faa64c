"""Terms over the candidates of a request against slow sums over pairs and places; what their gradients leave alone."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from rayrank.objectives.lists import Lists, listwise, margins, relaxed
from rayrank.objectives.spec import ListwiseSpec

SAID, TAUGHT, LIST = [0.3, 1.0, -0.5, 2.0, 0.1, 9.0], [1.2, -0.4, 0.6, 0.0, 0.8, 3.0], [7, 3, 7, 3, 7, 5]
"""Two lists, of three and of two, and a candidate alone."""
SIZES = ((0, 2, 4), (1, 3))


def lists(said: Tensor | None = None, weight: list[float] | None = None) -> Lists:
    said = torch.tensor(SAID) if said is None else said
    return Lists.of(said, torch.tensor(TAUGHT), torch.tensor(weight or [1.0] * 6), torch.tensor(LIST))


def gradient(term: Tensor, said: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(term, said)
    return found


def test_lists_are_padded_in_order_and_single_candidates_left_out() -> None:
    found = lists()
    assert found.there_LM.tolist() == [[True, True, False], [True, True, True]]
    torch.testing.assert_close(found.student_LM, torch.tensor([[1.0, 2.0, 0.0], [0.3, -0.5, 0.1]]))
    torch.testing.assert_close(found.teacher_LM, torch.tensor([[-0.4, 0.0, 0.0], [1.2, 0.6, 0.8]]))


def test_margins_are_means_over_pairs() -> None:
    expected = 0.0
    for places in SIZES:
        pairs = list(combinations(places, 2))
        squares = [(SAID[i] - SAID[j] - TAUGHT[i] + TAUGHT[j]) ** 2 for i, j in pairs]
        expected += len(places) * sum(squares) / len(pairs)
    assert margins(lists()).item() == pytest.approx(expected, rel=1e-5)


def test_a_pair_weighs_the_product_of_its_weights() -> None:
    weight, expected = [0.5, 1.0, 0.2, 0.3, 1.0, 1.0], 0.0
    for places in SIZES:
        pairs = list(combinations(places, 2))
        values = [weight[i] * weight[j] * (SAID[i] - SAID[j] - TAUGHT[i] + TAUGHT[j]) ** 2 for i, j in pairs]
        expected += len(places) * sum(values) / len(pairs)
    assert margins(lists(weight=weight)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_listwise_by_hand(form: str) -> None:
    tau, expected = 2.0, 0.0

    def shares(values: list[float]) -> list[float]:
        sizes = [math.exp(v) if form == "softmax" else 1 / (1 + math.exp(-v)) for v in values]
        return [size / sum(sizes) for size in sizes]

    for places in SIZES:
        p, q = shares([SAID[i] / tau for i in places]), shares([TAUGHT[i] / tau for i in places])
        expected += tau**2 * len(places) * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert listwise(lists(), ListwiseSpec(form=form), tau).item() == pytest.approx(expected, rel=1e-4)


def test_relaxed_orders_the_best_before_all_others() -> None:
    tau = 2.0
    first = [SAID[i] / tau for i in (0, 4, 2)]  # the teacher's order of the list of three; of two: 3, 1
    second = [SAID[i] / tau for i in (3, 1)]

    def late(values: list[float], place: int) -> float:
        return math.log(sum(math.exp(v) for v in values[place:])) - values[place]

    one = tau * (3 * late(first, 0) + 2 * late(second, 0))
    two = tau * (3 * (late(first, 0) + late(first, 1)) / 2 + 2 * late(second, 0))  # a last place has nothing behind it
    assert relaxed(lists(), 1, tau).item() == pytest.approx(one, rel=1e-5)
    assert relaxed(lists(), 2, tau).item() == pytest.approx(two, rel=1e-5)
    assert relaxed(lists(), 9, tau).item() == pytest.approx(two, rel=1e-5)


@pytest.mark.parametrize("term", ["margin", "softmax", "relaxed"])
def test_the_common_level_of_a_list_gets_no_gradient(term: str) -> None:
    said = torch.tensor(SAID, requires_grad=True)
    found = gradient(_term(term, lists(said)), said)
    for places in SIZES:
        assert found[list(places)].abs().max() > 1e-2
        assert found[list(places)].sum().item() == pytest.approx(0.0, abs=1e-6)
    assert found[5].item() == 0.0


def test_a_common_factor_of_all_probabilities_costs_nothing_in_the_sigmoid_form() -> None:
    taught = torch.tensor(TAUGHT)
    halved = torch.logit(0.5 * taught.sigmoid()).requires_grad_()
    term = listwise(lists(halved), ListwiseSpec(form="sigmoid"), 1.0)
    assert term.item() == pytest.approx(0.0, abs=1e-6)
    assert gradient(term, halved).abs().max().item() < 1e-6


@pytest.mark.parametrize("term", ["margin", "softmax", "sigmoid"])
def test_a_student_that_says_what_the_teacher_says_rests(term: str) -> None:
    said = torch.tensor(TAUGHT, requires_grad=True)
    assert gradient(_term(term, lists(said)), said).abs().max().item() < 1e-6


def test_gradients_are_those_of_small_steps() -> None:
    for term in ("margin", "softmax", "sigmoid", "relaxed"):
        said = torch.tensor(SAID, dtype=torch.float64, requires_grad=True)

        def value(given: Tensor, term: str = term) -> Tensor:
            taught = torch.tensor(TAUGHT, dtype=torch.float64)
            weight = torch.tensor([0.5, 1.0, 0.2, 0.3, 1.0, 1.0], dtype=torch.float64)
            return _term(term, Lists.of(given, taught, weight, torch.tensor(LIST)))

        assert torch.autograd.gradcheck(value, (said,))


def test_nothing_to_compare_costs_nothing() -> None:
    for term in ("margin", "softmax", "sigmoid", "relaxed"):
        said = torch.zeros(0, requires_grad=True)
        value = _term(term, Lists.of(said, torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)))
        assert value.item() == 0.0
        value.backward()


def _term(name: str, given: Lists) -> Tensor:
    if name == "margin":
        return margins(given)
    if name == "relaxed":
        return relaxed(given, 2, 2.0)
    return listwise(given, ListwiseSpec.model_validate({"form": name}), 2.0)
