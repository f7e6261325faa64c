"""A file of request bodies, cut once into pieces that are each read by themselves.

Knows JSON lines and Parquet; knows nothing about what a body says, or about Ray.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrank.config import ConfigError
from rayrank.sources import storage

_BLOCK = 1 << 20
_PACKED = (".gz", ".bz2", ".lz4", ".zst")
"""What pyarrow unpacks by itself."""


@dataclass(frozen=True)
class Cut:
    """Where some requests of a file are."""

    first: int  # number of the first of them
    count: int
    start: int = 0  # byte of the (unpacked) text where its line begins; of Parquet unused


def cuts(path: str, per_file: int) -> list[Cut]:
    """The file in pieces of ``per_file`` requests, in order; text is read once, and every line of it checked.

    Raises:
        ConfigError: no such file, or a line that is no JSON object.
    """
    if not storage.exists(path):
        raise ConfigError("input.path", path, "must be a file of requests", "correct the path")
    starts, total = list[int](), 0
    if _is_parquet(path):
        system, inside = storage.locate(path)
        with system.open_input_file(inside) as file:
            total = pq.ParquetFile(file).metadata.num_rows
        starts = [0] * -(-total // per_file)
    else:
        position = 0
        for number, line in enumerate(_lines(path, 0), start=1):
            if line.strip():
                _json_line(line, f"{path}:{number}")
                if total % per_file == 0:
                    starts.append(position)
                total += 1
            position += len(line)
    firsts = range(0, total, per_file)
    return [Cut(n, min(per_file, total - n), at) for n, at in zip(firsts, starts, strict=True)]


def bodies(path: str, cut: Cut) -> list[dict[str, Any]]:
    """The requests of a piece; nothing before it is parsed."""
    if _is_parquet(path):
        return [body for batch in _batches(path, cut) for body in batch.to_pylist(maps_as_pydicts="strict")]
    lines = (line for line in _lines(path, cut.start) if line.strip())
    return [_json_line(li, f"{path}: request {n}") for n, li in enumerate(islice(lines, cut.count), start=cut.first)]


def _batches(path: str, cut: Cut) -> Iterator[pa.RecordBatch]:
    """The rows of a piece, from the row groups that hold them."""
    system, inside = storage.locate(path)
    with system.open_input_file(inside) as opened:
        file, begin = pq.ParquetFile(opened), 0
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if begin < cut.first + cut.count and end > cut.first:
                for batch in file.iter_batches(batch_size=1000, row_groups=[group]):
                    low, high = max(cut.first - begin, 0), min(cut.first + cut.count - begin, len(batch))
                    if low < high:
                        yield batch.slice(low, high - low)
                    begin += len(batch)
                    if begin >= cut.first + cut.count:
                        return
            begin = end


def _lines(path: str, start: int) -> Iterator[bytes]:
    """Lines from byte ``start`` of the text on, which is unpacked where the file's name says that it is packed."""
    system, inside = storage.locate(path)
    packed = path.endswith(_PACKED)
    with system.open_input_stream(inside) if packed else system.open_input_file(inside) as stream:
        if not packed:
            stream.seek(start)
        reader = io.BufferedReader(stream, _BLOCK)
        while packed and start > 0:  # it can only be passed over
            start -= len(reader.read(min(start, _BLOCK))) or start
        yield from reader


def _json_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ConfigError(where, None, "every line must be a JSON object", "write one request body per line")
    return body


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet")
