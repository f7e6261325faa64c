"""Fitted feature state: the vocabularies and scales of a dataset, learned from training rows only.

JSON-able, so that it travels with the manifest and with bundles. Fitting is split into counts that add up (each
shard counts alone) and a final step that turns summed counts into a state. Knows nothing about files or Arrow.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import Field

from rayrank.config import Config
from rayrank.schema import CategoricalFeature, DatasetSchema, Feature, NumericFeature

_WHOLE = re.compile(r"^(-?\d+)\.0+$")
POINTS = 2048
"""Points that a distribution is kept in while it is summed over shards."""

CellValue = str | int | float | bool | None


class Scale(Config):
    """Standardisation of one number: (x − mean) / std."""

    mean: float = Field(description="training mean, after log(1 + x) where the feature asks for it")
    std: float = Field(gt=0, description="training deviation; 1 where the training values are constant")
    knots: tuple[float, ...] = Field((), description="training quantiles, ascending; empty: mean and std are used")


class TableState(Config):
    """Fitted features of one table (users, items or context)."""

    categories: dict[str, tuple[str, ...]] = Field({}, description="feature -> values; index i + 1, 0 is unknown")
    scales: dict[str, Scale] = Field({}, description="feature -> standardisation")
    buckets: dict[str, int] = Field({}, description="hashed feature -> number of indices beside 0")

    def size(self, feature: str) -> int:
        """Number of indices of a categorical feature, unknown included."""
        return self.buckets.get(feature, len(self.categories[feature])) + 1


class FeatureState(Config):
    """Everything fitted on a dataset."""

    users: TableState = Field(default_factory=TableState, description="features of users")
    items: TableState = Field(default_factory=TableState, description="features of items")
    context: TableState = Field(default_factory=TableState, description="features of interactions")


class Moments(Config):
    """Count, sum and sum of squares of a number: they add up over shards."""

    count: int = Field(0, description="values seen")
    total: float = Field(0.0, description="sum")
    squares: float = Field(0.0, description="sum of squares")
    points: tuple[tuple[float, float], ...] = Field((), description="(value, weight) points of the distribution")

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            count=self.count + other.count,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            points=thinned((*self.points, *other.points)),
        )


def category_text(value: CellValue) -> str | None:
    """The one text of a category, whatever type its file or request gave it; None where missing.

    ``35``, ``35.0``, ``"35"`` and ``"35.0"`` (what pandas makes of a column with gaps) are the same category, so that
    a CSV, a Parquet file and a JSON request agree.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    text = str(value)
    return _WHOLE.sub(r"\1", text)


def cell_values(feature: CategoricalFeature, cell: CellValue | Sequence[CellValue]) -> list[str]:
    """The category texts of one cell: split by the separator, or the members of a list; missing ones dropped."""
    if isinstance(cell, list | tuple | np.ndarray):
        found = [category_text(v) for v in cell]
    else:
        assert not isinstance(cell, Sequence) or isinstance(cell, str)
        text = category_text(cell)
        parts = [text] if text is None or feature.separator is None else text.split(feature.separator)
        found = [p.strip() if p is not None else None for p in parts]
    return [v for v in found if v]


def count_categories(feature: CategoricalFeature, cells: Iterable[object], weights: Sequence[int]) -> Counter[str]:
    """Occurrences of each category; ``weights`` says how often each cell occurs."""
    counts: Counter[str] = Counter()
    for cell, weight in zip(cells, weights, strict=True):
        for value in cell_values(feature, cell):  # type: ignore[arg-type]
            counts[value] += int(weight)
    return counts


def fit_categories(feature: CategoricalFeature, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Categories seen at least ``min_count`` times, commonest first, ties by text: the same on every machine."""
    kept = [(-count, value) for value, count in counts.items() if count >= feature.min_count]
    return tuple(value for _, value in sorted(kept))


def numeric_values(feature: NumericFeature, cells: Sequence[object] | np.ndarray) -> np.ndarray:
    """Cells as float64 before scaling, NaN where missing, not finite or not a number; log(1 + x) where asked for.

    Of a cell that is a list, ``feature.element`` is meant (missing where the list is shorter).
    """
    if feature.element is not None and not isinstance(cells, np.ndarray):
        cells = [_element(cell, feature.element) for cell in cells]
    values = np.array([_number(c) for c in cells], dtype=np.float64) if not isinstance(cells, np.ndarray) else cells
    values = np.where(np.isfinite(values.astype(np.float64)), values.astype(np.float64), np.nan)
    return np.log1p(np.maximum(values, 0.0)) if feature.log else values


def count_moments(feature: NumericFeature, cells: Sequence[object] | np.ndarray) -> Moments:
    """Moments of the values that are present."""
    values = numeric_values(feature, cells)
    values = values[~np.isnan(values)]
    points: tuple[tuple[float, float], ...] = ()
    if feature.quantiles is not None:
        distinct, counts = np.unique(values, return_counts=True)
        points = thinned(tuple(zip(distinct.tolist(), counts.astype(float).tolist(), strict=True)))
    total, squares = float(values.sum()), float((values * values).sum())
    return Moments(count=int(values.size), total=total, squares=squares, points=points)


def thinned(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """At most POINTS points of about equal weight in place of more; exact while there are few.

    A point stands for its neighbours at their weighted mean: quantiles are off by at most one part in POINTS per merge.
    """
    if len(points) <= POINTS:
        return points
    value, weight = np.array(sorted(points)).T
    group = np.minimum((np.cumsum(weight) - weight / 2) / weight.sum() * POINTS, POINTS - 1).astype(np.int64)
    weights = np.bincount(group, weights=weight, minlength=POINTS)
    values = np.bincount(group, weights=weight * value, minlength=POINTS)
    kept = weights > 0
    return tuple(zip((values[kept] / weights[kept]).tolist(), weights[kept].tolist(), strict=True))


def fit_knots(feature: NumericFeature, moments: Moments) -> tuple[float, ...]:
    """Training quantiles of a feature that asks for them, distinct and ascending; empty otherwise."""
    if feature.quantiles is None or not moments.points:
        return ()
    value, weight = np.array(sorted(moments.points)).T
    rank = (np.cumsum(weight) - weight / 2) / weight.sum()
    asked = np.interp(np.linspace(0, 1, feature.quantiles + 1), rank, value)
    return tuple(np.unique(asked).tolist())


def fit_scale(moments: Moments) -> Scale:
    """Mean and deviation; constant or absent values get deviation 1 (they encode to 0)."""
    if moments.count == 0:
        return Scale(mean=0.0, std=1.0)
    mean = moments.total / moments.count
    variance = max(moments.squares / moments.count - mean * mean, 0.0)
    std = math.sqrt(variance)
    return Scale(mean=mean, std=std if std > 1e-6 * max(1.0, abs(mean)) else 1.0)


def fit_table(
    features: Sequence[Feature], counts: Mapping[str, Mapping[str, int]], moments: Mapping[str, Moments]
) -> TableState:
    """The state of one table from summed counts (by feature name)."""
    categories, buckets, scales = {}, {}, {}
    for feature in features:
        if not isinstance(feature, CategoricalFeature):
            made = moments[feature.name]
            scales[feature.name] = fit_scale(made).model_copy(update={"knots": fit_knots(feature, made)})
        elif feature.hash_buckets is None:
            categories[feature.name] = fit_categories(feature, counts[feature.name])
        else:
            categories[feature.name], buckets[feature.name] = (), feature.hash_buckets
    return TableState(categories=categories, scales=scales, buckets=buckets)


def check_state(state: FeatureState, schema: DatasetSchema) -> list[str]:
    """Names of schema features that the state lacks (empty: they belong together)."""
    tables = (
        (schema.user_features, state.users),
        (schema.item_features, state.items),
        (schema.context_features, state.context),
    )
    return [
        f.name
        for features, table in tables
        for f in features
        if f.name not in (table.categories if isinstance(f, CategoricalFeature) else table.scales)
    ]


def _element(cell: object, at: int) -> object:
    return cell[at] if isinstance(cell, list | tuple | np.ndarray) and at < len(cell) else None


def _number(cell: object) -> float:
    if cell is None or isinstance(cell, bool):
        return float(cell) if isinstance(cell, bool) else math.nan
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
