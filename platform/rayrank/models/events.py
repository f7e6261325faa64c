"""Event tokens: item vector, labels given, time. Neither user id nor attributes enter: profiles need history alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayrank.batch import Events
from rayrank.models.layers import TIME_WIDTH, Perceptron, clock_features
from rayrank.models.noise import Noise, position_keys
from rayrank.models.ranker import NEVER, shown, shown_times
from rayrank.models.spec import Inputs
from rayrank.schema import BinaryTask, EventTask

_GATE = 5.0
"""Label vectors start small; this brings them into the range where the gate bends."""


class LabelEmbedding(nn.Module):
    """The labels of an event as one vector; a missing label has a vector of its own."""

    def __init__(self, tasks: tuple[EventTask, ...], width: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.vectors = nn.Parameter(torch.randn(len(tasks), 3, width) * 0.1)  # offset, slope, missing

    def forward(self, labels_BT: dict[str, Tensor]) -> Tensor:
        """(B, T, D)."""
        parts = []
        for task, (offset, slope, missing) in zip(self.tasks, self.vectors, strict=True):
            value_BT, known_BT = scaled_label(labels_BT[task.name], task)
            given = offset + value_BT.unsqueeze(-1) * slope
            parts.append(torch.where(known_BT.unsqueeze(-1), given, missing))
        return torch.stack(parts).sum(0)


class EventTokens(nn.Module):
    """(B, T, D) tokens of events."""

    def __init__(self, tasks: tuple[EventTask, ...], width: int, inputs: Inputs, dropout: float) -> None:
        super().__init__()
        self.inputs = inputs
        self.labels = LabelEmbedding(tasks, width) if inputs.history_labels and tasks else None
        # Liking an item and disliking it must point in different directions from the first step on: the labels
        # scale the item vector. (Added alone, they take many epochs to learn to.)
        self.gate = nn.Linear(width, width)
        nn.init.normal_(self.gate.weight, std=0.3)
        self.mix = Perceptron((2 * width + TIME_WIDTH, width, width), dropout, "events.mix")
        self.norm = nn.LayerNorm(width)

    def forward(self, events: Events, item_BTD: Tensor, noise: Noise | None) -> Tensor:
        """Tokens from the events and the vectors of their items."""
        label_BTD = torch.zeros_like(item_BTD) if self.labels is None else self.labels(dict(events.labels_BT))
        time_BTX = event_clock(events) if self.inputs.time else item_BTD.new_zeros(*item_BTD.shape[:2], TIME_WIDTH)
        key_BT = position_keys(events.key_B, item_BTD.shape[1])
        mixed = self.mix(torch.cat([item_BTD, label_BTD, time_BTX], dim=-1), noise, key_BT)
        return self.norm(item_BTD * (1.0 + torch.tanh(self.gate(_GATE * label_BTD))) + label_BTD + mixed)


def event_clock(events: Events) -> Tensor:
    """(B, T, 6) clock features; the gap is to the shown event before, whose time is known when this one is seen."""
    before_BT = shown_times(events.time_BT, shown(events))[:, :-1]
    gap_BT = torch.where(before_BT > NEVER, (events.time_BT - before_BT).clamp_min(0), -1)
    return clock_features(events.time_BT, gap_BT)


def scaled_label(label: Tensor, task: EventTask) -> tuple[Tensor, Tensor]:
    """The label on a scale of -1..1 (0 where missing), and where it is known."""
    known = ~torch.isnan(label)
    low, high = (0.0, 1.0) if isinstance(task, BinaryTask) else (task.low, task.high)
    value = (torch.nan_to_num(label) - low) / (high - low) * 2.0 - 1.0
    return value * known, known
