"""A prepared dataset looked at file by file: is everything there and whole, and do the parts keep to their time?

Also puts broken shards aside: the manifest is then written anew without them and says what was left out. Knows the
manifest and the shard columns; knows nothing about sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrank.config import ConfigError
from rayrank.schema import TEST, TRAIN, VALID, UserSplit
from rayrank.sources import storage
from rayrank.sources.checks import Finding, Severity, Tally
from rayrank.sources.manifest import LeftOut, Manifest, ShardInfo, data_fingerprint, read_manifest, write_manifest

SKEW = 3.0
QUARANTINE = "quarantine"
_NAMES = {TRAIN: "train", VALID: "valid", TEST: "test"}
_ORDERED = ((TRAIN, VALID), (TRAIN, TEST), (VALID, TEST))


def check_shards(path: str) -> tuple[list[Finding], list[LeftOut]]:
    """Findings on every file of a dataset, and the shards that cannot be used.

    Raises:
        ConfigError: there is no dataset, or its manifest does not fit itself.
    """
    manifest = read_manifest(path)
    found: list[Finding] = []
    bad: list[LeftOut] = []
    span: dict[int, list[int]] = {}
    for shard in manifest.shards:
        reason = _fault(path, shard, span)
        if reason is not None:
            bad.append(_left_out(shard, reason))
            where = f"dataset.{shard.file}"
            found.append(Finding("error", where, reason, shard.sequences, 0, shard.sha256, storage.SHARD_FIX))
    for name, checksum in manifest.tables.items():
        file = storage.join(path, name)
        if not storage.exists(file) or storage.sha256(file) != checksum:
            rule = "file is missing" if not storage.exists(file) else "checksum is not that of the manifest"
            found.append(Finding("error", f"dataset.{name}", rule, 1, None, checksum, storage.TABLE_FIX))
    lost = {b.file for b in bad}
    whole = [s for s in manifest.shards if s.file not in lost]
    return found + _order(path, manifest, whole, span) + _skew(manifest), bad


def quarantine(path: str, bad: Sequence[LeftOut]) -> Manifest:
    """Move broken shards to ``quarantine/`` and write the manifest without them; it lists them in ``left_out``.

    Raises:
        ConfigError: no shard would be left.
    """
    manifest = read_manifest(path)
    names = {b.file for b in bad}
    shards = tuple(s for s in manifest.shards if s.file not in names)
    if not shards:
        raise ConfigError(path, sorted(names), "every shard is broken: nothing would be left", "run prepare again")
    lost = [g for s in manifest.shards if s.file in names for g in s.row_groups]
    counts = manifest.counts.model_copy(
        update={p: getattr(manifest.counts, p) - sum(getattr(g, p) for g in lost) for p in ("train", "valid", "test")}
    )
    changes = {
        "shards": shards,
        "counts": counts,
        "left_out": (*manifest.left_out, *bad),
        "data_fingerprint": data_fingerprint(manifest.dataset_schema, shards, manifest.tables),
    }
    made = manifest.model_copy(update=changes)
    write_manifest(path, made)  # first: the dataset is whole again before a file moves
    for name in sorted(names):
        if storage.exists(storage.join(path, name)):
            storage.move(storage.join(path, name), storage.join(path, QUARANTINE, name.rsplit("/", 1)[-1]))
    return made


def _fault(path: str, shard: ShardInfo, span: dict[int, list[int]]) -> str | None:
    """Why a shard cannot be used, or None; its targets' times are noted in ``span``."""
    file = storage.join(path, shard.file)
    if not storage.exists(file):
        return "file is missing"
    if shard.bytes and storage.size(file) != shard.bytes:
        return f"file is truncated or changed: {storage.size(file)} bytes, the manifest says {shard.bytes}"
    if storage.sha256(file) != shard.sha256:
        return "checksum is not that of the manifest"
    system, inside = storage.locate(file)
    try:
        with system.open_input_file(inside) as opened:
            read = pq.ParquetFile(opened)
            if read.metadata.num_rows != shard.sequences or read.metadata.num_row_groups != len(shard.row_groups):
                return f"holds {read.metadata.num_rows} sequences, the manifest says {shard.sequences}"
            for group in range(read.metadata.num_row_groups):
                _note(read.read_row_group(group, columns=["part", "time"], use_threads=False), span)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return f"cannot be read as Parquet ({str(error).splitlines()[0]})"
    return None


def _note(table: pa.Table, span: dict[int, list[int]]) -> None:
    part, time = (table[n].combine_chunks().flatten().to_numpy() for n in ("part", "time"))
    for p in _NAMES:
        mine = time[part == p]
        if len(mine):
            low, high = span.get(p, [int(mine.min()), int(mine.max())])
            span[p] = [min(low, int(mine.min())), max(high, int(mine.max()))]


def _order(path: str, manifest: Manifest, shards: Sequence[ShardInfo], span: dict[int, list[int]]) -> list[Finding]:
    """Parts that reach into each other's time: a fault unless the split is per user, where it is worth knowing."""
    severity: Severity = "error"
    fix = "run prepare again: under this split no target may be older than the training maximum"
    if isinstance(manifest.dataset_schema.split, UserSplit):
        severity, fix = "note", "right for a user split; popularity over time is then known a little from the future"
    pairs = [(b, a) for b, a in _ORDERED if b in span and a in span and span[a][0] < span[b][1]]
    tallies = []
    for before, after in pairs:
        rule = f"{_NAMES[after]} rows begin before the last {_NAMES[before]} row"
        tallies.append(Tally(severity, "dataset.time", rule, fix))
    places = [(s.file, g) for s in shards for g in range(len(s.row_groups))] if pairs else []
    for file, group in places:  # once more, now that the last instants are known
        table = storage.read_row_group(storage.join(path, file), group, ["part", "time", "row"])
        part, time, row = (table[n].combine_chunks().flatten().to_numpy() for n in ("part", "time", "row"))
        for (before, after), tally in zip(pairs, tallies, strict=True):
            older = np.flatnonzero((part == after) & (time < span[before][1]))
            if len(older):
                first = older[np.argmin(row[older])]
                if tally.row is None or row[first] < tally.row:
                    tally.row, tally.value = int(row[first]), int(time[first])
                tally.count += len(older)
    return [f for t in tallies if (f := t.finding()) is not None]


def _skew(manifest: Manifest) -> list[Finding]:
    events = np.array([sum(g.events for g in s.row_groups) for s in manifest.shards])
    if len(events) < 2 or events.max() <= SKEW * events.mean():
        return []
    worst = int(np.argmax(events))
    rule = f"the largest of {len(events)} shards holds {events[worst] / events.mean():.1f} times the mean"
    fix = "drop or cap the users with most rows, or raise rows_per_shard"
    return [Finding("warning", f"dataset.{manifest.shards[worst].file}", rule, int(events[worst]), None, worst, fix)]


def _left_out(shard: ShardInfo, reason: str) -> LeftOut:
    groups = shard.row_groups
    totals = {name: sum(getattr(g, name) for g in groups) for name in ("train", "valid", "test")}
    return LeftOut(file=shard.file, sha256=shard.sha256, reason=reason, sequences=shard.sequences, **totals)
