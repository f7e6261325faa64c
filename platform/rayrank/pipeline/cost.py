"""What a model costs: time to score the candidates of one request, on one thread, in this process.

Measures the very scorer that serving and batch scoring use, on real histories. Knows bundles and datasets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from rayrank.batch import SequenceBatch
from rayrank.bundle import Bundle
from rayrank.bundle.info import ENCODER, GRAPH, GRAPHS, WEIGHTS
from rayrank.pipeline.percentile import percentile
from rayrank.ranking.context import ColdItems, UserContext
from rayrank.ranking.scorer import Scorer
from rayrank.ranking.store import History
from rayrank.schema import past_features
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset

_WARM_UP = 3


@dataclass(frozen=True)
class Cost:
    """Seconds per request of ``candidates`` items."""

    candidates: int
    seconds: tuple[float, ...]

    @property
    def candidates_per_s(self) -> float:
        """At the median request."""
        return self.candidates / float(np.median(self.seconds))

    def quantile_ms(self, share: float) -> float:
        """Milliseconds that this share of requests stays within."""
        return 1000.0 * percentile(self.seconds, share)


def measure_cost(bundle: Bundle, dataset: Dataset, candidates: int = 500, requests: int = 40) -> Cost:
    """:func:`measure_costs` of one bundle."""
    return measure_costs([bundle], dataset, candidates, requests)[0]


def measure_costs(
    bundles: Sequence[Bundle], dataset: Dataset, candidates: int = 500, requests: int = 40
) -> tuple[Cost, ...]:
    """Time ``requests`` requests of random candidates by users of the dataset, after a short warm-up.

    All bundles answer the same request before the next is asked, in an order that changes from request to request:
    what else the machine does, and what the one before left in its caches, strikes all of them.
    """
    scorers, generator = [Scorer(bundle) for bundle in bundles], np.random.default_rng(0)
    contexts = request_contexts(dataset, max(bundle.info.window for bundle in bundles), requests)
    seconds: list[list[float]] = [[] for _ in bundles]
    with one_thread():
        for number in range(requests + _WARM_UP):
            rows = generator.integers(1, max(len(bundles[0].items_NW), 2), candidates)
            for turn in range(len(bundles)):
                which = (number + turn) % len(bundles)
                started = time.perf_counter()
                scorers[which].score(contexts[number % len(contexts)], rows, ColdItems())
                seconds[which].append(time.perf_counter() - started)
    return tuple(Cost(candidates, tuple(found[_WARM_UP:])) for found in seconds)


def weights_mb(bundle: Bundle) -> float:
    """Megabytes of the model's own weights and of its exported encoder, on disk."""
    files = (bundle.path / WEIGHTS, bundle.path / ENCODER / GRAPH, *(bundle.path / GRAPHS).glob("*"))
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def bundle_mb(bundle: Bundle) -> float:
    """Megabytes of the whole bundle, tables of items and users included."""
    return sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()) / 1e6


@contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread inside, as in a replica; what was set before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def request_contexts(dataset: Dataset, window: int, limit: int) -> list[UserContext]:
    """Users spread over the dataset, each with the events of one sequence as history."""
    groups = dataset.groups()
    picked = groups[:: max(1, len(groups) // max(limit // 4, 1))]
    found: list[UserContext] = []
    for shard, group in picked:
        table = dataset.read_group(shard, group)
        step = max(1, table.num_rows // 4)
        batch = collate(table, dataset.schema)
        found += [_context(batch, row, window) for row in range(0, table.num_rows, step)]
    looked_up = {f.name for f in past_features(dataset.schema)}
    shared = [{n: v for n, v in context.context.items() if n not in looked_up} for context in found]
    return [replace(context, context=own) for context, own in zip(found, shared, strict=True)][:limit]


def _context(batch: SequenceBatch, row: int, window: int) -> UserContext:
    events = batch.events
    size = int((batch.row_BT[row] >= 0).sum())
    history = History(
        item=events.item_BT[row, :size].numpy().astype(np.int32),
        request=events.request_BT[row, :size].numpy(),
        time=events.time_BT[row, :size].numpy(),
        labels={task: values[row, :size].numpy() for task, values in events.labels_BT.items()},
    ).last(window)
    return UserContext(
        history=history,
        time=int(history.time[-1]) + 60,
        user=int(events.user_B[row]),
        features={name: values[row].numpy() for name, values in events.user_features.items()},
        context={name: values[row, size - 1].numpy() for name, values in batch.context.items()},
    )
