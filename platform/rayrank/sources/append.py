"""New days behind a dataset: their rows become new shards, the old shards stay as they are.

Only where nothing of the old can change: a boundary split (a row's part depends on its time alone), rows later than all
the dataset has, the same schema, features as they were fitted. Item and user tables are written anew under other
names (new ids follow the old), the manifest last; a reader sees the dataset before or after, never between. The tables
of before stay until the next build: a run that reads the dataset meanwhile may still want them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.config import ConfigError
from rayrank.schema import BoundarySplit, DatasetSchema, MulticlassTask, derived_columns
from rayrank.sources import storage
from rayrank.sources.config import open_source
from rayrank.sources.dataset import Dataset
from rayrank.sources.entities import encode_entities, index_ids, item_columns, profile_columns, without_hidden
from rayrank.sources.fitting import deal_users, item_counts
from rayrank.sources.late import late_tasks
from rayrank.sources.leftovers import discard, free_tag
from rayrank.sources.manifest import Manifest, ShardInfo, data_fingerprint, write_manifest
from rayrank.sources.mind import MindConfig
from rayrank.sources.sequence import users_file
from rayrank.sources.source import Part
from rayrank.sources.spec import BuildSpec, Run, Task, identity_of, items_file, table_name, work_folder
from rayrank.sources.spill import Spilled, distinct_items, sum_parts
from rayrank.wording import counted

Progress = Callable[[str], None]
_SUMMED = ("events", "train", "valid", "test", "behaviours", "unmatched_behaviours")


def append(spec: BuildSpec, run: Run, progress: Progress) -> tuple[Manifest, bool]:
    """Add the source's interactions to the dataset in ``spec.path``; returns its manifest and whether it changed.

    Safe to run again: input that was appended before is left alone, what an interrupted run left is not seen.

    Raises:
        ConfigError: there is no dataset, or its old shards could not stay as they are.
    """
    dataset = Dataset.open(spec.path)
    source = open_source(spec.source)
    identity = identity_of(spec, source)
    if identity in (dataset.manifest.build, *dataset.manifest.appended):
        return dataset.manifest, False
    _refuse(dataset.manifest, source.schema, spec)
    tag = free_tag(spec, source, dataset.manifest)
    with storage.room_for(spec.path):
        try:
            grown = _append(dataset, spec, (run, progress), (identity, tag))
        finally:
            discard(spec.path, tag)  # after a success that is the work folder alone
    return grown, True


def _append(dataset: Dataset, spec: BuildSpec, how: tuple[Run, Progress], names: tuple[str, str]) -> Manifest:
    (run, progress), (identity, tag) = how, names
    source, manifest, work = open_source(spec.source), dataset.manifest, work_folder(spec.path)
    parts = [p.model_copy(update={"first_row": p.first_row + manifest.next_row}) for p in source.parts()]
    total = sum(p.rows for p in parts)
    storage.remove(work)
    storage.make_folder(work)
    progress(f"reading {total:,} new interactions in {counted(len(parts), 'part')}")
    spilled = _spilled(run, spec, parts, manifest)
    raw = source.items(), source.users()
    old_items, old_users = dataset.catalogue_table(), dataset.users_table()
    item_ids, lost_items = _more_ids(old_items["item_id"], raw[0], "item_id", distinct_items(work, spilled.parts))
    storage.write_arrow(items_file(spec.path), pa.table({"item_id": item_ids}))
    rows = manifest.next_row + total
    task = Task(stage="sequence", number=0, parts=tuple(spilled.parts), total_rows=rows, last_time=spilled.end)
    buckets = range(manifest.buckets)
    progress(f"sorting {len(buckets)} buckets of users")
    made = list(run(spec, [task.model_copy(update={"number": b}) for b in buckets]))
    active = [storage.read_arrow(users_file(work, b)) for b in buckets]
    seen = pa.concat_tables(active)["user_id"].combine_chunks()
    user_ids, lost_users = _more_ids(old_users["user_id"], raw[1], "user_id", seen)
    tables = _tables(spec, manifest, (raw[0], old_items, item_ids), (raw[1], old_users, user_ids), (active, tag))
    progress("writing new shards")
    results = run(spec, [Task(stage="append", number=b, tag=tag) for b in buckets])
    shards = (*manifest.shards, *(ShardInfo(**r["shard"]) for r in results if r["shard"] is not None))
    counts = manifest.counts.model_copy(
        update={name: getattr(manifest.counts, name) + sum(r[name] for r in made) for name in _SUMMED}
        | {"items": len(item_ids), "users": len(user_ids)}
        | {"orphan_items": manifest.counts.orphan_items + lost_items}
        | {"orphan_users": manifest.counts.orphan_users + lost_users}
        | {"active_users": manifest.counts.active_users + _first_time(manifest, dataset, seen)}
    )
    changes = {"shards": shards, "counts": counts, "tables": tables, "appended": (*manifest.appended, identity)}
    changes |= {"next_row": rows, "last_time": spilled.high}
    changes["data_fingerprint"] = data_fingerprint(source.schema, shards, tables)
    grown = manifest.model_copy(update=changes)
    write_manifest(spec.path, grown)
    return grown


def _spilled(run: Run, spec: BuildSpec, parts: Sequence[Part], manifest: Manifest) -> Spilled:
    tasks = [Task(stage="spill", number=i, part=p, buckets=manifest.buckets) for i, p in enumerate(parts)]
    spilled = sum_parts(list(run(spec, tasks)), sum(p.rows for p in parts))
    if spilled.low <= manifest.last_time:
        rule = f"appended rows must be later than all the dataset has (unix second {manifest.last_time})"
        raise ConfigError("source", spilled.low, rule, "prepare the whole anew, or leave these rows out")
    return spilled


def _refuse(manifest: Manifest, schema: DatasetSchema, spec: BuildSpec) -> None:
    """Refuse what would change old rows."""
    fix = "prepare the whole anew"
    if schema.fingerprint() != manifest.fingerprint:
        raise ConfigError("source", schema.name, "new rows must have the schema of the dataset", fix)
    if not isinstance(schema.split, BoundarySplit):
        rule = "under this split new rows change the parts of old ones"
        raise ConfigError("schema.split", schema.split.kind, rule, "use a boundary split, or prepare the whole anew")
    if manifest.left_out or not manifest.buckets:
        raise ConfigError(spec.path, None, "the dataset has lost shards, or an older version wrote it", fix)
    if spec.history_window(schema) != manifest.window:
        raise ConfigError("window", spec.window, f"must be that of the dataset ({manifest.window})", "set it so")
    told_again = isinstance(spec.source, MindConfig) and spec.source.clicked_before
    looking_back = [c for c in derived_columns(schema) if c not in ("@hour", "@weekday")]
    for what, names in (
        ("labels that arrive late", [t.name for t in late_tasks(schema)]),
        ("sampled negatives", ["sampled_negatives"] if schema.sampled_negatives else []),
        ("computed columns that look back", looking_back),
        ("the earlier clicks of a line (clicked_before)", ["mind"] if told_again else []),
    ):
        if names:
            raise ConfigError("append", names, f"{what} need the old events too", fix)


def _more_ids(old: pa.ChunkedArray, table: pa.Table | None, key: str, seen: pa.Array) -> tuple[pa.Array, int]:
    """The old ids, then those a table adds, then those only the new rows have; and how many those are."""
    known = old.combine_chunks()
    where = key.removesuffix("_id") + "s"
    ids, _ = index_ids(table, key, seen, where)
    fresh = ids.filter(pc.invert(pc.is_in(ids, value_set=known)))
    told = table[key].combine_chunks() if table is not None else fresh
    return pa.concat_arrays([known, fresh]), int(pc.sum(pc.invert(pc.is_in(fresh, value_set=told))).as_py() or 0)


def _tables(
    spec: BuildSpec,
    manifest: Manifest,
    items: tuple[pa.Table | None, pa.Table, pa.Array],
    users: tuple[pa.Table | None, pa.Table, pa.Array],
    written: tuple[list[pa.Table], str],
) -> dict[str, str]:
    """Write the grown tables and deal the users; file -> checksum. Each: raw table, old encoded table, all ids."""
    schema, state, (active, tag) = manifest.dataset_schema, manifest.features, written
    raw, old, ids = items
    rows, fresh = _fresh(raw, "item_id", ids.slice(old.num_rows))
    columns = item_columns(rows, fresh, schema) | encode_entities(rows, schema.item_features, state.items, len(fresh))
    summed = item_counts(spec.path, schema, len(ids), manifest.buckets)
    table = _grown(old.drop_columns(list(summed)), columns)
    for name, values in summed.items():
        before = np.concatenate([old[name].to_numpy(), np.zeros(len(fresh), values.dtype)])
        table = table.append_column(name, pa.array((before + values).astype(values.dtype)))
    found = {table_name("items", tag): table.select(old.column_names)}
    raw, old, ids = users
    rows, fresh = _fresh(raw, "user_id", ids.slice(old.num_rows))
    shown = without_hidden(rows, fresh, schema)
    columns = {"user_id": fresh} | encode_entities(shown, schema.user_features, state.users, len(fresh))
    columns |= profile_columns(rows, fresh, schema.of_kind(MulticlassTask))
    everyone = pa.concat_tables(active)
    index = pc.index_in(everyone["user_id"].combine_chunks(), value_set=ids).to_numpy()
    count = np.concatenate([old["train_count"].to_numpy(), np.zeros(len(fresh), np.int32)])
    count[index] += everyone["train_count"].to_numpy().astype(np.int32)
    table = _grown(old.drop_columns(["train_count"]), columns)
    found[table_name("users", tag)] = table.append_column("train_count", pa.array(count))
    deal_users(spec.path, active, index, table.drop_columns(["user_id"]))
    state_file = storage.join(work_folder(spec.path), "features.json")
    storage.write_bytes(state_file, state.model_dump_json().encode())
    for name, made in found.items():
        storage.write_table(storage.join(spec.path, name), made)
    return {name: storage.sha256(storage.join(spec.path, name)) for name in found}


def _fresh(table: pa.Table | None, key: str, ids: pa.Array) -> tuple[pa.Table | None, pa.Array]:
    """Rows of the raw table for new ids; ``ids`` has those of the table first, in its order."""
    return (None if table is None else table.filter(pc.is_in(table[key], value_set=ids))), ids


def _grown(old: pa.Table, columns: dict[str, pa.Array | np.ndarray]) -> pa.Table:
    more = pa.table({name: columns[name] for name in old.column_names})
    return pa.concat_tables([old, more.cast(old.schema)]).combine_chunks()


def _first_time(manifest: Manifest, dataset: Dataset, seen: pa.Array) -> int:
    """Users who have their first event now."""
    known = [dataset.read_group(s, g, ["user"])["user"].to_numpy() for s, g in dataset.groups()]
    ids = dataset.users_table()["user_id"].combine_chunks()
    active = np.zeros(manifest.counts.users + 1, dtype=bool)
    active[np.concatenate(known)] = True
    before = ids.filter(pa.array(active[1:]))
    return int(pc.sum(pc.invert(pc.is_in(seen, value_set=before))).as_py() or 0)
