"""The targets of a dataset without a model: what baselines are fitted on and scored for.

Streams row groups and keeps at most the few columns that are asked for. Knows datasets and baselines.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from rayrank.memory import release
from rayrank.metrics import baselines
from rayrank.metrics.baselines import Additive, Sizes, Targets
from rayrank.metrics.scores import Array, Scores
from rayrank.schema import PARTS, TRAIN, VALID, BinaryTask, EventTask, RetrievalTask
from rayrank.sources.dataset import Dataset

_BLOCK = 65_536
"""Targets read at once."""


@dataclass(frozen=True)
class Baseline:
    """One baseline for every event task that it can predict, and what it says about the evaluated part."""

    name: str
    options: Mapping[str, str]  # task -> what valid chose
    parameters: int
    scores: Iterator[Scores]
    values: Mapping[str, Array]  # retrieval task -> float64 (N,), what orders the catalogue; popularity alone does


def evaluated_users(dataset: Dataset, part: int) -> Array:
    """Users with a target of ``part``, int32, sorted."""
    found = [np.unique(block["user"]) for block in part_columns(dataset, part, ["user"])]
    return np.unique(np.concatenate(found))


def read_targets(dataset: Dataset, part: int) -> Iterator[Scores]:
    """Every target of ``part`` with its labels and no predictions, in the order of the row groups."""
    tasks = [task.name for task in dataset.schema.event_tasks]
    for block in part_columns(dataset, part, ["row", "user", "request", "item", *(f"label_{t}" for t in tasks)]):
        labels = {task: block[f"label_{task}"] for task in tasks}
        about = np.full(len(block["row"]), part, np.int8)
        user, item = block["user"].astype(np.int64), block["item"].astype(np.int64)
        yield Scores(block["row"], user, block["request"], item, about, labels, {})


def fit_baselines(dataset: Dataset, part: int, progress: Callable[[str], None]) -> Iterator[Baseline]:
    """Popularity, recent popularity, item mean and user + item bias, fitted on train, chosen on valid."""
    sizes = Sizes(dataset.manifest.counts.users + 1, dataset.manifest.counts.items + 1)
    fitted: dict[str, dict[str, Additive]] = {}
    with _Kept(dataset, TRAIN) as train, _Kept(dataset, VALID) as valid:
        for task in dataset.schema.event_tasks:
            progress(f"fitting baselines for {task.name}")
            held = valid.whole(task)
            for options in _candidates(train.blocks(task), sizes, task):
                chosen = baselines.choose(options, held, logistic=isinstance(task, BinaryTask))
                fitted.setdefault(chosen.name, {})[task.name] = chosen
            del held
            release()
    for name, by_task in fitted.items():
        chosen_by_task = {task: scorer.option for task, scorer in by_task.items()}
        parameters = sum(scorer.parameters for scorer in by_task.values())
        counts = name in baselines.COUNTS
        values = {t.name: by_task[t.positive].item_N for t in dataset.schema.of_kind(RetrievalTask) if counts}
        yield Baseline(name, chosen_by_task, parameters, _said(by_task, read_targets(dataset, part)), values)


def _candidates(train: baselines.Blocks, sizes: Sizes, task: EventTask) -> Iterator[Sequence[Additive]]:
    if isinstance(task, BinaryTask):  # a count is no prediction of a value
        yield [baselines.popularity(train, sizes)]
        yield baselines.recent_popularity(train, sizes)
    yield baselines.item_mean(train, sizes)
    yield baselines.user_item_bias(train, sizes)


def _said(by_task: Mapping[str, Additive], targets: Iterable[Scores]) -> Iterator[Scores]:
    for block in targets:
        said = {task: scorer.predict(block.user, block.item) for task, scorer in by_task.items()}
        yield replace(block, predictions=said)


class _Kept:
    """What baselines read of a part's targets, decoded once into a temporary file, for dozens of passes."""

    def __init__(self, dataset: Dataset, part: int) -> None:
        labels = [f"label_{task.name}" for task in dataset.schema.event_tasks]
        names = ["user", "item", "time", *labels]
        self._record = np.dtype(list(zip(names, ["<i4", "<i4", "<i8", *["<f4"] * len(labels)], strict=True)))
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        for block in part_columns(dataset, part, names):
            records = np.empty(len(block["item"]), self._record)
            for name in names:
                records[name] = block[name]
            self._file.write(records.data)

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self, task: EventTask) -> baselines.Blocks:
        """Every pass reads the file again, some thousand targets at a time."""

        def one_pass() -> Iterator[Targets]:
            self._file.seek(0)
            while data := self._file.read(_BLOCK * self._record.itemsize):
                records = np.frombuffer(data, self._record)
                yield Targets(*(records[name] for name in ("user", "item", "time", f"label_{task.name}")))

        return one_pass

    def whole(self, task: EventTask) -> Targets:
        """All targets at once, without their times."""
        size = self._file.seek(0, os.SEEK_END) // self._record.itemsize
        user, item, label = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.float32)
        start = 0
        for block in self.blocks(task)():
            some = slice(start, start := start + len(block.item))
            user[some], item[some], label[some] = block.user, block.item, block.label
        return Targets(user, item, np.broadcast_to(np.int64(0), size), label)


def part_columns(dataset: Dataset, part: int, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """The named columns of one part's targets, a block per row group; one empty block when there is none."""
    share = next(name for name, number in PARTS.items() if number == part)
    empty = True
    for shard, group in dataset.groups():
        if getattr(dataset.manifest.shards[shard].row_groups[group], share) == 0 and not empty:
            continue
        empty = False
        table = dataset.read_group(shard, group, ["part", *names])
        keep = pc.list_flatten(table["part"]).to_numpy() == part
        lengths = pc.list_value_length(table["part"]).to_numpy()
        block: dict[str, Array] = {}
        for name in names:
            values = table[name].to_numpy() if name == "user" else pc.list_flatten(table[name]).to_numpy()
            block[name] = (np.repeat(values, lengths) if name == "user" else values)[keep]
        yield block
