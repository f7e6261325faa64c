"""From a source to a dataset, as three passes of independent tasks with small sums between them.

1. ``spill``: every part of the interactions is dealt into user-hash buckets (:mod:`rayrank.sources.spill`).
2. ``sequence``: every bucket is sorted, split and counted (:mod:`rayrank.sources.sequence`).
3. ``shard``: every bucket is encoded and written as one Parquet file (:mod:`rayrank.sources.shard`).

The tasks are run by a function given from outside: a plain loop (:func:`run_here`) or Ray Data
(:mod:`rayrank.on_ray.prepare`). Bytes depend on the input and the :class:`BuildSpec` only, never on who ran what.

A build writes beside the dataset that is there, under names of its own (:mod:`rayrank.sources.leftovers`); the manifest
is its last write, and only then the files of before go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from rayrank.config import ConfigError
from rayrank.features.encode import is_multi
from rayrank.features.state import FeatureState
from rayrank.features.text import template_fields
from rayrank.schema import DatasetSchema, MulticlassTask, Split, TimeSplit, UniformNegatives, item_columns_needed
from rayrank.sources import storage
from rayrank.sources.config import open_source
from rayrank.sources.derive import PAST, sum_past
from rayrank.sources.entities import (
    check_columns,
    index_ids,
)
from rayrank.sources.fitting import write_entities
from rayrank.sources.leftovers import free_tag, held_manifest, refuse_foreign, sweep
from rayrank.sources.manifest import Counts, Manifest, ShardInfo, data_fingerprint, write_manifest
from rayrank.sources.negatives import Avoid, Drawing, avoided_items, draw_weights
from rayrank.sources.oracle import BIASES, TRUTH, OracleSums
from rayrank.sources.relations import boundaries
from rayrank.sources.row_checks import refuse
from rayrank.sources.sequence import users_file
from rayrank.sources.source import EVERY_ROW, Part, Source
from rayrank.sources.spec import (
    BuildSpec,
    Result,
    Run,
    Task,
    amounts_file,
    identity_of,
    items_file,
    popularity_file,
    table_name,
    weights_file,
    work_folder,
)
from rayrank.sources.spill import Spilled, distinct_items, sum_parts
from rayrank.sources.split import Cuts, find_cuts
from rayrank.sources.tasks import perform
from rayrank.wording import counted

Progress = Callable[[str], None]
_SUMMED = ("events", "negatives", "train", "valid", "test", "behaviours", "unmatched_behaviours")


def run_here(spec: BuildSpec, tasks: Sequence[Task]) -> Iterable[Result]:
    """The plain loop: for tests and small data."""
    return [perform(spec, task) for task in tasks]


def build(spec: BuildSpec, run: Run, progress: Progress) -> tuple[Manifest, bool]:
    """Write the dataset; returns its manifest and whether anything had to be done.

    Safe to run again: an equal spec over unchanged input finds the dataset complete; what an interrupted run left
    is removed first. An older dataset stays as it is until the new one is whole.

    Raises:
        ConfigError: the source's input is missing or malformed, the folder holds something else, or the disk is full.
    """
    done = complete(spec)
    if done is not None:
        return done, False
    source = open_source(spec.source)
    with storage.room_for(spec.path):
        raw = source.items(), source.users(), source.parts()
        _check(source.schema, *raw)
        refuse_foreign(spec.path)
        try:
            return _build(spec, source, raw, (run, progress)), True
        except (OSError, ConfigError):
            with suppress(OSError):  # the next run removes it as well
                sweep(spec.path)
            raise


def _build(
    spec: BuildSpec,
    source: Source,
    raw: tuple[pa.Table | None, pa.Table | None, Sequence[Part]],
    how: tuple[Run, Progress],
) -> Manifest:
    (items, users, parts), (run, progress) = raw, how
    sweep(spec.path)
    identity, tag = identity_of(spec, source), free_tag(spec, source, held_manifest(spec.path))
    storage.make_folder(work_folder(spec.path))
    storage.write_bytes(_maker_file(spec.path), identity.encode())
    spilled, cuts = _spill_all(spec, source.schema.split, parts, run, progress)
    seen = distinct_items(work_folder(spec.path), spilled.parts)
    item_ids, orphan_items = index_ids(items, "item_id", seen, "items")
    storage.write_arrow(items_file(spec.path), pa.table({"item_id": item_ids}))
    passes = _Passes(spec, tag, parts, spilled, cuts)
    avoid = _write_drawing(passes, source.schema, len(item_ids), run) if source.schema.sampled_negatives else None
    if item_columns_needed(source.schema):
        _write_past(passes, source.schema, run)
    progress(f"sorting {passes.buckets} buckets of users")
    made, oracle = [], OracleSums()
    for found in run(spec, passes.tasks("sequence")):
        oracle.add(found.pop("oracle"))
        made.append(found)
    active = [storage.read_arrow(users_file(work_folder(spec.path), b)) for b in range(len(made))]
    seen = pa.concat_tables(active)["user_id"].combine_chunks()
    user_ids, orphan_users = index_ids(users, "user_id", seen, "users")
    state = write_entities(spec, source.schema, (items, item_ids), (users, user_ids), (active, made), tag)
    progress(f"writing {counted(len(made), 'shard')}")
    results = run(spec, [Task(stage="shard", number=b, tag=tag) for b in range(len(made))])
    counts = Counts(
        **{name: sum(r[name] for r in made) for name in _SUMMED},
        first_unmatched=_first_unmatched(made, parts),
        users=len(user_ids),
        items=len(item_ids),
        active_users=len(seen),
        orphan_items=orphan_items,
        orphan_users=orphan_users,
        negatives_avoid=avoid,
    )
    shards = tuple(ShardInfo(**r["shard"]) for r in results)
    grown = {"buckets": passes.buckets, "next_row": sum(p.rows for p in parts), "last_time": spilled.high}
    return _commit(spec, source.schema, state, counts, (shards, oracle, (identity, tag), grown))


def _first_unmatched(made: Sequence[Result], parts: Sequence[Part]) -> int | None:
    """Rows are numbered through all tables, and the behaviours follow the impressions."""
    rows = [r["first_unmatched"] for r in made if r["first_unmatched"] is not None]
    return min(rows) - sum(p.rows for p in parts if p.side == "impressions") if rows else None


def complete(spec: BuildSpec) -> Manifest | None:
    """The manifest of a dataset that an equal spec wrote from unchanged input; None: there is something to do."""
    path = spec.path
    manifest = held_manifest(path)
    if manifest is None:
        return None
    files = [s.file for s in manifest.shards] + list(manifest.tables)
    whole = not manifest.left_out and all(storage.exists(storage.join(path, f)) for f in files)
    if not whole or manifest.build != identity_of(spec, open_source(spec.source)):
        return None
    maker = _maker_file(path)
    if storage.exists(maker) and storage.read_bytes(maker) == manifest.build.encode():
        sweep(path)  # the run that wrote it ended before its last step; an append that runs now has no such file
    return manifest


def _commit(
    spec: BuildSpec,
    schema: DatasetSchema,
    state: FeatureState,
    counts: Counts,
    written: tuple[tuple[ShardInfo, ...], OracleSums, tuple[str, str], dict[str, int]],
) -> Manifest:
    """Write the manifest, then remove what it does not name."""
    shards, oracle, (identity, tag), place = written
    names = [table_name(n, tag) for n in ("items", "users", *([PAST] if item_columns_needed(schema) else []))]
    tables = {name: storage.sha256(storage.join(spec.path, name)) for name in names}
    manifest = Manifest(
        schema=schema,
        fingerprint=schema.fingerprint(),
        data_fingerprint=data_fingerprint(schema, shards, tables),
        features=state,
        counts=counts,
        shards=shards,
        tables=tables,
        window=spec.history_window(schema),
        oracle=oracle.auc(TRUTH),
        oracle_biases=oracle.auc(BIASES),
        source=spec.source.model_dump(mode="json"),
        build=identity,
        **place,
    )
    write_manifest(spec.path, manifest)
    sweep(spec.path)
    return manifest


def _maker_file(path: str) -> str:
    """Tells whose work folder it is: the identity of the build."""
    return storage.join(work_folder(path), "build")


@dataclass(frozen=True)
class _Passes:
    """What the tasks over buckets are told."""

    spec: BuildSpec
    tag: str
    parts: Sequence[Part]
    spilled: Spilled
    cuts: Cuts | None

    @property
    def buckets(self) -> int:
        return _buckets(self.spec, sum(p.rows for p in self.parts))

    def tasks(self, stage: Literal["popularity", "past", "sequence"]) -> list[Task]:
        total = sum(p.rows for p in self.parts)
        task = Task(stage=stage, number=0, cuts=self.cuts, total_rows=total, last_time=self.spilled.end)
        task = task.model_copy(update={"parts": tuple(self.spilled.parts), "tag": self.tag})
        return [task.model_copy(update={"number": b}) for b in range(self.buckets)]


def _write_drawing(passes: _Passes, schema: DatasetSchema, items: int, run: Run) -> Avoid:
    """How negatives are drawn; a pass of its own over the buckets tells popularity and repeats."""
    counts, path, found = np.zeros(items), passes.spec.path, []
    rule = schema.negatives_avoid
    if rule != "auto" and isinstance(schema.negative_sampling, UniformNegatives):  # nothing is to be found out
        storage.write_arrow(weights_file(path), Drawing(draw_weights(schema, counts), rule).table())
        return rule
    for number, result in enumerate(run(passes.spec, passes.tasks("popularity"))):
        table = storage.read_arrow(popularity_file(path, number))
        counts[table["item"].to_numpy() - 1] += table["count"].to_numpy()
        found.append(result)
    avoid = avoided_items(schema, sum(r["repeats"] for r in found), sum(r["events"] for r in found))
    storage.write_arrow(weights_file(path), Drawing(draw_weights(schema, counts), avoid).table())
    return avoid


def _write_past(passes: _Passes, schema: DatasetSchema, run: Run) -> None:
    """What was known of each item by period; a pass of its own over the buckets."""
    path = passes.spec.path
    tables = [storage.read_arrow(amounts_file(path, b)) for b, _ in enumerate(run(passes.spec, passes.tasks("past")))]
    storage.write_table(storage.join(path, table_name(PAST, passes.tag)), sum_past(tables, schema))


def _spill_all(
    spec: BuildSpec, split: Split, parts: Sequence[Part], run: Run, progress: Progress
) -> tuple[Spilled, Cuts | None]:
    """Deal all parts into buckets; returns what they hold, and where the time split cuts."""
    total = sum(p.rows for p in parts)
    progress(f"reading {total:,} interactions in {counted(len(parts), 'part')}")
    buckets = _buckets(spec, total)
    tasks = [Task(stage="spill", number=i, part=p, buckets=buckets) for i, p in enumerate(parts)]
    spilled = sum_parts(list(run(spec, tasks)), total)
    low, high = spilled.low, spilled.high
    refuse(boundaries(split, low, high))
    if not isinstance(split, TimeSplit):
        return spilled, None

    def histogram(at_time: int | None, edges: np.ndarray) -> np.ndarray:
        bounds = tuple(edges.tolist())
        asked = [Task(stage="histogram", number=n, at_time=at_time, edges=bounds) for n in spilled.parts]
        return np.asarray(np.sum([r["counts"] for r in run(spec, asked)], axis=0))

    return spilled, find_cuts(split, total - spilled.before, low, high, histogram, total - 1)


def _check(schema: DatasetSchema, items: pa.Table | None, users: pa.Table | None, parts: Sequence[Part]) -> None:
    """Refuse what no build can use, before anything is written."""
    if not sum(p.rows for p in parts):
        raise ConfigError("source", 0, "interactions must not be empty", "check the interactions files")
    if not schema.sampled_negatives and any(t.column == EVERY_ROW for t in schema.event_tasks):
        rule = f"with column '{EVERY_ROW}' every row is a positive, so there is no negative to learn from"
        raise ConfigError("schema.sampled_negatives", 0, rule, "set sampled_negatives: 4, or name a label column")
    text = [*(template_fields(schema.text) if schema.text else []), *([schema.title] if schema.title else [])]
    check_columns(items, [*(f.column for f in schema.item_features), *text], "items")
    profiles = [t.column for t in schema.of_kind(MulticlassTask)]
    check_columns(users, [*(f.column for f in schema.user_features), *profiles], "users")
    for feature in schema.context_features:
        if is_multi(feature):
            rule = "a context feature holds one value per interaction"
            raise ConfigError(f"schema.context_features.{feature.name}", feature.column, rule, "drop its separator")


def _buckets(spec: BuildSpec, rows: int) -> int:
    return max(1, -(-rows // spec.rows_per_shard))
