"""Between sorting and sharding: fit the features on training rows and write the item and user tables.

Runs once, on the driver: it sums what the buckets counted. Knows counts and raw tables; never sees an interaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.features.state import FeatureState, Moments, TableState, fit_table
from rayrank.schema import CategoricalFeature, DatasetSchema, MulticlassTask
from rayrank.sources import storage
from rayrank.sources.entities import encode_entities, fit_entities, item_columns, profile_columns, without_hidden
from rayrank.sources.sequence import add_context, statistics_file, users_file
from rayrank.sources.spec import BuildSpec, Result, table_name, work_folder

Entities = tuple[pa.Table | None, pa.Array]
"""A source's raw table (None: it has none) and all ids in index order."""


def write_entities(
    spec: BuildSpec,
    schema: DatasetSchema,
    items: Entities,
    users: Entities,
    counted: tuple[Sequence[pa.Table], Sequence[Result]],
    tag: str,
) -> FeatureState:
    """Write the items and the users table, and for the shards the state and each bucket's encoded users.

    Args:
        spec: of the build.
        schema: of the dataset.
        items: the item table and ids.
        users: the user table and ids.
        counted: every bucket's users and what its task returned.
        tag: of the build.
    """
    buckets, made = counted
    shown = without_hidden(users[0], users[1], schema)
    counts = item_counts(spec.path, schema, len(items[1]), len(made))
    index = pc.index_in(pa.concat_tables(buckets)["user_id"].combine_chunks(), value_set=users[1]).to_numpy()
    user_counts = np.zeros(len(users[1]), dtype=np.int32)
    user_counts[index] = pa.concat_tables(buckets)["train_count"].to_numpy()
    state = FeatureState(
        items=fit_entities(items[0], schema.item_features, counts["train_count"] > 0),
        users=fit_entities(shown, schema.user_features, user_counts > 0),
        context=_fit_context(schema, made),
    )
    encoded = encode_entities(items[0], schema.item_features, state.items, len(items[1]))
    table = pa.table(item_columns(items[0], items[1], schema) | encoded | counts)
    storage.write_table(storage.join(spec.path, table_name("items", tag)), table)
    columns = encode_entities(shown, schema.user_features, state.users, len(users[1]))
    columns |= profile_columns(users[0], users[1], schema.of_kind(MulticlassTask))
    table = pa.table({"user_id": users[1], **columns, "train_count": user_counts})
    storage.write_table(storage.join(spec.path, table_name("users", tag)), table)
    storage.write_bytes(storage.join(work_folder(spec.path), "features.json"), state.model_dump_json().encode())
    deal_users(spec.path, buckets, index, pa.table(columns))
    return state


def deal_users(path: str, buckets: Sequence[pa.Table], index: np.ndarray, columns: pa.Table) -> None:
    """Give each bucket the index and the encoded columns of its own users, so that no shard reads all of them."""
    start = 0
    for bucket, users in enumerate(buckets):
        mine = index[start : start + users.num_rows]
        start += users.num_rows
        dealt = users.drop_columns(["train_count"]).append_column("user", pa.array((mine + 1).astype(np.int32)))
        for name in columns.column_names:
            dealt = dealt.append_column(f"column_{name}", columns[name].take(pa.array(mine)))
        storage.write_arrow(users_file(work_folder(path), bucket), dealt)


def _fit_context(schema: DatasetSchema, made: Sequence[Result]) -> TableState:
    context: Result = {}
    for result in made:
        context = add_context(context, result["context"])
    features = schema.context_features
    categories = {f.name: context[f.name] for f in features if isinstance(f, CategoricalFeature)}
    moments = {f.name: Moments(**context[f.name]) for f in features if not isinstance(f, CategoricalFeature)}
    return fit_table(features, categories, moments)


def item_counts(path: str, schema: DatasetSchema, items: int, buckets: int) -> dict[str, np.ndarray]:
    """Training counts and label sums of every item, summed over the buckets' statistics."""
    names = ["train_count"]
    names += [f"train_{what}_{task.name}" for task in schema.event_tasks for what in ("count", "sum")]
    totals = {name: np.zeros(items + 1) for name in names}
    for b in range(buckets):
        table = storage.read_arrow(statistics_file(work_folder(path), b))
        for name in names:
            totals[name][table["item"].to_numpy()] += table[name].to_numpy()
    return {n: t[1:].astype(np.float32 if n.startswith("train_sum") else np.int32) for n, t in totals.items()}
