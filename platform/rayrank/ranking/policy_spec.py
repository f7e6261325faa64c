"""What a policy file may say: the rules that editors lay over the models' order, as data.

The steps are always taken in the order of the fields below (``ranking/policy.py`` takes them). Knows nothing about a
catalogue: whether a column or a value exists is checked when the policy meets a release.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from rayrank.config import Config, ConfigError, parse, read_yaml
from rayrank.message_values import MAX_WEIGHT

MAX_RULES = 200
"""Rules of one kind: each is laid over the whole catalogue whenever the policy or the catalogue changes."""
MAX_IDS = 100_000
"""Item ids of one rule."""
MAX_VALUES = 1000
MAX_COLUMNS = 50
MAX_PINS = 500

Value = str | int | float | bool


class Match(Config):
    """Some items: by id, or by the values of a categorical column of items (one of the two)."""

    items: tuple[str, ...] = Field((), max_length=MAX_IDS, description="item ids")
    column: str | None = Field(None, description="categorical column of items, as in the dataset's schema")
    values: tuple[Value, ...] = Field(
        (), max_length=MAX_VALUES, description="values of the column; any of them matches"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Match:
        if bool(self.items) == (self.column is not None) or bool(self.values) != (self.column is not None):
            raise ValueError("name items, or a column with values")
        return self


class Boost(Match):
    """Moves the fused score of the matched items: score · times + add, a score below 0 divided by times.

    So a boost always raises and never buries, whatever the signs of weights and scores; what buries never raises.
    """

    times: float = Field(1.0, gt=0, le=MAX_WEIGHT, description="factor of the fused score; below 1 it buries")
    add: float = Field(0.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT, description="added to the fused score; below 0 it buries")


class Dedupe(Config):
    """Which items count as the same; the best one stays."""

    items: bool = Field(True, description="the same item asked for twice")
    columns: tuple[str, ...] = Field(
        (), max_length=MAX_COLUMNS, description="single-valued columns, e.g. series: one item of each value"
    )


class Diversity(Config):
    """Maximal marginal relevance (Carbonell and Goldstein, 1998) over the best items."""

    relevance: float = Field(0.7, ge=0, le=1, description="λ: 1 is the order of the scores, 0 looks at likeness only")
    top: int = Field(100, ge=2, le=500, description="best items that are put in a new order")


class Cap(Config):
    """At most ``most`` items of each value of a column among the first ``first``."""

    column: str = Field(description="categorical column of items")
    most: int = Field(ge=1, description="items of one value")
    first: int = Field(10, ge=1, description="places at the top for which this holds")


class Pin(Config):
    """An item that always stands at one place."""

    item: str = Field(description="item id")
    position: int = Field(ge=0, lt=500, description="place in the answer, from 0")


class Exploration(Config):
    """ε-exploration: some places show an item drawn uniformly from those that just missed the answer."""

    share: float = Field(0.0, ge=0, le=1, description="ε: share of places, pinned ones aside, that explore")
    top: int = Field(100, ge=1, description="how many of the items after the answer are drawn from")


class PolicySpec(Config):
    """A whole policy; an empty one changes nothing but showing each item once."""

    block: tuple[Match, ...] = Field((), max_length=MAX_RULES, description="items that are never shown")
    available: tuple[Match, ...] = Field(
        (), max_length=MAX_RULES, description="where given, only items that match one of these are shown"
    )
    boosts: tuple[Boost, ...] = Field(
        (), max_length=MAX_RULES, description="scores that are moved; several on one item follow each other"
    )
    dedupe: Dedupe = Field(default_factory=Dedupe, description="which items count as the same")
    diversity: Diversity | None = Field(None, description="spread over unlike items; None: off")
    caps: tuple[Cap, ...] = Field((), max_length=MAX_COLUMNS, description="attribute caps")
    pins: tuple[Pin, ...] = Field((), max_length=MAX_PINS, description="items at fixed places")
    exploration: Exploration = Field(default_factory=Exploration, description="exploration with known propensities")

    @model_validator(mode="after")
    def _one_pin_a_place(self) -> PolicySpec:
        for what in ("position", "item"):
            values = [getattr(pin, what) for pin in self.pins]
            if len(set(values)) < len(values):
                raise ValueError(f"two pins share their {what}")
        return self


def read_policy(path: str | Path) -> PolicySpec:
    """The policy in a YAML file, or in a ``.json`` file (faster where it lists many items).

    Raises:
        ConfigError: unreadable, or a key or value is wrong.
    """
    raw = _read_json(Path(path)) if str(path).endswith(".json") else read_yaml(path)
    return parse(PolicySpec, raw, origin=str(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), None, f"must be readable JSON ({type(error).__name__})", "correct it") from None
    if not isinstance(raw, dict):
        raise ConfigError(str(path), type(raw).__name__, "top level must be an object", "write {…}")
    return raw
