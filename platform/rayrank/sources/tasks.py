"""The tasks of a dataset build: what a worker runs. They meet in the dataset's work folder only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrank.features.state import FeatureState
from rayrank.schema import TRAIN, item_columns_needed
from rayrank.sources import storage
from rayrank.sources.config import open_source
from rayrank.sources.derive import PAST, item_amounts, read_past
from rayrank.sources.extend import extend_bucket
from rayrank.sources.join import Joined
from rayrank.sources.late import Known
from rayrank.sources.manifest import read_manifest
from rayrank.sources.negatives import Drawing, repeats
from rayrank.sources.sequence import (
    Sequences,
    build_sequences,
    logged_events,
    save_sequences,
    sequences_file,
    users_file,
)
from rayrank.sources.shard import Cutting, chunk_table, write_shard
from rayrank.sources.source import BEHAVIOUR, Source
from rayrank.sources.spec import (
    BuildSpec,
    Result,
    Task,
    amounts_file,
    items_file,
    popularity_file,
    shard_file,
    table_name,
    weights_file,
    work_folder,
)
from rayrank.sources.spill import gather, spill, time_histogram
from rayrank.sources.storage import read_arrow
from rayrank.sources.tables import Tables


def perform(spec: BuildSpec, task: Task) -> Result:
    """Run one task; what a worker calls. Results are small and JSON-able, data goes through files.

    Raises:
        ConfigError: malformed input, or no room for what is written.
    """
    with storage.room_for(spec.path):
        return _perform(spec, task)


def _perform(spec: BuildSpec, task: Task) -> Result:
    work = work_folder(spec.path)
    match task.stage:
        case "spill":
            assert task.part is not None
            return spill(open_source(spec.source), task.part, task.number, work, task.buckets)
        case "histogram":
            counts = time_histogram(work, task.number, task.at_time, np.array(task.edges))
            return {"counts": counts.tolist()}
        case "popularity":
            return _popularity_task(spec, task, work)
        case "past":
            return _past_task(spec, task, work)
        case "sequence":
            return _sequence_task(spec, task, work)
        case "shard":
            return _shard_task(spec, task, work)
        case "append":
            return _append_task(spec, task, work)


def _gathered(source: Source, task: Task, work: str) -> Joined:
    """All rows of a bucket; behaviours from a table of their own are joined to their impressions."""
    rows = gather(work, list(task.parts), task.number)
    return source.joined(rows) if isinstance(source, Tables) and BEHAVIOUR in rows.column_names else Joined(rows, 0, 0)


def _sequence_task(spec: BuildSpec, task: Task, work: str) -> Result:
    source = open_source(spec.source)
    schema = source.schema
    items = read_arrow(items_file(spec.path))["item_id"].combine_chunks()
    joined = _gathered(source, task, work)
    drawing = Drawing.of(read_arrow(weights_file(spec.path))) if schema.sampled_negatives else None
    past_file = storage.join(spec.path, table_name(PAST, task.tag))
    past = read_past(past_file, schema) if item_columns_needed(schema) else None
    made = build_sequences(joined.rows, schema, items, _known(task), drawing, past)
    found = save_sequences(work, task.number, made, schema)
    return found | {
        "behaviours": joined.behaviours,
        "unmatched_behaviours": joined.unmatched,
        "first_unmatched": joined.first_unmatched,
    }


def _popularity_task(spec: BuildSpec, task: Task, work: str) -> Result:
    """Training events of each item in one bucket, what popularity sampling draws by, and how many are repeats."""
    source = open_source(spec.source)
    schema = source.schema
    items = read_arrow(items_file(spec.path))["item_id"].combine_chunks()
    _, starts, events = logged_events(_gathered(source, task, work).rows, schema, items, _known(task))
    index, counts = np.unique(events["item"].to_numpy()[events["part"].to_numpy() == TRAIN], return_counts=True)
    storage.write_arrow(popularity_file(spec.path, task.number), pa.table({"item": index, "count": counts}))
    return {"events": events.num_rows, "repeats": repeats(events, starts)}


def _past_task(spec: BuildSpec, task: Task, work: str) -> Result:
    """What one bucket adds to the items' pasts."""
    source = open_source(spec.source)
    schema = source.schema
    items = read_arrow(items_file(spec.path))["item_id"].combine_chunks()
    _, _, events = logged_events(_gathered(source, task, work).rows, schema, items, _known(task))
    storage.write_arrow(amounts_file(spec.path, task.number), item_amounts(events, schema))
    return {}


def _known(task: Task) -> Known:
    return Known(task.cuts, task.last_time, task.total_rows)


def _shard_task(spec: BuildSpec, task: Task, work: str) -> Result:
    schema = open_source(spec.source).schema
    state = FeatureState.model_validate_json(storage.read_bytes(storage.join(work, "features.json")))
    made = Sequences(read_arrow(sequences_file(work, task.number)), read_arrow(users_file(work, task.number)))
    table = chunk_table(made, schema, state, Cutting(spec.history_window(schema), spec.chunk))
    storage.make_folder(storage.join(spec.path, "shards"))
    path = shard_file(spec.path, task.number, task.tag)
    return {"shard": write_shard(path, table, spec.max_events, spec.max_sequences).model_dump(mode="json")}


def _append_task(spec: BuildSpec, task: Task, work: str) -> Result:
    state = FeatureState.model_validate_json(storage.read_bytes(storage.join(work, "features.json")))
    made = Sequences(read_arrow(sequences_file(work, task.number)), read_arrow(users_file(work, task.number)))
    shard = extend_bucket(spec, task, made, state, read_manifest(spec.path))
    return {"shard": shard.model_dump(mode="json") if shard is not None else None}
