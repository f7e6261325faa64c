"""Several requests as one batch: which of them go together, and their events and queries side by side.

Padding is on the right and shown to nobody, so a request scores as it does alone. Knows tensors and sizes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rayrank.batch import FAR, Events, Queries

WASTE = 2
"""A batch has at most so many times the cells that its requests need."""
MOST = 4096
"""Candidates of a batch, padding included: beyond, a call is all arithmetic and saves nothing but makes others wait."""
Size = tuple[int, int]
"""Events and candidates of a request."""


def alike(sizes: Sequence[Size]) -> list[list[int]]:
    """The requests' numbers in groups of similar sizes, within :data:`WASTE` and :data:`MOST`."""
    groups = list[list[int]]()
    for number in sorted(range(len(sizes)), key=lambda n: (sizes[n][1], sizes[n][0])):
        if groups and _dense([sizes[n] for n in (*groups[-1], number)]):
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _dense(sizes: Sequence[Size]) -> bool:
    fits = len(sizes) * max(candidates for _, candidates in sizes) <= MOST
    return fits and all(len(axis) * max(axis) <= WASTE * sum(axis) for axis in zip(*sizes, strict=True))


def joined_events(parts: Sequence[Events]) -> Events:
    """(B, T) from requests (1, ·) whose queries see all events; one that is not ``whole`` has none, only padding."""
    shown = [torch.full((part.shape[1],), part.whole) for part in parts]
    return Events(
        item_BT=_rows([p.item_BT for p in parts]),
        request_BT=_rows([p.request_BT for p in parts], FAR),
        time_BT=_rows([p.time_BT for p in parts]),
        labels_BT=_by_name([p.labels_BT for p in parts], float("nan")),
        user_B=torch.cat([p.user_B for p in parts]),
        user_features={name: torch.cat([p.user_features[name] for p in parts]) for name in parts[0].user_features},
        key_B=torch.cat([p.key_B for p in parts]),
        history_BT=pad_sequence(shown, batch_first=True),
        whole=True,
    )


def joined_queries(parts: Sequence[Queries]) -> Queries:
    """(B, Q) from the candidates of requests (1, ·), each asked for at one time."""
    item_BQ = _rows([p.item_BQ for p in parts])
    return Queries(
        item_BQ=item_BQ,
        time_BQ=torch.cat([p.time_BQ[:, :1] for p in parts]).expand_as(item_BQ),
        visible_before_BQ=torch.cat([p.visible_before_BQ[:, :1] for p in parts]).expand_as(item_BQ),
        context=_by_name([p.context for p in parts], 0),
    )


def _by_name(parts: Sequence[Mapping[str, Tensor]], padding: float) -> dict[str, Tensor]:
    return {name: _rows([part[name] for part in parts], padding) for name in parts[0]}


def _rows(parts: Sequence[Tensor], padding: float = 0) -> Tensor:
    """(B, longest, …) from (1, ·, …)."""
    return pad_sequence([part[0] for part in parts], batch_first=True, padding_value=padding)
