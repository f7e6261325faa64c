"""How event tasks share hidden layers: one bottom, gated experts (MMoE) or shared and own experts (PLE)."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.models.layers import drop
from rayrank.models.noise import Noise
from rayrank.models.spec import HeadsSpec, MMoESpec, PLESpec, SharedBottomSpec


class TaskHeads(nn.Module):
    """(…, in) -> (…, K) logits. Every kind is a set of experts and, per task, a gate over those it may see.

    ``zero`` starts the output at 0, for residual paths.
    """

    def __init__(self, spec: HeadsSpec, width: int, tasks: int, dropout: float, zero: bool = False) -> None:
        super().__init__()
        experts, allowed = _layout(spec, tasks)
        self.rate, self.experts, self.expert_width = dropout, experts, spec.width
        self.first = nn.Linear(width, experts * spec.width)
        self.second = nn.Parameter(torch.empty(experts, spec.width, spec.width))
        self.second_bias = nn.Parameter(torch.zeros(experts, 1, spec.width))
        nn.init.normal_(self.second, std=spec.width**-0.5)
        self.gate = nn.Linear(width, tasks * experts) if experts > 1 else None
        self.register_buffer("closed_KE", ~allowed, persistent=False)
        self.closed_KE: Tensor
        self.output = nn.Parameter(torch.randn(tasks, spec.width) * (0.0 if zero else 0.5 * spec.width**-0.5))
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(self, x: Tensor, noise: Noise | None = None, key: Tensor | None = None) -> Tensor:
        """(…, K) from (…, in)."""
        shape, tasks = x.shape[:-1], self.output.shape[0]
        hidden = drop(functional.gelu(self.first(x)), self.rate, "heads.first", noise, key)
        hidden_EXd = hidden.reshape(-1, self.experts, self.expert_width).transpose(0, 1)
        experts_EXd = functional.gelu(torch.baddbmm(self.second_bias, hidden_EXd, self.second))
        said_XEK = torch.einsum("exd,kd->xek", experts_EXd, self.output)
        if self.gate is None:
            return said_XEK[:, 0].view(*shape, tasks) + self.bias
        gate_XKE = self.gate(x).view(-1, tasks, self.experts).masked_fill(self.closed_KE, float("-inf")).softmax(-1)
        return (said_XEK.transpose(1, 2) * gate_XKE).sum(-1).view(*shape, tasks) + self.bias


def _layout(spec: HeadsSpec, tasks: int) -> tuple[int, Tensor]:
    """Number of experts and bool (K, E): which experts a task's gate may open."""
    match spec:
        case SharedBottomSpec():
            return 1, torch.ones(tasks, 1, dtype=torch.bool)
        case MMoESpec():
            return spec.experts, torch.ones(tasks, spec.experts, dtype=torch.bool)
        case PLESpec():
            shared = torch.ones(tasks, spec.shared_experts, dtype=torch.bool)
            own = torch.eye(tasks, dtype=torch.bool).repeat_interleave(spec.task_experts, dim=1)
            return spec.shared_experts + tasks * spec.task_experts, torch.cat([shared, own], dim=1)
        case _:
            assert_never(spec)
