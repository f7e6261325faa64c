"""What training a teacher and distilling a student share: one run, found again when it is there already, recorded.

Distillation is the same run with another model spec, another objective and teacher labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import Field

from rayrank.bundle import local_folder, read_info
from rayrank.config import ConfigError, DataPath
from rayrank.learning.choice import chosen
from rayrank.objectives.spec import DistillationSpec
from rayrank.on_ray.checkpoint import run_key
from rayrank.on_ray.cluster import ClusterConfig, ensure_cluster
from rayrank.on_ray.fit import Fitted
from rayrank.on_ray.items import bundle_id
from rayrank.on_ray.label import read_label_key
from rayrank.on_ray.label_spec import check_asked
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.train import Workers, run_distributed, run_in_process
from rayrank.sources import storage
from rayrank.sources.manifest import Manifest, read_manifest
from rayrank.tracking import MlflowTracking, NullRun, NullTracker, TrackingConfig, check_tracking, open_tracker
from rayrank.wording import counted

_CURVE_POINTS = 60


class TrainingConfig(FitTask):
    """A training run and its surroundings."""

    output: DataPath = Field(description="folder of the bundle that is made")
    workers: Workers = Field(default_factory=Workers, description="processes that train")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="which Ray they run on")
    tracking: TrackingConfig = Field(default_factory=MlflowTracking, description="where the run is recorded")
    parent_run: str | None = Field(None, description="id of the tracked run that this one belongs to (a sweep)")
    again: bool = Field(False, description="train even if the bundle of this very config and data is there already")


@dataclass(frozen=True)
class TrainingResult:
    """What was made, where, and how it went."""

    bundle: str
    bundle_id: str
    role: str
    metrics: dict[str, float]  # '<protocol>/<task>/<metric>' on valid, best epoch
    history: list[dict[str, Any]]  # one entry per epoch: metrics, events_per_s, wait_share, seconds
    curve: list[dict[str, float]]  # one entry per step: loss and loss/<task>
    best_epoch: int
    parameters: int
    seconds: float
    events_per_s: float
    wait_share: float
    reused: bool = False
    run_id: str | None = None
    headlines: tuple[str, ...] = field(default=("auc", "gauc", "rmse", "recall_100"), repr=False)

    def summary(self) -> list[str]:
        """The lines a person wants to read."""
        names = [n for n in self.metrics if n.rsplit("/", 1)[-1] in self.headlines]
        found = [f"  valid {name} {self.metrics[name]:.4f}" for name in names]
        how = "was there already" if self.reused else f"{self.seconds:.1f} s, {self.events_per_s:,.0f} events/s"
        made = f"{self.role} with {self.parameters:,} parameters, best epoch {self.best_epoch + 1} ({how})"
        return [made, *found, f"bundle {self.bundle_id}: {self.bundle}"]


def train_bundle(config: TrainingConfig, role: str, progress: Callable[[str], None]) -> TrainingResult:
    """Train, save the bundle, record the run; or find that all of it was done before.

    Raises:
        ConfigError: inputs that do not exist or do not fit, more workers than the cluster has room for.
    """
    check_tracking(config.tracking)
    local_folder(config.output)  # refused now, not after the training
    task = FitTask(**{name: getattr(config, name) for name in FitTask.model_fields})
    chosen(config.learning.choose, read_manifest(config.dataset).dataset_schema)  # told now, not by a worker
    check_taught(config)
    key = run_key(task)
    known = None if config.again else _known(config.output, key)
    if known is not None:
        progress(f"this {role} is there already: {config.output} (again=true trains it anew)")
        return known
    if replaced := _replaced(config.output, key):
        progress(replaced)
    with ThreadPoolExecutor(1) as helper:  # opening the store imports for seconds; Ray starts meanwhile
        opening = helper.submit(open_tracker, config.tracking)
        fitted = _run(config, task, progress)
        tracker = opening.result()
    result = TrainingResult(
        bundle=config.output,
        bundle_id=bundle_id(config.output),
        role=role,
        run_id=None,
        **{name: value for name, value in asdict(fitted).items() if name not in ("seconds_items", "resumed_from")},
    )
    storage.write_json(_note(config.output), {"key": key, "result": asdict(result)})  # kept even if recording fails
    run_id = _record(config, role, result, tracker)
    result = TrainingResult(**{**asdict(result), "run_id": run_id})
    storage.write_json(_note(config.output), {"key": key, "result": asdict(result)})
    return result


def check_taught(task: FitTask, prefix: str = "") -> None:
    """What a student learns from must belong to its dataset, to the teacher whose item table it takes, and be there.

    Args:
        task: what is to be trained.
        prefix: of the keys that an error names.

    Raises:
        ConfigError: labels of other shards or of other teachers, teachers in the loop that cannot be asked, an
            objective about what the teacher has not told.
    """
    manifest = read_manifest(task.dataset)
    if task.labels:
        _check_labels(task, task.labels, manifest, f"{prefix}labels")
    if task.online:
        check_asked(task.online, manifest.dataset_schema, f"{prefix}online.")
    for member in task.asked:
        found = read_info(member.bundle).schema_fingerprint
        if found != manifest.fingerprint:
            rule = f"a teacher in the loop must have the schema of the dataset ({manifest.fingerprint[:16]})"
            raise ConfigError(f"{prefix}online", found[:16], rule, "train one on it, or let the label job ask this one")
    if task.objective.distillation:
        _check_told(task, task.objective.distillation, f"{prefix}objective.distillation")


def _check_labels(task: FitTask, folder: str, manifest: Manifest, path: str) -> None:
    key = read_label_key(folder)
    if key.data_fingerprint != manifest.data_fingerprint:
        rule = f"these labels are of other shards ({key.data_fingerprint[:16]}) than the dataset's "
        rule += f"({manifest.data_fingerprint[:16]}, {task.dataset})"
        raise ConfigError(path, folder, rule, "run label on this dataset, or name the labels of this one")
    if task.teacher and (teacher := bundle_id(task.teacher)) not in key.teachers:
        rule = f"these labels are of teacher {', '.join(sorted(key.teachers))}, the config names teacher {teacher}"
        raise ConfigError(path, folder, rule, "run label with this teacher again")


def _check_told(task: FitTask, wanted: DistillationSpec, path: str) -> None:
    """The teacher must have told of all that the objective is about beside its logits."""
    told = read_label_key(task.labels) if task.labels else task.online
    best, states = (told.best, bool(told.states)) if told else (0, False)
    if wanted.best_items > best:
        rule = f"the teacher has told of {best} best candidates of a request"
        raise ConfigError(f"{path}.best_items", wanted.best_items, rule, "set best in label (or online) to as many")
    if wanted.matching.user and not states:
        rule = "the teacher has not told of its user states"
        raise ConfigError(f"{path}.matching.user", wanted.matching.user, rule, "label (or online) states: true")
    if wanted.matching.items and not task.teacher:
        rule = "item vectors to match come from a teacher's bundle, and none is named"
        raise ConfigError(f"{path}.matching.items", wanted.matching.items, rule, "name it in teacher")


def tracked_run(output: str) -> str | None:
    """Id of the tracked run that made the bundle in ``output``, if it is known."""
    place = _note(output)
    if not storage.exists(place):
        return None
    found = json.loads(storage.read_bytes(place))["result"].get("run_id")
    return str(found) if found else None


def _run(config: TrainingConfig, task: FitTask, progress: Callable[[str], None]) -> Fitted:
    if config.workers.count == 0:
        return run_in_process(task, config.workers, progress)
    with ensure_cluster(config.cluster) as cluster:
        progress(f"{counted(config.workers.count, 'worker')} on {cluster.address} ({cluster.room})")
        return run_distributed(task, config.workers, cluster, config.cluster, progress)


def _record(config: TrainingConfig, role: str, result: TrainingResult, tracker: NullTracker) -> str | None:
    tags = {"bundle_id": result.bundle_id, "bundle": result.bundle}
    if config.teacher:
        tags["teacher_bundle_id"] = bundle_id(config.teacher)
        if teacher_run := tracked_run(config.teacher):
            tags["teacher_run"] = teacher_run
    with tracker.run(role, role, config.parent_run, tags) as run:
        run.log_config(config)
        log_history(run, result.history, result.curve)
        run.log_metrics({f"best/{name}": value for name, value in result.metrics.items()}, result.best_epoch)
        run.log_metrics(
            {"seconds": result.seconds, "events_per_s": result.events_per_s, "parameters": result.parameters}
        )
        if "://" not in config.output:
            run.log_artifact(f"{config.output}/MODEL_CARD.md")
        return run.run_id


def log_history(run: NullRun, history: list[dict[str, Any]], curve: list[dict[str, float]]) -> None:
    """Losses by step (thinned) and metrics by epoch."""
    stride = max(1, -(-len(curve) // _CURVE_POINTS))
    for step in range(0, len(curve), stride):
        run.log_metrics(curve[step], step)
    for entry in history:
        run.log_metrics(entry["metrics"], int(entry["epoch"]))


def _known(output: str, key: str) -> TrainingResult | None:
    place = _note(output)
    if not storage.exists(place) or not storage.exists(storage.join(output, "bundle.json")):
        return None
    note = json.loads(storage.read_bytes(place))
    found = note["result"]
    if note["key"] != key or found["bundle_id"] != bundle_id(output):
        return None
    return TrainingResult(**{**found, "headlines": tuple(found["headlines"]), "reused": True})


def _replaced(output: str, key: str) -> str | None:
    """What to say of a bundle at ``output`` that was made otherwise and that this run takes away."""
    place = _note(output)
    if not storage.exists(storage.join(output, "bundle.json")):
        return None
    if not storage.exists(place):
        return f"replaces the bundle in {output}; what it was made from is not known, for {place} is missing"
    note = json.loads(storage.read_bytes(place))
    if note["key"] == key:
        return None
    found = note["result"]
    return f"replaces {found['role']} {found['bundle_id']} in {output}, made from another config, data or code"


def _note(output: str) -> str:
    return f"{output.rstrip('/')}.run.json"
