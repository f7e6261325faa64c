"""The worker's part of an append: a bucket's new events behind the ones the dataset has, as one new shard.

A user's whole sequence is put together from the old shards of the bucket and the new events, cut as ever, and only
chunks with new events are written; in them only new events are targets. Knows shards; knows nothing about sources.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.features.state import FeatureState
from rayrank.schema import FAR, TEST, TRAIN, VALID
from rayrank.sources import storage
from rayrank.sources.manifest import Manifest, ShardInfo
from rayrank.sources.sequence import Sequences
from rayrank.sources.shard import Cutting, cut_chunks, encode_events, write_shard
from rayrank.sources.spec import BuildSpec, Task, shard_file


def extend_bucket(
    spec: BuildSpec, task: Task, made: Sequences, state: FeatureState, manifest: Manifest
) -> ShardInfo | None:
    """Write the bucket's new shard; None when it has no new event.

    Args:
        spec: of the append.
        task: which bucket of users, and the tag of the append.
        made: their new events, and the users with their index and encoded columns.
        state: of the dataset: fitted features do not change.
        manifest: of the dataset as it is.
    """
    if not made.events.num_rows:
        return None
    schema, bucket = manifest.dataset_schema, task.number
    new = encode_events(made.events, schema, state)
    users = made.users
    counts = pc.subtract(users["stop"], users["start"]).to_numpy()
    owner = np.repeat(np.arange(len(counts)), counts)
    old, old_owner = _old_events(spec.path, manifest, bucket, users["user"].to_numpy(), new.schema)
    continued = np.full(len(counts), -1, dtype=np.int64)
    np.maximum.at(continued, old_owner, old["request"].to_numpy())
    request = new["request"].to_numpy() + (continued + 1)[owner]
    new = new.set_column(new.column_names.index("request"), "request", pa.array(request.astype(np.int32)))
    events = pa.concat_tables([old, new])
    everyone, fresh = np.concatenate([old_owner, owner]), np.arange(len(events)) >= len(old)
    order = np.argsort(everyone, kind="stable")
    events, everyone, fresh = events.take(pa.array(order)).combine_chunks(), everyone[order], fresh[order]
    users = _whole_users(users, events, everyone, old_owner[old["part"].to_numpy() == TRAIN])
    how = Cutting(spec.history_window(schema), spec.chunk, generation=len(manifest.appended) + 1)
    path = shard_file(spec.path, bucket, task.tag)
    return write_shard(path, cut_chunks(events, users, how, fresh), spec.max_events, spec.max_sequences)


def _old_events(
    path: str, manifest: Manifest, bucket: int, users: np.ndarray, columns: pa.Schema
) -> tuple[pa.Table, np.ndarray]:
    """Events that the dataset has of these users, each once, in (user, request, row) order; and whose they are."""
    whole, names = pa.schema([("user", pa.int64()), *columns]), columns.names
    place = np.full(int(users.max()) + 1, -1, dtype=np.int64)
    place[users] = np.arange(len(users))
    found = [whole.empty_table()]  # the bucket may have had nobody so far
    for shard in (s for s in manifest.shards if s.bucket == bucket):
        for group in range(len(shard.row_groups)):
            table = storage.read_row_group(storage.join(path, shard.file), group, ["user", *names])
            user = table["user"].to_numpy()
            mine = (user < len(place)) & (place[user.clip(max=len(place) - 1)] >= 0)
            found.append(_flat(table.filter(pa.array(mine)), names).cast(whole))
    events = pa.concat_tables(found)
    owner = place[events["user"].to_numpy()]
    part, row, request = (events[n].to_numpy() for n in ("part", "row", "request"))
    order = np.lexsort((-part, row, request, owner))  # a target is a target in one chunk, elsewhere its part is 0
    owner, row = owner[order], row[order]
    first = np.append(True, (np.diff(owner) != 0) | (np.diff(row) != 0))[: len(order)]
    return events.take(pa.array(order[first])).drop_columns(["user"]), owner[first]


def _flat(table: pa.Table, names: list[str]) -> pa.Table:
    """Chunks as one row per event."""
    lists = {name: table[name].combine_chunks() for name in names}
    lengths = pc.list_value_length(lists["item"]).to_numpy(zero_copy_only=False)
    user = np.repeat(table["user"].to_numpy(), lengths.astype(np.int64))
    return pa.table({"user": user} | {name: column.flatten() for name, column in lists.items()})


def _whole_users(users: pa.Table, events: pa.Table, owner: np.ndarray, trained: np.ndarray) -> pa.Table:
    """The users over old and new events; a profile that an older shard asks is not asked again."""
    stops = np.cumsum(np.bincount(owner, minlength=users.num_rows))
    changes: dict[str, np.ndarray] = {"start": np.concatenate([[0], stops[:-1]]), "stop": stops}
    part, request = events["part"].to_numpy(), events["request"].to_numpy()
    for name, value in (("valid_from", VALID), ("test_from", TEST)):
        first = np.full(users.num_rows, FAR, dtype=np.int32)
        np.minimum.at(first, owner[part == value], request[part == value])
        changes[name] = first
    asked = np.zeros(users.num_rows, dtype=bool)
    asked[trained] = True
    for name in (n for n in users.column_names if n.startswith("column_profile_")):
        changes[name] = np.where(asked, -1, users[name].to_numpy()).astype(np.int16)
    for name, values in changes.items():
        users = users.set_column(users.column_names.index(name), name, pa.array(values))
    return users
