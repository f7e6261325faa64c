"""A history summed up without attention: label-aware means of item vectors over the visible events, by prefix sums."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.batch import Events
from rayrank.models.events import scaled_label
from rayrank.schema import EventTask


class Summary:
    """Means over all events, per task weighted by the label (-1..1), and over the most recent events."""

    def __init__(self, tasks: tuple[EventTask, ...], width: int, recent: int) -> None:
        self.tasks, self.item_width, self.recent = tasks, width, recent
        self.channels = 1 + len(tasks)

    @property
    def width(self) -> int:
        """Columns of :meth:`means`."""
        return (self.channels + 1) * self.item_width + len(self.tasks) + 1

    @property
    def sums_width(self) -> int:
        """Columns of :meth:`sums`."""
        return self.channels * (1 + self.item_width)

    def sums(self, events: Events, item_BTD: Tensor, shown_BT: Tensor) -> Tensor:
        """(B, T + 1, ·) prefix sums: shown events, labels per task, and both times the item vectors.

        (B, 2, ·) when only all events together are asked for: those before the recent ones, and all.
        """
        seen_BT1 = shown_BT.to(item_BTD.dtype).unsqueeze(-1)
        labels = [scaled_label(events.labels_BT[task.name], task)[0].unsqueeze(-1) * seen_BT1 for task in self.tasks]
        weights = [seen_BT1, *labels]
        values = torch.cat([*weights, *(item_BTD * weight for weight in weights)], dim=-1)
        if events.whole:
            place_BT = shown_BT.long().cumsum(1)
            older_BT = place_BT <= place_BT[:, -1:] - self.recent
            weights_B2T = torch.stack([older_BT.to(values.dtype), torch.ones_like(values[..., 0])], dim=1)
            return weights_B2T @ values
        return functional.pad(values.cumsum(1), (0, 0, 1, 0))

    def means(self, sums_BSX: Tensor, count_BQ: Tensor) -> Tensor:
        """(B, Q, ·) what the events before place ``count_BQ`` amount to; those not shown do not count at all."""
        now = _at(sums_BSX, count_BQ)
        before = sums_BSX[:, :1]  # of a whole history, or of a single event: the first row is what is older
        if sums_BSX.shape[1] > 2:
            older_BQ = (now[..., 0] - self.recent).clamp_min(0)
            before = _at(sums_BSX, torch.searchsorted(sums_BSX[..., 0].contiguous(), older_BQ.contiguous()))
        plain, width = self.channels, self.item_width
        size = now[..., :1] + 3.0  # three imaginary neutral events keep short histories near the middle
        recent = (now - before)[..., plain : plain + width] / ((now - before)[..., :1] + 1.0)
        seen = torch.log1p(now[..., :1]) / 5.0
        return torch.cat([now[..., plain:] / size, recent, now[..., 1:plain] / size, seen], dim=-1)


def _at(sums_BSX: Tensor, count_BQ: Tensor) -> Tensor:
    """The prefix sums after ``count_BQ`` events, (B, Q, ·)."""
    return sums_BSX.gather(1, count_BQ.unsqueeze(-1).expand(-1, -1, sums_BSX.shape[-1]))
