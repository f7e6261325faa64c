"""Which rows go into which step: row groups dealt to lanes by (seed, epoch), and how a group splits into micro-batches.

The plan depends on the manifest and the spec only, never on the number of processes: rank r of W runs the lanes l
with l mod W = r. Each row group is in one lane once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrank.batch import SequenceBatch
from rayrank.schema import TRAIN

MIN_STEPS, MIN_EVENTS = 60, 256
"""Small data is cut into smaller micro-batches (not below MIN_EVENTS) so that an epoch has about MIN_STEPS steps."""
_PIECE = 16_384
"""Padded positions scored at once; batch shape moves last bits of scores, so pieces depend on the row group only."""


@dataclass(frozen=True)
class GroupInfo:
    """A row group as the manifest describes it."""

    shard: int
    group: int
    sequences: int
    max_length: int
    targets: int  # train targets; groups without any are left out of the plan


@dataclass(frozen=True)
class GroupRef:
    """A row group in a plan: read it, shuffle its rows by ``seed``, cut them into ``splits`` equal micro-batches."""

    shard: int
    group: int
    splits: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """Ordered row groups of every lane for one epoch."""

    lanes: tuple[tuple[GroupRef, ...], ...]

    @property
    def steps(self) -> int:
        """Steps of the epoch: the longest lane's micro-batches."""
        return max((sum(ref.splits for ref in lane) for lane in self.lanes), default=0)

    def of_rank(self, rank: int, world: int) -> tuple[tuple[GroupRef, ...], ...]:
        """The lanes that a rank runs, in order."""
        return self.lanes[rank::world]


def plan(groups: Sequence[GroupInfo], seed: int, epoch: int, lanes: int, batch_events: int) -> Plan:
    """Deal shuffled row groups to ``lanes``, each to the lane with the fewest micro-batches so far."""
    generator = np.random.default_rng([seed, epoch, 0x1A2E5])
    dealt: list[list[GroupRef]] = [[] for _ in range(lanes)]
    load = [0] * lanes
    useful = [group for group in groups if group.targets > 0]
    positions = sum(group.sequences * group.max_length for group in useful)
    batch_events = min(batch_events, max(positions // (lanes * MIN_STEPS), MIN_EVENTS))
    order = generator.permutation(len(useful))
    for place in order.tolist():
        info = useful[place]
        splits = min(-(-info.sequences * info.max_length // batch_events), info.sequences)
        lane = min(range(lanes), key=lambda n: (load[n], n))
        shuffle = int(generator.integers(2**31))
        dealt[lane].append(GroupRef(info.shard, info.group, splits, shuffle))
        load[lane] += splits
    return Plan(tuple(tuple(lane) for lane in dealt))


def micro_batches(batch: SequenceBatch, ref: GroupRef) -> Iterator[SequenceBatch | None]:
    """The row group shuffled and cut as its reference says, each piece trimmed to what training can reach.

    None for a piece without sequences: so many were left out that fewer are there than pieces (see learning.folds).
    """
    size = batch.part_BT.shape[0]
    order = torch.from_numpy(np.random.default_rng(ref.seed).permutation(size))
    shuffled = take(batch, order)  # once; the pieces are views
    cut, reach_B = _cutter(shuffled, ""), _reach(shuffled)
    for piece in np.array_split(np.arange(size), ref.splits):
        rows = slice(int(piece[0]), int(piece[-1]) + 1) if len(piece) else None
        yield cut(rows, slice(int(reach_B[rows].max()))) if rows else None


def steps(lanes: Sequence[Iterable[SequenceBatch | None]]) -> Iterator[list[SequenceBatch]]:
    """Steps of one rank: the next micro-batch of each of its lanes; lanes that have none (any more) are left out."""
    for step in zip_longest(*lanes):
        yield [batch for batch in step if batch is not None]


def pieces(batch: SequenceBatch) -> Iterator[SequenceBatch]:
    """A row group a few sequences at a time, for whatever is not trained on."""
    return (take(batch, rows) for rows in piece_rows(batch))


def piece_rows(batch: SequenceBatch) -> Sequence[Tensor]:
    """The sequences of each of :func:`pieces`, int64."""
    sequences, length = batch.part_BT.shape
    count = min(max(1, -(-sequences * length // _PIECE)), sequences)
    return torch.tensor_split(torch.arange(sequences), count)


def take(batch: SequenceBatch, rows: Tensor) -> SequenceBatch:
    """Some sequences of a batch; ``rows`` int64 (N,)."""
    return _map(batch, lambda x: x.index_select(0, rows.to(x.device)))  # a third of the time of x[rows]


def trim(batch: SequenceBatch) -> SequenceBatch:
    """A batch without the positions after its last train target, which no train target can see; a view."""
    trimmed: SequenceBatch = _cutter(batch, "")(slice(None), slice(int(_reach(batch).max())))
    return trimmed


def _reach(batch: SequenceBatch) -> Tensor:
    """int64 (B,): positions of each sequence up to its last train target, one where it has none."""
    train_BT = batch.part_BT == TRAIN
    return (train_BT * torch.arange(1, train_BT.shape[1] + 1, device=train_BT.device)).amax(1).clamp_min(1)


_TIMED = ("_BT", "_BTS", "_BTM", "_BTK", "_BTU", "context")
"""How the names of what has an axis of positions end."""


def _cutter(value: Any, name: str) -> Callable[[slice, slice], Any]:
    """Cuts (sequences, positions) out of a batch, as views. The batch is looked through once, not for every piece."""
    if isinstance(value, Tensor):
        return (lambda rows, places: value[rows, places]) if name.endswith(_TIMED) else (lambda rows, _: value[rows])
    if isinstance(value, dict):
        items = [(key, _cutter(item, name)) for key, item in value.items()]
        return lambda rows, places: {key: cut(rows, places) for key, cut in items}
    if is_dataclass(value):
        made: Any = type(value)
        parts = [(n, _cutter(found, n)) for n, found in vars(value).items()]
        return lambda rows, places: made(**{n: cut(rows, places) for n, cut in parts})
    return lambda *_: value


def _map(value: Any, pick: Any) -> Any:
    if isinstance(value, Tensor):
        return pick(value)
    if isinstance(value, dict):
        return {key: _map(item, pick) for key, item in value.items()}
    if is_dataclass(value):
        return replace(value, **{n: _map(found, pick) for n, found in vars(value).items()})  # type: ignore[type-var]
    return value
