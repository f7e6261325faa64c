"""How fast the training iterator gives batches, against reading the same files and against torch's DataLoader.

Arms, interleaved round by round on one thread each, each once over the same files, counted in the events that lie in
them (batches hold fewer: what no train target can see is cut off): raw pyarrow reading of every row group (no batches
made of it); our iterator cold (decode, shuffle, collate, cut into micro-batches) and warm (the second epoch,
decoded row groups still in memory); the DataLoader with two worker processes that read and collate the same plan.
Before anything is timed, one pass of the DataLoader and two of ours through the arm's own reading (cold, then warm) are
compared batch by batch, by checksum of every tensor.

    python -m benchmarks.ingest [--rows 2000000] [--rounds 5] [--through direct|ray]
    python -m benchmarks.ingest --quick      200,000 rows, 3 rounds; nothing is kept
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks import results
from benchmarks.results import Row, Table
from rayrank.batch import SequenceBatch
from rayrank.config import parse
from rayrank.learning.feed import Feed, train_groups
from rayrank.learning.plan import micro_batches, plan
from rayrank.learning.spec import LearningSpec
from rayrank.on_ray.stream import GroupStream, StreamSpec
from rayrank.sources.build import build, run_here
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.groups import Group, Shards, read_here
from rayrank.sources.manifest import read_manifest
from rayrank.sources.spec import BuildSpec

NAME, VERSION = "ingest", 3
SPEC = LearningSpec()
CACHE_MB = 4096
ARMS = ("pyarrow", "cold", "warm", "dataloader")
TABLE = Table(
    title="Reading training batches",
    command="python -m benchmarks.ingest [--through direct]",
    note=(
        "Events per second of one reader, of those that lie in the files (every arm goes over the same files once): "
        "raw pyarrow (row groups read, no batches made), the training iterator in its first epoch (cold) and its "
        "second (warm), and a DataLoader with two workers that gives the same batches. Arms "
        "in turn, medians over rounds; ratios are taken within a round, with their lowest and highest. Load: average "
        "over the last minute when the last round ended."
    ),
    labels=("through", "rows", "arm"),
    columns=("events/s", "to pyarrow", "lowest", "highest", "to DataLoader", "load"),
)


def raw(dataset: str) -> Iterator[pa.Table]:
    """Row groups as pyarrow reads them."""
    for shard in read_manifest(dataset).shards:
        with pq.ParquetFile(f"{dataset}/{shard.file}") as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, use_threads=False)


def epoch(feed: Feed, number: int = 0) -> Iterator[SequenceBatch]:
    """Micro-batches of our iterator."""
    for step in feed.steps(number):
        yield from step


class Loader(IterableDataset[SequenceBatch]):
    """The same plan read by DataLoader workers, each its share of the lanes."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[SequenceBatch]:
        torch.set_num_threads(1)
        opened, shards, info = Dataset.open(self.dataset), Shards(self.dataset), get_worker_info()
        dealt = plan(train_groups(opened.manifest), SPEC.seed, 0, SPEC.lanes, SPEC.batch_events)
        rank, world = (info.id, info.num_workers) if info else (0, 1)
        for lane in dealt.of_rank(rank, world):
            places = [shards.place(Group(ref.shard, ref.group)) for ref in lane]
            for ref, table in zip(lane, read_here(places), strict=True):  # files stay open, as ours do
                batch = collate(table, opened.schema)
                yield from (found for found in micro_batches(batch, ref) if found is not None)


def loader(dataset: str) -> Iterable[SequenceBatch]:
    """Two workers, as a competent user would set them."""
    return DataLoader(Loader(dataset), batch_size=None, num_workers=2, prefetch_factor=4)


def sums_of(batches: Iterable[SequenceBatch]) -> dict[int, str]:
    """Checksums of all batches by first key."""
    return {int(batch.events.key_B[0]): checksum(batch) for batch in batches}


def checksum(batch: SequenceBatch) -> str:
    """Hash of every tensor of the batch, bit by bit: a sum would drown small values in large keys."""
    found = hashlib.sha256()
    for value in _tensors(batch):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from _tensors(value[name])
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))


def seconds(work: Callable[[], Iterable[object]]) -> float:
    """Of one pass; what it gives is dropped as it comes."""
    began = time.perf_counter()
    deque(work(), maxlen=0)
    return time.perf_counter() - began


def compare(dataset: str, through: str) -> None:
    """Batches of our iterator, cold and warm, against the DataLoader's.

    Raises:
        AssertionError: other batches, or other values in any of them.
    """
    theirs = sums_of(loader(dataset))
    feed = Feed(GroupStream(Shards(dataset), StreamSpec(through=through)), SPEC, cache_mb=CACHE_MB)
    for arm in ("cold", "warm"):
        if sums_of(epoch(feed)) != theirs:
            raise AssertionError(f"the {arm} batches read through {through} differ from the DataLoader's")


def run(dataset: str, rounds: int, through: str) -> dict[str, Any]:
    """Rates by arm, and the claims."""
    shards = Shards(dataset)
    compare(dataset, through)
    events = sum(group.events for shard in shards.manifest.shards for group in shard.row_groups)
    rates: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        feed = Feed(GroupStream(shards, StreamSpec(through=through)), SPEC, cache_mb=CACHE_MB)
        arms: dict[str, Callable[[], Iterable[object]]] = {
            "pyarrow": lambda: raw(dataset),
            "cold": lambda feed=feed: epoch(feed),  # type: ignore[misc]
            "warm": lambda feed=feed: epoch(feed),  # type: ignore[misc]
            "dataloader": lambda: loader(dataset),
        }
        for name, work in arms.items():
            rates[name].append(events / seconds(work))
    middle = {name: median(found) for name, found in rates.items()}
    ratios = {f"{name}_vs_pyarrow": [a / b for a, b in zip(rates[name], rates["pyarrow"], strict=True)]
              for name in ("cold", "warm")}  # fmt: skip
    ratios["vs_dataloader"] = [a / b for a, b in zip(rates["cold"], rates["dataloader"], strict=True)]
    claims: dict[str, Any] = {name: round(median(found), 3) for name, found in ratios.items()}
    claims |= {f"{name}_range": [round(min(found), 3), round(max(found), 3)] for name, found in ratios.items()}
    return {**claims, "events_per_s": {name: round(rate) for name, rate in middle.items()}}


def rows_of(claims: dict[str, Any], rows: int, through: str) -> list[Row]:
    """Rows of the results table."""
    found, load = [], os.getloadavg()[0]
    for arm, rate in claims["events_per_s"].items():
        low, high = claims.get(f"{arm}_vs_pyarrow_range", (None, None))
        values = {"events/s": rate, "to pyarrow": claims.get(f"{arm}_vs_pyarrow"), "lowest": low, "highest": high,
                  "to DataLoader": claims["vs_dataloader"] if arm == "cold" else None, "load": load}  # fmt: skip
        key = results.key_of(NAME, VERSION, through, rows, arm)
        found.append(Row(key=key, table=NAME, arm=(through, f"{rows:,}", arm), values=values, **results.stamp()))
    return found


def made(folder: Path, rows: int) -> str:
    """A synthetic dataset of so many events."""
    users = max(50, rows // 200)
    source = {"kind": "synthetic", "num_rows": rows, "num_users": users, "num_items": 5000}
    build(parse(BuildSpec, {"source": source, "path": str(folder / "dataset")}), run_here, _say)
    return str(folder / "dataset")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small; the same arms")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--through", choices=("direct", "ray"), default="ray", help="how our arm reads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, rounds = (200_000, 3) if options.quick else (options.rows, options.rounds)
    with tempfile.TemporaryDirectory(prefix="rayrank-ingest-") as folder:
        dataset = made(Path(folder), rows)
        if options.through == "ray":
            from rayrank.on_ray.cluster import ClusterConfig, ensure_cluster

            with ensure_cluster(ClusterConfig()):
                claims = run(dataset, rounds, "ray")
        else:
            claims = run(dataset, rounds, "direct")
    if not options.quick:
        results.record(NAME, TABLE, rows_of(claims, rows, options.through))
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({"benchmark": NAME, **claims, "rows": rows, "through": options.through})


if __name__ == "__main__":
    main()
