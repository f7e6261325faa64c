"""Counted cost: of the model's size, not of the example that lends the request its shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayrank.learning import cost
from rayrank.learning.cost import multiply_adds
from tests.tiny_models import batch, catalogue, model_of


def test_the_same_for_any_example_and_weights() -> None:
    found = {
        multiply_adds(model_of("student", seed), catalogue(seed), batch(length=length, seed=seed))
        for seed, length in ((0, 8), (1, 3))
    }
    assert len(found) == 1


def test_all_linear_layers_of_the_request_are_in_it() -> None:
    model = model_of("student")
    items_NW = model.item_vectors(catalogue())
    linear = 0

    def count(layer: nn.Module, given: tuple[torch.Tensor, ...], _made: torch.Tensor) -> None:
        nonlocal linear
        assert isinstance(layer, nn.Linear)
        linear += given[0].numel() * layer.out_features

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    one = cost.take(batch(), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        model.score(model.user_state(cost._history(one.events), items_NW), cost._request(one), items_NW)
    request, linear = linear, 0
    found = multiply_adds(model, catalogue(), batch())
    assert found is not None
    assert 0 < request <= found < 10 * request


@pytest.mark.parametrize("kind", ["student", "teacher", "attentive"])
def test_wider_models_cost_more(kind: str) -> None:
    narrow, wide = (multiply_adds(model_of(kind, width=w), catalogue(), batch()) for w in (8, 16))
    assert narrow is not None
    assert wide is not None
    assert narrow < wide


def test_a_model_that_reads_the_candidates_is_not_counted() -> None:
    assert multiply_adds(model_of("cross"), catalogue(), batch()) is None
