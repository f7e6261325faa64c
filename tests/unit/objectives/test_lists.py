"""Terms over the candidates of a request against slow sums over pairs and places; what their gradients leave alone."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from rayrank.batch import Queries
from rayrank.objectives.lists import Lists, listwise, margins, relaxed
from rayrank.objectives.losses import Outputs, compute
from rayrank.objectives.spec import DistillationSpec, ListwiseSpec, ObjectiveSpec
from rayrank.objectives.targets import Targets
from rayrank.schema import BinaryTask, DatasetSchema

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


def published(said: torch.Tensor, spec: ObjectiveSpec) -> dict[str, Tensor]:
    """Loss terms of one request: a target, three sampled items (one of them a best one) and two best candidates."""
    size = (1, 6)
    soft = torch.tensor([[2.0, 1.0, 0.3, -1.0, 1.0, 0.8]])
    targets = Targets(
        queries=Queries(torch.tensor([[9, 4, 6, 7, 4, 5]]), torch.zeros(size).long(), torch.zeros(size).int()),
        labels_BQ={"like": torch.tensor([[1.0, *[float("nan")] * 5]])},
        soft_BQ={"like": soft.to(said.dtype)},
        asked_BQ=torch.ones(size, dtype=torch.bool),
        unseen_BQ=torch.tensor([[False, True, True, True, False, False]]),
        share_BQ=torch.tensor([[1.0, 1 / 3, 1 / 3, 1 / 3, 0.5, 0.5]]),
        request_BQ=torch.zeros(size).long(),
        place_BQ=torch.zeros(size).long(),
        profile_B={},
        profile_before_B=torch.zeros(1).int(),
        best_BQ=torch.tensor([[False, False, False, False, True, True]]),
    )
    schema = DatasetSchema(name="one", tasks=(BinaryTask(name="like", column="l"),))
    found = compute(Outputs({"like": said}), targets, schema, spec)
    assert found.counts["like"].item() == pytest.approx(2.0)  # the target, and its samples together
    return {term: value for (_, term), value in found.sums.items()}


def test_the_published_list_is_the_best_candidates_before_the_sampled_items() -> None:
    about = {"best": 0.6, "best_items": 2, "temperature": 2.0, "relaxed": {"weight": 0.3, "top": 2, "among": "best"}}
    spec = ObjectiveSpec(distillation=DistillationSpec.model_validate(about))
    said = torch.tensor([[0.4, 1.5, -0.2, 0.7, 1.5, -0.6]], dtype=torch.float64, requires_grad=True)
    first, second, rest = 1.5, -0.6, [-0.2, 0.7]  # items 4 and 5 in the teacher's order, then 6 and 7; 4 stands once

    def late(value: float, behind: list[float]) -> float:
        return math.log(sum(math.exp(v / 2.0) for v in [value, *behind])) - value / 2.0

    expected = 0.3 * 2.0 * 4 * (late(first, [second, *rest]) + late(second, rest)) / 2
    terms = published(said, spec)
    assert terms["relaxed"].item() == pytest.approx(expected, rel=1e-5)
    found = gradient(terms["relaxed"], said)[0]
    assert found[0] == 0.0  # the target stands aside
    assert (found[1] == 0.0) != (found[4] == 0.0)
    assert found.sum().item() == pytest.approx(0.0, abs=1e-9)
    assert torch.autograd.gradcheck(lambda given: published(given, spec)["relaxed"], (said,))
    among = ObjectiveSpec(distillation=DistillationSpec.model_validate(about | {"relaxed": {"weight": 0.3, "top": 2}}))
    assert published(said, among)["relaxed"].item() != pytest.approx(expected, rel=1e-2)


def test_the_best_candidates_of_a_request_weigh_together_what_is_asked() -> None:
    def soft(best: float) -> float:
        spec = ObjectiveSpec(distillation=DistillationSpec(best=best, best_items=2, temperature=2.0))
        return published(torch.tensor([[0.4, 1.5, -0.2, 0.7, 1.5, -0.6]]), spec)["soft"].item()

    expected = 0.0
    for said, told in ((1.5, 1.0), (-0.6, 0.8)):
        p, q = 1 / (1 + math.exp(-told / 2)), 1 / (1 + math.exp(-said / 2))
        expected -= 0.5 * 4.0 * (p * math.log(q) + (1 - p) * math.log(1 - q))
    assert soft(0.6) - soft(0.0) == pytest.approx(0.6 * expected, rel=1e-4)
    with pytest.raises(ValueError, match="set best_items"):
        DistillationSpec(best=0.5)


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
