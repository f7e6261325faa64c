"""What runs in a trial's process: the plain training run, once or fold by fold, telling Ray Tune of every epoch.

A member of a population also keeps its weights after every epoch, and goes on from those that it is given, its own or
another's. Knows how to report; knows nothing about the other trials.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rayrank.config import parse
from rayrank.config import replace as changed
from rayrank.learning.cost import multiply_adds
from rayrank.learning.inputs import Snapshot
from rayrank.models.ranker import Ranker
from rayrank.on_ray.goal import AnyGoal, judged, mode_of, score_of, terms_of
from rayrank.on_ray.search_spec import Pbt, SearchSpec
from rayrank.on_ray.task import FitTask
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset

Keep = Callable[[Snapshot, Ranker], str]

SCORE, NOW, EPOCH, CLOCK, WHOLE = "score", "now", "epoch", "clock", "whole"
"""Score of the best epoch so far; of this one; epochs done; the population's clock; whether this is the trial's end."""
EPOCHS, SCHEDULE, TRAINING = "epochs", "schedule", "training_s"
"""Metrics by fold and epoch; settings of each epoch; seconds of training and evaluation."""


def objective_key(place: int) -> str:
    """Name of an objective's value among what a trial tells."""
    return f"objective_{place}"


def run_trial(config: dict[str, Any]) -> None:
    """Train the base with the values of this trial."""
    base, spec = parse(FitTask, config["base"], "trial"), parse(SearchSpec, config["search"], "trial")
    task = changed(base, {**config["point"]["values"], "stream.through": "direct"})
    told = Told(spec.goal, config["point"]["values"], task.learning.epochs * (spec.folds or 1), tell)
    told.begin()
    if isinstance(spec.scheduler, Pbt):
        _member(task, told)
        return
    _fit(_of_fold(task, spec, 0), told)
    for fold in range(1, spec.folds or 1):
        told.begin()
        _fit(_of_fold(task, spec, fold), told)
    told.end()


def _of_fold(task: FitTask, spec: SearchSpec, number: int) -> FitTask:
    """The task with the users of a fold held out; as it is without cross-validation."""
    fold = {"number": number, "count": spec.folds, "seed": spec.seed}
    return changed(task, {"learning.fold": fold}) if spec.folds else task


@dataclass
class Told:
    """Everything that a trial has found so far, and whom it tells."""

    goal: AnyGoal
    values: dict[str, Any]  # its settings
    planned: int  # epochs of all folds
    tell: Callable[[dict[str, Any], str | None], None]
    epochs: list[list[dict[str, float]]] = field(default_factory=list)
    schedule: list[dict[str, Any]] = field(default_factory=list)
    training_s: float = 0.0  # until the clock was stopped last
    _since: float = 0.0

    def go(self) -> None:
        """Training begins or goes on: from now on its time counts."""
        self._since = time.monotonic()

    def halt(self) -> None:
        """What comes now is no training."""
        self.training_s += time.monotonic() - self._since

    def begin(self) -> None:
        """Another fold."""
        self.epochs.append([])

    def epoch(self, metrics: dict[str, float]) -> None:
        """An epoch has ended."""
        self.epochs[-1].append(metrics)
        self.schedule.append(self.values)

    def report(self, kept: str | None = None) -> None:
        """Tell of it; ``kept`` is a folder with the weights."""
        self.tell(self._said(whole=False), kept)

    def end(self) -> None:
        """The trial ends by itself, by its own patience perhaps."""
        self.tell(self._said(whole=True), None)

    def _said(self, whole: bool) -> dict[str, Any]:
        now = score_of(self.goal, self.epochs[-1][-1])
        best = judged(self.goal, [epochs for epochs in self.epochs if epochs])
        worst = -math.inf if mode_of(self.goal) == "max" else math.inf  # no number compares with anything
        done = sum(map(len, self.epochs))
        values = [best.values.get(term.metric, math.nan) for term in terms_of(self.goal)]
        return {
            SCORE: worst if best.score is None else best.score,
            NOW: now if math.isfinite(now) else worst,
            EPOCH: done,
            # The last epoch is not yet another turn of the population: whoever took over then would not be trained.
            CLOCK: done if done < self.planned else self.planned - 0.5,
            WHOLE: whole or done >= self.planned,  # ASHA stops a trial at its last epoch, before it can say so
            EPOCHS: [list(epochs) for epochs in self.epochs],  # copies: what is told must not grow
            SCHEDULE: list(self.schedule),
            TRAINING: self.training_s,
            **{objective_key(place): value for place, value in enumerate(values)},
        }


def tell(said: dict[str, Any], kept: str | None) -> None:
    """Tune hears of it."""
    from ray import tune

    tune.report(said, checkpoint=tune.Checkpoint.from_directory(kept) if kept else None)


def _fit(task: FitTask, told: Told, start: Snapshot | None = None, keep: Keep | None = None) -> None:
    from rayrank.on_ray.fit import Listeners, fit

    costs: dict[str, float] = {}

    def on_snapshot(snapshot: Snapshot, model: Ranker) -> None:
        told.halt()  # Tune may take its time to hear
        costs.update(costs or costs_of(model, task.dataset))
        told.epoch({**snapshot.meta["history"][-1]["metrics"], **costs})
        told.report(keep(snapshot, model) if keep else None)
        told.go()

    fit(task, Listeners(on_ready=told.go, on_snapshot=on_snapshot), start=start)
    told.halt()


def _member(task: FitTask, told: Told) -> None:
    """A population's member: from the weights that it is given, if any; early stopping is the population's."""
    from ray import tune

    from rayrank.on_ray.checkpoint import Checkpoints

    task = changed(task, {"learning.patience": task.learning.epochs})
    given, start = tune.get_checkpoint(), None
    with tempfile.TemporaryDirectory(prefix="rayrank-member-") as folder:
        if given is not None:
            place = Checkpoints(f"{folder}/given", "")
            given.to_directory(place.folder)
            start = place.latest()
        if start is not None:
            told.epochs[-1].extend(start.meta[EPOCHS])
            told.schedule.extend(start.meta[SCHEDULE])
        mine = Checkpoints(f"{folder}/mine", "")

        def keep(snapshot: Snapshot, model: Ranker) -> str:
            told_so_far = {EPOCHS: told.epochs[-1], SCHEDULE: told.schedule}
            mine.write(replace(snapshot, meta={**snapshot.meta, **told_so_far}), model)
            return mine.folder

        _fit(task, told, start, keep)
        told.end()


def costs_of(model: Ranker, dataset: str) -> dict[str, float]:
    """``cost/…`` of a model, counted and not timed: the same on every machine."""
    opened = Dataset.open(dataset)
    shard, group = opened.groups()[0]
    example = collate(opened.read_group(shard, group), opened.schema)
    adds = multiply_adds(model, opened.catalogue(), example)
    found = {"cost/parameters": float(sum(p.numel() for p in model.parameters()))}
    return found | ({} if adds is None else {"cost/multiply_adds": adds})
