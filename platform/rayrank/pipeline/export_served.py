"""The export_served job: the served log and the feedback become tables that ``prepare`` reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field

from rayrank.bundle import read_info
from rayrank.config import Config, ConfigError, DataPath, to_yaml
from rayrank.ranking.growth import moment
from rayrank.ranking.item_log import FOLDER, ItemChange, ItemLog, ItemLogError
from rayrank.ranking.release import load_release, releases_folder
from rayrank.ranking.state import StateError, StateSpec, StateStore, open_state
from rayrank.schema import DatasetSchema, MulticlassTask
from rayrank.sources.join import AttributionJoin
from rayrank.sources.served import Tally, behaviours, impressions, served_schema
from rayrank.sources.served_items import Fit, PutItem, with_put
from rayrank.sources.tables import Tables, TablesConfig
from rayrank.wording import counted

Progress = Callable[[str], None]
_EVENTS = 100_000


class ExportServedConfig(Config):
    """Which log, which feedback, and what belongs to them."""

    releases: DataPath = Field(description="releases folder, or the release that was served: its tasks and features")
    log: DataPath = Field(description="folder of the served log (served_log.path of the service)")
    state: StateSpec = Field(default_factory=StateSpec, description="where the service keeps feedback; as there")
    output: DataPath = Field(description="folder of the tables and of prepare.yaml, which names them")
    window_s: int = Field(86_400, ge=1, description="seconds after an answer in which feedback is counted to it")
    items: DataPath | None = Field(
        None,
        description="raw items table, as the release's dataset was prepared from; prepare needs it for item features",
    )
    users: DataPath | None = Field(None, description="raw users table, likewise for user features")
    items_key: str | None = Field(None, description="id column of `items`; None: named as in the interactions")
    users_key: str | None = Field(None, description="id column of `users`, likewise")
    items_log: DataPath | None = Field(
        None,
        description="folder of items put while serving (items.path of the service), which join `items`; None: the one"
        " in the releases folder, if there is one",
    )


@dataclass(frozen=True)
class ExportServedResult:
    """Where the tables are, and what is in them."""

    prepare: str
    tally: Tally
    lacking: tuple[str, ...] = ()  # tables that prepare needs and that were not given
    put: int = 0  # items put while serving that joined the items table
    fit: Fit = field(default_factory=Fit)

    def summary(self) -> list[str]:
        """What was read, what was left out, and what to do next."""
        tally = self.tally
        lines = [
            f"{counted(tally.requests, 'answer')} with {counted(tally.shown, 'item')} shown, "
            f"{counted(tally.events, 'event')} of feedback"
        ]
        left = {
            "answers without user_id": tally.anonymous,
            "shown items without id": tally.unnamed,
            "answers that the service dropped": tally.dropped,
            "torn lines": tally.torn,
            "answers and events of no plausible time": tally.untimely,
            "texts of put items: the template has no column for free text": self.fit.texts,
            "values of put items that do not fit their column": self.fit.values,
        }
        if not tally.events:
            lines.append("warning: no feedback was found, so all that was shown is a negative: see the job's `state`")
        if self.put:
            lines.append(f"{counted(self.put, 'item')} put while serving joined the items table")
        lines += [f"left out: {number:,} {what}" for what, number in left.items() if number]
        if self.lacking:
            keys = " ".join(f"{name}=FILE" for name in self.lacking)
            lines.append(
                f"first: give the raw {' and '.join(self.lacking)} that the schema reads ({keys}) to this job again"
            )
        return [*lines, f"next: python -m jobs.prepare {self.prepare}"]


def export_served(config: ExportServedConfig, progress: Progress) -> ExportServedResult:
    """Write the tables, then the config of prepare that names them; tables of an earlier run go last.

    Raises:
        ConfigError: no release, an empty log, no store, or no answer from it.
    """
    release = load_release(config.releases)
    schema = read_info(release.student).data_schema
    files = sorted(Path(config.log).glob("served-*.jsonl"))
    if not files:
        fix = "give the folder of served_log.path, or let the service answer first"
        raise ConfigError("log", config.log, "holds no served-*.jsonl", fix)
    made, tally = Path(config.output) / f"tables-{uuid4().hex[:8]}", Tally()
    try:
        progress(f"reading {counted(len(files), 'file')} of the served log")
        _write(made / "impressions", (impressions(file, schema, tally) for file in files))
        if not tally.shown:
            raise ConfigError("log", config.log, "shows no item to a user with an id", "send user_id with requests")
        tasks = [task.name for task in schema.event_tasks]
        progress("reading feedback")
        store = open_state(config.state, config.releases, read_only=True)
        _write(made / "behaviours", _told(store, tasks, tally))
        source = _source(config, made, schema)
        source, put, fit = _joined(source, _put_items(config), made, moment(release.created))
        prepare = _commit(config, source)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    for old in Path(config.output).glob("tables-*"):
        if old != made:
            shutil.rmtree(old, ignore_errors=True)
    return ExportServedResult(str(prepare), tally, _lacking(config, schema), put, fit)


def _lacking(config: ExportServedConfig, schema: DatasetSchema) -> tuple[str, ...]:
    """Tables that hold features or texts of the schema, and were not given: log and feedback know only keys."""
    needed = {
        "items": bool(schema.item_features or schema.text) and config.items is None,
        "users": bool(schema.user_features or schema.of_kind(MulticlassTask)) and config.users is None,
    }
    return tuple(name for name, missing in needed.items() if missing)


def _told(store: StateStore, tasks: list[str], tally: Tally) -> Iterator[pa.Table]:
    try:
        lines = store.log()
        while chunk := list(islice(lines, _EVENTS)):
            yield behaviours(chunk, tasks, tally)
        yield behaviours([], tasks, tally)  # the columns, also where nobody told anything
    except StateError as error:
        rule = f"the store of feedback gives no answer ({error})"
        raise ConfigError("state", None, rule, "start it, or correct state.path or state.url") from None
    finally:
        store.close()


def _write(folder: Path, tables: Iterator[pa.Table]) -> None:
    folder.mkdir(parents=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number:05d}.parquet")


def _put_items(config: ExportServedConfig) -> list[ItemChange]:
    """Items that were put while serving, as they were put last; removed ones too: histories hold them."""
    folder = Path(config.items_log or releases_folder(config.releases) / FOLDER)
    if config.items_log is not None and not folder.is_dir():
        raise ConfigError("items_log", config.items_log, "is no folder", "give items.path of the service")
    try:
        parts = ItemLog(folder, read_only=True).parts()
        return list({change.item_id: change for part in parts for change in part.puts}.values())
    except ItemLogError as error:
        rule = f"the log of items gives no answer ({error})"
        raise ConfigError("items_log", str(folder), rule, "mend it and start again") from None


def _joined(source: TablesConfig, put: list[ItemChange], made: Path, since: int) -> tuple[TablesConfig, int, Fit]:
    """The source with put items in its items table, how many, and what of them found no place.

    Those that the table has and that were put before ``since``, when the release was made, it knows better.
    """
    fit, tables = Fit(), Tables(source)
    raw = tables.items() if put else None
    if raw is None:
        return source, 0, fit
    known = set(raw["item_id"].to_pylist())
    found = [PutItem(c.item_id, c.attributes, c.text) for c in put if c.time >= since or c.item_id not in known]
    if not found:
        return source, 0, fit
    _write(made / "items", iter([with_put(raw, found, tables.schema, fit)]))
    return source.model_copy(update={"items": str(made / "items"), "items_key": "item_id"}), len(found), fit


def _source(config: ExportServedConfig, made: Path, schema: DatasetSchema) -> TablesConfig:
    """The dataset YAML, and what prepare reads with it."""
    dataset = made / "dataset.yaml"
    dataset.write_text(to_yaml(served_schema(schema, config.window_s)), encoding="utf-8")
    return TablesConfig(
        dataset=str(dataset),
        interactions=str(made / "impressions"),
        behaviours=str(made / "behaviours"),
        join=AttributionJoin(window_s=config.window_s),
        items=config.items,
        users=config.users,
        items_key=(config.items_key or schema.item_id) if config.items else None,
        users_key=(config.users_key or schema.user_id) if config.users else None,
    )


def _commit(config: ExportServedConfig, source: TablesConfig) -> Path:
    """The config of prepare, at once."""
    whole: dict[str, Any] = {"source": source.model_dump(mode="json"), "path": str(Path(config.output) / "data")}
    target = Path(config.output) / "prepare.yaml"
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
    temporary.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    os.replace(temporary, target)
    return target
