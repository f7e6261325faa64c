"""The load_state job: histories that exist already go into the state store, so that serving knows every user."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import pyarrow as pa
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.ranking.release import load_release
from rayrank.ranking.state import StateError, StateSpec, StateStore, UserEvents, open_state
from rayrank.ranking.state_load import DatasetHistories, table_histories
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset
from rayrank.sources.source import Part
from rayrank.sources.tables import Tables, TablesConfig
from rayrank.wording import counted

Progress = Callable[[str], None]
_Part = tuple[str, Callable[[], Iterator[tuple[str, UserEvents]]]]
_WAIT_S = 30.0


class LoadStateConfig(Config):
    """What is loaded, and into which store."""

    releases: DataPath = Field(description="releases folder, or one release: whose service reads the store")
    state: StateSpec = Field(default_factory=StateSpec, description="the store, as the service has it")
    source: TablesConfig | None = Field(
        None, description="raw interactions (kind: tables) to load; None: the histories of the release's dataset"
    )
    batch: int = Field(500, ge=1, description="users written at once; feedback waits for a batch to be written")


@dataclass(frozen=True)
class LoadStateResult:
    """What was read, and what the store holds now."""

    parts: int
    loaded_before: int
    users: int
    events: int
    seconds: float
    stored_users: int
    packed_bytes: int
    whole_bytes: int

    def summary(self) -> list[str]:
        """Numbers a person wants."""
        rate = self.users / self.seconds if self.seconds else 0.0
        read = f"{counted(self.parts, 'part')}, {self.loaded_before} of them loaded before"
        packed, whole = (size / max(self.stored_users, 1) for size in (self.packed_bytes, self.whole_bytes))
        return [
            f"{read}: {self.events:,} events of {counted(self.users, 'user')} in {self.seconds:.1f} s"
            f" ({rate:,.0f} users/s)",
            f"the store holds {counted(self.stored_users, 'user')}: {packed:,.0f} bytes a user, {whole:,.0f} with"
            " everything around it",
        ]


def load_state(config: LoadStateConfig, progress: Progress) -> LoadStateResult:
    """Load every part that is not in the store yet; stopped at any point, the same command goes on.

    A part that was interrupted is read again; an event that the store has already counts once.

    Raises:
        ConfigError: nothing to load, or the store gives no answer.
    """
    spec = config.state.model_copy(update={"timeout_s": max(config.state.timeout_s, _WAIT_S)})
    parts, store = _parts(config), open_state(spec, config.releases)
    try:
        return _load(parts, store, config.batch, progress)
    except StateError as error:
        rule = f"the store gives no answer ({error})"
        raise ConfigError("state", None, rule, "mend it and start again: what is loaded stays loaded") from None
    finally:
        store.close()


def _load(parts: list[_Part], store: StateStore, batch: int, progress: Progress) -> LoadStateResult:
    there, began, now = store.marks(), time.monotonic(), int(time.time())
    left = [(mark, read) for mark, read in parts if mark not in there]
    users = events = 0
    for number, (mark, read) in enumerate(left):
        histories = read()
        while some := dict(islice(histories, batch)):
            store.load(some, now)
            users, events = users + len(some), events + sum(map(len, some.values()))
        store.load({}, now, mark)
        progress(f"part {number + 1} of {len(left)}: {counted(users, 'user')} so far")
    seconds = time.monotonic() - began
    stored, packed, whole = store.size()
    return LoadStateResult(len(parts), len(parts) - len(left), users, events, seconds, stored, packed, whole)


def _parts(config: LoadStateConfig) -> list[_Part]:
    """A mark for each piece of the input, and how to read it."""
    if config.source is not None:
        if config.source.behaviours is not None:
            rule = "labels in another table are joined by prepare"
            fix = "prepare a dataset and load that, or give interactions with labels"
            raise ConfigError("source.behaviours", config.source.behaviours, rule, fix)
        return [*_of_tables(Tables(config.source))]
    release = load_release(config.releases)
    if release.dataset is None:
        raise ConfigError("source", None, "the release names no dataset", "give source: {kind: tables, …}")
    histories = DatasetHistories(Dataset.open(release.dataset))
    return [(mark, partial(histories.read, n)) for n, mark in enumerate(histories.parts())]


def _of_tables(tables: Tables) -> Iterator[_Part]:
    for part in tables.parts():
        mark = f"{storage.signature([part.file])}:{part.start}-{part.end}"
        yield mark, partial(_read, tables, part)


def _read(tables: Tables, part: Part) -> Iterator[tuple[str, UserEvents]]:
    """Of the whole part at once: a user's rows may lie anywhere in it."""
    found = list(tables.read(part))
    if found:
        yield from table_histories(pa.concat_tables(found), tables.schema)
