"""A search with Ray Tune whose trials train in the trial's own process.

A trial is the plain training run with another reporter: no Ray Train inside (its start-up would cost more than a
student's training, and Tune would admit more trials than there is room for). Knows samplers and trials; knows nothing
about what is searched.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rayrank.config import Config, ConfigError, parse, replace
from rayrank.on_ray.cluster import Cluster, check_capacity
from rayrank.on_ray.patience import Limit, Pulse
from rayrank.on_ray.space import Grid, Space, draws
from rayrank.on_ray.task import FitTask
from rayrank.sources import storage

SCORE, EPOCH, WHOLE = "score", "epoch", "whole"


class SearchSpec(Config):
    """How is searched."""

    num_trials: int = Field(8, ge=1, description="samples; with grid samplers: repeats of the whole grid")
    metric: str | None = Field(
        None,
        description="valid metric that ranks trials, '<protocol>/<task>/<metric>'; null: AUC of the first binary task",
    )
    mode: Literal["max", "min"] = Field("max", description="whether more is better")
    scheduler: Literal["fifo", "asha"] = Field(
        "fifo", description="asha stops trials that lag behind (Li et al., 2020)"
    )
    grace_epochs: int = Field(1, ge=1, description="epochs before asha may stop a trial")
    include_base: bool = Field(True, description="the first trial has the base config's own values")
    time_budget_s: float | None = Field(None, gt=0, description="no new results after this time, s")
    trial_cpus: float = Field(1.0, gt=0, description="logical CPUs that a trial holds")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; None: what the cluster has room for")
    seed: int = Field(0, ge=0, description="of the samples; trials differ in the sampled values only")


@dataclass(frozen=True)
class SearchTask:
    """What is varied on top of what."""

    base: FitTask
    space: Space


@dataclass(frozen=True)
class Trial:
    """One sampled setting and how it did."""

    number: int
    params: dict[str, Any]
    score: float | None  # best epoch; None: failed before any, or never a number
    metrics: dict[str, float]  # of the best epoch
    history: list[dict[str, float]]  # one entry per epoch
    seconds: float
    stopped: bool = False  # by the scheduler or the time budget, before its last epoch
    error: str | None = None


@dataclass(frozen=True)
class Found:
    """All trials, best first; failed ones last."""

    trials: list[Trial]
    concurrent: int
    seconds: float


def search(
    task: SearchTask, spec: SearchSpec, cluster: Cluster, progress: Callable[[str], None], stall_s: float = 1800.0
) -> Found:
    """Train one model per sample of the task's space on top of its base; none is kept.

    Raises:
        ConfigError: a trial needs more CPUs than there are, or no trial begins or ends an epoch for ``stall_s``.
        RuntimeError: every trial failed; the message holds the first error.
    """
    from ray import tune

    began, base, space = time.monotonic(), task.base, task.space
    check_capacity(cluster, spec.trial_cpus, "search.trial_cpus")
    concurrent = concurrent_trials(spec, cluster)
    watcher = _watcher(spec, progress, Limit("cluster.stall_s", stall_s, "result of a trial"))
    folder = f"{base.output.rstrip('/')}.search" if base.output else None
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": spec.trial_cpus}),
        param_space={
            "base": base.model_copy(update={"output": None}).model_dump(mode="json"),
            "metric": spec.metric,
            "mode": spec.mode,
            "values": draws(space),
        },
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode=spec.mode,
            num_samples=spec.num_trials,
            search_alg=_sampler(base, space, spec, concurrent),
            scheduler=_scheduler(spec, base.learning.epochs),
            time_budget_s=spec.time_budget_s,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="search", storage_path=folder, verbose=0, callbacks=[watcher]),
    )
    try:
        tuner.fit()
    finally:
        if folder:
            storage.remove(folder)
    trials = watcher.ranked()
    if all(trial.score is None for trial in trials):
        raise RuntimeError(f"every trial failed; the first one with: {trials[0].error if trials else 'no trial ran'}")
    return Found(trials, concurrent, time.monotonic() - began)


def concurrent_trials(spec: SearchSpec, cluster: Cluster) -> int:
    """Trials at a time that leave one logical CPU free and, on a Ray of our own, do not share cores."""
    room = max(1, int((cluster.cpus - 1) // spec.trial_cpus))
    if cluster.started_here:
        room = min(room, max(1, int((os.cpu_count() or 1) // spec.trial_cpus)))
    return min(room, spec.max_concurrent or room)


def _trial(config: dict[str, Any]) -> None:
    """What runs in a trial's process."""
    base = parse(FitTask, config["base"], "trial")
    from ray import tune

    from rayrank.on_ray.fit import Listeners, fit

    direct = {"stream.through": "direct"}
    task = replace(base, {**config["values"], **direct})
    better = max if config["mode"] == "max" else min
    worst = float("-inf") if config["mode"] == "max" else float("inf")  # no number compares with anything
    best: list[float] = []

    def report(epoch: int, metrics: dict[str, float]) -> None:
        if config["metric"] not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError("search.metric", config["metric"], f"valid gives: {known}", "use one of those")
        score = float(metrics[config["metric"]])
        best[:] = [better([*best, score if math.isfinite(score) else worst])]
        tune.report({SCORE: best[0], EPOCH: epoch, "metrics": metrics})

    fitted = fit(task, Listeners(on_epoch=report))
    last = {"metrics": fitted.history[-1]["metrics"], WHOLE: True}  # ended by itself, by its own patience perhaps
    tune.report({SCORE: best[0], EPOCH: len(fitted.history), **last})


def _sampler(base: FitTask, space: Space, spec: SearchSpec, concurrent: int) -> Any:
    from ray.tune.search import BasicVariantGenerator

    own = {path: _value(base, path) for path, sampler in space.items() if not isinstance(sampler, Grid)}
    usable = spec.include_base and len(own) == len(space) and all(value is not None for value in own.values())
    points = [{"values": own}] if usable else None
    # TuneConfig.max_concurrent_trials is not applied to a generator that is given.
    return BasicVariantGenerator(points_to_evaluate=points, random_state=spec.seed, max_concurrent=concurrent)


def _scheduler(spec: SearchSpec, epochs: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if spec.scheduler == "fifo":
        return FIFOScheduler()
    return ASHAScheduler(time_attr=EPOCH, max_t=epochs, grace_period=min(spec.grace_epochs, epochs), reduction_factor=2)


def _value(config: Config, dotted: str) -> Any:
    node: Any = config
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
    return node


@dataclass
class _Seen:
    number: int
    params: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0
    whole: bool = False
    error: str | None = None


def _watcher(spec: SearchSpec, progress: Callable[[str], None], limit: Limit) -> Any:
    """A Tune callback that remembers the trials and tells people about them."""
    from ray import tune

    sign = 1.0 if spec.mode == "max" else -1.0

    class Watcher(tune.Callback):
        def __init__(self) -> None:
            self.seen: dict[str, _Seen] = {}
            self.pulse = Pulse()

        def of(self, trial: Any) -> _Seen:
            number = int(str(trial.trial_id).rsplit("_", 1)[-1]) + 1  # in the order of the samples
            return self.seen.setdefault(trial.trial_id, _Seen(number, dict(trial.config["values"])))

        def on_step_end(self, **info: Any) -> None:  # type: ignore[override]  # noqa: ARG002
            self.pulse.check(limit)  # Tune takes a step at least every second, whatever its trials do

        def on_trial_start(self, **info: Any) -> None:  # type: ignore[override]
            self.pulse.beat()
            self.of(info["trial"])

        def on_trial_result(self, **info: Any) -> None:  # type: ignore[override]
            self.pulse.beat()
            seen, result = self.of(info["trial"]), info["result"]
            if len(seen.history) < int(result.get(EPOCH, 0)):
                seen.history.append(dict(result["metrics"]))
                seen.scores.append(float(result["metrics"][spec.metric]))
            seen.whole = bool(result.get(WHOLE, False))
            seen.seconds = float(result.get("time_total_s", 0.0))

        def on_trial_complete(self, **info: Any) -> None:  # type: ignore[override]
            seen = self.of(info["trial"])
            made = _trial_of(seen, sign)
            found = made.error if made.score is None else f"{spec.metric} {made.score:.4f}"
            values = ", ".join(f"{path.rsplit('.', 1)[-1]} {_short(v)}" for path, v in seen.params.items())
            progress(f"trial {seen.number}: {found} after {seen.seconds:.1f} s ({values})")

        def on_trial_error(self, **info: Any) -> None:  # type: ignore[override]
            seen = self.of(info["trial"])
            seen.error = _last_line(info["trial"])
            progress(f"trial {seen.number} failed: {seen.error}")

        def ranked(self) -> list[Trial]:
            made = [_trial_of(seen, sign) for seen in self.seen.values()]
            return sorted(made, key=lambda t: (t.score is None, -sign * (t.score or 0.0), t.number))

    return Watcher()


def _trial_of(seen: _Seen, sign: float) -> Trial:
    numbers = [i for i, score in enumerate(seen.scores) if math.isfinite(score)]
    best = max(numbers, key=lambda i: sign * seen.scores[i], default=None)
    lost = "the metric is not a number in any epoch" if seen.scores and best is None else None
    return Trial(
        number=seen.number,
        params=seen.params,
        score=None if best is None else seen.scores[best],
        metrics={} if best is None else seen.history[best],
        history=seen.history,
        seconds=seen.seconds,
        stopped=seen.error is None and not seen.whole,
        error=seen.error or lost,
    )


def _last_line(trial: Any) -> str:
    """What went wrong, from the end of the trial's error file."""
    place = getattr(trial, "error_file", None)
    lines = Path(place).read_text(errors="replace").strip().splitlines() if place and Path(place).is_file() else []
    return lines[-1][:500] if lines else "unknown error"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
