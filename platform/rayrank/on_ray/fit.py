"""One training run as seen by one of its processes: data, items, model, loop, checkpoints, bundle.

The Ray Train worker, the in-process path and a Tune trial all run this function; they differ in the collectives and
in who hears the progress. Teacher and student differ in the task's model spec and objective only. Knows nothing about
how its process was started, nor about MLflow.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rayrank.bundle import BundleParts, Parent, save_bundle
from rayrank.config import ConfigError
from rayrank.learning.choice import with_choice
from rayrank.learning.collectives import Collectives, Solo
from rayrank.learning.feed import Feed, steps_per_epoch
from rayrank.learning.inputs import DivergedError, Hooks, Snapshot, TrainData, TrainSpec, Used
from rayrank.learning.rows import FIRST_EPOCH
from rayrank.learning.rows import STAGE as ROWS
from rayrank.learning.texts import trained_encoder
from rayrank.learning.train import TrainResult, train
from rayrank.models.build import build_ranker
from rayrank.models.encoder import TextEncoder
from rayrank.models.ranker import Ranker
from rayrank.on_ray.checkpoint import Checkpoints, run_key, with_frozen
from rayrank.on_ray.items import Items, bundle_id, load_items, taught_items
from rayrank.on_ray.label import read_label_key
from rayrank.on_ray.patience import SILENCE_S, Beat, alive_through
from rayrank.on_ray.stream import GroupStream
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.teachers import Panel, states_width
from rayrank.sources.dataset import Dataset
from rayrank.sources.groups import Shards
from rayrank.wording import counted

_HEADLINES = ("auc", "gauc", "rmse", "accuracy", "recall_100")


@dataclass(frozen=True)
class Fitted:
    """What a run found; plain values, the same on every rank."""

    metrics: dict[str, float]
    history: list[dict[str, Any]]
    curve: list[dict[str, float]]
    best_epoch: int
    seconds: float
    seconds_items: float
    events_per_s: float
    wait_share: float
    parameters: int
    resumed_from: int | None = None


@dataclass(frozen=True)
class Listeners:
    """Who hears of what."""

    progress: Callable[[str], None] = lambda _: None  # lines for people, rank 0
    on_ready: Callable[[], None] = lambda: None  # the model is built, training begins; every rank
    on_epoch: Callable[[int, dict[str, float]], None] = lambda _epoch, _metrics: None  # every rank
    on_snapshot: Callable[[Snapshot, Ranker], None] = lambda _snapshot, _model: None  # after every epoch, every rank
    alive: Callable[[], None] = lambda: None  # often, while there is progress of any kind; every rank


def fit(
    task: FitTask,
    listeners: Listeners,
    collectives: Collectives | None = None,
    device: str = "cpu",
    start: Snapshot | None = None,
) -> Fitted:
    """Train as ``task`` says; rank 0 writes the bundle. A run that leaves none may be given where to ``start``.

    Raises:
        ConfigError: a dataset, encoder, label folder or objective that does not fit, or a learning rate that diverges.
    """
    began = time.monotonic()
    collectives = collectives or Solo()
    torch.set_num_threads(task.threads)
    dataset, feed = Dataset.open(task.dataset), _feed(task, collectives)
    checkpoints = Checkpoints(task.output, run_key(task)) if task.output else None
    resume = checkpoints.latest() if checkpoints else start
    task = task.model_copy(update={"learning": with_choice(task.learning, dataset.schema)})
    feed.begin(*_first_steps(task, resume))  # reading starts while texts are encoded
    lines = _Lines(listeners, task.learning.epochs, collectives)
    processes, targets = counted(collectives.world, "process", "es"), dataset.manifest.counts.train
    lines.say(f"{processes} ready, {counted(targets, 'training target')}")
    items = load_items(task, dataset, collectives, device, lines.through("encoding item texts"))
    seconds_items = time.monotonic() - began
    torch.manual_seed(task.learning.seed)
    model = build_ranker(task.model, dataset.schema, items.sizes, items.encoder).to(device)
    if items.encoder:
        items.encoder.alive = listeners.alive
        lines.say(f"{len(items.catalogue) - 1:,} item texts as vectors after {seconds_items:.1f} s")
    for line in _notes(task, model, torch.device(device), resume):
        lines.say(line)

    mine = checkpoints if collectives.rank == 0 else None
    keeper = _Keeper(task, mine, listeners, model)
    hooks = Hooks(
        report=lines.report,
        on_epoch=keeper.epoch,
        due=Due(task.checkpoint_s if mine else math.inf, listeners.alive),
        on_snapshot=keeper.place,
        on_used=Audit(task.audit, collectives.rank).write if task.audit else None,
        on_encode=lambda: _encode_aloud(items.encoder, lines),
        resume=resume and with_frozen(resume, model),
    )
    data = TrainData(
        items.catalogue,
        lambda epoch, start: alive_through(feed.steps(epoch, start), listeners.alive),
        steps_per_epoch(dataset.manifest, task.learning),
        lambda: alive_through(feed.evaluated("valid"), listeners.alive),
        taught_items(task),
        _told_states(task),
    )
    listeners.on_ready()
    result = _train(model, data, TrainSpec(task.learning, task.objective), hooks, collectives)
    collectives.barrier()  # not after saving, which takes as long as it takes
    if task.output and collectives.rank == 0:
        _save(task, model, result, dataset, items)
        assert checkpoints
        checkpoints.remove()
    return _fitted(result, model, (began, seconds_items, collectives.world), resume)


def _notes(task: FitTask, model: Ranker, device: torch.device, resume: Snapshot | None) -> Iterator[str]:
    """What is said before the first step: settings that change nothing, and where the run goes on."""
    if task.learning.precision == "bf16":
        encoder = trained_encoder(model)
        if encoder is None:
            yield "warning: learning.precision: bf16 changes nothing: no text encoder is trained"
        elif not encoder.multiplies_bf16(device):
            yield f"warning: learning.precision: bf16 changes nothing: the {device.type} is no faster with this encoder"
    if resume:
        yield f"going on at {place_of(resume)}"


def _encode_aloud(encoder: TextEncoder | None, lines: _Lines) -> None:
    """From now on the encoder says now and then that it goes on, as it did before training."""
    if encoder:
        encoder.alive = lines.through("encoding item texts with the trained encoder")


def _told_states(task: FitTask) -> int:
    """Columns of the teacher's user states, where the objective wants them matched."""
    told = task.objective.distillation
    if told is None or told.matching.user == 0:
        return 0
    if task.labels:
        return read_label_key(task.labels).states
    return states_width([member.bundle for member in task.asked]) if task.online and task.online.states else 0


def _feed(task: FitTask, collectives: Collectives) -> Feed:
    """The batches of this rank, with the labels on disk or those of teachers in the loop, if there are any."""
    shards = Shards(task.dataset, task.labels)
    stream = GroupStream(shards, task.stream)
    teach = Panel.of(task.asked, task.online.named(shards.manifest.dataset_schema)).label if task.online else None
    return Feed(stream, task.learning, (collectives.rank, collectives.world), task.stream.cache_mb, teach)


def _first_steps(task: FitTask, resume: Snapshot | None) -> tuple[int, int]:
    """(epoch, step) that the loop will most likely ask for first; another one costs time, not correctness."""
    if resume is None:
        return FIRST_EPOCH if task.learning.rows.epochs else 0, 0
    epoch, position = int(resume.meta["epoch"]), resume.meta["position"]
    return (FIRST_EPOCH + epoch, int(position[0])) if resume.meta["stage"] == ROWS else (epoch, int(position))


def place_of(resume: Snapshot) -> str:
    """Where a snapshot goes on, for people."""
    stage = "rows, " if resume.meta["stage"] == ROWS else ""
    return f"{stage}epoch {int(resume.meta['epoch']) + 1}, step {int(resume.meta['step'])}"


class Due:
    """Says yes every ``seconds``. It is asked after every step, so whoever asks is alive."""

    def __init__(self, seconds: float, alive: Callable[[], None]) -> None:
        self._seconds, self._alive, self._last = seconds, alive, time.monotonic()

    def __call__(self) -> bool:
        self._alive()
        now = time.monotonic()
        due = now - self._last >= self._seconds
        self._last = now if due else self._last
        return due


class Audit:
    """Appends the row numbers behind every optimiser step to ``used-<rank>.jsonl``; a step done again stands twice."""

    def __init__(self, folder: str, rank: int) -> None:
        self._path = Path(folder) / f"used-{rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, used: Used) -> None:
        """One line, on disk before the next step."""
        line = {"stage": used.stage, "epoch": used.epoch, "step": used.step, "rows": used.row.tolist()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _check_choice(task: FitTask, metrics: dict[str, float]) -> None:
    name = f"{task.learning.choose_protocol}/{task.learning.choose}"
    if name not in metrics:
        known = ", ".join(sorted({n.partition("/")[2] for n in metrics}))
        raise ConfigError("learning.choose", task.learning.choose, f"valid gives: {known}", "use one of those")


def _train(model: Any, data: TrainData, spec: TrainSpec, hooks: Hooks, collectives: Collectives) -> TrainResult:
    try:
        return train(model, data, spec, hooks, collectives)
    except DivergedError as error:  # on every rank at the same step, for losses are summed over them
        raise ConfigError(error.key, error.value, error.what, "lower it, a tenth is a good next try") from None
    except ValueError as error:
        if isinstance(error, ConfigError) or not str(error).startswith(("objective.", "learning.")):
            raise
        where, _, what = str(error).partition(" ")
        raise ConfigError(where.rstrip(":"), None, what, "correct that key") from None


def _save(task: FitTask, model: Any, result: TrainResult, dataset: Dataset, items: Items) -> None:
    assert task.output
    cold = items.cold
    if cold is not None:
        model.with_encoder(cold.encoder)
    parts = BundleParts(
        schema=dataset.schema,
        features=dataset.manifest.features,
        catalogue=result.catalogue.to("cpu"),
        items=dataset.catalogue_table(),
        users=dataset.users_table(),
        past=dataset.past(),
        data_fingerprint=dataset.manifest.data_fingerprint,
        window=dataset.manifest.window,
        metrics=result.metrics,
        parents=tuple(Parent(role="teacher", bundle_id=one) for one in _teachers(task, items)),
        encoder=cold.info if cold else items.encoder_info,
        tokenizer=cold.files if cold else items.tokenizer_files,
        config=task.model_dump(mode="json"),
    )
    save_bundle(task.output, model.to("cpu"), parts)


def _teachers(task: FitTask, items: Items) -> list[str]:
    """Ids of the bundles that the run learns from: the one whose item table it takes, then those of the soft labels."""
    ids = [items.teacher_id] if items.teacher_id else []
    ids += sorted(read_label_key(task.labels).teachers) if task.labels else []
    ids += [bundle_id(member.bundle) for member in task.asked]
    return list(dict.fromkeys(ids))


def _fitted(result: TrainResult, model: Any, times: tuple[float, float, int], resume: Any) -> Fitted:
    began, seconds_items, world = times
    history = result.history
    busy = sum(e["seconds"] for e in history) or 1.0
    return Fitted(
        metrics=result.metrics,
        history=history,
        curve=result.curve,
        best_epoch=result.best_epoch,
        seconds=time.monotonic() - began,
        seconds_items=seconds_items,
        events_per_s=world * sum(e["events_per_s"] * e["seconds"] for e in history) / busy,
        wait_share=sum(e["wait_share"] * e["seconds"] for e in history) / busy,
        parameters=sum(p.numel() for p in model.parameters()),
        resumed_from=int(resume.meta["epoch"]) if resume else None,
    )


@dataclass(frozen=True)
class _Keeper:
    """Writes the snapshots of a run, where it keeps any, and says that an epoch has ended."""

    task: FitTask
    checkpoints: Checkpoints | None
    listeners: Listeners
    model: Ranker

    def epoch(self, snapshot: Snapshot) -> None:
        epoch, metrics = int(snapshot.meta["epoch"]), snapshot.meta["history"][-1]["metrics"]
        _check_choice(self.task, metrics)
        if epoch < self.task.learning.epochs:
            self.place(snapshot)
        self.listeners.on_epoch(epoch, metrics)
        self.listeners.on_snapshot(snapshot, self.model)

    def place(self, snapshot: Snapshot) -> None:
        if self.checkpoints:
            self.checkpoints.write(snapshot, self.model)


class _Lines:
    """Turns the loop's reports into lines for people, on rank 0."""

    def __init__(self, listeners: Listeners, epochs: int, collectives: Collectives) -> None:
        self._listeners, self._epochs, self._quiet = listeners, epochs, collectives.rank > 0
        self._world = collectives.world  # rates are of this rank, whose share is one in so many

    def say(self, line: str) -> None:
        if not self._quiet:
            self._listeners.progress(line)

    def through(self, what: str) -> Callable[[], None]:
        """A sign of life that also says now and then, while it is called, that this is still going on."""
        began = time.monotonic()
        aloud = Beat(lambda: self.say(f"{what}, {time.monotonic() - began:.0f} s so far"), SILENCE_S)

        def alive() -> None:
            self._listeners.alive()
            aloud()

        return alive

    def report(self, entry: dict[str, Any]) -> None:
        if entry.get("stage") == "rows":
            tasks = " ".join(f"{k[5:]} {v:.3f}" for k, v in entry.items() if k.startswith("loss/"))
            self.say(f"rows {entry['epoch'] + 1}/{entry['epochs']}: loss {tasks}")
            return
        number = f"epoch {entry['epoch'] + 1}/{self._epochs}"
        if "step" in entry:
            tasks = " ".join(f"{k[5:]} {v:.3f}" for k, v in entry.items() if k.startswith("loss/"))
            rate = f"{self._world * entry['events_per_s']:,.0f} events/s"
            self.say(f"{number} step {entry['step']}: loss {entry['loss']:.4f} ({tasks}), {rate}")
            return
        found = " ".join(
            f"{k.removeprefix('streaming/')} {v:.4f}"
            for k, v in entry.items()
            if k.startswith("streaming/") and k.rsplit("/", 1)[-1] in _HEADLINES
        )
        rate = f"{self._world * entry['events_per_s']:,.0f} events/s, {entry['wait_share']:.0%} waiting for data"
        self.say(f"{number} done: {found or 'not evaluated'}; {rate}")
