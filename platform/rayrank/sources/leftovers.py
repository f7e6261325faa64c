"""Whose files lie in a dataset's folder: what the next build may call its own, and what no manifest names any more.

No build or append writes a file that the manifest names: the names carry a tag of the run. So the manifest alone says
which dataset is there, whatever happens to a run, and what it does not name can go.
"""

from __future__ import annotations

import hashlib
import itertools
import re

from rayrank.config import ConfigError
from rayrank.sources import storage
from rayrank.sources.manifest import FILE, Manifest, read_manifest
from rayrank.sources.source import Source
from rayrank.sources.spec import BuildSpec, identity_of, work_folder

SHARDS = "shards"
_PLAIN = ("items.parquet", "users.parquet", "past.parquet")
"""Names that tables had before they carried a tag."""
_TABLE = re.compile(r"(items|users|past)(-[0-9a-f]{4,8})?\.parquet")
_SHARD = re.compile(r"part-\d{5}(-[0-9a-f]{4,8})?\.parquet")


def held_manifest(path: str) -> Manifest | None:
    """The manifest in the folder; None: there is none that this version can read."""
    try:
        return read_manifest(path)
    except ConfigError:
        return None


def free_tag(spec: BuildSpec, source: Source, held: Manifest | None) -> str:
    """What the names of a run's files carry: equal for equal spec and input, wherever the folder is.

    A run that makes anew what is there (shards were put aside) gets the next tag: it may not touch files that the
    manifest names.
    """
    about = identity_of(spec.model_copy(update={"path": ""}), source)
    tags = (hashlib.sha256(f"{about} {n}".encode()).hexdigest()[:8] for n in itertools.count())
    return next(tag for tag in tags if not any(tag in name for name in _named(held)))


def refuse_foreign(path: str) -> None:
    """Refuse a folder that holds files under our names, but nothing that says that we wrote them.

    Raises:
        ConfigError: it does.
    """
    if storage.exists(storage.join(path, FILE)) or storage.exists(work_folder(path)):
        return
    taken = [name for name in (*_PLAIN, SHARDS) if storage.exists(storage.join(path, name))]
    if taken:
        raise ConfigError(path, taken[0], "folder holds files that no dataset build left", "choose an empty folder")


def sweep(path: str) -> None:
    """Delete what the manifest does not name of what builds and appends wrote, then the work folder.

    The work folder goes last: without a manifest it is what says whose the other files are.
    """
    held = held_manifest(path)
    if held is not None or not storage.exists(storage.join(path, FILE)):  # else nobody knows what it names
        for name in _left(path, held):
            storage.remove(storage.join(path, name))
        shards = storage.join(path, SHARDS)
        if held is None and not storage.names_in(shards):
            storage.remove(shards)
    storage.remove(work_folder(path))


def discard(path: str, tag: str) -> None:
    """Delete what the run of this tag wrote, unless the manifest names it, and nothing of other runs."""
    held = held_manifest(path)
    if held is not None:
        for name in _left(path, held):
            if tag in name:
                storage.remove(storage.join(path, name))
    storage.remove(work_folder(path))


def _left(path: str, held: Manifest | None) -> list[str]:
    tables = [name for name in storage.names_in(path) if _TABLE.fullmatch(name)]
    names = storage.names_in(storage.join(path, SHARDS))
    shards = [f"{SHARDS}/{name}" for name in names if _SHARD.fullmatch(name)]
    return [name for name in tables + shards if name not in _named(held)]


def _named(held: Manifest | None) -> set[str]:
    return set() if held is None else {s.file for s in held.shards} | set(held.tables)
