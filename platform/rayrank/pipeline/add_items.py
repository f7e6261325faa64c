"""The add_items job: many items at once into the catalogue that is served, or out of it, without retraining."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

from pydantic import Field, ValidationError

from rayrank.bundle import Bundle, read_info
from rayrank.config import Config, ConfigError, DataPath
from rayrank.message_values import MAX_ITEMS
from rayrank.messages import ItemsRequest, NewItem, error_fields
from rayrank.ranking.desk import changes_of
from rayrank.ranking.follow import encoder_id, growth_of
from rayrank.ranking.graph import open_bundles
from rayrank.ranking.item_log import ItemChange, ItemLog, ItemLogError, ItemsSpec, open_items
from rayrank.ranking.release import Release, load_release
from rayrank.ranking.scorer import Scorer
from rayrank.sources import storage
from rayrank.sources.files import Wanted, column_names, file_parts, place_of, read_part
from rayrank.wording import counted

Progress = Callable[[str], None]
_OWN = ("item_id", "title", "text", "available", "attributes")


class AddItemsConfig(Config):
    """Which items, and into which service."""

    releases: DataPath = Field(description="releases folder, or one release: whose service takes the items")
    items: ItemsSpec = Field(default_factory=ItemsSpec, description="where they are kept, as the service has it")
    put: DataPath | None = Field(
        None,
        description="table (.parquet, .csv, .jsonl) to put: item_id, and title, text, available; all other columns are"
        " attributes. Without item_id: the id column of the release's schema",
    )
    remove: DataPath | None = Field(None, description="table whose id column (likewise) names what to remove")
    batch: int = Field(500, ge=1, le=MAX_ITEMS, description="items of one file of the log; a stopped run goes on there")
    encode: bool = Field(True, description="encode the texts here; false: replicas of the service with the teacher do")


@dataclass(frozen=True)
class AddItemsResult:
    """What was told."""

    put: int
    removed: int
    told_before: int
    encoded: int
    seconds: float

    def summary(self) -> list[str]:
        """The lines a person wants to read."""
        rate = self.encoded / self.seconds if self.seconds else 0.0
        return [
            f"{counted(self.put, 'item')} put, {counted(self.removed, 'item')} removed; told before:"
            f" {counted(self.told_before, 'item')}",
            f"{counted(self.encoded, 'text')} encoded in {self.seconds:.1f} s ({rate:,.0f} a second)",
        ]


def add_items(config: AddItemsConfig, progress: Progress) -> AddItemsResult:
    """Put and remove what is not in the log yet; a running service follows within seconds, one started later too.

    Raises:
        ConfigError: no release, no such table, or a row that breaks a rule; batches before it stay told.
    """
    began, release = time.monotonic(), load_release(config.releases)
    log = open_items(config.items, config.releases)
    try:
        there = {part.mark: part.number for part in log.parts()}
        teacher = encoder_id(release) if config.encode else None
        told = before = removed = encoded = 0
        made: _Encoder | None = None
        for mark, changes in chain(_batches(config, "put", release), _batches(config, "remove", release)):
            puts = [c for c in changes if c.kind == "put"]
            if mark in there:
                number, before = there[mark], before + len(changes)
            else:
                number = log.append(changes, mark)
                told, removed = told + len(puts), removed + sum(c.kind == "remove" for c in changes)
            # A run may have been stopped between telling a batch and keeping its vectors.
            if puts and teacher is not None and (mark not in there or log.vectors(teacher, number) is None):
                made = made or _Encoder(release, log)
                encoded += made.encode(number, puts)
            progress(f"{counted(told, 'item')} put, {counted(removed, 'item')} removed")
    except ItemLogError as error:
        rule = f"the log of items gives no answer ({error})"
        raise ConfigError("items", None, rule, "mend it and start again: what is told stays told") from None
    return AddItemsResult(told, removed, before, encoded, time.monotonic() - began)


class _Encoder:
    """The teacher of a release, loaded when the first text comes."""

    def __init__(self, release: Release, log: ItemLog) -> None:
        bundle: Bundle = open_bundles(release, ("teacher",)).first
        self._scorer, self._log = Scorer(bundle), log
        self._growth, self._id = growth_of((bundle, release), ()), bundle.bundle_id

    def encode(self, number: int, puts: list[ItemChange]) -> int:
        vectors = self._scorer.encode(self._growth.described(puts))
        if vectors is None:
            return 0
        self._log.keep_vectors(self._id, number, vectors)
        return len(vectors)


def _batches(config: AddItemsConfig, what: str, release: Release) -> Iterator[tuple[str, list[ItemChange]]]:
    """A mark for each batch of a table, and its changes."""
    path = config.put if what == "put" else config.remove
    if path is None:
        if config.put is None and config.remove is None:
            raise ConfigError("put", None, "there is nothing to tell", "give put, remove or both")
        return
    schema = read_info(release.student).data_schema
    parts, keys = file_parts(path), _keys(path, schema.item_id)
    signature, now = storage.signature([p.file for p in parts]), int(time.time())
    tables = ((keys[part.file], table) for part in parts for table in read_part(part, Wanted()))
    rows = enumerate((_named(row, key) for key, table in tables for row in table.to_pylist()), 1)
    for number in count():
        some = list(islice(rows, config.batch))
        if not some:
            return
        if what == "put":
            request = _request(path, {"items": [_item(path, n, row) for n, row in some]})
        else:
            request = _request(path, {"remove": [str(row.get("item_id") or "") for _, row in some]})
        yield f"{what}:{signature}:{config.batch}:{number}", changes_of(request, schema, now)


def _keys(path: str, key: str) -> dict[str, str]:
    """File -> its column of ids: ``item_id``, else the one that the dataset's tables have.

    Raises:
        ConfigError: a file has neither.
    """
    found = dict[str, str]()
    for file, have in column_names(path).items():
        place = place_of("item_id", have) or place_of(key, have)
        if place is None and have:
            other = f" (or {key})" if key != "item_id" else ""
            rule = f"no column item_id{other}; the file has {', '.join(have)}"
            raise ConfigError(file, None, rule, "rename the column of ids to item_id")
        found[file] = place or "item_id"
    return found


def _named(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {"item_id": row.get(key)} | {name: value for name, value in row.items() if name != key}


def _item(path: str, number: int, row: Mapping[str, Any]) -> NewItem:
    given = {name: value for name, value in row.items() if value is not None}
    item = {name: given.pop(name) for name in _OWN if name in given}
    for name in ("item_id", "title", "text"):
        if name in item:
            item[name] = str(item[name])
    if item.get("available") in (0, 1):  # what a CSV file has for no and yes
        item["available"] = bool(item["available"])
    nested = {name: value for name, value in (item.pop("attributes", None) or {}).items() if value is not None}
    try:
        return NewItem.model_validate({**item, "attributes": given | nested})
    except ValidationError as error:
        wrong = error_fields(error.errors(include_input=False))[0]
        raise ConfigError(f"{path}: row {number}: {wrong.field}", None, wrong.problem, "mend the row") from None


def _request(path: str, told: Mapping[str, Any]) -> ItemsRequest:
    try:
        return ItemsRequest.model_validate(told)
    except ValidationError as error:
        wrong = error_fields(error.errors(include_input=False))[0]
        fix = "mend the table, or take a smaller batch"
        raise ConfigError(f"{path}: {wrong.field}", None, wrong.problem, fix) from None
