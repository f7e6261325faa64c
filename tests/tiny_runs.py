"""Training runs of the tiny world: a few batches dealt to lanes, on processes played by threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.inputs import Hooks, Snapshot, TrainData, TrainSpec
from rayrank.learning.spec import LearningSpec, RowsSpec
from rayrank.learning.train import TrainResult, train
from rayrank.models.build import build_ranker
from rayrank.models.encoder import build_encoder
from rayrank.models.ranker import Ranker
from rayrank.models.tuning import Top, TuneSpec, tune
from tests.tiny_models import BERT, ITEMS, SCHEMA, SIZES, batch, catalogue, spec_of, steps_of

LEARNING = LearningSpec(
    epochs=2,
    lanes=2,
    choose="stars/rmse",
    lower_is_better=True,
    horizon=0.5,
    patience=9,
    rows=RowsSpec(epochs=1, batch=8, window=2, steps=1),
)


def batches(count: int = 5) -> list[SequenceBatch]:
    return [batch(sequences=4, seed=10 + n, first_key=10 * n) for n in range(count)]


class Threads:
    """Collectives of processes played by threads."""

    def __init__(self, rank: int, world: int, shared: dict[str, Any]) -> None:
        self.rank, self.world, self.shared = rank, world, shared

    def all_gather_objects(self, value: Any) -> list[Any]:
        self.shared[str(self.rank)] = value
        self.shared["barrier"].wait(30)
        found = [self.shared[str(rank)] for rank in range(self.world)]
        self.shared["barrier"].wait(30)
        return found

    def gather_objects(self, value: Any) -> list[Any]:
        found = self.all_gather_objects(value)
        return found if self.rank == 0 else []

    def from_first(self, value: Any) -> Any:
        return self.all_gather_objects(value)[0]

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = self.all_gather_objects(tensor.clone())
        return tensor.copy_(torch.stack(parts).sum(0))

    def barrier(self) -> None:
        self.shared["barrier"].wait(30)


def fresh(kind: str, encoder: bool = False, tuned: TuneSpec | None = None) -> Ranker:
    torch.manual_seed(0)
    if not encoder:
        return build_ranker(spec_of(kind), SCHEMA, SIZES)
    network = build_encoder({name: value for name, value in BERT.items() if name != "initializer_range"})
    tune(network, tuned or Top())
    return build_ranker(spec_of(kind), SCHEMA, SIZES.model_copy(update={"text_width": 8}), network)


def with_texts(table: Catalogue) -> Catalogue:
    """Three tokens for every item."""
    offsets = torch.arange(0, 3 * (ITEMS + 2), 3)
    tokens = (torch.arange(3 * ITEMS + 3) % 26 + 4).int()
    return replace(table, vectors_ND=None, token_offsets=offsets, token_ids=tokens)


def run(
    model: Ranker,
    given: list[SequenceBatch],
    spec: TrainSpec,
    collectives: Threads | None = None,
    hooks: Hooks | None = None,
) -> TrainResult:
    rank, world = (collectives.rank, collectives.world) if collectives else (0, 1)
    lanes = spec.learning.lanes
    table = catalogue()
    if getattr(model, "encoder", None) is not None:
        table = with_texts(table)
    data = TrainData(
        table,
        lambda _, start: islice(steps_of(given, lanes, rank, world), start, None),
        -(-len(given) // lanes),
        lambda: iter(given[rank::world]),
    )
    return train(model, data, spec, hooks, collectives)


def keep_in(saved: list[Snapshot]) -> Callable[[Snapshot], None]:
    """A hook that keeps snapshots."""
    return lambda snapshot: saved.append(snapshot.copied())


def on_ranks(
    world: int,
    make: Callable[[], Ranker],
    given: list[SequenceBatch],
    spec: TrainSpec,
    hooks: Callable[[int], Hooks] = lambda _: Hooks(),
) -> list[TrainResult]:
    shared: dict[str, Any] = {"barrier": threading.Barrier(world)}
    models, results = [make() for _ in range(world)], {}

    def work(rank: int) -> None:
        try:
            results[rank] = run(models[rank], given, spec, Threads(rank, world, shared), hooks(rank))
        except BaseException:
            shared["barrier"].abort()
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [results[rank] for rank in range(world)]


def curve(result: TrainResult, name: str = "loss") -> torch.Tensor:
    return torch.tensor([entry[name] for entry in result.curve])
