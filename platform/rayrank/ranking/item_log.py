"""What was told of items while serving: a folder of small files that every replica of every stage follows.

``part-00000001.json`` … hold changes in the order in which they were told, files of the same names in
``vectors-<teacher>`` what that teacher made of their texts. A file appears whole, flushed to disk and under the next
free number, or not at all, and never changes: many writers and readers of one disk (also a mounted one) need no lock.
Knows files, no models.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from rayrank.config import Config, ConfigError, DataPath
from rayrank.message_values import Attributes
from rayrank.ranking import durable
from rayrank.ranking.release import releases_folder

FOLDER, FORMAT = "items", 1


class ItemsSpec(Config):
    """Where items that are put and removed while serving are kept."""

    path: DataPath | None = Field(
        None, description=f"folder on a disk that all replicas see; None: {FOLDER} in the releases folder"
    )
    poll_s: float = Field(1.0, gt=0, le=30, description="between two looks of a replica at the folder, seconds")
    waiting: int = Field(10_000, ge=1, description="items that may wait for their texts to be encoded; more get 429")
    rows: int = Field(
        100_000, ge=1, description="puts that a running service holds; more get 507 (a changed item is another put)"
    )
    folded: int | None = Field(
        None,
        ge=0,
        description="files of the log in which only the last put of an item counts; None: those that are there when"
        " the graph is built",
    )
    timeout_s: float = Field(10.0, gt=0, description="longest wait of a client for the folder, seconds; then 503")


class ItemChange(Config):
    """One thing that was told of an item."""

    kind: Literal["put", "remove", "shelve"] = Field(description="shelve: its availability alone")
    item_id: str = Field(description="the item")
    time: int = Field(description="unix seconds when it was told")
    title: str | None = Field(None, description="of a put")
    text: str | None = Field(None, description="of a put")
    attributes: Attributes = Field(default_factory=dict, description="of a put: raw columns")
    available: bool | None = Field(None, description="whether it may be shown; None: as before")


@dataclass(frozen=True)
class ItemPart:
    """One file of the log."""

    number: int
    changes: tuple[ItemChange, ...]
    mark: str | None = None  # name of what it was made from, for whoever must not tell it twice

    @property
    def puts(self) -> tuple[ItemChange, ...]:
        """Those that need a row."""
        return tuple(c for c in self.changes if c.kind == "put")


class ItemLogError(RuntimeError):
    """The folder gives no answer; the message names no item."""


class ItemLog:
    """The folder.

    Raises:
        ConfigError: it cannot be made or written.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = Path(path)
        self._last = 0  # a number that is taken
        if not read_only:
            self._make()
        self._top = max((int(file.stem[5:]) for file in self.path.glob(f"part-{'[0-9]' * 8}.json")), default=0)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            rule = f"the folder of added items must be writable ({type(error).__name__})"
            raise ConfigError("items.path", str(self.path), rule, "choose another folder, or items=null") from None

    def append(self, changes: Sequence[ItemChange], mark: str | None = None) -> int:
        """Keep changes, all or none; on disk when this returns. Returns the number of the file.

        Raises:
            ItemLogError: the disk refuses.
        """
        lines = [c.model_dump(mode="json", exclude_none=True) for c in changes]
        body = json.dumps({"format": FORMAT, "mark": mark, "changes": lines}, separators=(",", ":")).encode()
        number = self._last + 1
        while not self._commit(self._part(number), body):
            number += 1
        self._last = number
        return number

    def parts(self, after: int = 0) -> Iterator[ItemPart]:
        """Files behind number ``after``, in order, up to the first number that is free.

        Raises:
            ItemLogError: a file cannot be read, or is missing before others; none behind it is read.
        """
        number = after + 1
        while (found := self._read(number) or self._lost(number)) is not None:
            self._last = max(self._last, number)
            yield found
            number += 1

    def _lost(self, number: int) -> ItemPart | None:
        """What to make of a number that was free a moment ago; None: nobody has written so far yet."""
        self._top = max(self._top, self._last)
        if not any(self._part(n).exists() for n in (number + 1, self._top) if n > number):
            return None
        found = self._read(number)  # it may have been written since, with those behind it
        if found is None:
            raise ItemLogError(f"{self._part(number).name} is missing, though files behind it are there")
        return found

    def last(self) -> int:
        """Number of the last file that can be read with all before it; 0: none."""
        number = 0
        with suppress(ItemLogError):
            for part in self.parts():
                number = part.number
        return number

    def vectors(self, teacher_id: str, number: int) -> np.ndarray | None:
        """float32 (puts, D): what a teacher made of the texts of a file; None: nothing yet."""
        file = self._vectors(teacher_id, number)
        try:
            return load_file(file)["text"]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError) as error:
            raise ItemLogError(f"{file.name} cannot be read ({type(error).__name__})") from None

    def keep_vectors(self, teacher_id: str, number: int, vectors: np.ndarray) -> None:
        """Write what a teacher made of a file's texts; where another replica was quicker, nothing happens."""
        file = self._vectors(teacher_id, number)
        file.parent.mkdir(exist_ok=True)
        self._commit(file, save({"text": np.ascontiguousarray(vectors, np.float32)}))

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:08d}.json"

    def _vectors(self, teacher_id: str, number: int) -> Path:
        return self.path / f"vectors-{teacher_id}" / f"part-{number:08d}.safetensors"

    def _commit(self, file: Path, body: bytes) -> bool:
        """Whether the file was free; linking, unlike renaming, never replaces one."""
        if file.exists():
            return False
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as sink:
                sink.write(body)
                sink.flush()
                os.fsync(sink.fileno())
            try:
                os.link(temporary, file)
            except FileExistsError:
                return False
            durable.flush_folder(file.parent)
        except OSError as error:
            raise ItemLogError(f"the disk refuses ({error.strerror})") from None
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return True

    def _read(self, number: int) -> ItemPart | None:
        file = self._part(number)
        try:
            raw = json.loads(file.read_bytes())
            if raw.get("format") != FORMAT:
                raise ItemLogError(f"{file.name} was written by another version of rayrank")
            changes = tuple(ItemChange.model_validate(line) for line in raw["changes"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, AttributeError, ValidationError) as error:
            raise ItemLogError(f"{file.name} cannot be read ({type(error).__name__})") from None
        return ItemPart(number, changes, raw.get("mark"))


def open_items(spec: ItemsSpec, releases: str) -> ItemLog:
    """The log that ``spec`` names; without a name the folder beside the releases.

    Raises:
        ConfigError: it cannot be made or written.
    """
    return ItemLog(spec.path or releases_folder(releases) / FOLDER)
