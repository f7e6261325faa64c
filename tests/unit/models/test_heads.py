"""Shared bottom, MMoE and PLE differ only in which experts a task's gate may open."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from rayrank.models.heads import TaskHeads
from rayrank.models.spec import HeadsSpec, MMoESpec, PLESpec, SharedBottomSpec


@pytest.mark.parametrize("kind", ["shared", "mmoe", "ple"])
def test_one_key_chooses_the_kind(kind: str) -> None:
    spec = TypeAdapter(HeadsSpec).validate_python({"kind": kind, "width": 8})
    heads = TaskHeads(spec, 5, 3, 0.0)
    assert heads(torch.randn(2, 4, 5)).shape == (2, 4, 3)


def test_a_residual_head_starts_at_zero_and_still_learns() -> None:
    heads = TaskHeads(MMoESpec(width=8), 5, 2, 0.0, zero=True)
    said = heads(torch.randn(6, 5))
    assert torch.equal(said, torch.zeros(6, 2))
    said.sum().backward()
    assert heads.output.grad is not None
    assert float(heads.output.grad.abs().sum()) > 0


def test_a_ple_task_never_opens_another_tasks_expert() -> None:
    torch.manual_seed(0)
    heads = TaskHeads(PLESpec(shared_experts=1, task_experts=1, width=4), 3, 2, 0.0)
    x = torch.randn(5, 3)
    before = heads(x)
    with torch.no_grad():
        heads.second[2] += 1.0  # experts: shared, task 0's, task 1's
    after = heads(x)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_mmoe_is_the_gated_sum_of_its_experts() -> None:
    torch.manual_seed(1)
    heads, x = TaskHeads(MMoESpec(experts=2, width=3), 4, 2, 0.0), torch.randn(4)
    gelu = torch.nn.functional.gelu
    assert heads.gate is not None
    hidden = gelu(heads.first(x)).view(2, 3)
    experts = torch.stack([gelu(hidden[e] @ heads.second[e] + heads.second_bias[e, 0]) for e in range(2)])
    gates = heads.gate(x).view(2, 2).softmax(-1)
    slow = torch.stack([(gates[k] @ experts) @ heads.output[k] + heads.bias[k] for k in range(2)])
    torch.testing.assert_close(heads(x.unsqueeze(0))[0], slow)


def test_a_shared_bottom_has_no_gate() -> None:
    assert TaskHeads(SharedBottomSpec(width=4), 3, 2, 0.0).gate is None
