"""The vocabulary of a dataset: its keys, time, features, tasks, text and split, with one fingerprint.

A :class:`DatasetSchema` travels with shards and bundles. It knows nothing about files, tensors or models.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from rayrank.config import Config

TRAIN, VALID, TEST = 1, 2, 3
"""Values of the ``part`` column of an event: which evaluation part it is a target of (0: history only)."""

PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}
FAR = 2**31 - 1
"""A request number later than every real one: padding, and "this user has no such part"."""

UNKNOWN = 0
"""Index 0 of every vocabulary (items, users, categories) means unknown or padding."""


class BinaryTask(Config):
    """An event label in {0, 1}; trained with cross-entropy."""

    kind: Literal["binary"] = "binary"
    name: str = Field(description="task name, unique")
    column: str = Field(description="interaction column that holds the label")
    at_least: float | None = Field(None, description="label is 1 where column >= this; None: the column is already 0/1")
    available_after_s: int | None = Field(
        None, ge=0, description="seconds until the label is known (None: at once); no history shows it earlier"
    )
    time_column: str | None = Field(
        None, description="interaction column with the instant the label became known; empty: after available_after_s"
    )


class RegressionTask(Config):
    """A real-valued event label; trained with squared error on the label scaled to [0, 1] by low..high."""

    kind: Literal["regression"] = "regression"
    name: str = Field(description="task name, unique")
    column: str = Field(description="interaction column that holds the label")
    low: float = Field(0.0, description="smallest label; scores are scaled to 0..1 between low and high for fusion")
    high: float = Field(1.0, description="largest label")
    available_after_s: int | None = Field(
        None, ge=0, description="seconds until the label is known (None: at once); no history shows it earlier"
    )
    time_column: str | None = Field(
        None, description="interaction column with the instant the label became known; empty: after available_after_s"
    )

    @model_validator(mode="after")
    def _ordered(self) -> RegressionTask:
        if not self.low < self.high:
            raise ValueError(f"task '{self.name}': low ({self.low:g}) must be below high ({self.high:g})")
        return self


class MulticlassTask(Config):
    """A user profile class (age group, gender …), predicted from the history alone."""

    kind: Literal["multiclass"] = "multiclass"
    name: str = Field(description="task name, unique")
    column: str = Field(description="user column that holds the class")
    classes: tuple[str, ...] = Field(description="class values as text, in index order", min_length=2)
    hidden_share: float = Field(
        0.2, gt=0, lt=1, description="share of users hidden in training; only they are evaluated"
    )


class RetrievalTask(Config):
    """The next positive item of the user among the whole catalogue; trained with sampled softmax."""

    kind: Literal["retrieval"] = "retrieval"
    name: str = Field(description="task name, unique")
    positive: str = Field(description="binary task whose label 1 marks a positive")


Task = Annotated[BinaryTask | RegressionTask | MulticlassTask | RetrievalTask, Field(discriminator="kind")]
EventTask = BinaryTask | RegressionTask
T = TypeVar("T", bound=Config)


class CategoricalFeature(Config):
    """A category, or several in one text cell; index 0 is unknown, missing or rarer than ``min_count``."""

    kind: Literal["categorical"] = "categorical"
    name: str = Field(description="feature name, unique within its table")
    column: str = Field(description="source column")
    separator: str | None = Field(None, description="splits a multi-valued cell (e.g. '|'); None: one value a cell")
    max_values: int = Field(1, ge=1, description="values kept per cell of a multi-valued feature")
    min_count: int = Field(1, ge=1, description="rarer categories share index 0")
    hash_buckets: int | None = Field(
        None, ge=2, description="hash categories into so many indices instead of a vocabulary; missing is 0"
    )
    train_only: bool = Field(False, description="context only: known in training, missing elsewhere (a position)")


class NumericFeature(Config):
    """A number, standardised with the training mean and deviation or by training quantiles; missing becomes 0."""

    kind: Literal["numeric"] = "numeric"
    name: str = Field(description="feature name, unique within its table")
    column: str = Field(description="source column")
    log: bool = Field(False, description="use log(1 + x) first")
    quantiles: int | None = Field(
        None, ge=2, le=1000, description="use the share of training values below x, from so many quantiles"
    )
    element: int | None = Field(None, ge=0, description="the column holds lists of numbers: which element to use")
    train_only: bool = Field(False, description="context only: known in training, missing elsewhere (a position)")


Feature = Annotated[CategoricalFeature | NumericFeature, Field(discriminator="kind")]


CLOCK_COLUMNS = ("@hour", "@weekday")
USER_COLUMNS = ("@gap", "@events")
"""Computed context columns; ``@item_events`` and ``@item_<task>`` are told of the item's past."""


class UserSplit(Config):
    """Per user by (timestamp, file order): last ceil(test), the ceil(valid) before it, the rest trains."""

    kind: Literal["user"] = "user"
    valid: float = Field(0.1, gt=0, lt=0.5, description="share of each user's events")
    test: float = Field(0.1, gt=0, lt=0.5, description="share of each user's events")


class TimeSplit(Config):
    """All events by (timestamp, file order): first part trains, then valid, then test."""

    kind: Literal["time"] = "time"
    valid: float = Field(0.1, gt=0, lt=0.5, description="share of all events")
    test: float = Field(0.1, gt=0, lt=0.5, description="share of all events")


class BoundarySplit(Config):
    """Fixed instants: events at or after ``test_from`` test, at or after ``valid_from`` validate."""

    kind: Literal["boundary"] = "boundary"
    valid_from: int = Field(description="unix seconds")
    test_from: int = Field(description="unix seconds")

    @model_validator(mode="after")
    def _ordered(self) -> BoundarySplit:
        if not self.valid_from < self.test_from:
            raise ValueError(f"valid_from ({self.valid_from}) must be before test_from ({self.test_from})")
        return self


Split = Annotated[UserSplit | TimeSplit | BoundarySplit, Field(discriminator="kind")]


class HistoryRule(Config):
    """Which of a user's events later requests see. Events left out are targets all the same."""

    show: Literal["all", "positives"] = Field("all", description="positives: events with label 1 in one of the tasks")
    tasks: tuple[str, ...] = Field((), description="binary tasks whose positives are shown; none named: all of them")
    last: int | None = Field(
        None, ge=1, description="at most so many when serving; in training up to one chunk more (see `chunk`)"
    )


class UniformNegatives(Config):
    """Every item is drawn equally often."""

    kind: Literal["uniform"] = "uniform"


class PopularityNegatives(Config):
    """Items are drawn by (training events)^beta (Mikolov et al. 2013 use 0.75); items never trained are not drawn."""

    kind: Literal["popularity"] = "popularity"
    beta: float = Field(0.75, ge=0, le=2, description="0: uniform over trained items; 1: as often as they occur")


NegativeSampling = Annotated[UniformNegatives | PopularityNegatives, Field(discriminator="kind")]


class DatasetSchema(Config):
    """What the columns of a dataset mean. One YAML file; see docs/data_format.md."""

    name: str = Field(description="name that every table of results shows, e.g. ml1m-user")
    user_id: str = Field("user_id", description="user key column")
    item_id: str = Field("item_id", description="item key column")
    timestamp: str | None = Field("timestamp", description="event time column; null: the data has no times")
    order: Literal["row", "none"] = Field(
        "row", description="without times: row: file order; none: no event of a user sees another"
    )
    time_unit: Literal["s", "ms", "us", "ns", "auto"] = Field(
        "s", description="unit of the time column; auto: each number by its magnitude"
    )
    request_id: str | None = Field(None, description="column that groups one request's impressions, if any")
    tasks: tuple[Task, ...] = Field(description="what is predicted", min_length=1)
    user_features: tuple[Feature, ...] = Field((), description="features of the users table")
    item_features: tuple[Feature, ...] = Field((), description="features of the items table")
    context_features: tuple[Feature, ...] = Field((), description="features of the interaction itself")
    past_period_s: int = Field(
        86_400, ge=1, description="@item_ columns know whole periods of so many seconds, the running one never"
    )
    text: str | None = Field(None, description="item text template over item columns, e.g. '{title}. {plot}'")
    title: str | None = Field(None, description="item column shown to people")
    split: Split = Field(default_factory=UserSplit, description="how targets divide into train, valid and test")
    history: HistoryRule = Field(default_factory=HistoryRule, description="which events later requests see")
    history_lag_s: int = Field(
        0, ge=0, description="a label enters a history only when it was known so long before the request"
    )
    sampled_negatives: int = Field(0, ge=0, description="items added per event as negatives (clicks-only data)")
    negative_sampling: NegativeSampling = Field(default_factory=UniformNegatives, description="how they are drawn")
    negatives_avoid: Literal["auto", "known", "request"] = Field(
        "auto",
        description="items that are no negatives of a user: known, all of the same or an earlier part of the split; "
        "request, those of the same request only; auto, request where users come back to items, else known",
    )

    @model_validator(mode="before")
    @classmethod
    def _embeddings(cls, raw: Any) -> Any:
        """``{kind: embedding, name, column, width}`` is short for one number per element of a list column."""
        if not isinstance(raw, dict):
            return raw
        changed = dict(raw)
        for key in ("user_features", "item_features"):
            if isinstance(raw.get(key), list | tuple):
                changed[key] = [made for feature in raw[key] for made in _elements(feature)]
        return changed

    @model_validator(mode="after")
    def _known_columns(self) -> DatasetSchema:
        items = ("@item_events", *(f"@item_{t.name}" for t in self.event_tasks))
        computed = (*CLOCK_COLUMNS, *USER_COLUMNS, *items)
        for feature in self.context_features:
            if feature.column.startswith("@") and feature.column not in computed:
                raise ValueError(f"'{feature.column}': computed columns are {', '.join(computed)}")
            if feature.column.startswith("@") and self.timestamp is None:
                raise ValueError(f"'{feature.column}' needs times; give timestamp")
        for feature in (*self.user_features, *self.item_features):
            if feature.column.startswith("@") or feature.train_only:
                raise ValueError(f"'{feature.name}': computed columns and train_only are for context_features")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSchema:
        names = [t.name for t in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task names must be unique, got {names}")
        for task in self.tasks:
            if isinstance(task, RetrievalTask) and task.positive not in {t.name for t in self.of_kind(BinaryTask)}:
                raise ValueError(f"retrieval task '{task.name}': positive '{task.positive}' is no binary task")
        binary = {t.name for t in self.of_kind(BinaryTask)}
        for name in self.history.tasks:
            if name not in binary:
                raise ValueError(f"history.tasks: '{name}' is no binary task; there are {sorted(binary)}")
        if self.history.show == "positives" and not binary:
            raise ValueError("history.show 'positives' needs a binary task")
        if self.timestamp is None and isinstance(self.split, BoundarySplit):
            raise ValueError("a boundary split needs times; give timestamp, or split by user")
        for task in self.event_tasks:
            if task.time_column is not None and task.available_after_s is None:
                raise ValueError(f"task '{task.name}': time_column needs available_after_s, for labels without a time")
            if self.timestamp is None and (task.available_after_s or task.time_column or self.history_lag_s):
                raise ValueError(f"task '{task.name}': labels that arrive late need times; give timestamp")
        for features in (self.user_features, self.item_features, self.context_features):
            found = [f.name for f in features]
            if len(set(found)) != len(found):
                raise ValueError(f"feature names must be unique, got {found}")
        return self

    def of_kind(self, kind: type[T]) -> tuple[T, ...]:
        """The tasks of one kind, in order."""
        return tuple(t for t in self.tasks if isinstance(t, kind))

    @property
    def event_tasks(self) -> tuple[EventTask, ...]:
        """Tasks with one label per event, in order: their labels are also shown in the history."""
        return tuple(t for t in self.tasks if isinstance(t, BinaryTask | RegressionTask))

    @property
    def history_tasks(self) -> tuple[str, ...]:
        """Binary tasks whose positives the history shows under rule ``positives``."""
        return self.history.tasks or tuple(t.name for t in self.of_kind(BinaryTask))

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON; equal schemas have equal fingerprints.

        Keys left at their default do not count: a key that a later version adds changes no fingerprint.
        """
        text = json.dumps(_said(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def derived_columns(schema: DatasetSchema) -> tuple[str, ...]:
    """Computed context columns of a schema, each once."""
    return tuple(dict.fromkeys(f.column for f in schema.context_features if f.column.startswith("@")))


def item_columns_needed(schema: DatasetSchema) -> tuple[str, ...]:
    """Those of them that are told of an item's past."""
    return tuple(name for name in derived_columns(schema) if name.startswith("@item"))


def past_features(schema: DatasetSchema) -> tuple[Feature, ...]:
    """Context features that are told of an item's past: each candidate of a request has its own values."""
    return tuple(f for f in schema.context_features if f.column.startswith("@item"))


def _elements(feature: Any) -> list[Any]:
    if not isinstance(feature, dict) or feature.get("kind") != "embedding":
        return [feature]
    width = feature.get("width")
    known = {"kind", "name", "column", "width"}
    if set(feature) != known or not isinstance(width, int) or not 0 < width <= 1024:
        raise ValueError(f"an embedding feature has the keys {sorted(known)} and a width of 1..1024, got {feature}")
    common = {"kind": "numeric", "column": feature["column"]}
    return [common | {"name": f"{feature['name']}_{k}", "element": k} for k in range(width)]


def _said(value: object) -> object:
    """What a config says beyond its defaults, as plain JSON; ``kind`` always, since it tells classes apart."""
    if isinstance(value, Config):
        fields = type(value).model_fields.items()
        found = {name: (getattr(value, name), field.get_default(call_default_factory=True)) for name, field in fields}
        return {name: _said(v) for name, (v, default) in found.items() if name == "kind" or v != default}
    return [_said(v) for v in value] if isinstance(value, list | tuple) else value
