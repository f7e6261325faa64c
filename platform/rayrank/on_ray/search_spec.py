"""How is searched: which settings are tried, which trials are stopped or changed on their way, and what decides.

Typed choices and the checks that need no dataset. Knows nothing about how trials run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrank.config import Config, ConfigError
from rayrank.on_ray.goal import Goal, Pareto, Single
from rayrank.on_ray.space import Grid, Space, extremes, own_values

DEFAULT_TRIALS = 8


class Random(Config):
    """Settings drawn from the samplers."""

    kind: Literal["random"] = "random"


class GridWalk(Config):
    """Every combination of the values of ``grid`` samplers, each once."""

    kind: Literal["grid"] = "grid"


class Optuna(Config):
    """Settings proposed by Optuna from the trials so far, for one objective or several (rayrank[optuna])."""

    kind: Literal["optuna"] = "optuna"
    sampler: Literal["tpe", "nsga2"] = Field(
        "tpe", description="tpe: tree of Parzen estimators; nsga2: genetic, for many trials of several objectives"
    )


class Fifo(Config):
    """Every trial runs to its end."""

    kind: Literal["fifo"] = "fifo"


class Asha(Config):
    """Trials that lag behind are stopped (asynchronous successive halving; Li et al., 2020)."""

    kind: Literal["asha"] = "asha"
    grace_epochs: int = Field(1, ge=1, description="epochs before a trial may be stopped")


class Pbt(Config):
    """A population: the worst trials take weights and settings of the best, with changes (Jaderberg et al., 2017)."""

    kind: Literal["pbt"] = "pbt"
    every_epochs: int = Field(1, ge=1, description="epochs after which a trial is compared with the others")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share that takes over, and share that is taken from")
    resample: float = Field(
        0.25, ge=0, le=1, description="probability that a setting is drawn anew; else real numbers change by a fifth"
    )


class SearchSpec(Config):
    """How is searched."""

    goal: Goal = Field(default_factory=Single, description="what is good")
    algorithm: Annotated[Random | GridWalk | Optuna, Field(discriminator="kind")] = Field(
        default_factory=Random, description="which settings are tried"
    )
    scheduler: Annotated[Fifo | Asha | Pbt, Field(discriminator="kind")] = Field(
        default_factory=Fifo, description="what happens to trials on their way"
    )
    folds: int | None = Field(
        None, ge=2, le=20, description="cross-validation: trains so many times without a part of the users; null: once"
    )
    include_base: bool = Field(True, description="the first trial has the base config's own values")
    time_budget_s: float | None = Field(None, gt=0, description="no new results after this time, s")
    trial_cpus: float = Field(1.0, gt=0, description="logical CPUs that a trial holds")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; None: what the cluster has room for")
    seed: int = Field(0, ge=0, description="of the samples; trials differ in the sampled values only")

    @model_validator(mode="after")
    def _fit_together(self) -> SearchSpec:
        whole = isinstance(self.scheduler, Fifo)
        if isinstance(self.goal, Pareto) and not whole:
            raise ValueError(
                f"search.scheduler {self.scheduler.kind} compares trials by one number and would lose the cheap end of "
                "a Pareto set; use fifo, or a weighted goal"
            )
        if self.folds and not whole:
            raise ValueError(f"search.folds needs whole trials, not scheduler {self.scheduler.kind}; use fifo")
        if isinstance(self.scheduler, Pbt) and isinstance(self.algorithm, Optuna):
            raise ValueError("search.scheduler pbt changes settings itself; its algorithm is random or grid")
        return self


MIDWAY = (
    *("learning.learning_rate", "learning.id_learning_rate", "learning.encoder_learning_rate"),
    *("learning.weight_decay", "learning.id_weight_decay", "learning.clip", "learning.horizon"),
    *("objective.weights.", "objective.distillation.", "objective.regression_scale", "objective.negative_power"),
)
"""Paths (or, with a dot at the end, what lies below them) that may change between two epochs of the second stage."""
AUXILIARY = "objective.distillation.auxiliary"
MATCHING = "objective.distillation.matching."
"""These add layers and maps to what is trained; members that differ in having them cannot take each other's weights."""


def number_of_trials(spec: SearchSpec, space: Space, asked: int | None, origin: str) -> int:
    """Trials of the whole search.

    Raises:
        ConfigError: samplers, algorithm, scheduler and number do not go together.
    """
    grids = [path for path, sampler in space.items() if isinstance(sampler, Grid)]
    if isinstance(spec.algorithm, GridWalk):
        drawn = [path for path in space if path not in grids]
        if drawn:
            rule = "a grid is walked over values; this sampler draws"
            raise ConfigError(f"{origin}: {drawn[0]}", space[drawn[0]].kind, rule, "{kind: grid, values: […]}")
        combinations = 1
        for sampler in space.values():
            assert isinstance(sampler, Grid)
            combinations *= len(sampler.values)
        if asked not in (None, combinations):
            raise ConfigError("trials", asked, f"the grid has {combinations} combinations", "leave trials out")
        asked = combinations
    elif grids:
        rule = f"algorithm {spec.algorithm.kind} draws values; grid samplers are for algorithm grid"
        raise ConfigError(f"{origin}: {grids[0]}", "grid", rule, "search.algorithm.kind=grid, or kind: choice here")
    trials = asked or DEFAULT_TRIALS
    if isinstance(spec.scheduler, Pbt):
        _check_population(space, trials, origin)
    return trials


def _check_population(space: Space, trials: int, origin: str) -> None:
    for path in space:
        if not any(path == known or (known[-1] == "." and path.startswith(known)) for known in MIDWAY):
            allowed = ", ".join(f"{known}*" if known[-1] == "." else known for known in MIDWAY)
            rule = f"pbt changes settings in the middle of training, which this one cannot; what can: {allowed}"
            raise ConfigError(f"{origin}: {path}", path, rule, "take it out of the space, or use fifo or asha")
        if path == AUXILIARY:
            rule = "pbt hands weights from member to member, and only some would have the second output layers"
            raise ConfigError(f"{origin}: {path}", path, rule, "set it in the config, or use fifo or asha")
        if path.startswith(MATCHING) and 0 in extremes(space[path]):
            rule = "pbt hands weights from member to member, and with 0 some would have no maps to the teacher's"
            raise ConfigError(f"{origin}: {path}", 0, rule, "sample values above 0, or use fifo or asha")
    if trials < 2:
        raise ConfigError("trials", trials, "a population has two members at least", "trials=4 or more")


def check_first_member(spec: SearchSpec, space: Space, base: Config, origin: str) -> None:
    """Whether a population's first member, which has the base config's own values, can be one of it.

    Raises:
        ConfigError: it matches no vectors, and the others would.
    """
    own = own_values(space, base) if spec.include_base and isinstance(spec.scheduler, Pbt) else None
    for path, value in (own or {}).items():
        if path.startswith(MATCHING) and value == 0:
            rule = "pbt hands weights from member to member, and the first, with the config's own 0, would have no maps"
            raise ConfigError(f"{origin}: {path}", 0, rule, "set it above 0 there, or search.include_base: false")
