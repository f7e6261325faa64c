"""The key columns that init takes: those that were given, else guesses, in each of the three tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from pydantic import Field

from rayrank.config import Config, ConfigError
from rayrank.sources import guess
from rayrank.sources.files import place_of
from rayrank.sources.match import CLEAR, could_be_key, share_found
from rayrank.sources.profile import SAMPLE_ROWS, profile


class KeyConfig(Config):
    """Columns you name yourself; None is guessed."""

    user: str | None = Field(None, description="user key column of the interactions")
    item: str | None = Field(None, description="item key column of the interactions")
    timestamp: str | None = Field(None, description="time column of the interactions")
    items_item: str | None = Field(None, description="key column of the items, if named otherwise there")
    users_user: str | None = Field(None, description="key column of the users, if named otherwise there")


@dataclass(frozen=True)
class Raw:
    """A sample of one table and its columns in numbers; empty where no file was given."""

    kind: str  # interactions, items or users
    path: str | None
    table: pa.Table
    columns: guess.Profiles

    @classmethod
    def of(cls, kind: str, path: str | None, table: pa.Table) -> Raw:
        """With its columns profiled."""
        return cls(kind, path, table, profile(table))


@dataclass(frozen=True)
class Keys:
    """What was chosen, and why; the keys of items and users are None where there is no such table."""

    user: guess.Guess
    item: guess.Guess
    time: guess.Guess
    time_unit: str
    items_item: guess.Guess | None
    users_user: guess.Guess | None


def choose_keys(given: KeyConfig, raws: Mapping[str, Raw]) -> Keys:
    """The keys of all tables.

    Raises:
        ConfigError: a column that was given is not there, or none looks like the key.
    """
    events, items, users = raws["interactions"], raws["items"], raws["users"]
    for name, raw in (("items_item", items), ("users_user", users)):
        _given(name, getattr(given, name), raw)
    where = events.path or ""
    user = _given("user", given.user, events) or guess.guess_key(events.columns, "user", where, users.columns)
    item = _given("item", given.item, events) or guess.guess_key(events.columns, "item", where, items.columns)
    time = _given("timestamp", given.timestamp, events)
    unit = guess.time_unit(events.columns[time.name]) if time else ""
    if time is None:
        time, unit = guess.guess_time(events.columns, where)
    of_items = _entity_key(given.items_item, "item", events.table[item.name], item.name, items)
    of_users = _entity_key(given.users_user, "user", events.table[user.name], user.name, users)
    return Keys(user, item, time, unit, of_items, of_users)


def _given(key: str, name: str | None, raw: Raw) -> guess.Guess | None:
    """The column that was named; refused where its table does not have it."""
    if name is None:
        return None
    if raw.path is None:
        raise ConfigError(f"keys.{key}", name, f"there is no {raw.kind} table", f"give {raw.kind}=FILE too")
    place = place_of(name, list(raw.columns))
    if place is None:
        rule = f"must be a column of the {raw.kind} {raw.path}, which has: {', '.join(raw.columns)}"
        other = {"item": "items", "user": "users"}.get(key)
        fix = f"; the key of the {other} table, where that has another name, is keys.{other}_{key}" if other else ""
        raise ConfigError(f"keys.{key}", name, rule, f"name one of these{fix}")
    return guess.Guess(place, "given")


def _entity_key(given: str | None, kind: str, keys: pa.ChunkedArray, name: str, raw: Raw) -> guess.Guess | None:
    """The key column of the items or users: given, named as in the interactions, or the one that has their values.

    Args:
        given: the name in the config, which the table has.
        kind: "item" or "user".
        keys: the key column of the interactions.
        name: its name.
        raw: the items or users.
    """
    chosen = _given(f"{raw.kind}_{kind}", given, raw)
    same = place_of(name, list(raw.columns))
    if raw.path is None or chosen is not None:
        return chosen
    if same is not None:
        return guess.Guess(same, "named as in the interactions")
    habit = guess.named_key(raw.columns, kind)
    names = [*([habit] if habit else []), *(n for n, c in raw.columns.items() if could_be_key(c) and n != habit)]
    shares = {n: share_found(keys, raw.table[n]) for n in names}
    best = max(names, key=lambda n: shares[n], default=None)  # the first of equals: the one with the name of a key
    if best is not None and shares[best] >= CLEAR:
        return guess.Guess(best, f"has {shares[best]:.0%} of the {name} of the interactions")
    if habit is not None and (shares[habit] > 0 or raw.table.num_rows >= SAMPLE_ROWS):
        return guess.Guess(habit, "by its name")
    rule = f"no column has the values of {name} of the interactions; there are: {', '.join(raw.columns)}"
    fix = f"give keys.{raw.kind}_{kind}=<column>, which prepare.yaml calls source.{raw.kind}_key"
    raise ConfigError(f"{raw.path}", None, rule, f"{fix}; or correct keys.{kind}, the key of the interactions")
