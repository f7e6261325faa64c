"""MovieLens in its published layout: ``ratings.dat``, ``users.dat``, ``movies.dat`` (``movies_extrainfos.dat``).

Knows the ``::`` files and what their columns mean; knows nothing about shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.schema import (
    BinaryTask,
    CategoricalFeature,
    DatasetSchema,
    MulticlassTask,
    NumericFeature,
    RegressionTask,
    RetrievalTask,
    Split,
    UserSplit,
)
from rayrank.sources import storage
from rayrank.sources.lines import read_range, split_lines
from rayrank.sources.source import Part, canonical

AGES = ("1", "18", "25", "35", "45", "50", "56")
TEXT = "{title}. {genres}. Directed by {director}. {actors}. {plot}"
_PART_BYTES = 8 << 20
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_EXTRA = ("director", "writer", "actors", "plot")
_EXTRA_AT = (6, 7, 8, 9)


class MovieLensConfig(Config):
    """MovieLens-1M (or any file set of that layout)."""

    kind: Literal["movielens"] = "movielens"
    path: DataPath = Field(description="folder that holds ratings.dat, users.dat and movies.dat")
    split: Split = Field(default_factory=UserSplit, description="user (default), time, or boundary")
    like_at_least: float = Field(4.0, description="the like label is 1 for ratings from here on")
    hidden_share: float = Field(0.2, gt=0, lt=1, description="share of users whose profile labels training never sees")
    part_bytes: int = Field(_PART_BYTES, ge=1, description="bytes of ratings.dat that one task reads")


class MovieLens:
    """See :class:`rayrank.sources.source.Source`."""

    def __init__(self, config: MovieLensConfig) -> None:
        self.config = config

    @property
    def schema(self) -> DatasetSchema:
        """Like, rating, gender, age and the next liked film."""
        config = self.config
        return DatasetSchema(
            name=f"{'ml1m'}-{config.split.kind}",
            tasks=(
                BinaryTask(name="like", column="rating", at_least=config.like_at_least),
                RegressionTask(name="rating", column="rating", low=1.0, high=5.0),
                MulticlassTask(name="gender", column="gender", classes=("F", "M"), hidden_share=config.hidden_share),
                MulticlassTask(name="age", column="age", classes=AGES, hidden_share=config.hidden_share),
                RetrievalTask(name="next_like", positive="like"),
            ),
            user_features=tuple(CategoricalFeature(name=n, column=n) for n in ("gender", "age", "occupation")),
            item_features=(
                CategoricalFeature(name="genres", column="genres", separator="|", max_values=6),
                NumericFeature(name="year", column="year"),
                CategoricalFeature(name="decade", column="decade"),
            ),
            text=TEXT,
            title="title",
            split=config.split,
        )

    def inputs(self) -> str:
        """Names, sizes and times of the files."""
        names = ("ratings.dat", "users.dat", "movies.dat", "movies_extrainfos.dat")
        return storage.signature([self._path(n) for n in names if storage.exists(self._path(n))])

    def items(self) -> pa.Table:
        """movies.dat with year and decade from the title, and director, writer, actors and plot where known."""
        rows = self._lines("movies.dat", 3)
        extra = self._extra()
        columns: dict[str, list[str | None]] = {"item_id": [], "title": [], "genres": [], "year": [], "decade": []}
        columns |= {name: [] for name in _EXTRA}
        for item_id, title, genres in rows:
            match = _YEAR.search(title)
            year = match.group(1) if match else None
            values = [item_id, title, genres or None, year, f"{year[:3]}0" if year else None]
            for name, value in zip(columns, [*values, *extra.get(item_id, [None] * len(_EXTRA))], strict=True):
                columns[name].append(value)
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    def users(self) -> pa.Table:
        """users.dat."""
        rows = self._lines("users.dat", 5)
        names = ("user_id", "gender", "age", "occupation", "zip")
        return pa.table({n: pa.array([row[i] for row in rows], pa.string()) for i, n in enumerate(names)})

    def parts(self) -> list[Part]:
        """Byte ranges of ratings.dat."""
        path = self._path("ratings.dat")
        _require(path)
        parts: list[Part] = []
        first = 0
        for start, end, rows in split_lines(path, self.config.part_bytes):
            parts.append(Part(file=path, start=start, end=end, rows=rows, first_row=first))
            first += rows
        return parts

    def read(self, part: Part) -> Iterator[pa.Table]:
        """``user::item::rating::timestamp`` lines."""
        first = part.first_row
        names = ["user_id", "", "item_id", "_1", "rating", "_2", "timestamp"]
        types = {"user_id": pa.string(), "item_id": pa.string(), "rating": pa.float32(), "timestamp": pa.int64()}
        for block in read_range(part.file, part.start, part.end):
            try:
                raw = pa_csv.read_csv(
                    pa.BufferReader(block),
                    # '::' reads as ':' with an empty column between; the parser stays in C.
                    read_options=pa_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
                    parse_options=pa_csv.ParseOptions(delimiter=":", quote_char=False),
                    convert_options=pa_csv.ConvertOptions(column_types=types, include_columns=list(types)),
                )
            except pa.ArrowInvalid as error:
                rule = f"lines must read user::item::rating::timestamp ({error})"
                raise ConfigError(part.file, None, rule, f"mend the line near row {first + 1}") from None
            yield canonical(self.schema, raw, first, part.file)
            first += raw.num_rows

    def _extra(self) -> dict[str, list[str | None]]:
        path = self._path("movies_extrainfos.dat")
        if not storage.exists(path):
            return {}
        found = {}
        for number, line in enumerate(_decode(path, "utf-8"), 1):
            cells = line.split("::")
            if len(cells) < 10:
                raise ConfigError(
                    f"{path}:{number}", line[:60], "a line needs at least 10 '::' fields", "mend the line"
                )
            found[cells[0]] = [None if cells[i] in ("", "N/A") else cells[i] for i in _EXTRA_AT]
        return found

    def _lines(self, name: str, fields: int) -> list[list[str]]:
        path = self._path(name)
        _require(path)
        rows = []
        for number, line in enumerate(_decode(path, "iso-8859-1"), 1):
            cells = line.split("::")
            if len(cells) != fields:
                rule = f"a line needs {fields} '::' fields, this has {len(cells)}"
                raise ConfigError(f"{path}:{number}", line[:60], rule, "mend the line")
            rows.append(cells)
        return rows

    def _path(self, name: str) -> str:
        return storage.join(self.config.path, name)


def _require(path: str) -> None:
    if not storage.exists(path):
        rule = "MovieLens needs ratings.dat, users.dat and movies.dat"
        fix = "set source.path to the folder of the unpacked archive (make quickstart: DATA=folder)"
        raise ConfigError(path, None, rule, fix)


def _decode(path: str, encoding: str) -> list[str]:
    data = storage.read_bytes(path)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        rule = f"file must be {encoding} (byte {error.start} is not)"
        raise ConfigError(path, repr(data[error.start : error.start + 4]), rule, "re-encode the file") from None
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]
