"""Search task weights and distillation settings of a student."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field, model_validator

from rayrank.config import Config, ConfigError, DataPath, digest, replace, to_yaml
from rayrank.learning.choice import chosen
from rayrank.objectives.losses import task_weights
from rayrank.on_ray.cluster import ClusterConfig, ensure_cluster
from rayrank.on_ray.goal import AnyGoal, Choice, Pareto, name_of, resolved, terms_of
from rayrank.on_ray.items import bundle_id
from rayrank.on_ray.record import Trial
from rayrank.on_ray.search_spec import DEFAULT_TRIALS, SearchSpec, check_first_member, number_of_trials
from rayrank.on_ray.space import LogUniform, Sampler, Space, check_space, extremes, read_space
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.tune import Found, SearchTask, search
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.training import check_taught, tracked_run
from rayrank.schema import DatasetSchema
from rayrank.sources import storage
from rayrank.sources.manifest import read_manifest
from rayrank.tracking import MlflowTracking, TrackingConfig, check_tracking, open_tracker
from rayrank.wording import counted

WEIGHTS = "objective.weights."
TAUGHT = ("objective.distillation", "labels", "teacher", "online")
"""Beginnings of the paths that decide what a student needs to have been told."""


class TuneConfig(Config):
    """What is searched, on top of which distillation."""

    distill: DistillConfig = Field(description="the distillation that trials vary; its output is not written")
    output: DataPath = Field(description="folder of the trials' table and the winner")
    space: DataPath | None = Field(None, description="search space file; null: samplers, or weights and distillation")
    samplers: dict[str, Sampler] = Field({}, description="the search space itself: dotted path of distill -> sampler")
    trials: int | None = Field(
        None, ge=1, description=f"settings that are tried; null: {DEFAULT_TRIALS}, or all combinations of a grid"
    )
    search: SearchSpec = Field(default_factory=SearchSpec, description="how is searched")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="which Ray the trials run on")
    tracking: TrackingConfig = Field(default_factory=MlflowTracking, description="where sweep and trials are recorded")
    again: bool = Field(False, description="train all trials, even those that are there from this very search")

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
    choice: Choice  # which trial is the winner, by which rule, and the Pareto set that it is from
    concurrent: int
    seconds: float
    best_yaml: str  # the complete winning distill config
    run_id: str | None = None
    winner_run: str | None = None  # of the best trial: parent of the student that is distilled with its values

    def summary(self) -> list[str]:
        """The lines a person wants to read."""
        rows = [
            f"  {i}. {_score(t)}  {_values(t.params)}  ({'found' if t.found else f'{t.seconds:.1f} s'})"
            for i, t in enumerate(self.trials, 1)
        ]
        ran = f"{counted(len(self.trials), 'trial')}, {self.concurrent} at a time"
        head = f"{ran} ({self.seconds:.1f} s); valid {self.metric}:"
        return [head, *rows, *self._front(), f"winner: {self.best_yaml} (run it with distill)"]

    def _front(self) -> list[str]:
        """The Pareto set and what was taken of it; nothing where there is one score."""
        choice = self.choice
        if not choice.front:
            return []
        by_number = {trial.number: trial for trial in self.trials}
        share = "" if choice.hypervolume_share is None else f" ({choice.hypervolume_share:.1%} of its box)"
        lines = [
            f"  {'*' if number == choice.number else ' '} trial {number}: "
            + ", ".join(f"{name} {value:.6g}" for name, value in by_number[number].values.items())
            for number in choice.front
        ]
        return [
            f"Pareto set of {counted(len(choice.front), 'trial')}, hypervolume {choice.hypervolume:.6g}{share}:",
            *lines,
            f"taken: trial {choice.number} by {choice.rule} ({choice.reason})",
        ]


def tune(config: TuneConfig, progress: Callable[[str], None]) -> TuneResult:
    """Search, record sweep and trials, write ``best.yaml``, ``trials.json`` and plots; models are not kept.

    Run again after it was killed, or with more trials, it finds the trials that ended.

    Raises:
        ConfigError: a path of the space that the distillation does not have, inputs that do not fit.
    """
    began = time.monotonic()
    check_tracking(config.tracking)
    if (workers := config.distill.workers.count) > 1:
        rule = "a trial trains in one process, its own"
        raise ConfigError("distill.workers.count", workers, rule, "set it to 0; search.max_concurrent runs more trials")
    manifest = read_manifest(config.distill.dataset)
    base = with_weights(config.distill, manifest.dataset_schema)
    space = space_of(config, manifest.dataset_schema)
    chosen(base.learning.choose, manifest.dataset_schema, "distill.learning.choose")
    origin = config.space or "samplers"
    check_space(space, base, origin)
    _check_tasks(space, manifest.dataset_schema, origin)
    task = FitTask(**{name: getattr(base, name) for name in FitTask.model_fields})
    check_taught(task, "distill.")
    _check_taught_space(space, task, origin)
    goal = resolved(config.search.goal, base.learning, manifest.dataset_schema)
    spec = config.search.model_copy(update={"goal": goal})
    trials = number_of_trials(spec, space, config.trials, origin)
    check_first_member(spec, space, base, origin)
    folder = storage.join(config.output, "trials")
    with ensure_cluster(config.cluster) as cluster:
        asked = SearchTask(task, space, trials, folder, config.again)
        found = search(asked, spec, cluster, progress, config.cluster.stall_s)
    charts = _draw(config.output, goal, found)
    run_id, winner_run = _record(config, found, charts)
    result = TuneResult(
        output=config.output,
        best={**_own_weights(base), **found.winner.params},
        best_score=found.winner.score or 0.0,
        metric=name_of(goal),
        trials=found.trials,
        choice=found.choice,
        concurrent=found.concurrent,
        seconds=time.monotonic() - began,
        best_yaml=storage.join(config.output, "best.yaml"),
        run_id=run_id,
        winner_run=winner_run,
    )
    winner = replace(base, {**result.best, "parent_run": winner_run})
    storage.write_bytes(result.best_yaml, (_head(result, found.winner) + to_yaml(winner)).encode())
    storage.write_json(storage.join(config.output, "trials.json"), {"config": digest(config), **asdict(result)})
    return result


def _head(result: TuneResult, winner: Trial) -> str:
    """What a reader of best.yaml should know of where it comes from."""
    lines = [
        f"Winner of {counted(len(result.trials), 'trial')}: {result.metric} {_score(winner)} on valid.",
        f"Trial {winner.number}, by {result.choice.rule}: {result.choice.reason}.",
    ]
    if winner.schedule:
        lines.append("A population's member: these are its last settings; trials.json has those of every epoch.")
    return "".join(f"# {line}\n" for line in lines)


def _draw(output: str, goal: AnyGoal, found: Found) -> list[str]:
    """Files of the plots."""
    from rayrank.pipeline.charts import LIGHT, to_png
    from rayrank.pipeline.search_charts import pareto_front, search_history

    figures = {"search": search_history(found.trials, found.choice, name_of(goal), LIGHT)}
    if isinstance(goal, Pareto) and found.choice.front:
        figures["front"] = pareto_front(found.trials, found.choice, terms_of(goal), LIGHT)
    paths = {storage.join(output, f"{name}.png"): figure for name, figure in figures.items()}
    for path, figure in paths.items():
        storage.write_bytes(path, to_png(figure))
    return list(paths)


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


def _check_taught_space(space: Space, task: FitTask, origin: str) -> None:
    """What the samplers may ask of the teacher must have been told: else every such trial would fail by itself."""
    for path, sampler in space.items():
        if not path.startswith(TAUGHT):
            continue
        for value in extremes(sampler):
            try:
                check_taught(replace(task, {path: value}))
            except ConfigError as error:
                fix = f"{error.fix}; or take this value out of the space"
                raise ConfigError(f"{origin}: {path}", value, error.rule, fix) from None


def _check_tasks(space: Space, schema: DatasetSchema, origin: str) -> None:
    known = [task.name for task in schema.tasks]
    for path in space:
        if path.startswith(WEIGHTS) and path.removeprefix(WEIGHTS) not in known:
            raise ConfigError(
                f"{origin}: {path}", path, f"tasks of this dataset: {', '.join(known)}", "use one of those"
            )


def _record(config: TuneConfig, found: Found, charts: Sequence[str] = ()) -> tuple[str | None, str | None]:
    """Run ids of the sweep and of its best trial."""
    tracker = open_tracker(config.tracking)
    tags, winner = _teacher_tags(config.distill.teacher), None
    with tracker.run("sweep", "sweep", tags=tags) as sweep:
        sweep.log_config(config)
        for trial in found.trials:
            with tracker.run(f"trial-{trial.number}", "trial", sweep.run_id, tags) as run:
                winner = run.run_id if trial.number == found.choice.number else winner
                run.log_config(trial.params)
                for epoch, metrics in enumerate(trial.history):
                    run.log_metrics(metrics, epoch)
                scores = {"score": trial.score, "score_spread": trial.spread}
                run.log_metrics({"seconds": trial.seconds, **{n: v for n, v in scores.items() if v is not None}})
                in_front = "yes" if trial.number in found.choice.front else "no"
                run.set_tags({"pareto": in_front} if found.choice.front else {})
        best, volume = found.winner.score, found.choice.hypervolume
        sweep.log_metrics({"best_score": float("nan") if best is None else best, "trials": len(found.trials)})
        sweep.log_metrics({} if volume is None else {"hypervolume": volume})
        sweep.set_tags({"winner": f"trial-{found.choice.number}", "winner_by": found.choice.rule})
        for path in charts:
            if "://" not in path:
                sweep.log_artifact(path)
        return sweep.run_id, winner


def _teacher_tags(teacher: str | None) -> dict[str, str]:
    """What ties a run to the teacher that its students learn from."""
    if teacher is None:
        return {}
    run = tracked_run(teacher)
    return {"teacher_bundle_id": bundle_id(teacher), **({"teacher_run": run} if run else {})}


def _score(trial: Trial) -> str:
    spread = "" if trial.spread is None else f" ± {trial.spread:.4f}"
    return "failed" if trial.score is None else f"{trial.score:.4f}{spread}"


def _values(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{p.removeprefix('objective.')} {_short(v)}" for p, v in params.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
