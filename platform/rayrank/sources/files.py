"""Parquet, CSV and JSON-lines files as Arrow tables: split into independent parts, or read whole.

Knows file formats; knows nothing about what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from rayrank.config import ConfigError
from rayrank.sources import storage
from rayrank.sources.lines import read_range, split_lines
from rayrank.sources.source import Part
from rayrank.wording import meant

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson")
_PART_BYTES = 32 << 20
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Wanted:
    """Columns to read; None means all of them."""

    columns: Sequence[str] | None = None
    types: Mapping[str, pa.DataType] = field(default_factory=dict)  # CSV only: other formats know their types


def file_parts(path: str, part_bytes: int = _PART_BYTES) -> list[Part]:
    """Parts of every file of a file, folder or glob, in name order, with global row numbers.

    Raises:
        ConfigError: nothing is there, or a Parquet file is unreadable.
    """
    parts: list[Part] = []
    first = 0
    for file in storage.list_files(path, SUFFIXES):
        ranges = _row_groups(file) if _is_parquet(file) else split_lines(file, part_bytes, _is_csv(file))
        for number, (start, end, rows) in enumerate(ranges):
            rows -= 1 if number == 0 and _is_csv(file) else 0  # the header is no row
            parts.append(Part(file=file, start=start, end=end, rows=rows, first_row=first))
            first += rows
    return parts


def read_part(part: Part, wanted: Wanted) -> Iterator[pa.Table]:
    """Tables of a part in row order, each of bounded size.

    Raises:
        ConfigError: a malformed file; the message names the file and what the parser said.
    """
    try:
        if _is_parquet(part.file):
            yield from _read_parquet(part, wanted)
        elif _is_csv(part.file):
            yield from _read_csv(part, wanted)
        else:
            for block in read_range(part.file, part.start, part.end):
                # One parser block: types are inferred over all its lines, and no line is too long for it.
                options = pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
                yield _selected(pa_json.read_json(pa.BufferReader(block), read_options=options), wanted)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        rule = f"file must be readable as {part.file.rsplit('.', 1)[-1]} in UTF-8 ({error})"
        raise ConfigError(part.file, None, rule, "mend or re-encode the file") from None


def read_all(path: str, wanted: Wanted) -> pa.Table:
    """Every row of a file, folder or glob as one table."""
    tables = [table for part in file_parts(path) for table in read_part(part, wanted)]
    if not tables:
        raise ConfigError(path, 0, "the table must not be empty", "check the file")
    return pa.concat_tables(_alike(tables), promote_options="permissive").combine_chunks()


def _alike(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Tables whose columns are text in all if they are text in one: a number column may hold text in another file."""
    text = {f.name for t in tables for f in t.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)}
    return [t.cast(pa.schema([f.with_type(pa.string()) if _as_text(f, text) else f for f in t.schema])) for t in tables]


def _as_text(field: pa.Field, text: set[str]) -> bool:
    kind = field.type
    return field.name in text and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def column_names(path: str) -> dict[str, list[str]]:
    """File -> its column names (of a JSON-lines file: those its first block uses)."""
    return {file: _names(file) for file in storage.list_files(path, SUFFIXES)}


def place_of(name: str, have: Sequence[str]) -> str | None:
    """The column that is meant by a name: the same, else the only one that differs in upper and lower case alone."""
    if name in have:
        return name
    same = [column for column in have if column.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else None


def _names(first: str) -> list[str]:
    if _is_csv(first):
        return _header(first)
    if _is_parquet(first):
        system, inside = storage.locate(first)
        with system.open_input_file(inside) as opened:
            return list(pq.ParquetFile(opened).schema_arrow.names)
    part = Part(file=first, end=storage.size(first))
    return list(next(iter(read_part(part, Wanted())), pa.table({})).column_names)


def require_columns(path: str, columns: Sequence[str], fix: str, everywhere: Sequence[str] = ()) -> None:
    """Refuse files none of which has a column, or one of which lacks a column that all of them must have.

    Raises:
        ConfigError: names the column, the file and the nearest column, and lists the columns that are there.
    """
    files = column_names(path)
    for name in columns:
        lacking = [file for file, have in files.items() if place_of(name, have) is None]
        if lacking and (len(lacking) == len(files) or name in everywhere):
            rule = f"column is missing; the file has: {', '.join(files[lacking[0]])}"
            place = path if len(files) == 1 else lacking[0]
            raise ConfigError(f"{place}: {name}", None, rule, fix + meant(name, files[lacking[0]]))


def _row_groups(file: str) -> list[tuple[int, int, int]]:
    system, inside = storage.locate(file)
    try:
        with system.open_input_file(inside) as opened:
            meta = pq.ParquetFile(opened).metadata
            return [(g, g + 1, meta.row_group(g).num_rows) for g in range(meta.num_row_groups)]
    except pa.ArrowInvalid as error:
        raise ConfigError(file, None, f"file must be Parquet ({error})", "check the file") from None


def _read_parquet(part: Part, wanted: Wanted) -> Iterator[pa.Table]:
    system, inside = storage.locate(part.file)
    with system.open_input_file(inside) as opened:
        file = pq.ParquetFile(opened)
        places = _places(wanted, file.schema_arrow.names)
        names = list(places.values()) if places is not None else None
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[part.start], columns=names, use_threads=False):
            yield _named(pa.Table.from_batches([batch]), places)


def _read_csv(part: Part, wanted: Wanted) -> Iterator[pa.Table]:
    names = _header(part.file)
    places = _places(wanted, names)
    include = list(places.values()) if places is not None else names
    types = {(places or {}).get(n, n): t for n, t in wanted.types.items()}
    skip = 1 if part.start == 0 else 0
    types = {n: t for n, t in types.items() if n in include}
    loose = {n: pa.string() if pa.types.is_floating(t) else t for n, t in types.items()}
    for block in read_range(part.file, part.start, part.end):
        try:
            table = _parsed(block, part.file, (names, skip), include, types)
        except pa.ArrowInvalid:  # a cell of a number column may be text: no reason to refuse the file
            table = _parsed(block, part.file, (names, skip), include, loose)
        yield _named(table, places)
        skip = 0


def _parsed(
    block: bytes, file: str, head: tuple[list[str], int], include: Sequence[str], types: Mapping[str, pa.DataType]
) -> pa.Table:
    """Lines of a CSV; ``head``: the column names, and how many lines to skip."""
    names, skip = head
    return pa_csv.read_csv(
        pa.BufferReader(block),
        read_options=pa_csv.ReadOptions(
            column_names=names, skip_rows=skip, use_threads=False, block_size=len(block) + 1
        ),
        parse_options=pa_csv.ParseOptions(delimiter=_delimiter(file)),
        convert_options=pa_csv.ConvertOptions(
            column_types=types,
            include_columns=include,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _places(wanted: Wanted, have: Sequence[str]) -> dict[str, str] | None:
    """Wanted name -> column of the file, for those it has; None: everything is wanted as it is."""
    if wanted.columns is None:
        return None
    found = {name: place_of(name, have) for name in wanted.columns}
    return {name: place for name, place in found.items() if place is not None}


def _named(table: pa.Table, places: dict[str, str] | None) -> pa.Table:
    """Columns under their wanted names (one column may be wanted under two)."""
    return table if places is None else pa.table({name: table[place] for name, place in places.items()})


def _header(file: str) -> list[str]:
    block = next(iter(read_range(file, 0, min(storage.size(file), 1 << 20))), b"")
    line = block.split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise ConfigError(file, None, "a CSV file starts with a line of column names", "add the header line")
    delimiter = pa_csv.ParseOptions(delimiter=_delimiter(file))
    header = pa_csv.read_csv(pa.BufferReader(line + b"\n"), parse_options=delimiter)
    return [name.removeprefix("\ufeff") for name in header.column_names]


def _selected(table: pa.Table, wanted: Wanted) -> pa.Table:
    if wanted.columns is None:
        return table
    places = _places(wanted, table.column_names) or {}
    columns = {n: table[places[n]] if n in places else pa.nulls(table.num_rows) for n in wanted.columns}
    return pa.table(columns)  # null: a key that no line of this block uses


def _delimiter(file: str) -> str:
    return "\t" if file.lower().endswith(".tsv") else ","


def _is_csv(file: str) -> bool:
    return file.lower().endswith((".csv", ".tsv"))


def _is_parquet(file: str) -> bool:
    return file.lower().endswith((".parquet", ".pq"))
