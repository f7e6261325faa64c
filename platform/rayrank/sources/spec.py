"""What a dataset build is made of: its spec, its tasks, and who runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from rayrank.config import Config, DataPath, digest
from rayrank.schema import DatasetSchema
from rayrank.sources import storage
from rayrank.sources.config import SourceConfig
from rayrank.sources.source import Part, Source
from rayrank.sources.split import Cuts

Result = dict[str, Any]


class BuildSpec(Config):
    """What decides the bytes of a dataset."""

    source: SourceConfig = Field(description="where the raw data comes from")
    path: DataPath = Field(description="folder of the dataset to write")
    window: int = Field(256, ge=1, description="visible history that a chunk repeats before its targets, in events")
    chunk: int = Field(256, ge=1, description="new events of a chunk; the first chunk holds window + chunk")
    rows_per_shard: int = Field(100_000, ge=1, description="about how many interactions go into one shard file")
    max_events: int = Field(8192, ge=1, description="padded events of a row group, the unit of a micro-batch")
    max_sequences: int = Field(64, ge=1, description="sequences of a row group")

    def history_window(self, schema: DatasetSchema) -> int:
        """``window``, or fewer where the schema's history rule says so."""
        return min(self.window, schema.history.last or self.window)


class Task(Config):
    """One unit of work for a worker: which pass, and on what."""

    stage: Literal["spill", "histogram", "popularity", "past", "sequence", "shard", "append"] = Field(
        description="which function runs"
    )
    number: int = Field(description="part (spill, histogram) or bucket (the others)")
    part: Part | None = Field(None, description="the part to read (spill)")
    buckets: int = Field(1, description="number of buckets (spill)")
    parts: tuple[int, ...] = Field((), description="numbers of the spilled parts (sequence)")
    cuts: Cuts | None = Field(None, description="of the time split (sequence)")
    total_rows: int = Field(0, description="interactions of the source (sequence)")
    last_time: int = Field(0, description="latest time of the source, unix seconds (sequence)")
    tag: str = Field("", description="what the names of the files carry that the run writes (past to append)")
    at_time: int | None = Field(None, description="count rows of this time only (histogram)")
    edges: tuple[int, ...] = Field((), description="bin edges (histogram)")


Run = Callable[[BuildSpec, Sequence[Task]], Iterable[Result]]
"""Runs tasks anywhere, in any order and at any parallelism; results come back in the tasks' order."""


def work_folder(path: str) -> str:
    """Where passes leave what the next pass reads; removed at the end."""
    return storage.join(path, "_work")


def items_file(path: str) -> str:
    """Arrow file of the item ids in index order."""
    return storage.join(work_folder(path), "items.arrow")


def weights_file(path: str) -> str:
    """Arrow file of the items' probabilities to be drawn as negatives, in index order."""
    return storage.join(work_folder(path), "weights.arrow")


def popularity_file(path: str, bucket: int) -> str:
    """Arrow file of a bucket's training events per item."""
    return storage.join(work_folder(path), f"popularity-{bucket:05d}.arrow")


def amounts_file(path: str, bucket: int) -> str:
    """Arrow file of what a bucket adds to the items' pasts."""
    return storage.join(work_folder(path), f"amounts-{bucket:05d}.arrow")


def shard_file(path: str, bucket: int, tag: str) -> str:
    """Parquet file of a bucket's users; one for the build and one for each append that has new events of them."""
    return storage.join(path, "shards", f"part-{bucket:05d}-{tag}.parquet")


def table_name(name: str, tag: str) -> str:
    """File of the items, the users or the items' pasts, in the dataset's folder."""
    return f"{name}-{tag}.parquet"


def identity_of(spec: BuildSpec, source: Source) -> str:
    """Changes when the spec or the input changes."""
    return f"{digest(spec)}-{source.inputs()[:16]}"
