"""Narrower students: the same function when nothing or nothing used goes; the least important go; training mends."""

from __future__ import annotations

from typing import cast

import torch

from rayrank.compression.narrow import distance, importance, said
from rayrank.models.narrower import narrowed, sizes_of
from rayrank.models.student import Student
from tests.tiny_models import batch, catalogue, model_of


def student() -> Student:
    return cast(Student, model_of("student"))


def all_units(model: Student) -> dict[str, torch.Tensor]:
    return {name: torch.arange(size) for name, size in sizes_of(model).items()}


def same(model: Student, other: Student) -> None:
    given, table = batch(), catalogue()
    with torch.no_grad():
        found = said(other, given, table)
        for name, value in said(model, given, table).items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
        items, others = model.item_vectors(table), other.item_vectors(table)
        scores = model.score(model.user_state(given.events, items), given.streaming(), items)
        for task, value in other.score(other.user_state(given.events, others), given.streaming(), others).items():
            torch.testing.assert_close(value, scores[task], rtol=1e-5, atol=1e-5)


def test_all_units_kept_is_the_same_student() -> None:
    model = student()
    same(model, narrowed(model, all_units(model)))


def test_units_that_say_nothing_are_found_and_their_loss_changes_nothing() -> None:
    model = student()
    silent = {"hidden": 2, "second": 1, "taste": 1, "retrieval": 5, "profile.age": 6}
    with torch.no_grad():
        model.second.weight[:, 2] = 0
        model.output.weight[:, 1] = 0
        model.retrieval_user.second.weight[:, 5] = 0
        model.profile_heads["age"].second.weight[:, 6] = 0
        for weight in [model.reader.factor.weight, *model.reader.features.weights(), model.reader.base]:
            weight[..., 1] = 0  # an item vector that is 0 in a column takes no part in the regression …
        assert model.reader.text is not None
        model.reader.text.weight[1] = 0
        tasks = len(model.schema.event_tasks)
        for weight in model.reader.user_features.weights():
            weight[..., 2 * tasks : 3 * tasks] = 0  # … nor does the taste to expect there
    given, table = batch(), catalogue()
    with torch.no_grad():
        scale = {name: value.std() for name, value in said(model, given, table).items()}
    found = importance(model, [given], table, scale)
    kept = all_units(model)
    for name, unit in silent.items():
        assert int(found[name].argmin()) == unit
        assert found[name][unit] == 0
        assert (found[name] > 0).sum() == len(found[name]) - 1
    # The split layer has no unit to spare in "second" unless two go from "hidden": half as many lie above it.
    with torch.no_grad():
        model.second.weight[:, 3] = 0
    for name, gone in {
        "hidden": (2, 3),
        "second": (1,),
        "taste": (1,),
        "retrieval": (5, 6),
        "profile.age": (5, 6),
    }.items():
        kept[name] = torch.tensor([unit for unit in kept[name].tolist() if unit not in gone])
    with torch.no_grad():
        model.retrieval_user.second.weight[:, 6] = 0
        model.profile_heads["age"].second.weight[:, 5] = 0
    smaller = narrowed(model, kept)
    assert (smaller.spec.hidden, smaller.spec.taste_width, smaller.spec.width) == (6, 2, 8)
    same_but_taste(model, smaller)


def same_but_taste(model: Student, smaller: Student) -> None:
    """The user part reads the solved taste of the silent column, which is 0."""
    given, table = batch(), catalogue()
    with torch.no_grad():
        scale = {name: value.std() for name, value in said(model, given, table).items()}
        assert float(distance(said(model, given, table), said(smaller, given, table), scale)) < 1e-9


def test_narrow_item_vectors_keep_most_of_what_is_said() -> None:
    """Importance beats the opposite choice."""
    model, given, table = student(), batch(), catalogue()
    with torch.no_grad():
        scale = {name: value.std() for name, value in said(model, given, table).items()}
    scores = importance(model, [given], table, scale)["width"]
    losses = []
    for order in (scores, -scores):
        smaller = narrowed(model, {**all_units(model), "width": order.topk(6).indices.sort().values})
        assert smaller.items.base.shape == (6,)
        with torch.no_grad():
            losses.append(float(distance(said(model, given, table), said(smaller, given, table), scale)))
    assert losses[0] < losses[1]
