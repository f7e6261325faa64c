"""The targets of a dataset without a model: what baselines are fitted on and scored for.

Streams row groups and keeps at most the few columns that are asked for. Knows datasets and baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from rayrank.metrics import baselines
from rayrank.metrics.baselines import Additive, Sizes, Targets
from rayrank.metrics.scores import Array, Scores
from rayrank.schema import PARTS, TRAIN, VALID, BinaryTask, EventTask
from rayrank.sources.dataset import Dataset

_KEPT_IN_MEMORY = 20_000_000
"""Train targets up to this many are read once and kept (20 bytes each); more are read again for every pass."""


@dataclass(frozen=True)
class Baseline:
    """One baseline for every event task that it can predict, and what it says about the evaluated part."""

    name: str
    options: Mapping[str, str]  # task -> what valid chose
    parameters: int
    scores: Scores


def read_targets(dataset: Dataset, part: int) -> Scores:
    """Every target of ``part`` with its labels and no predictions, sorted like merged scores."""
    tasks = [task.name for task in dataset.schema.event_tasks]
    names = ["row", "user", "request", "item"]
    blocks = list(_columns(dataset, part, [*names, *(f"label_{t}" for t in tasks)]))
    columns = {n: np.concatenate([b[n] for b in blocks]) for n in blocks[0]}
    labels = {task: columns[f"label_{task}"] for task in tasks}
    size = np.full(len(columns["row"]), part, np.int8)
    row, user, request, item = (columns[n] for n in names)
    return Scores(row, user.astype(np.int64), request, item.astype(np.int64), size, labels, {}).sorted()


def fit_baselines(dataset: Dataset, part: int, progress: Callable[[str], None]) -> list[Baseline]:
    """Popularity, recent popularity, item mean and user + item bias, fitted on train, chosen on valid."""
    sizes = Sizes(dataset.manifest.counts.users + 1, dataset.manifest.counts.items + 1)
    evaluated = read_targets(dataset, part)
    fitted: dict[str, dict[str, Additive]] = {}
    for task in dataset.schema.event_tasks:
        progress(f"fitting baselines for {task.name}")
        train = _blocks(dataset, TRAIN, task)
        valid = _joined(list(_blocks(dataset, VALID, task)()))
        for options in _candidates(train, sizes, task):
            chosen = baselines.choose(options, valid, logistic=isinstance(task, BinaryTask))
            fitted.setdefault(chosen.name, {})[task.name] = chosen
    return [_baseline(name, by_task, evaluated) for name, by_task in fitted.items()]


def _candidates(train: baselines.Blocks, sizes: Sizes, task: EventTask) -> Iterator[Sequence[Additive]]:
    if isinstance(task, BinaryTask):  # a count is no prediction of a value
        yield [baselines.popularity(train, sizes)]
        yield baselines.recent_popularity(train, sizes)
    yield baselines.item_mean(train, sizes)
    yield baselines.user_item_bias(train, sizes)


def _baseline(name: str, by_task: Mapping[str, Additive], evaluated: Scores) -> Baseline:
    predictions = {task: scorer.predict(evaluated.user, evaluated.item) for task, scorer in by_task.items()}
    return Baseline(
        name,
        {task: scorer.option for task, scorer in by_task.items()},
        sum(scorer.parameters for scorer in by_task.values()),
        replace(evaluated, predictions=predictions),
    )


def _blocks(dataset: Dataset, part: int, task: EventTask) -> baselines.Blocks:
    def one_pass() -> Iterator[Targets]:
        label = f"label_{task.name}"
        for block in _columns(dataset, part, ["user", "item", "time", label]):
            yield Targets(block["user"], block["item"], block["time"], block[label])

    if part == TRAIN and dataset.manifest.counts.train > _KEPT_IN_MEMORY:
        return one_pass
    kept = [_joined(list(one_pass()))]
    return lambda: kept


def _joined(blocks: Sequence[Targets]) -> Targets:
    def column(name: str) -> Array:
        return np.concatenate([getattr(block, name) for block in blocks])

    return Targets(column("user"), column("item"), column("time"), column("label"))


def _columns(dataset: Dataset, part: int, names: Sequence[str]) -> Iterator[dict[str, Array]]:
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
