"""A search with Ray Tune whose trials train in the trial's own process.

A trial is the plain training run with another reporter: no Ray Train inside (its start-up would cost more than a
student's training, and Tune would admit more trials than there is room for). Finished trials are kept on disk and
found again. Knows samplers, schedulers and trials; knows nothing about what is searched.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

from rayrank.config import ConfigError
from rayrank.on_ray.checkpoint import run_key
from rayrank.on_ray.cluster import Cluster, check_capacity
from rayrank.on_ray.goal import Choice, Pareto, choose, judged, mode_of, terms_of
from rayrank.on_ray.patience import Limit
from rayrank.on_ray.record import Finished, Record, Trial
from rayrank.on_ray.search_spec import Asha, Fifo, GridWalk, Optuna, Pbt, Random, SearchSpec
from rayrank.on_ray.space import Choice as ChoiceSampler
from rayrank.on_ray.space import Grid, Space, clipped, drawn, draws, holds, own_values, walked
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.trial import CLOCK, EPOCH, NOW, SCORE, objective_key, run_trial
from rayrank.on_ray.watch import Watch, callback
from rayrank.sources import storage


@dataclass(frozen=True)
class SearchTask:
    """What is varied on top of what, how often, and where finished trials are kept."""

    base: FitTask
    space: Space
    trials: int
    folder: str
    again: bool = False  # forget the finished trials of an earlier search


@dataclass(frozen=True)
class Found:
    """All trials, best first; failed ones last; and the one that is taken."""

    trials: list[Trial]
    choice: Choice
    concurrent: int
    seconds: float

    @property
    def winner(self) -> Trial:
        """The trial that the choice names."""
        return next(trial for trial in self.trials if trial.number == self.choice.number)


def search(
    task: SearchTask, spec: SearchSpec, cluster: Cluster, progress: Callable[[str], None], stall_s: float = 1800.0
) -> Found:
    """Train one model per setting of the task's space on top of its base; none is kept. ``spec.goal`` is resolved.

    Raises:
        ConfigError: a trial needs more CPUs than there are, no trial begins or ends an epoch for ``stall_s``, or
            Optuna is asked for and not installed.
        RuntimeError: every trial failed; the message holds the first error.
    """
    began, concurrent = time.monotonic(), concurrent_trials(spec, cluster)
    check_capacity(cluster, spec.trial_cpus, "search.trial_cpus")
    record = record_of(task, spec)
    if task.again:
        record.clear()
    known = [trial for trial in record.known() if trial.number <= task.trials]
    if known:
        progress(f"{len(known)} of {task.trials} trials are there already ({record.folder})")

    def keep(trial: Finished) -> None:
        over = time.monotonic() - began >= (spec.time_budget_s or math.inf)
        if not trial.stopped or (isinstance(spec.scheduler, Asha) and not over):  # else the budget cut it off
            record.keep(trial)

    watch = Watch(spec.goal, known, keep, progress, spec.folds)
    if len(known) < task.trials:
        _run(task, spec, (known, concurrent, cluster.cpus), callback(watch, Limit("cluster.stall_s", stall_s, _SIGN)))
    trials = watch.ranked()
    scores = {trial.number: trial.score for trial in trials if trial.score is not None}
    if not scores:
        raise RuntimeError(f"every trial failed; the first one with: {trials[0].error if trials else 'no trial ran'}")
    choice = choose(spec.goal, {t.number: t.values for t in trials if t.score is not None}, scores)
    return Found(trials, choice, concurrent, time.monotonic() - began)


_SIGN = "result of a trial"


def concurrent_trials(spec: SearchSpec, cluster: Cluster) -> int:
    """Trials at a time that leave one logical CPU free and, on a Ray of our own, do not share cores."""
    room = max(1, int((cluster.cpus - 1) // spec.trial_cpus))
    if cluster.started_here:
        room = min(room, max(1, int((os.cpu_count() or 1) // spec.trial_cpus)))
    return min(room, spec.max_concurrent or room)


def record_of(task: SearchTask, spec: SearchSpec) -> Record:
    """Where this search keeps its trials: what decides a trial's numbers, not how many there are or run at a time.

    The goal is among that only when a scheduler acts on it: whole trials can be judged anew.
    """
    place = {"time_budget_s", "trial_cpus", "max_concurrent"}
    asked = spec.model_dump(mode="json", exclude=place | ({"goal"} if isinstance(spec.scheduler, Fifo) else set()))
    space = {path: sampler.model_dump(mode="json") for path, sampler in task.space.items()}
    return Record(task.folder, run_key(task.base.model_copy(update={"output": None})), space, asked)


def points(task: SearchTask, spec: SearchSpec) -> list[dict[str, Any]]:
    """Numbered settings of a search that knows them beforehand; the first ones are the same for any ``task.trials``."""
    if isinstance(spec.algorithm, GridWalk):
        settings = walked(task.space)
    else:
        own = own_values(task.space, task.base) if spec.include_base else None
        first = [] if own is None else [own]
        settings = [*first, *drawn(task.space, task.trials - len(first), spec.seed)]
    return [{"number": number, "values": values} for number, values in enumerate(settings, 1)]


def _run(task: SearchTask, spec: SearchSpec, state: tuple[Sequence[Finished], int, float], heard: Any) -> None:
    from ray import tune

    known, concurrent, cpus = state
    held, population = spec.trial_cpus, isinstance(spec.scheduler, Pbt)
    if population:  # all members are under way, some of them paused: what limits them is what each holds
        held = max(held, round(cpus / (concurrent + 1) + 0.001, 3))
    constant = {
        "base": task.base.model_copy(update={"output": None}).model_dump(mode="json"),
        "search": spec.model_dump(mode="json"),
    }
    match spec.algorithm:
        case Random() | GridWalk():
            numbers = {trial.number for trial in known}
            left = [point for point in points(task, spec) if point["number"] not in numbers]
            searcher, samples = _in_order(0 if population else concurrent), 1
            constant["point"] = tune.grid_search(left)
        case Optuna():
            searcher, samples = proposals_of(task, spec, known, concurrent), task.trials - len(known)
        case _:
            assert_never(spec.algorithm)
    several = isinstance(spec.goal, Pareto)
    work = f"{task.folder.rstrip('/')}.work"
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": held}),
        param_space=constant,
        tune_config=tune.TuneConfig(
            metric=None if several else NOW if population else SCORE,
            mode=None if several else mode_of(spec.goal),
            num_samples=samples,
            search_alg=searcher,
            scheduler=_scheduler(spec, task),
            time_budget_s=spec.time_budget_s,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(name="search", storage_path=work, verbose=0, callbacks=[heard]),
    )
    try:
        with _seeded(spec.seed):
            tuner.fit()
    finally:
        storage.remove(work)


def _in_order(concurrent: int) -> Any:
    from ray.tune.search import BasicVariantGenerator

    # TuneConfig.max_concurrent_trials is not applied to a generator that is given.
    return BasicVariantGenerator(max_concurrent=concurrent)


_PREFIX = "point/values/"


def proposals_of(task: SearchTask, spec: SearchSpec, known: Sequence[Finished], concurrent: int) -> Any:
    """Optuna's proposals, from a study that holds the known trials; another seed with each of them."""
    try:
        import optuna
    except ImportError:
        rule = "Optuna is not installed here"
        raise ConfigError("search.algorithm", "optuna", rule, "pip install 'rayrank[optuna]'") from None
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    assert isinstance(spec.algorithm, Optuna)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    several, terms = isinstance(spec.goal, Pareto), terms_of(spec.goal)
    modes: list[str] = [term.mode for term in terms] if several else [mode_of(spec.goal)]
    ways = [getattr(optuna.study.StudyDirection, "MAXIMIZE" if mode == "max" else "MINIMIZE") for mode in modes]
    distributions = OptunaSearch.convert_search_space({"point": {"values": draws(task.space)}})
    name, stored, seed = "search", optuna.storages.InMemoryStorage(), spec.seed + len(known)
    study = optuna.create_study(storage=stored, study_name=name, directions=ways)
    for trial in known:
        found = judged(spec.goal, trial.epochs)
        score = math.nan if found.score is None else found.score
        values = [found.values.get(term.metric, math.nan) for term in terms] if several else [score]
        if all(map(math.isfinite, values)):
            params = {f"{_PREFIX}{path}": value for path, value in trial.start.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=values))
    own = own_values(task.space, task.base) if spec.include_base and not known else None
    first = [{f"{_PREFIX}{path}": value for path, value in own.items()}] if own and holds(task.space, own) else None
    samplers = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}
    proposals = OptunaSearch(
        distributions,
        metric=[objective_key(place) for place in range(len(terms))] if several else SCORE,
        mode=modes if several else modes[0],
        points_to_evaluate=first,
        sampler=samplers[spec.algorithm.sampler](seed=seed),
        study_name=name,
        storage=stored,
    )
    return ConcurrencyLimiter(proposals, max_concurrent=concurrent)


def _scheduler(spec: SearchSpec, task: SearchTask) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

    epochs = task.base.learning.epochs
    match spec.scheduler:
        case Fifo():
            return FIFOScheduler()
        case Asha(grace_epochs=grace):
            return ASHAScheduler(time_attr=EPOCH, max_t=epochs, grace_period=min(grace, epochs), reduction_factor=2)
        case Pbt(every_epochs=every, quantile=quantile, resample=resample):
            # Not synchronous: there a member that fails while others wait for it is waited for in vain.
            return PopulationBasedTraining(
                time_attr=CLOCK,
                perturbation_interval=every,
                quantile_fraction=quantile,
                resample_probability=resample,
                hyperparam_mutations={"point": {"values": mutations(task.space)}},
                custom_explore_fn=lambda config: _inside(config, task.space),
                log_config=False,
            )
        case _:
            assert_never(spec.scheduler)


def mutations(space: Space) -> dict[str, Any]:
    """What a population changes: numbers by a factor or anew, listed values to a neighbour or anew."""
    listed = {path: list(s.values) for path, s in space.items() if isinstance(s, ChoiceSampler | Grid)}
    return {**draws(space), **listed}


def _inside(config: dict[str, Any], space: Space) -> dict[str, Any]:
    """Changed by a factor, a number may have left the range of its sampler."""
    point = config["point"]
    return {**config, "point": {**point, "values": clipped(space, point["values"])}}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators that Tune's population draws from, seeded inside and as they were afterwards."""
    import numpy as np

    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)
