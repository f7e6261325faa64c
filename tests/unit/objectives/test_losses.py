"""Losses against numbers computed by hand; missing labels weigh nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rayrank.batch import Queries
from rayrank.objectives.losses import Outputs, Retrieval, compute, label_counts, sampled_softmax, task_weights
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.objectives.targets import Targets
from rayrank.schema import BinaryTask, DatasetSchema, MulticlassTask, RegressionTask

NAN = float("nan")
SCHEMA = DatasetSchema(
    name="two",
    tasks=(
        BinaryTask(name="like", column="l"),
        RegressionTask(name="stars", column="s", low=1.0, high=5.0),
        MulticlassTask(name="age", column="a", classes=("x", "y")),
    ),
)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def cross_entropy(target: float, logit: float) -> float:
    return -(target * math.log(sigmoid(logit)) + (1 - target) * math.log(1 - sigmoid(logit)))


def targets(soft: dict[str, list[float]] | None = None) -> Targets:
    size = (1, 3)
    queries = Queries(torch.ones(size).long(), torch.zeros(size).long(), torch.zeros(size).int())
    return Targets(
        queries=queries,
        labels_BQ={"like": torch.tensor([[1.0, 0.0, NAN]]), "stars": torch.tensor([[5.0, NAN, 2.0]])},
        soft_BQ={name: torch.tensor([value]) for name, value in (soft or {}).items()},
        asked_BQ=torch.ones(size, dtype=torch.bool),
        unseen_BQ=torch.zeros(size, dtype=torch.bool),
        share_BQ=torch.ones(size),
        request_BQ=torch.zeros(size).long(),
        place_BQ=torch.arange(3).unsqueeze(0),
        profile_B={"age": torch.tensor([1])},
        profile_before_B=torch.tensor([5], dtype=torch.int32),
    )


def outputs(like: torch.Tensor, stars: torch.Tensor) -> Outputs:
    return Outputs({"like": like, "stars": stars}, {"age": torch.tensor([[0.0, math.log(3.0)]])})


def test_sums_counts_and_total_by_hand() -> None:
    spec = ObjectiveSpec(regression_scale=4.0)
    said = outputs(torch.tensor([[2.0, -1.0, 9.0]]), torch.tensor([[0.5, 9.0, 0.0]]))
    terms = compute(said, targets(), SCHEMA, spec)
    like = cross_entropy(1, 2.0) + cross_entropy(0, -1.0)
    stars = 4.0 * ((0.5 - 1.0) ** 2 + (0.0 - 0.25) ** 2)
    age = -math.log(0.75)
    assert terms.sums["like", "hard"].item() == pytest.approx(like, rel=1e-5)
    assert terms.sums["stars", "hard"].item() == pytest.approx(stars, rel=1e-5)
    assert terms.sums["age", "hard"].item() == pytest.approx(age, rel=1e-5)
    assert {name: count.item() for name, count in terms.counts.items()} == {"like": 2, "stars": 2, "age": 1}
    total = terms.total(terms.counts, spec)
    assert total.item() == pytest.approx((like / 2 + stars / 2 + age) / 3, rel=1e-5)
    weighted = terms.total(terms.counts, ObjectiveSpec(weights={"like": 2.0, "age": 0.5}))
    assert weighted.item() == pytest.approx(2.0 * like / 2 + 0.5 * age, rel=1e-5)


def test_missing_labels_give_exactly_no_gradient() -> None:
    like = torch.tensor([[2.0, -1.0, 9.0]], requires_grad=True)
    stars = torch.tensor([[0.5, 9.0, 0.0]], requires_grad=True)
    terms = compute(outputs(like, stars), targets(), SCHEMA, ObjectiveSpec())
    terms.total(terms.counts, ObjectiveSpec()).backward()
    assert like.grad is not None
    assert stars.grad is not None
    assert like.grad[0, 2].item() == 0.0
    assert stars.grad[0, 1].item() == 0.0
    assert (like.grad[0, :2] != 0).all()


def test_a_batch_without_any_label_has_loss_zero() -> None:
    nothing = targets()
    for value in nothing.labels_BQ.values():
        value.fill_(NAN)
    nothing.profile_B["age"].fill_(-1)
    said = outputs(torch.ones(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True))
    terms = compute(said, nothing, SCHEMA, ObjectiveSpec())
    total = terms.total(terms.counts, ObjectiveSpec())
    assert total.item() == 0.0
    total.backward()


def test_distillation_by_hand() -> None:
    spec = ObjectiveSpec(distillation=DistillationSpec(mix=0.3, temperature=2.0), regression_scale=4.0)
    # Query 0: hard and soft; query 1: hard alone; query 2: soft alone.
    given = targets({"like": [1.5, NAN, -0.5], "stars": [0.8, 0.1, NAN]})
    said = outputs(torch.tensor([[2.0, -1.0, 0.7]]), torch.tensor([[0.5, 0.2, 0.0]]))
    terms = compute(said, given, SCHEMA, spec)
    hard = 0.7 * cross_entropy(1, 2.0) + cross_entropy(0, -1.0)
    soft = 0.3 * 4.0 * (cross_entropy(sigmoid(0.75), 1.0) + cross_entropy(sigmoid(-0.25), 0.35))
    assert terms.sums["like", "hard"].item() == pytest.approx(hard, rel=1e-5)
    assert terms.sums["like", "soft"].item() == pytest.approx(soft, rel=1e-5)
    assert terms.counts["like"].item() == 3
    stars_hard = 4.0 * (0.7 * (0.5 - 1.0) ** 2 + (0.0 - 0.25) ** 2)
    stars_soft = 0.3 * 4.0 * ((0.5 - 0.8) ** 2 + (0.2 - 0.1) ** 2)
    assert terms.sums["stars", "hard"].item() == pytest.approx(stars_hard, rel=1e-5)
    assert terms.sums["stars", "soft"].item() == pytest.approx(stars_soft, rel=1e-5)


def test_without_soft_labels_distillation_is_plain_learning() -> None:
    said = outputs(torch.tensor([[2.0, -1.0, 0.7]]), torch.tensor([[0.5, 0.2, 0.0]]))
    plain, distilled = ObjectiveSpec(), ObjectiveSpec(distillation=DistillationSpec(mix=0.9))
    first, second = compute(said, targets(), SCHEMA, plain), compute(said, targets(), SCHEMA, distilled)
    assert first.total(first.counts, plain).item() == second.total(second.counts, distilled).item()


def test_counts_are_known_before_any_forward_pass() -> None:
    spec = ObjectiveSpec(distillation=DistillationSpec())
    given = targets({"like": [1.5, NAN, -0.5]})
    said = outputs(torch.zeros(1, 3), torch.zeros(1, 3))
    assert label_counts(given, SCHEMA, spec) == compute(said, given, SCHEMA, spec).counts


def test_sampled_softmax_corrects_for_popularity_and_masks_hits() -> None:
    retrieval = Retrieval(
        user_PR=torch.tensor([[1.0, 2.0]]),
        positive_PR=torch.tensor([[0.5, 1.0]]),
        log_q_P=torch.tensor([-1.0]),
        negative_CR=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 1.0]]),
        log_q_PC=torch.tensor([[-2.0, -0.5, -1.0]]),
        hidden_PC=torch.tensor([[False, False, True]]),  # the last is the positive itself
    )
    positive, negatives = 2.5 + 1.0, [1.0 + 2.0, 2.0 + 0.5]
    expected = -positive + math.log(sum(math.exp(x) for x in [positive, *negatives]))
    assert sampled_softmax(retrieval).item() == pytest.approx(expected, rel=1e-5)


def test_weights_are_uniform_unless_given() -> None:
    assert task_weights(ObjectiveSpec(), ("a", "b")) == {"a": 0.5, "b": 0.5}
    assert task_weights(ObjectiveSpec(weights={"b": 3.0}), ("a", "b")) == {"a": 0.0, "b": 3.0}
    with pytest.raises(ValueError, match="unknown tasks"):
        task_weights(ObjectiveSpec(weights={"c": 1.0}), ("a", "b"))


def test_unseen_items_weigh_what_is_asked_for() -> None:
    """The third query has no label: with soft labels of an unseen item it weighs ``unseen``, whatever ``mix`` is."""
    spec = ObjectiveSpec(distillation=DistillationSpec(mix=0.0, unseen=0.7, temperature=1.0))
    said, soft = torch.tensor([[0.3, -0.2, 0.9]]), {"like": [NAN, NAN, -1.5]}
    given = replace(targets(soft), unseen_BQ=torch.tensor([[False, False, True]]))
    terms = compute(outputs(said, torch.zeros(1, 3)), given, SCHEMA, spec)
    assert float(terms.sums["like", "hard"]) == pytest.approx(cross_entropy(1, 0.3) + cross_entropy(0, -0.2), rel=1e-5)
    assert float(terms.sums["like", "soft"]) == pytest.approx(0.7 * cross_entropy(sigmoid(-1.5), 0.9), rel=1e-5)
    assert float(terms.counts["like"]) == 3


def test_terms_over_a_request_weigh_what_is_asked_for_and_know_the_scale() -> None:
    """Queries 0 and 1 are of one request, query 2 of another; a value 0..1 counts as a logit -4..4."""
    given = replace(targets({"like": [1.5, 0.5, -0.5], "stars": [0.8, 0.2, 0.1]}), request_BQ=torch.tensor([[4, 4, 9]]))
    said = outputs(torch.tensor([[2.0, -1.0, 0.7]]), torch.tensor([[0.5, 0.2, 0.0]]))
    about = {"temperature": 2.0, "margin": {"weight": 0.3}, "listwise": {"weight": 0.5}, "relaxed": {"weight": 0.1}}
    spec = ObjectiveSpec(distillation=DistillationSpec.model_validate(about), regression_scale=4.0)
    sums = compute(said, given, SCHEMA, spec).sums
    assert sums["like", "margin"].item() == pytest.approx(0.3 * 2 * (3.0 - 1.0) ** 2, rel=1e-5)
    assert sums["stars", "margin"].item() == pytest.approx(0.3 * 4.0 * 2 * (0.3 - 0.6) ** 2, rel=1e-4)
    p, q = sigmoid(3.0 / 2), sigmoid(1.0 / 2)  # shares of the first of two
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert sums["like", "listwise"].item() == pytest.approx(0.5 * 4.0 * 2 * divergence, rel=1e-4)
    p, q = sigmoid(8 * 0.3 / 2), sigmoid(8 * 0.6 / 2)
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert sums["stars", "listwise"].item() == pytest.approx(0.5 * 4.0 * 2 * divergence, rel=1e-4)
    assert sums["like", "relaxed"].item() == pytest.approx(0.1 * 2.0 * 2 * -math.log(sigmoid(1.5)), rel=1e-4)


def test_doubt_and_disagreement_lower_the_weight_of_soft_labels() -> None:
    given = replace(targets({"like": [1.5, 0.0, -0.5]}), spread_BQ={"like": torch.tensor([[0.5, 1.0, 2.0]])})
    said = torch.tensor([[2.0, -1.0, 0.7]])
    spec = ObjectiveSpec(
        distillation=DistillationSpec(mix=1.0, temperature=1.0, confidence=0.5, agreement=2.0), weights={"like": 1.0}
    )

    def sure(logit: float) -> float:
        p = sigmoid(logit)
        return 1 + (p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)

    first = math.sqrt(sure(1.5)) / (1 + 2 * 0.25) * cross_entropy(sigmoid(1.5), 2.0)
    third = math.sqrt(sure(-0.5)) / (1 + 2 * 4.0) * cross_entropy(sigmoid(-0.5), 0.7)
    sums = compute(outputs(said, torch.zeros(1, 3)), given, SCHEMA, spec).sums  # even odds weigh nothing
    assert sums["like", "soft"].item() == pytest.approx(first + third, rel=1e-4)


def test_a_values_disagreement_counts_in_logits() -> None:
    given = replace(targets({"stars": [0.8, NAN, NAN]}), spread_BQ={"stars": torch.tensor([[0.25, NAN, NAN]])})
    spec = ObjectiveSpec(distillation=DistillationSpec(mix=1.0, confidence=3.0, agreement=0.5), regression_scale=4.0)
    sums = compute(outputs(torch.zeros(1, 3), torch.tensor([[0.5, 0.0, 0.0]])), given, SCHEMA, spec).sums
    assert sums["stars", "soft"].item() == pytest.approx(4.0 * 0.3**2 / (1 + 0.5 * 2.0**2), rel=1e-5)


def test_profiles_are_distilled_at_a_temperature() -> None:
    soft = {"age": torch.tensor([[1.0, -1.0], [0.4, 0.0], [NAN, NAN]])}
    given = replace(targets(), profile_B={"age": torch.tensor([1, -1, 0])}, profile_soft_BC=soft)
    logits = torch.tensor([[0.0, 1.0], [0.5, 0.0], [2.0, 0.0]])
    said = replace(outputs(torch.zeros(1, 3), torch.zeros(1, 3)), profiles={"age": logits})
    spec = ObjectiveSpec(distillation=DistillationSpec(profiles=0.25, temperature=2.0))
    terms = compute(said, given, SCHEMA, spec)
    hard = 0.75 * -math.log(sigmoid(1.0)) - math.log(sigmoid(2.0))
    soft_sum = cross_entropy(sigmoid(1.0), -0.5) + cross_entropy(sigmoid(0.2), 0.25)
    assert terms.sums["age", "hard"].item() == pytest.approx(hard, rel=1e-5)
    assert terms.sums["age", "soft"].item() == pytest.approx(0.25 * 4.0 * soft_sum, rel=1e-5)
    assert terms.counts["age"].item() == 3
    without = ObjectiveSpec(distillation=DistillationSpec())
    plain = compute(said, given, SCHEMA, without)
    assert ("age", "soft") not in plain.sums
    assert plain.counts["age"].item() == 2


def test_the_unseen_items_of_a_target_count_as_one() -> None:
    given = targets({"like": [NAN, 1.5, -0.5]})
    given.labels_BQ["like"][0, 1] = NAN
    given = replace(
        given,
        unseen_BQ=torch.tensor([[False, True, True]]),
        share_BQ=torch.tensor([[1.0, 0.5, 0.5]]),
    )
    spec = ObjectiveSpec(distillation=DistillationSpec(unseen=0.8, temperature=1.0))
    terms = compute(outputs(torch.tensor([[2.0, -1.0, 0.7]]), torch.zeros(1, 3)), given, SCHEMA, spec)
    soft = 0.4 * (cross_entropy(sigmoid(1.5), -1.0) + cross_entropy(sigmoid(-0.5), 0.7))
    assert terms.sums["like", "soft"].item() == pytest.approx(soft, rel=1e-5)
    assert terms.counts["like"].item() == 2


def test_auxiliary_logits_take_the_soft_terms_and_leave_hard_labels_their_weight() -> None:
    given = targets({"like": [1.5, NAN, -0.5]})
    said = outputs(torch.tensor([[2.0, -1.0, 0.7]]), torch.zeros(1, 3))
    said = replace(said, auxiliary_BQ={"like": torch.tensor([[0.4, 0.0, -0.2]])})
    spec = ObjectiveSpec(distillation=DistillationSpec(mix=0.3, temperature=1.0))
    sums = compute(said, given, SCHEMA, spec).sums
    hard, soft = cross_entropy(1, 2.0) + cross_entropy(0, -1.0), cross_entropy(sigmoid(1.5), 0.4)
    soft += cross_entropy(sigmoid(-0.5), -0.2)
    assert sums["like", "hard"].item() == pytest.approx(hard, rel=1e-5)
    assert sums["like", "soft"].item() == pytest.approx(0.3 * soft, rel=1e-5)
