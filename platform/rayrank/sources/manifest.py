"""The manifest of a dataset: what is in it, written last, so that half a dataset never looks like one."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field

from rayrank.config import Config, ConfigError, parse
from rayrank.features.state import FeatureState
from rayrank.schema import DatasetSchema
from rayrank.sources import storage

FORMAT = 1
FILE = "manifest.json"


class GroupInfo(Config):
    """One row group of a shard: sequences of similar length."""

    sequences: int = Field(description="rows")
    events: int = Field(description="events of all sequences, overlap included")
    max_length: int = Field(description="events of the longest sequence")
    train: int = Field(description="training targets")
    valid: int = Field(description="validation targets")
    test: int = Field(description="test targets")


class ShardInfo(Config):
    """One shard file."""

    file: str = Field(description="path below the dataset folder")
    sha256: str = Field(description="checksum of the file")
    bytes: int = Field(0, description="size of the file; 0: not recorded")
    bucket: int = Field(0, description="which users: those whose hash falls into this bucket")
    sequences: int = Field(description="rows of the file")
    row_groups: tuple[GroupInfo, ...] = Field(description="in file order")


class Counts(Config):
    """Sizes of the dataset."""

    events: int = Field(description="interactions, sampled negatives included")
    users: int = Field(description="rows of the users table")
    items: int = Field(description="rows of the items table")
    active_users: int = Field(description="users with an event")
    train: int = Field(description="training targets")
    valid: int = Field(description="validation targets")
    test: int = Field(description="test targets")
    negatives: int = Field(0, description="sampled negatives among the events")
    negatives_avoid: Literal["known", "request"] | None = Field(
        None, description="items that a user's sampled negatives are not: the schema's rule, or what auto found"
    )
    behaviours: int = Field(0, description="rows of a behaviours table of its own")
    unmatched_behaviours: int = Field(0, description="behaviours that found no impression: they are not used")
    first_unmatched: int | None = Field(None, description="row of the first of them in the first build")
    orphan_items: int = Field(
        0, description="items of interactions that the items table lacks (added without attributes)"
    )
    orphan_users: int = Field(
        0, description="users of interactions that the users table lacks (added without attributes)"
    )


class LeftOut(Config):
    """A broken shard that was put aside."""

    file: str = Field(description="path below the dataset folder that it had")
    sha256: str = Field(description="checksum it should have")
    reason: str = Field(description="what is wrong with it")
    sequences: int = Field(description="rows lost")
    train: int = Field(description="training targets lost")
    valid: int = Field(description="validation targets lost")
    test: int = Field(description="test targets lost")


class Manifest(Config):
    """Everything a reader needs to know before it opens a shard."""

    format: int = Field(FORMAT, description="version of this layout")
    dataset_schema: DatasetSchema = Field(description="what the columns mean", alias="schema")
    fingerprint: str = Field(description="of the schema")
    data_fingerprint: str = Field(description="sha256 over schema fingerprint and all checksums")
    features: FeatureState = Field(description="fitted feature state")
    counts: Counts = Field(description="sizes")
    shards: tuple[ShardInfo, ...] = Field(description="shard files in order")
    tables: dict[str, str] = Field(description="items and users file -> sha256")
    left_out: tuple[LeftOut, ...] = Field((), description="broken shards that were put aside; prepare makes them anew")
    window: int = Field(description="visible history that a chunk repeats from before its targets, in events")
    oracle: dict[str, float] = Field({}, description="synthetic data: AUC of the true probabilities on test, by task")
    oracle_biases: dict[str, float] = Field(
        {}, description="synthetic data: AUC of the true user and item biases alone"
    )
    source: dict[str, Any] = Field(description="resolved source config")
    build: str = Field(description="digest of the build config and of the input files")
    buckets: int = Field(0, description="user-hash buckets: shards of one bucket hold the same users")
    next_row: int = Field(0, description="row number of the first appended interaction")
    last_time: int = Field(0, description="latest time of an interaction, unix seconds: appended ones are later")
    appended: tuple[str, ...] = Field((), description="like build, of each append, in order")

    def table_file(self, name: str) -> str:
        """The file that holds ``items``, ``users`` or ``past`` now."""
        return next(file for file in self.tables if file.split(".")[0].split("-")[0] == name)


def data_fingerprint(schema: DatasetSchema, shards: tuple[ShardInfo, ...], tables: dict[str, str]) -> str:
    """Equal for equal data: sha256 over the schema fingerprint and the checksums of all files."""
    parts = [schema.fingerprint(), *(s.sha256 for s in shards), *(tables[name] for name in sorted(tables))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_manifest(path: str, manifest: Manifest) -> None:
    """Commit the dataset in folder ``path``."""
    storage.write_json(storage.join(path, FILE), manifest.model_dump(mode="json", by_alias=True))


def read_manifest(path: str) -> Manifest:
    """The manifest of the dataset in folder ``path``.

    Raises:
        ConfigError: there is none, it is no JSON, another format, or its fingerprints do not fit its content.
    """
    file = storage.join(path, FILE)
    if not storage.exists(file):
        raise ConfigError(path, None, "holds no dataset (manifest.json is missing)", "run prepare, or correct the path")
    try:
        raw = json.loads(storage.read_bytes(file))
    except ValueError as error:
        raise ConfigError(file, None, f"manifest must be JSON ({error})", "run prepare again") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise ConfigError(file, found, f"this version reads dataset format {FORMAT}", "run prepare again")
    manifest = parse(Manifest, raw, origin=file)
    if not manifest.shards:
        raise ConfigError(file, 0, "a dataset has at least one shard", "run prepare again")
    schema = manifest.dataset_schema
    if schema.fingerprint() != manifest.fingerprint:
        raise ConfigError(file, manifest.fingerprint, "fingerprint must be that of the schema", "run prepare again")
    if data_fingerprint(schema, manifest.shards, manifest.tables) != manifest.data_fingerprint:
        raise ConfigError(
            file, manifest.data_fingerprint, "data fingerprint must be that of the files", "run prepare again"
        )
    return manifest
