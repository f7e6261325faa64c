"""Batch scoring on Ray Data: a pool of actors, each with the release loaded once, writes one file per piece of work.

A piece is a shard of the dataset or some thousand requests of a file. Its file appears when it is whole, the manifest
last, so a second run finds everything and an interrupted one goes on. Knows how work is dealt; scoring is
:mod:`rayrank.ranking.bulk`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, assert_never

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath, parse
from rayrank.on_ray.graph_spec import open_store
from rayrank.on_ray.patience import Limit, ReadAhead
from rayrank.on_ray.score_requests import Cut, bodies, cuts
from rayrank.ranking.bulk import Asked, RequestScorer, ShardScorer
from rayrank.ranking.bulk_pairs import PairScorer
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph, bundle_ids
from rayrank.ranking.release import Release
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset
from rayrank.sources.files import SUFFIXES, Wanted, file_parts, read_part, require_columns
from rayrank.sources.source import Part
from rayrank.wording import counted

MANIFEST, KEY = "_manifest.json", "_key.json"
"""Readers of Parquet folders pass over names that begin with an underscore."""


class ShardsInput(Config):
    """Every target of a part of a prepared dataset."""

    kind: Literal["shards"] = "shards"
    dataset: DataPath | None = Field(None, description="dataset folder; None: the release's own")
    part: Literal["train", "valid", "test"] = Field("test", description="which targets are scored")
    protocol: Literal["streaming", "snapshot"] = Field(
        "streaming", description="history a target sees: all earlier requests, or those before its part"
    )
    roles: tuple[Literal["student", "teacher"], ...] = Field(
        ("student", "teacher"), description="models that score; the last one's fused score is the column `score`"
    )


class RequestsInput(Config):
    """A file of request bodies, as /v1/rank and /v1/recommend take them."""

    kind: Literal["requests"] = "requests"
    path: DataPath = Field(description="JSON lines (.jsonl), or Parquet with the keys of a body as columns")
    per_file: int = Field(2000, ge=1, description="requests scored per output file")


class PairsInput(Config):
    """A table of users and items, each row to be scored by itself."""

    kind: Literal["pairs"] = "pairs"
    path: DataPath = Field(
        description="table (.parquet, .csv, .jsonl): user_id, item_id, and time (unix seconds) if wanted; all other"
        " columns are context"
    )
    roles: tuple[Literal["student", "teacher"], ...] = Field(
        ("student", "teacher"), description="models that score; the last one's fused score is the column `score`"
    )
    part_mb: int = Field(4, ge=1, description="text read for one output file (of Parquet: a row group)")


ScoreInput = Annotated[ShardsInput | RequestsInput | PairsInput, Field(discriminator="kind")]


class ScoreTask(Config):
    """What is scored, with which release, into where."""

    release: Release = Field(description="resolved release")
    input: ScoreInput = Field(description="what is scored")
    output: str = Field(description="folder of the scores")
    flow: FlowSettings = Field(default_factory=FlowSettings, description="how many candidates each stage passes on")
    histories: str | None = Field(None, description="sqlite file of user histories")
    now: int | None = Field(None, description="unix seconds taken for the present; None: the clock")
    stall_s: float = Field(1800.0, description="longest wait for the next file of scores, s")


@dataclass(frozen=True)
class Scored:
    """What was made."""

    path: str
    files: int
    reused: int
    rows: int


def score_all(task: ScoreTask, actors: int, progress: Callable[[str], None]) -> Scored:
    """Score every piece that has no file yet, then write the manifest. ``actors`` 0: in this process, without Ray."""
    key = _key(task)
    pieces = _pieces(task)
    done = _claim(task.output, key)
    missing = [piece for piece in pieces if piece["file"] not in done]
    if missing:
        results = _in_process(task, missing) if actors == 0 else _on_actors(task, missing, actors)
        for number, result in enumerate(results, start=1):
            progress(f"{number} of {counted(len(missing), 'file')}: {result['file']}, {counted(result['rows'], 'row')}")
    files = {piece["file"]: storage.sha256(storage.join(task.output, piece["file"])) for piece in pieces}
    rows = sum(_rows(storage.join(task.output, name)) for name in files)
    storage.write_json(storage.join(task.output, MANIFEST), {"format": 1, **key, "files": files, "rows": rows})
    return Scored(task.output, len(files), len(done & files.keys()), rows)


class ScoreWorker:
    """The release, loaded once per process; scores a piece and writes its file."""

    def __init__(self, raw: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)
        self._task = parse(ScoreTask, raw, "score worker")

    @cached_property
    def _graph(self) -> RankingGraph:
        release = self._task.release
        # The driver has built the store already; here it is only opened.
        store = None if isinstance(self._task.input, ShardsInput) else open_store(release, self._task.histories)
        return RankingGraph.open(release, self._task.flow, store)

    def score(self, piece: dict[str, Any]) -> dict[str, Any]:
        """Write the piece's file; returns its name and rows."""
        source = self._task.input
        match source:
            case ShardsInput():
                table = self._shard(source, int(piece["shard"]))
            case RequestsInput():
                cut = Cut(**piece["cut"])
                asked = bodies(source.path, cut)
                table = RequestScorer(self._graph, self._task.now).table(asked, cut.first, source.path)
            case PairsInput():
                table = self._pairs(source, Part(**piece["part"]))
            case _:
                assert_never(source)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        storage.write_bytes(storage.join(self._task.output, piece["file"]), sink.getvalue().to_pybytes())
        return {"file": piece["file"], "rows": len(table)}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's way of calling it. A user's mistake travels as data: Ray would wrap the exception."""
        answers: list[dict[str, Any]] = []
        for piece in batch.to_pylist():
            try:
                answers.append({"answer": json.dumps({"result": self.score(piece)})})
            except ConfigError as error:
                answers.append({"answer": json.dumps({"error": error.as_dict()}, default=str)})
        return pa.Table.from_pylist(answers)

    def _shard(self, source: ShardsInput, shard: int) -> pa.Table:
        dataset = Dataset.open(_dataset_of(source, self._task.release))
        scorer = ShardScorer(self._graph, source.roles, Asked(source.part, source.protocol, self._task.release.fusion))
        known = dataset.manifest.shards[shard].row_groups
        groups = [number for number, group in enumerate(known) if getattr(group, source.part)]
        found = [scorer.table(dataset.read_group(shard, group)) for group in groups]
        return pa.concat_tables([scorer.empty(), *found])

    def _pairs(self, source: PairsInput, part: Part) -> pa.Table:
        scorer = PairScorer(self._graph, source.roles, self._task.now)
        tables, first = [scorer.empty()], part.first_row
        for rows in read_part(part, Wanted()):
            tables.append(scorer.table(rows, first, part.file))
            first += len(rows)
        return pa.concat_tables(tables)


def _pieces(task: ScoreTask) -> list[dict[str, Any]]:
    """Every piece of work: the name of its file, and where in the input it is. The input is looked through once."""
    source, found = task.input, list[dict[str, Any]]()
    match source:
        case ShardsInput():
            shards = Dataset.open(_dataset_of(source, task.release)).manifest.shards
            found = [{"shard": number} for number in range(len(shards))]
        case PairsInput():
            require_columns(source.path, ("user_id", "item_id"), "name the columns so", ("user_id", "item_id"))
            parts = file_parts(source.path, source.part_mb << 20)
            found = [{"part": part.model_dump()} for part in parts]
        case RequestsInput():
            found = [{"cut": asdict(cut)} for cut in cuts(source.path, source.per_file)]
        case _:
            assert_never(source)
    return [{"file": f"part-{number:05d}.parquet", **piece} for number, piece in enumerate(found)]


def _dataset_of(source: ShardsInput, release: Release) -> str:
    place = source.dataset or release.dataset
    if place is None:
        raise ConfigError("input.dataset", None, "the release names no dataset", "set input.dataset")
    return place


def _key(task: ScoreTask) -> dict[str, Any]:
    """Scores of another release, input or state of the dataset in the same folder are replaced."""
    source = task.input
    if isinstance(source, ShardsInput):
        what = [Dataset.open(_dataset_of(source, task.release)).manifest.data_fingerprint]
    elif isinstance(source, PairsInput):
        what = [storage.signature(storage.list_files(source.path, SUFFIXES))]
    else:
        if not storage.exists(source.path):
            raise ConfigError("input.path", source.path, "must be a file of requests", "correct the path")
        what = [storage.sha256(source.path)]
    if not isinstance(source, ShardsInput) and task.release.dataset is not None:
        # Requests and pairs see the histories that are there now: rows may have been appended under the same path.
        what.append(Dataset.open(task.release.dataset).manifest.data_fingerprint)
    settings = task.model_dump(mode="json", include={"input", "flow", "now"})
    text = json.dumps([settings, what, task.release.fusion], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"release_id": task.release.release_id, "bundles": bundle_ids(task.release), "asked": digest}


def _claim(folder: str, key: dict[str, Any]) -> set[str]:
    """Files that are there already for this key; those of another key are removed first."""
    place = storage.join(folder, KEY)
    known = json.loads(storage.read_bytes(place)) if storage.exists(place) else None
    if known != key:
        if known is not None:
            for name in (MANIFEST, *_part_files(folder)):  # the manifest first: without it the scores do not exist
                storage.remove(storage.join(folder, name))
        storage.write_json(place, key)
    return _part_files(folder)


def _part_files(folder: str) -> set[str]:
    from pyarrow import fs

    system, inside = storage.locate(folder)
    found = system.get_file_info(fs.FileSelector(inside, allow_not_found=True))
    return {f.base_name for f in found if f.base_name.startswith("part-") and f.base_name.endswith(".parquet")}


def _rows(path: str) -> int:
    system, inside = storage.locate(path)
    with system.open_input_file(inside) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def _in_process(task: ScoreTask, pieces: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    worker = ScoreWorker(task.model_dump(mode="json"))
    return map(worker.score, pieces)


def _on_actors(task: ScoreTask, pieces: list[dict[str, Any]], actors: int) -> Iterator[dict[str, Any]]:
    import ray

    with warnings.catch_warnings():
        # max_restarts=0: a lost actor ends the run, and the next run goes on at the first missing file. Ray's own
        # restarts print an error line about every actor; their off switch is marked as deprecated.
        warnings.simplefilter("ignore")
        results = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
            ScoreWorker,
            fn_constructor_args=(task.model_dump(mode="json"),),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
            max_restarts=0,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(pieces))),
        )
    mistakes = []
    limit = Limit("cluster.stall_s", task.stall_s, "file of scores")
    # To the end, whatever is found: an abandoned stream keeps its actors and CPUs.
    for row in ReadAhead(iter(results.iter_rows()), 2, limit):
        answer = json.loads(row["answer"])
        if "error" in answer:
            mistakes.append(ConfigError(**answer["error"]))
        else:
            yield answer["result"]
    if mistakes:
        raise mistakes[0]
