"""Teacher labels: a pool of teacher actors reads row groups through Ray Data and scores every target once.

Labels come back in order and are written as Parquet files that mirror the shards, row group by row group; a shard's
file appears when it is whole, the manifest last. So a second run finds everything, and an interrupted one goes on at
the first missing shard. Knows bundles and shards; knows nothing about students.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rayrank.batch import SequenceBatch
from rayrank.config import ConfigError, parse
from rayrank.memory import release, releasing
from rayrank.on_ray.label_spec import LabelKey, LabelTask
from rayrank.on_ray.patience import SILENCE_S, Beat, Limit, ReadAhead
from rayrank.on_ray.stream import blocks_of, chunked, mark, places_of, split_by_place
from rayrank.on_ray.teachers import Panel, Views
from rayrank.schema import TRAIN
from rayrank.sources import storage
from rayrank.sources.groups import Group, Place, Shards, label_file
from rayrank.sources.manifest import Manifest
from rayrank.wording import counted

FILE = "manifest.json"
KEY = "key.json"


def read_label_key(folder: str) -> LabelKey:
    """What the labels in a folder are of.

    Raises:
        ConfigError: there are none, or they are not complete.
    """
    place = storage.join(folder, FILE)
    if not storage.exists(place):
        raise ConfigError(
            folder, None, "holds no teacher labels (manifest.json is missing)", "run label, or correct it"
        )
    raw = json.loads(storage.read_bytes(place))
    return parse(LabelKey, {name: raw[name] for name in LabelKey.model_fields if name in raw}, place)


def labels_exist(folder: str, key: LabelKey) -> bool:
    """Whether all labels of ``key`` are there already."""
    place = storage.join(folder, FILE)
    if not storage.exists(place) or read_label_key(folder) != key:
        return False
    return all(storage.exists(storage.join(folder, name)) for name in json.loads(storage.read_bytes(place))["files"])


@dataclass(frozen=True)
class Labelled:
    """What was made."""

    path: str
    shards: int
    reused: int
    targets: int


def label_shards(task: LabelTask, key: LabelKey, progress: Callable[[str], None]) -> Labelled:
    """Write the labels of every shard that has none yet, then the manifest."""
    shards = Shards(task.dataset)
    manifest = shards.manifest
    targets = sum(g.train + g.valid + g.test for s in manifest.shards for g in s.row_groups)
    done = _claim(task.output, key, manifest)
    missing = [s for s in range(len(manifest.shards)) if s not in done]
    if not missing and storage.exists(storage.join(task.output, FILE)):
        progress(f"labels of this teacher and these shards are there already: {task.output}")
        return Labelled(task.output, len(manifest.shards), len(done), targets)
    order = [Group(s, g) for s in missing for g in range(len(manifest.shards[s].row_groups))]
    if order:
        places = [shards.place(group) for group in order]
        if task.actors == 0:
            tables = releasing(map(Labeller(task.model_dump(mode="json")).label, places))
        else:
            tables = _through_actors(task, places)
        progress(f"labelling {counted(len(order), 'row group')}")
        for shard, written in _write(task.output, order, _told(tables, len(order), progress)):
            progress(f"shard {shard + 1} of {len(manifest.shards)}: {written:,} sequences labelled")
    files = {
        label_file(s): storage.sha256(storage.join(task.output, label_file(s))) for s in range(len(manifest.shards))
    }
    storage.write_json(
        storage.join(task.output, FILE), {**key.model_dump(mode="json"), "files": files, "targets": targets}
    )
    return Labelled(task.output, len(manifest.shards), len(done), targets)


class Labeller:
    """Loaded teachers that label row groups; one per process."""

    def __init__(self, task: dict[str, Any]) -> None:
        spec = parse(LabelTask, task, "label worker")
        torch.set_num_threads(spec.threads)
        self._panel = Panel.of(spec.teachers, spec, verify=False)
        self._views = Views(spec.dataset, spec.teachers)

    def label(self, place: Place) -> pa.Table:
        """The columns of labels of a row group.

        ``key``; aligned with ``item``, ``soft_<task>`` logits of every target (NaN elsewhere); ``class_<task>`` logits
        of profiles; for each train target in turn S unseen items (``unseen_item``) and their logits
        (``unseen_<task>``), and M hard negatives (``mined_item``, 0 where there is none) and their corrections
        (``mined_log_q``, NaN), and U columns of the user's state (``state_user``, float16); for the first train target
        of each request K best candidates (``best_item``, 0 where there are no more) and their logits (``best_<task>``).
        Of several teachers also how far they are apart: ``spread_<task>``, ``spread_unseen_<task>``,
        ``spread_best_<task>``.
        """
        table, batch, views = self._views.read(place)
        found = self._panel.label(batch, views)
        offsets = _offsets(pa.compute.list_value_length(table.column("item")).to_numpy())
        columns = {"key": table.column("key").combine_chunks()}
        for prefix, values in (("soft", found.soft_BT), ("spread", found.spread_BT)):
            for name, value_BT in values.items():
                columns[f"{prefix}_{name}"] = _lists(value_BT[found.row_BT >= 0], offsets)
        for name, value_BC in found.profile_soft_BC.items():
            each = _offsets(np.full(len(value_BC), value_BC.shape[1]))
            columns[f"class_{name}"] = _lists(value_BC.flatten(), each)
        for place_BT, tables in ((batch.part_BT == TRAIN, _by_target(found)), (batch.begins(), _by_request(found))):
            for name, value_BTS in tables.items():
                each = _offsets(place_BT.sum(1).numpy() * value_BTS.shape[-1])
                columns[name] = _lists(value_BTS[place_BT].flatten(), each)
        return pa.table(columns)

    def __call__(self, chunk: pa.Table) -> pa.Table:
        """Ray Data's way of calling it: groups of a chunk in, their labels with their places out."""
        # Groups of ever new sizes: an actor grew to twice its size over 10M rows.
        found = pa.concat_tables([mark(self.label(place), number) for number, place in releasing(places_of(chunk))])
        release()
        return found


def _by_target(found: SequenceBatch) -> dict[str, Tensor]:
    """Column -> what there are several of at each train target."""
    columns: dict[str, Tensor] = {}
    if found.unseen_item_BTS is not None:
        columns["unseen_item"] = found.unseen_item_BTS.int()
        columns |= {f"unseen_{name}": value for name, value in found.unseen_soft_BTS.items()}
        columns |= {f"spread_unseen_{name}": value for name, value in found.unseen_spread_BTS.items()}
    if found.mined_item_BTM is not None and found.mined_log_q_BTM is not None:
        columns |= {"mined_item": found.mined_item_BTM.int(), "mined_log_q": found.mined_log_q_BTM}
    if found.state_BTU is not None:
        columns["state_user"] = found.state_BTU
    return columns


def _by_request(found: SequenceBatch) -> dict[str, Tensor]:
    """Column -> what there are several of at the first train target of each request."""
    if found.best_item_BTK is None:
        return {}
    columns = {f"best_{name}": value for name, value in found.best_soft_BTK.items()}
    columns |= {f"spread_best_{name}": value for name, value in found.best_spread_BTK.items()}
    return {"best_item": found.best_item_BTK.int(), **columns}


def _claim(folder: str, key: LabelKey, manifest: Manifest) -> set[int]:
    """Shards whose labels are there already; what other keys left behind is removed first."""
    place = storage.join(folder, KEY)
    known = json.loads(storage.read_bytes(place)) if storage.exists(place) else None
    if known != key.model_dump(mode="json"):
        if known is not None:
            storage.remove(storage.join(folder, FILE))  # first: without it the labels do not exist
            for shard in range(len(manifest.shards)):
                storage.remove(storage.join(folder, label_file(shard)))
        storage.write_json(place, key.model_dump(mode="json"))
        return set()
    return {s for s in range(len(manifest.shards)) if storage.exists(storage.join(folder, label_file(s)))}


def _through_actors(task: LabelTask, order: Sequence[Place]) -> Iterator[pa.Table]:
    import ray

    chunks = list(chunked(order, task.groups_per_task))
    with warnings.catch_warnings():
        # max_restarts=0: a lost actor ends the run, and the next run goes on at the first missing shard. Ray Data's
        # own restarts warn about every actor in the driver's output; their off switch is marked as deprecated.
        warnings.simplefilter("ignore")
        pool = ray.data.ActorPoolStrategy(size=min(task.actors, len(chunks)))
        arguments = (task.model_dump(mode="json"),)
        found = blocks_of(chunks, Labeller, 2, fn_constructor_args=arguments, num_cpus=1, max_restarts=0, compute=pool)
    limit = Limit("cluster.stall_s", task.stall_s, "block of labels")
    return split_by_place(ReadAhead(found, 2, limit), len(order))


def _told(tables: Iterable[pa.Table], total: int, progress: Callable[[str], None]) -> Iterator[pa.Table]:
    """The same tables; a line says now and then how many there were."""
    done = 0
    aloud = Beat(lambda: progress(f"{done:,} of {counted(total, 'row group')} labelled"), SILENCE_S)
    for table in tables:
        done += 1
        aloud()
        yield table


def _write(folder: str, order: Sequence[Group], tables: Iterable[pa.Table]) -> Iterator[tuple[int, int]]:
    """Write tables as row groups; yields (shard, sequences) whenever a shard's file is whole."""
    tables = iter(tables)
    for shard in dict.fromkeys(group.shard for group in order):
        count, rows = sum(group.shard == shard for group in order), 0
        with storage.growing(storage.join(folder, label_file(shard))) as sink, ExitStack() as files:
            writer: pq.ParquetWriter | None = None
            for _ in range(count):
                table = next(tables)
                if writer is None:
                    made = pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True)
                    writer = files.enter_context(made)
                writer.write_table(table, row_group_size=max(1, len(table)))
                rows += len(table)
        yield shard, rows


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _lists(values: Tensor, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.numpy()))
