"""Search task weights and distillation settings of a student."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field, model_validator

from rayrank.config import Config, ConfigError, DataPath, digest, replace, to_yaml
from rayrank.learning.choice import chosen
from rayrank.objectives.losses import task_weights
from rayrank.on_ray.cluster import ClusterConfig, ensure_cluster
from rayrank.on_ray.items import bundle_id
from rayrank.on_ray.space import LogUniform, Sampler, Space, check_space, read_space
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.tune import Found, SearchSpec, SearchTask, Trial, search
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.training import tracked_run
from rayrank.schema import DatasetSchema
from rayrank.sources import storage
from rayrank.sources.manifest import read_manifest
from rayrank.tracking import MlflowTracking, TrackingConfig, check_tracking, open_tracker
from rayrank.wording import counted

WEIGHTS = "objective.weights."


class TuneConfig(Config):
    """What is searched, on top of which distillation."""

    distill: DistillConfig = Field(description="the distillation that trials vary; its output is not written")
    output: DataPath = Field(description="folder of the trials' table and the winner")
    space: DataPath | None = Field(None, description="search space file; null: samplers, or weights and distillation")
    samplers: dict[str, Sampler] = Field({}, description="the search space itself: dotted path of distill -> sampler")
    trials: int = Field(8, ge=1, description="samples")
    search: SearchSpec = Field(default_factory=SearchSpec, description="how is searched")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="which Ray the trials run on")
    tracking: TrackingConfig = Field(default_factory=MlflowTracking, description="where sweep and trials are recorded")

    @model_validator(mode="after")
    def _one_space(self) -> TuneConfig:
        if self.space and self.samplers:
            raise ValueError("give space (a file) or samplers (inline), not both")
        return self


@dataclass(frozen=True)
class TuneResult:
    """The trials, and the winner as changes to the distillation config."""

    output: str
    best: dict[str, Any]  # dotted path -> value; replace(distill, best) is the winner
    best_score: float
    metric: str
    trials: list[Trial]  # best first
    concurrent: int
    seconds: float
    best_yaml: str  # the complete winning distill config
    run_id: str | None = None
    winner_run: str | None = None  # of the best trial: parent of the student that is distilled with its values

    def summary(self) -> list[str]:
        """The lines a person wants to read."""
        rows = [f"  {i}. {_score(t)}  {_values(t.params)}  ({t.seconds:.1f} s)" for i, t in enumerate(self.trials, 1)]
        ran = f"{counted(len(self.trials), 'trial')}, {self.concurrent} at a time"
        head = f"{ran} ({self.seconds:.1f} s); valid {self.metric}:"
        return [head, *rows, f"winner: {self.best_yaml} (run it with distill)"]


def tune(config: TuneConfig, progress: Callable[[str], None]) -> TuneResult:
    """Search, record sweep and trials, write ``trials.json``, ``best.yaml`` and nothing else; models are not kept.

    Raises:
        ConfigError: a path of the space that the distillation does not have, inputs that do not fit.
    """
    began = time.monotonic()
    check_tracking(config.tracking)
    manifest = read_manifest(config.distill.dataset)
    base = with_weights(config.distill, manifest.dataset_schema)
    space = space_of(config, manifest.dataset_schema)
    chosen(base.learning.choose, manifest.dataset_schema, "distill.learning.choose")
    origin = config.space or "samplers"
    check_space(space, base, origin)
    _check_tasks(space, manifest.dataset_schema, origin)
    task = FitTask(**{name: getattr(base, name) for name in FitTask.model_fields})
    task = task.model_copy(update={"output": storage.join(config.output, "work")})
    protocol: str = base.learning.choose_protocol
    metric = config.search.metric
    if metric is not None:
        protocol, _, metric = metric.partition("/")
    metric, less = chosen(metric, manifest.dataset_schema, "search.metric")
    metric, mode = f"{protocol}/{metric}", "min" if less else config.search.mode
    spec = config.search.model_copy(update={"num_trials": config.trials, "metric": metric, "mode": mode})
    with ensure_cluster(config.cluster) as cluster:
        found = search(SearchTask(task, space), spec, cluster, progress, config.cluster.stall_s)
    run_id, winner_run = _record(config, found)
    best = {**_own_weights(base), **found.trials[0].params}
    best_yaml = storage.join(config.output, "best.yaml")
    head = f"# Winner of {counted(len(found.trials), 'trial')}: {metric} {_score(found.trials[0])} on valid.\n"
    winner = replace(base, {**best, "parent_run": winner_run})
    storage.write_bytes(best_yaml, (head + to_yaml(winner)).encode())
    score = found.trials[0].score
    assert score is not None
    seconds = time.monotonic() - began
    result = TuneResult(
        config.output, best, score, metric, found.trials, found.concurrent, seconds, best_yaml, run_id, winner_run
    )
    storage.write_json(storage.join(config.output, "trials.json"), {"config": digest(config), **asdict(result)})
    return result


def space_of(config: TuneConfig, schema: DatasetSchema) -> Space:
    """The samplers of the file, the inline ones, or the default: weights of the event tasks, and distillation."""
    if config.space:
        return read_space(config.space)
    if config.samplers:
        return config.samplers
    even = 1.0 / len(schema.tasks)
    space: dict[str, Any] = {
        f"{WEIGHTS}{task.name}": LogUniform(low=0.3 * even, high=4.0 * even) for task in schema.event_tasks
    }
    if config.distill.objective.distillation:
        space["objective.distillation.temperature"] = LogUniform(low=1.0, high=4.0)
        space["objective.distillation.unseen"] = LogUniform(low=0.2, high=2.0)
    return space


def with_weights(distill: DistillConfig, schema: DatasetSchema) -> DistillConfig:
    """The config with every task's weight written out, so that changing one leaves the others as they are."""
    names = tuple(task.name for task in schema.tasks)
    try:
        weights = task_weights(distill.objective, names)
    except ValueError as error:
        raise ConfigError("distill.objective.weights", None, str(error), "use the dataset's task names") from None
    return replace(distill, {"objective.weights": weights})


def _own_weights(distill: DistillConfig) -> dict[str, float]:
    return {f"{WEIGHTS}{task}": weight for task, weight in distill.objective.weights.items()}


def _check_tasks(space: Space, schema: DatasetSchema, origin: str) -> None:
    known = [task.name for task in schema.tasks]
    for path in space:
        if path.startswith(WEIGHTS) and path.removeprefix(WEIGHTS) not in known:
            raise ConfigError(
                f"{origin}: {path}", path, f"tasks of this dataset: {', '.join(known)}", "use one of those"
            )


def _record(config: TuneConfig, found: Found) -> tuple[str | None, str | None]:
    """Run ids of the sweep and of its best trial."""
    tracker = open_tracker(config.tracking)
    tags, winner = _teacher_tags(config.distill.teacher), None
    with tracker.run("sweep", "sweep", tags=tags) as sweep:
        sweep.log_config(config)
        for trial in found.trials:
            with tracker.run(f"trial-{trial.number}", "trial", sweep.run_id, tags) as run:
                winner = run.run_id if trial is found.trials[0] else winner
                run.log_config(trial.params)
                for epoch, metrics in enumerate(trial.history):
                    run.log_metrics(metrics, epoch)
                run.log_metrics(
                    {"seconds": trial.seconds, **({"score": trial.score} if trial.score is not None else {})}
                )
        top = found.trials[0]
        sweep.log_metrics({"best_score": float("nan") if top.score is None else top.score, "trials": len(found.trials)})
        return sweep.run_id, winner


def _teacher_tags(teacher: str | None) -> dict[str, str]:
    """What ties a run to the teacher that its students learn from."""
    if teacher is None:
        return {}
    run = tracked_run(teacher)
    return {"teacher_bundle_id": bundle_id(teacher), **({"teacher_run": run} if run else {})}


def _score(trial: Trial) -> str:
    return "failed" if trial.score is None else f"{trial.score:.4f}"


def _values(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{p.removeprefix('objective.')} {_short(v)}" for p, v in params.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
