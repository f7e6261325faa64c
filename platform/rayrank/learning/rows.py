"""The first stage: the static path on events in random order.

A window of micro-batches is taken apart into rows; which step a row goes to is a hash of its number, so that the
steps are the same for any number of ranks. Memory holds one window. Knows nothing about the sequence path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from rayrank.batch import FAR, Catalogue, Events, SequenceBatch
from rayrank.learning.collectives import Collectives
from rayrank.learning.inputs import Hooks, Step, TrainData, TrainSpec
from rayrank.learning.optimiser import Average, Rates, build_optimiser, schedule, split_parameters, sum_gradients
from rayrank.learning.plan import take
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker, take_rows
from rayrank.objectives.losses import Outputs, compute, label_counts
from rayrank.objectives.targets import Targets, training_targets
from rayrank.schema import TRAIN

FIRST_EPOCH = 1_000
"""What this stage calls its first epoch: its order of the data differs from that of the next stage."""
_STEPS = 1 << 40
"""Offset that keeps the dropout of this stage apart from that of the next one."""


def train_rows(model: Ranker, data: TrainData, spec: TrainSpec, hooks: Hooks, collectives: Collectives) -> None:
    """Train the static path in place; its averaged weights stay."""
    rows = spec.learning.rows
    parameters = split_parameters(model)[0]
    optimiser = build_optimiser(
        model, parameters, Rates(rows.learning_rate, rows.learning_rate, rows.weight_decay, rows.weight_decay)
    )
    average, step = Average(parameters, rows.ema), 0
    for epoch in range(rows.epochs):
        seen, losses = 0.0, dict[str, float]()
        for batch, done in _steps(data, epoch, spec, collectives):
            noise = Noise(spec.learning.seed, _STEPS + step)
            optimiser.zero_grad(set_to_none=True)
            sums, counts = _backward(model, batch, data.catalogue, spec, noise, collectives)
            share = schedule((epoch + done) / rows.epochs, spec.learning.warmup, spec.learning.final_learning_rate)
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
            sum_gradients(parameters, collectives)
            torch.nn.utils.clip_grad_norm_(parameters, spec.learning.clip)
            optimiser.step()
            average.update()
            step += 1
            collectives.all_reduce_sum(sums)
            seen += 1.0
            means = (sums / torch.stack(list(counts.values())).clamp_min(1)).tolist()
            for name, value in zip(counts, means, strict=True):
                losses[f"loss/{name}"] = losses.get(f"loss/{name}", 0.0) + value
        found = {name: value / max(1.0, seen) for name, value in losses.items()}
        hooks.report({"stage": "rows", "epoch": epoch, "epochs": rows.epochs, **found})
    average.keep()


def _backward(
    model: Ranker,
    batch: SequenceBatch | None,
    catalogue: Catalogue,
    spec: TrainSpec,
    noise: Noise,
    collectives: Collectives,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of this rank's rows; (loss sums, label counts of all ranks) by event task."""
    device = next(model.parameters()).device
    names = [task.name for task in model.schema.event_tasks]
    flat, targets = torch.zeros(len(names), device=device), None
    if batch is not None:
        batch = batch.to(device)
        targets = training_targets(batch, torch.full_like(batch.valid_from_B, FAR))
        found = label_counts(targets, model.schema, spec.objective)
        flat = torch.stack([found[name] for name in names])
    collectives.all_reduce_sum(flat)
    counts, sums = dict(zip(names, flat.unbind(), strict=True)), torch.zeros(len(names), device=device)
    if batch is not None and targets is not None:
        said = _static_outputs(model, batch, targets, catalogue, noise)
        terms = compute(said, targets, model.schema, spec.objective)
        every = {task.name: counts.get(task.name, flat.new_ones(())) for task in model.schema.tasks}
        terms.total(every, spec.objective).backward()
        for (task, _), value in terms.sums.items():
            sums[names.index(task)] += value.detach()
    return sums, counts


def _static_outputs(
    model: Ranker, batch: SequenceBatch, targets: Targets, catalogue: Catalogue, noise: Noise
) -> Outputs:
    rows = torch.unique(torch.cat([targets.queries.item_BQ.flatten(), targets.queries.item_BQ.new_zeros(1)]))
    static_RW = model.static_items(take_rows(catalogue, rows), rows, noise)
    queries = replace(targets.queries, item_BQ=torch.searchsorted(rows, targets.queries.item_BQ))
    state = model.static_state(batch.events, noise)
    return Outputs(model.by_task(model.static_logits(state, queries, static_RW, noise)))


def _steps(
    data: TrainData, epoch: int, spec: TrainSpec, collectives: Collectives
) -> Iterator[tuple[SequenceBatch | None, float]]:
    """(this rank's rows of the step or None, share of the epoch that is done after it); as many on every rank."""
    rows, order = spec.learning.rows, Noise(spec.learning.seed, FIRST_EPOCH + epoch)
    iterator = iter(data.train(FIRST_EPOCH + epoch))
    for start in range(0, data.steps_per_epoch, rows.window):
        length = min(rows.window, data.steps_per_epoch - start)
        last = start + length == data.steps_per_epoch
        held = as_rows(iterator if last else islice(iterator, length))  # epochs differ by a step or two
        count = torch.tensor([0.0 if held is None else float(len(held.row_BT))], device=data.catalogue.count_N.device)
        found = int(collectives.all_reduce_sum(count))
        pieces = max(1, -(-found // rows.batch), min(round(rows.steps * length / data.steps_per_epoch), found // 64))
        place = None if held is None else (order.uniform("rows", held.row_BT[:, 0]) * pieces).long()
        for piece in range(pieces):
            mine = None if place is None else (place == piece).nonzero()[:, 0]
            batch = None if held is None or mine is None or not len(mine) else take(held, mine)
            yield batch, (start + length * (piece + 1) / pieces) / data.steps_per_epoch


def as_rows(steps: Iterable[Step]) -> SequenceBatch | None:
    """The train targets of some micro-batches as sequences of one event each; None when there are none."""
    found = [rows_of(batch) for step in steps for batch in step]
    return _joined(found) if found else None


def rows_of(batch: SequenceBatch) -> SequenceBatch:
    """The train targets of a batch as sequences of one event; keys are row numbers."""
    sequence, place = (batch.part_BT == TRAIN).nonzero(as_tuple=True)

    def pick(values: Tensor) -> Tensor:
        return values[sequence, place].unsqueeze(1)

    events = batch.events
    flat = Events(
        item_BT=pick(events.item_BT),
        request_BT=torch.ones_like(sequence, dtype=torch.int32).unsqueeze(1),
        time_BT=pick(events.time_BT),
        labels_BT={name: pick(value) for name, value in events.labels_BT.items()},
        user_B=events.user_B[sequence],
        user_features={name: value[sequence] for name, value in events.user_features.items()},
        key_B=batch.row_BT[sequence, place],
    )
    nobody = torch.full_like(sequence, -1)
    return SequenceBatch(
        events=flat,
        context={name: pick(value) for name, value in batch.context.items()},
        part_BT=pick(batch.part_BT),
        row_BT=pick(batch.row_BT),
        valid_from_B=batch.valid_from_B[sequence],
        test_from_B=batch.test_from_B[sequence],
        profile_B=dict.fromkeys(batch.profile_B, nobody),
        profile_hidden_B={name: value[sequence] for name, value in batch.profile_hidden_B.items()},
        soft_BT={name: pick(value) for name, value in batch.soft_BT.items()},
    )


def _joined(batches: list[SequenceBatch]) -> SequenceBatch:
    joined: SequenceBatch = _cat(batches)
    return joined


def _cat(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, dict):
        return {name: _cat([value[name] for value in values]) for name in first}
    if hasattr(first, "__dataclass_fields__"):
        names = [n for n in first.__dataclass_fields__ if getattr(first, n) is not None]
        return replace(first, **{name: _cat([getattr(value, name) for value in values]) for name in names})
    return first
