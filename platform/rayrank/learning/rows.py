"""The first stage: the static path on events in random order.

A window of micro-batches is taken apart into rows (:mod:`rayrank.learning.held`); which step a row goes to is a hash
of its number, so that the steps are the same for any number of ranks. Memory holds one window. Knows nothing about
the sequence path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from rayrank.batch import FAR, Catalogue, SequenceBatch
from rayrank.learning.auxiliary import of_static_path
from rayrank.learning.collectives import Collectives
from rayrank.learning.forward import StepNoise
from rayrank.learning.held import Held
from rayrank.learning.inputs import DivergedError, Hooks, Snapshot, Step, TrainData, TrainSpec, Used
from rayrank.learning.optimiser import Rates, schedule, split_parameters
from rayrank.learning.state import StageState
from rayrank.memory import release, releasing
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker, take_rows
from rayrank.objectives.losses import Outputs, compute, label_counts
from rayrank.objectives.targets import Targets, training_targets

FIRST_EPOCH = 1_000
"""What this stage calls its first epoch: its order of the data differs from that of the next stage."""
_STEPS = 1 << 40
"""Offset that keeps the dropout of this stage apart from that of the next one."""


STAGE = "rows"


def train_rows(model: Ranker, data: TrainData, spec: TrainSpec, hooks: Hooks, collectives: Collectives) -> None:
    """Train the static path in place; its averaged weights stay. Goes on from a snapshot of this stage.

    Raises:
        DivergedError: losses or weights are no numbers.
    """
    _Rows(model, data, spec, hooks, collectives).all_epochs()


class _Rows:
    def __init__(self, model: Ranker, data: TrainData, spec: TrainSpec, hooks: Hooks, collectives: Collectives) -> None:
        self.model, self.data, self.spec, self.hooks, self.collectives = model, data, spec, hooks, collectives
        rows, parameters = spec.learning.rows, split_parameters(model)[0]
        rates = Rates(rows.learning_rate, rows.learning_rate, rows.weight_decay, rows.weight_decay)
        self.auxiliary = of_static_path(model, spec.objective)
        self.state = StageState.of(model, parameters, rates, (rows.ema, spec.learning.dense_rows), self.auxiliary)
        self.names = [task.name for task in model.schema.event_tasks]
        self.step, self.epoch, self.begin = 0, 0, (0, 0)

    def all_epochs(self) -> None:
        resume, epochs = self.hooks.resume, self.spec.learning.rows.epochs
        if resume is not None and resume.meta["stage"] == STAGE:
            self.state.put_back(resume)
            self.step, self.epoch = int(resume.meta["step"]), int(resume.meta["epoch"])
            self.begin = (int(resume.meta["position"][0]), int(resume.meta["position"][1]))
        while self.epoch < epochs:
            seen, losses = 0, torch.zeros(len(self.names))
            for batch, done, place in releasing(self._steps()):
                means, due = self._step(batch, (self.epoch + done) / epochs)
                mean = means.cpu()
                self._check(mean, "loss")
                seen, losses = seen + 1, losses + mean
                if due:
                    self._keep(place)
            found = {f"loss/{n}": v for n, v in zip(self.names, (losses / max(1, seen)).tolist(), strict=True)}
            self.hooks.report({"stage": STAGE, "epoch": self.epoch, "epochs": epochs, **found})
            self.epoch, self.begin = self.epoch + 1, (0, 0)
        release()
        self.state.keep_averages()
        for module in self.model.static_modules():  # a last step may have ruined them without a loss that shows it
            for parameter in module.parameters():
                self._check(parameter.detach(), "weights")

    def _check(self, values: Tensor, what: str) -> None:
        # Not isfinite of all, which makes another table.
        if values.numel() and not all(bool(edge.isfinite()) for edge in values.aminmax()):
            found = f"{what} of the rows stage: no numbers at step {self.step} of epoch {self.epoch + 1}"
            raise DivergedError("learning.rows.learning_rate", self.spec.learning.rows.learning_rate, found)

    def _steps(self) -> Iterator[tuple[SequenceBatch | None, float, tuple[int, int]]]:
        """(this rank's rows of the step or None, share of the epoch done after it, place after it) from ``begin`` on.

        As many on every rank. A place is a window's first micro-batch and how many of the window's pieces are done.
        """
        total, window = self.data.steps_per_epoch, self.spec.learning.rows.window
        iterator = iter(self.data.train(FIRST_EPOCH + self.epoch, self.begin[0]))
        for start in range(self.begin[0], total, window):
            length = min(window, total - start)
            last = start + length == total  # which takes all: epochs differ by a step or two
            done = self.begin[1] if start == self.begin[0] else 0
            for batch, pieces in self._window(iterator if last else islice(iterator, length), length / total, done):
                done += 1
                yield batch, (start + length * done / pieces) / total, (start, done)

    def _window(self, steps: Iterable[Step], share: float, done: int) -> Iterator[tuple[SequenceBatch | None, int]]:
        """The pieces of a window that is ``share`` of an epoch, and how many; the first ``done`` are left out."""
        rows, order = self.spec.learning.rows, Noise(self.spec.learning.seed, FIRST_EPOCH + self.epoch)
        held = Held.of(steps, self.model.schema)
        release()
        count = torch.tensor([0.0 if held is None else float(len(held))], device=self.data.catalogue.count_N.device)
        found = int(self.collectives.all_reduce_sum(count))
        pieces = max(1, -(-found // rows.batch), min(round(rows.steps * share), found // 64))
        place = None if held is None else (order.uniform("rows", held.columns["row"]) * pieces).long()
        for piece in range(done, pieces):
            mine = None if place is None else (place == piece).nonzero()[:, 0]
            yield None if held is None or mine is None or not len(mine) else held.take(mine), pieces

    def _step(self, batch: SequenceBatch | None, progress: float) -> tuple[Tensor, bool]:
        """(mean loss by event task over all ranks, whether a rank asks for a snapshot)."""
        noise = Noise(self.spec.learning.seed, _STEPS + self.step)
        with self.state.collecting():
            sums, counts, due = self._backward(batch, noise)
        share = schedule(progress, self.spec.learning.warmup, self.spec.learning.final_learning_rate)
        self.state.update(share, self.spec.learning.clip, self.collectives)
        self.state.follow()
        if self.hooks.on_used and batch is not None:
            self.hooks.on_used(Used(STAGE, self.epoch, self.step, batch.row_BT[:, 0]))
        self.step += 1
        self.collectives.all_reduce_sum(sums)
        return sums / torch.stack(list(counts.values())).clamp_min(1), due

    def _backward(self, batch: SequenceBatch | None, noise: Noise) -> tuple[Tensor, dict[str, Tensor], bool]:
        """Gradients of this rank's rows; loss sums, label counts of all ranks by event task, snapshot or not."""
        model, objective = self.model, self.spec.objective
        device = next(model.parameters()).device
        flat, targets = torch.zeros(len(self.names) + 1, device=device), None
        if batch is not None:
            batch = batch.to(device)
            nothing_B, told = torch.full_like(batch.valid_from_B, FAR), objective.distillation
            unseen = noise.uniform("unseen", batch.row_BT) if told else None
            asked = (told.unseen_items, told.best_items) if told else (1, 0)
            targets = training_targets(batch, nothing_B, unseen, *asked)
            found = label_counts(targets, model.schema, objective)
            flat[:-1] = torch.stack([found[name] for name in self.names])
        flat[-1] = float(self.hooks.due())
        self.collectives.all_reduce_sum(flat)
        counts = dict(zip(self.names, flat[:-1].unbind(), strict=True))
        sums = torch.zeros(len(self.names), device=device)
        if batch is not None and targets is not None:
            said = _static_outputs(model, batch, targets, self.data.catalogue, StepNoise(noise, None, self.auxiliary))
            terms = compute(said, targets, model.schema, objective)
            every = {task.name: counts.get(task.name, flat.new_ones(())) for task in model.schema.tasks}
            terms.total(every, objective).backward()
            for (task, _), value in terms.sums.items():
                sums[self.names.index(task)] += value.detach()
        return sums, counts, bool(flat[-1] > 0)

    def _keep(self, place: tuple[int, int]) -> None:
        meta = {"stage": STAGE, "epoch": self.epoch, "position": list(place), "step": self.step}
        self.hooks.on_snapshot(Snapshot(self.state.tensors(), {**meta, "updates": self.state.average.updates}))


def _static_outputs(
    model: Ranker, batch: SequenceBatch, targets: Targets, catalogue: Catalogue, step: StepNoise
) -> Outputs:
    noise, auxiliary = step.noise, step.auxiliary
    rows = torch.unique(torch.cat([targets.queries.item_BQ.flatten(), targets.queries.item_BQ.new_zeros(1)]))
    static_RW = model.static_items(take_rows(catalogue, rows), rows, noise)
    queries = replace(targets.queries, item_BQ=torch.searchsorted(rows, targets.queries.item_BQ))
    state = model.static_state(batch.events, noise)
    with auxiliary.listening() if auxiliary else nullcontext():
        logits_BQK = model.static_logits(state, queries, static_RW)
    second = model.by_task(auxiliary.instead(logits_BQK)) if auxiliary else {}
    return Outputs(model.by_task(logits_BQK), auxiliary_BQ=second)
