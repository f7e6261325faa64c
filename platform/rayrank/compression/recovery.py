"""The training that mends what pruning broke. Knows parameters and losses; knows nothing about what was taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from rayrank.compression.spec import Recovery, StudentRecovery

_WARM_UP, _EVERY = 0.1, 50


def recover(
    parameters: Sequence[Tensor],
    spec: Recovery | StudentRecovery,
    losses: Iterator[Tensor],
    told: Callable[[str], None],
) -> None:
    """Take ``spec.steps`` steps of AdamW down the losses, each computed when its step comes.

    Args:
        parameters: what is trained; they need gradients.
        spec: steps and learning rate: warmed up over a tenth of the steps, then falling to 0.
        losses: one scalar a step.
        told: hears of the loss now and then.
    """
    optimiser = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0, fused=True)
    warm_up = max(1, round(_WARM_UP * spec.steps))
    with torch.enable_grad():
        for step, loss in enumerate(islice(losses, spec.steps)):
            rate = min((step + 1) / warm_up, (spec.steps - step) / max(spec.steps - warm_up, 1))
            optimiser.param_groups[0]["lr"] = spec.learning_rate * rate
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            if (step + 1) % _EVERY == 0:
                told(f"recovery step {step + 1} of {spec.steps}: loss {loss.item():.4f}")
