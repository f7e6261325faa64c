"""What one rank of a run is fed: steps of micro-batches by epoch, and its share of the evaluated row groups.

Puts together the plan (which row group when), row groups in that order (wherever they come from) and collation. The
plan depends on seed, epoch and lanes only, so the numbers do not depend on how many ranks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import islice

import pyarrow as pa
from torch import Tensor

from rayrank.batch import SequenceBatch
from rayrank.learning.folds import evaluated, trained
from rayrank.learning.plan import GroupInfo, GroupRef, micro_batches, plan, steps
from rayrank.learning.spec import FoldSpec, LearningSpec
from rayrank.memory import releasing
from rayrank.schema import TRAIN
from rayrank.sources.collate import collate
from rayrank.sources.groups import LABELS, Group, Groups
from rayrank.sources.manifest import Manifest


class Feed:
    """The batches of one rank.

    Args:
        groups: where row groups come from.
        spec: seed, lanes and sizes.
        place: this rank, and how many there are.
        cache_mb: collated row groups that are kept between epochs, MB.
        teach: adds soft labels to a row group (teachers in the loop); None: they are read, if there are any. Steps
            want them, evaluation does not.
    """

    def __init__(
        self,
        groups: Groups,
        spec: LearningSpec,
        place: tuple[int, int] = (0, 1),
        cache_mb: int = 0,
        teach: Callable[[SequenceBatch], SequenceBatch] | None = None,
    ) -> None:
        self._groups, self._manifest, self._spec = groups, groups.manifest, spec
        self._rank, self._world = place
        self._teach = teach
        self._kept: dict[Group, SequenceBatch] = {}
        self._room = cache_mb * 2**20
        self._begun: tuple[tuple[int, int], Iterator[list[SequenceBatch]]] | None = None

    def begin(self, epoch: int, start: int = 0) -> None:
        """Start reading for the steps that :meth:`steps` will be asked for next; others drop it."""
        self._begun = ((epoch, start), self.steps(epoch, start))

    def steps(self, epoch: int, start: int = 0) -> Iterator[list[SequenceBatch]]:
        """Steps of this rank in an epoch from ``start`` on: the next micro-batch of each lane that still has one.

        Row groups that were used up before ``start`` are not read.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == (epoch, start):
            return begun[1]
        dealt = plan(train_groups(self._manifest), self._spec.seed, epoch, self._spec.lanes, self._spec.batch_events)
        mine = [left_over(lane, start) for lane in dealt.of_rank(self._rank, self._world)]
        batches = self._batches([Group(ref.shard, ref.group) for ref in first_need(mine)], taught=True)
        return releasing(steps([_lane(lane, batches, self._spec.fold) for lane in mine]))

    def evaluated(self, part: str) -> Iterator[SequenceBatch]:
        """This rank's row groups that hold a target of ``part`` ('train', 'valid' or 'test'), one batch each."""
        groups = part_groups(self._manifest, part)[self._rank :: self._world]
        batches = (evaluated(batch, self._spec.fold) for batch in self._batches(groups, taught=False))
        return releasing(batch for batch in batches if len(batch.part_BT))

    def _batches(self, order: Sequence[Group], taught: bool) -> Iterator[SequenceBatch]:
        """Collated row groups; reading starts now. What there is room for is remembered, if steps can use it too."""
        known = self._kept.keys() & set(order)
        collated = partial(self._collate, taught=taught)
        fresh = self._groups.read([group for group in order if group not in known], collated)
        return self._merged(list(order), known, fresh, taught or self._teach is None)

    def _merged(
        self, order: list[Group], known: set[Group], fresh: Iterator[SequenceBatch], whole: bool
    ) -> Iterator[SequenceBatch]:
        for group in order:
            if group in known:
                yield self._kept[group]
                continue
            batch = next(fresh)
            kept = whole or not _trains(batch)
            if kept and group not in self._kept and (size := bytes_of(batch)) <= self._room:
                self._kept[group] = batch
                self._room -= size
            yield batch

    def _collate(self, table: pa.Table, taught: bool) -> SequenceBatch:
        soft = [name for name in table.column_names if name.startswith(LABELS)]
        labels = table.select(["key", *soft]) if soft else None
        batch = collate(table.drop_columns(soft), self._manifest.dataset_schema, labels)
        return self._teach(batch) if self._teach and taught and _trains(batch) else batch


def _trains(batch: SequenceBatch) -> bool:
    return bool((batch.part_BT == TRAIN).any())


@dataclass(frozen=True)
class Rest:
    """A row group and how many of its micro-batches are done."""

    ref: GroupRef
    done: int


def bytes_of(value: object) -> int:
    """Memory of all tensors of a batch."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(bytes_of(getattr(value, f.name)) for f in fields(value))
    return 0


def left_over(lane: Sequence[GroupRef], start: int) -> list[Rest]:
    """What a lane has still to give after ``start`` micro-batches."""
    found: list[Rest] = []
    for ref in lane:
        if start < ref.splits:
            found.append(Rest(ref, start))
        start = max(0, start - ref.splits)
    return found


def first_need(lanes: Sequence[Sequence[Rest]]) -> list[GroupRef]:
    """Row groups in the order in which the lanes, one micro-batch a step in turn, first need them."""
    needed: list[tuple[int, int, GroupRef]] = []
    for lane, rests in enumerate(lanes):
        step = 0
        for rest in rests:
            needed.append((step, lane, rest.ref))
            step += rest.ref.splits - rest.done
    return [ref for _, _, ref in sorted(needed, key=lambda entry: entry[:2])]


def train_groups(manifest: Manifest) -> list[GroupInfo]:
    """Every row group as the plan wants to know it."""
    return [
        GroupInfo(s, g, info.sequences, info.max_length, info.train)
        for s, shard in enumerate(manifest.shards)
        for g, info in enumerate(shard.row_groups)
    ]


def steps_per_epoch(manifest: Manifest, spec: LearningSpec) -> int:
    """Steps of the first epoch; later ones differ by a few."""
    return plan(train_groups(manifest), spec.seed, 0, spec.lanes, spec.batch_events).steps


def part_groups(manifest: Manifest, part: str) -> list[Group]:
    """Row groups that hold a target of a part, in shard order."""
    return [
        Group(s, g)
        for s, shard in enumerate(manifest.shards)
        for g, info in enumerate(shard.row_groups)
        if getattr(info, part) > 0
    ]


def _lane(
    rests: Sequence[Rest], batches: Iterator[SequenceBatch], fold: FoldSpec | None
) -> Iterator[SequenceBatch | None]:
    for rest in rests:
        yield from islice(micro_batches(trained(next(batches), fold), rest.ref), rest.done, None)
