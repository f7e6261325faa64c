"""What a search is after: one metric, a weighted sum, or a Pareto set of up to three, tasks and cost alike.

Pure: metrics of trials in, numbers and a reasoned choice out. Knows nothing about how trials run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never

import numpy as np
from pydantic import Field

from rayrank.config import Config, ConfigError
from rayrank.learning.choice import chosen
from rayrank.learning.spec import LearningSpec
from rayrank.metrics.pareto import front, hypervolume, knee, scaled, within
from rayrank.schema import DatasetSchema

Mode = Literal["max", "min"]
COST = "cost"
COSTS = ("parameters", "multiply_adds")
_LESS = (
    *("rmse", "mae", "log_loss", "normalised_entropy", "calibration_error", "median_rank"),
    *COSTS,
)
_METRIC = "'<protocol>/<task>/<metric>' of valid, or cost/parameters, cost/multiply_adds"


class Single(Config):
    """One metric."""

    kind: Literal["single"] = "single"
    metric: str | None = Field(None, description=f"{_METRIC}; null: what learning.choose would be")
    mode: Mode | None = Field(None, description="whether more or less is better; null: by the metric's name")


class Weighted(Config):
    """A term of a weighted sum."""

    metric: str = Field(description=_METRIC)
    mode: Mode | None = Field(None, description="whether more or less is better; null: by the metric's name")
    weight: float = Field(gt=0, description="factor on the metric as it is; where less is better it counts negatively")


class WeightedSum(Config):
    """One number of several metrics."""

    kind: Literal["weighted"] = "weighted"
    terms: tuple[Weighted, ...] = Field(min_length=1, description="what is added up; more is better")


class Axis(Config):
    """An objective of a Pareto set."""

    metric: str = Field(description=_METRIC)
    mode: Mode | None = Field(None, description="whether more or less is better; null: by the metric's name")
    reference: float | None = Field(
        None, description="value from which the hypervolume counts; null: the worst of all trials"
    )


class Knee(Config):
    """Farthest beyond the plane through the extremes of the front, each objective scaled to the front's range."""

    kind: Literal["knee"] = "knee"


class Within(Config):
    """The best by the second objective, among those that lose little of the first."""

    kind: Literal["within"] = "within"
    tolerance: float = Field(ge=0, description="most that the first objective may lose against the best, in its units")


class Pareto(Config):
    """The trials that no other beats in all objectives, and a rule for the one that is taken."""

    kind: Literal["pareto"] = "pareto"
    objectives: tuple[Axis, ...] = Field(
        min_length=2, max_length=3, description="two or three; a trial's epoch is chosen by the first"
    )
    pick: Annotated[Knee | Within, Field(discriminator="kind")] = Field(
        default_factory=Knee, description="which point of the front becomes best.yaml"
    )


Goal = Annotated[Single | WeightedSum | Pareto, Field(discriminator="kind")]
AnyGoal = Single | WeightedSum | Pareto


@dataclass(frozen=True)
class Term:
    """A metric and its direction, resolved."""

    metric: str
    mode: Mode
    weight: float = 1.0

    @property
    def sign(self) -> float:
        """1 where more is better, else -1."""
        return 1.0 if self.mode == "max" else -1.0


@dataclass(frozen=True)
class Judged:
    """What the epochs of a trial come to: of each fold its best epoch, and the means over folds."""

    score: float | None  # None: no epoch of some fold has a number
    metrics: dict[str, float]
    folds: tuple[float, ...]  # score of each fold, of one without cross-validation
    values: dict[str, float]  # of every objective


@dataclass(frozen=True)
class Choice:
    """Which trial was taken and why; of a Pareto set also the set."""

    number: int
    rule: str
    reason: str
    front: tuple[int, ...] = ()  # numbers of the trials in it, best by the first objective first
    hypervolume: float | None = None  # in the units of the objectives
    hypervolume_share: float | None = None  # of the box between reference and the best value of each objective
    reference: dict[str, float] | None = None


def resolved(goal: AnyGoal, learning: LearningSpec, schema: DatasetSchema) -> AnyGoal:
    """The goal with every metric and direction written out.

    Raises:
        ConfigError: a task that the dataset does not have, an unknown cost, a metric of no protocol or not of its task.
    """
    if isinstance(goal, Single) and goal.metric is None:
        name, less = chosen(None, schema, "search.goal.metric")
        metric = f"{learning.choose_protocol}/{name}"
        return goal.model_copy(update={"metric": metric, "mode": goal.mode or ("min" if less else "max")})
    match goal:
        case Single():
            return goal.model_copy(update=_written(goal, schema, "search.goal.metric"))
        case WeightedSum():
            done = [t.model_copy(update=_written(t, schema, "search.goal.terms")) for t in goal.terms]
            return goal.model_copy(update={"terms": tuple(done)})
        case Pareto():
            axes = [a.model_copy(update=_written(a, schema, "search.goal.objectives")) for a in goal.objectives]
            return goal.model_copy(update={"objectives": tuple(axes)})
        case _:
            assert_never(goal)


def _written(term: Single | Weighted | Axis, schema: DatasetSchema, path: str) -> dict[str, Any]:
    metric = term.metric or ""
    protocol, _, name = metric.partition("/")
    if protocol == COST and name not in COSTS:
        known = ", ".join(f"{COST}/{cost}" for cost in COSTS)
        raise ConfigError(path, metric, f"costs that are counted: {known}", "use one of those")
    if protocol not in (COST, "streaming", "snapshot"):
        raise ConfigError(path, metric, "a metric starts with streaming/, snapshot/ or cost/", "streaming/<task>/auc")
    if protocol != COST:
        chosen(name, schema, path)
    return {"mode": term.mode or ("min" if metric.rsplit("/", 1)[-1] in _LESS else "max")}


def terms_of(goal: AnyGoal) -> tuple[Term, ...]:
    """The metrics of a resolved goal; a Pareto set's first one orders its trials."""
    given: Sequence[Single | Weighted | Axis]
    match goal:
        case Single():
            given = (goal,)
        case WeightedSum():
            given = goal.terms
        case Pareto():
            given = goal.objectives
        case _:
            assert_never(goal)
    return tuple(Term(g.metric or "", g.mode or "max", g.weight if isinstance(g, Weighted) else 1.0) for g in given)


def mode_of(goal: AnyGoal) -> Mode:
    """Whether more or less of :func:`score_of` is better."""
    return "max" if isinstance(goal, WeightedSum) else terms_of(goal)[0].mode


def name_of(goal: AnyGoal) -> str:
    """What the score is, for people."""
    if isinstance(goal, WeightedSum):
        return " ".join(f"{'+' if t.sign > 0 else '−'} {t.weight:g} {t.metric}" for t in terms_of(goal))
    return terms_of(goal)[0].metric


def score_of(goal: AnyGoal, metrics: Mapping[str, float]) -> float:
    """The number that orders epochs and trials.

    Raises:
        ConfigError: valid does not give one of the metrics.
    """
    for term in terms_of(goal):
        if term.metric not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError("search.goal", term.metric, f"valid gives: {known}", "use one of those")
    if isinstance(goal, WeightedSum):
        return sum(t.sign * t.weight * float(metrics[t.metric]) for t in terms_of(goal))
    return float(metrics[terms_of(goal)[0].metric])


def judged(goal: AnyGoal, folds: Sequence[Sequence[Mapping[str, float]]]) -> Judged:
    """Each fold's best epoch by the goal's score, and the means of everything over the folds."""
    sign = 1.0 if mode_of(goal) == "max" else -1.0
    best: list[Mapping[str, float]] = []
    scores: list[float] = []
    for epochs in folds:
        found = [(score_of(goal, metrics), metrics) for metrics in epochs]
        known = [(score, metrics) for score, metrics in found if math.isfinite(score)]
        if not known:
            return Judged(None, {}, (), {})
        score, metrics = max(known, key=lambda pair: sign * pair[0])
        scores.append(score)
        best.append(metrics)
    if not best:
        return Judged(None, {}, (), {})
    means = {name: _mean([metrics[name] for metrics in best if name in metrics]) for name in best[0]}
    values = {term.metric: means[term.metric] for term in terms_of(goal)}
    return Judged(_mean(scores), means, tuple(scores), values)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else float("nan")


def choose(goal: AnyGoal, values: Mapping[int, Mapping[str, float]], scores: Mapping[int, float]) -> Choice:
    """The trial to take, from objectives' values and scores by trial number; there must be one.

    Of equals the lower number.
    """
    if not isinstance(goal, Pareto):
        sign = 1.0 if mode_of(goal) == "max" else -1.0
        number = min(scores, key=lambda n: (-sign * scores[n], n))
        return Choice(number, "best", f"the best score, {scores[number]:.6g}")
    terms, numbers = terms_of(goal), sorted(values)
    sign_K = np.array([term.sign for term in terms])
    all_PK = np.array([[values[n][term.metric] for term in terms] for n in numbers]) * sign_K
    kept_P = front(all_PK)
    if not kept_P.any():
        number = min(scores, key=lambda n: (-sign_K[0] * scores[n], n))
        return Choice(number, "best", "no trial has numbers in all objectives; the best by the first")
    usable_PK = all_PK[np.isfinite(all_PK).all(1)]
    given = [axis.reference for axis in goal.objectives]
    worst_K = usable_PK.min(0)
    reference_K = np.array([w if g is None else s * g for g, w, s in zip(given, worst_K, sign_K, strict=True)])
    front_PK, members = all_PK[kept_P], [n for n, kept in zip(numbers, kept_P, strict=True) if kept]
    volume = hypervolume(front_PK, reference_K)
    box = float(np.prod(np.maximum(front_PK.max(0) - reference_K, 0.0)))
    place, rule, reason = _picked(goal, front_PK, terms)
    order = np.argsort(-front_PK[:, 0], kind="stable")
    return Choice(
        number=members[place],
        rule=rule,
        reason=reason,
        front=tuple(members[i] for i in order),
        hypervolume=volume,
        hypervolume_share=volume / box if box > 0 else None,
        reference={t.metric: float(r * t.sign) for t, r in zip(terms, reference_K, strict=True)},
    )


def _picked(goal: Pareto, front_PK: np.ndarray, terms: Sequence[Term]) -> tuple[int, str, str]:
    match goal.pick:
        case Knee():
            place = knee(front_PK)
            total = float(scaled(front_PK)[place].sum())
            what = f"{total:.3f} of {len(terms)}: sum of the objectives, each scaled to the front's range; the largest"
            return place, "knee", what
        case Within(tolerance=tolerance):
            place = within(front_PK, tolerance)
            lost = float(front_PK[:, 0].max() - front_PK[place, 0])
            what = (
                f"best {terms[1].metric} of those within {tolerance:g} of the best {terms[0].metric}; loses {lost:.4g}"
            )
            return place, f"within {tolerance:g}", what
        case _:
            assert_never(goal.pick)
