"""Loaded teachers that label batches: the label job's actors and a training process with teachers in the loop share it.

Knows bundles and batches; knows nothing about how labels are kept, nor about students.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rayrank.batch import SequenceBatch
from rayrank.bundle import Bundle, load_bundle, read_info
from rayrank.config import ConfigError
from rayrank.learning.best import Finder, best
from rayrank.learning.labels import Sampler, Teacher, taught
from rayrank.learning.mining import POOL_SEED, mined
from rayrank.models.spec import state_width
from rayrank.on_ray.label_spec import Asked, Member
from rayrank.sources.collate import collate
from rayrank.sources.groups import Group, Place, Shards, read_place

_SAME = ("key", "item", "row", "part")
"""Columns of a row group that must be equal in the datasets of all teachers."""


class Panel:
    """Teachers with their weights, and what they are asked, with the task that orders best candidates by its name."""

    def __init__(self, bundles: Sequence[Bundle], weights: Sequence[float], asked: Asked) -> None:
        self._teachers = [Teacher(b.model, b.items_NW, w) for b, w in zip(bundles, weights, strict=True)]
        count_N = bundles[0].catalogue().count_N
        self._sampler = Sampler(count_N, asked.samples, asked.sample_power)
        self._pool, self._mined = Sampler(count_N, asked.pool, asked.sample_power, POOL_SEED), asked.mined
        self._states = asked.states
        power = asked.sample_power if asked.best_by == "draw" else None
        assert asked.best_task or not asked.best, "bundles may have other tasks than the dataset, so none is the first"
        numbers, task = (asked.best, asked.best_of), asked.best_task
        self._best = Finder.of(count_N, numbers, task, power) if task and asked.best else None

    @staticmethod
    def of(members: Sequence[Member], asked: Asked, verify: bool = True) -> Panel:
        """Load them."""
        bundles = [load_bundle(member.bundle, verify=verify) for member in members]
        return Panel(bundles, [member.weight for member in members], asked)

    def label(self, batch: SequenceBatch, views: Sequence[SequenceBatch] | None = None) -> SequenceBatch:
        """The batch with everything that is asked; ``views`` as in :func:`rayrank.learning.labels.taught`."""
        found = taught(self._teachers, batch, self._sampler, views, self._states)
        if self._mined:
            found = mined(self._teachers, found, self._pool, self._mined, views)
        return best(self._teachers, found, self._best, views) if self._best else found


def states_width(bundles: Sequence[str]) -> int:
    """Columns of the user states of some teachers, side by side."""
    found = map(read_info, bundles)
    return sum(state_width(info.spec, info.data_schema) for info in found)


class Views:
    """The row groups of a dataset, each also as the teachers with datasets of their own read it."""

    def __init__(self, dataset: str, members: Sequence[Member]) -> None:
        self._main = Shards(dataset)
        self._own = [Shards(member.dataset) if member.dataset else None for member in members]
        self._shards = {self._main.place(Group(s, 0)).file: s for s in range(len(self._main.manifest.shards))}

    def read(self, place: Place) -> tuple[pa.Table, SequenceBatch, list[SequenceBatch]]:
        """The row group as it lies, collated, and as each teacher reads it.

        Raises:
            ConfigError: a teacher's dataset holds other sequences.
        """
        table = read_place(place)
        batch, views = collate(table, self._main.manifest.dataset_schema), []
        for shards in self._own:
            if shards is None:
                views.append(batch)
                continue
            there = shards.place(Group(self._shards[place.file], place.group))
            other = read_place(there)
            if any(not table.column(name).equals(other.column(name)) for name in _SAME):
                rule = f"row group {place.group} must hold the events of {place.file}"
                raise ConfigError(there.file, None, rule, "prepare the same log, split and windows for this teacher")
            views.append(collate(other, shards.manifest.dataset_schema))
        return table, batch, views
