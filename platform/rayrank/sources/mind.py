"""MIND in its published layout: ``behaviors.tsv`` (impressions and histories) and ``news.tsv``.

Every impression of a line is an interaction with a click label; the line is one request, so its impressions never see
each other. The clicks a line tells of before it (its history) become earlier events of the user, once per user:
those of the user's earliest line by time, in whatever order the files have them.
Knows the two files and what their columns mean; knows nothing about shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.schema import BinaryTask, CategoricalFeature, DatasetSchema, HistoryRule, RetrievalTask, Split, TimeSplit
from rayrank.sources import storage
from rayrank.sources.lines import read_range, split_lines
from rayrank.sources.source import BEFORE, Part, canonical

TEXT = "{title}. {category}, {subcategory}. {abstract}"
_BEHAVIORS = ("impression_id", "user_id", "time", "history", "impressions")
_NEWS: tuple[str, ...] = ("item_id", "category", "subcategory", "title", "abstract", "url")
_NEWS += ("title_entities", "abstract_entities")
_TIME = "%m/%d/%Y %I:%M:%S %p"


class MindConfig(Config):
    """MIND-small, MIND-large or the demo set (or any file set of that layout)."""

    kind: Literal["mind"] = "mind"
    path: DataPath = Field(description="folder that holds behaviors.tsv and news.tsv")
    behaviors: str = Field("behaviors.tsv", description="file or glob below path; */behaviors.tsv reads train and dev")
    news: str = Field("news.tsv", description="file or glob below path; news told twice counts once")
    clicked_before: bool = Field(True, description="the clicks a line tells of become earlier events of the user")
    entities: int = Field(5, ge=0, description="Wikidata entities of title and abstract kept per news; 0: none")
    split: Split = Field(default_factory=TimeSplit, description="time (default), user, or boundary")
    history: HistoryRule = Field(
        default_factory=lambda: HistoryRule(show="positives", tasks=("click",)),
        description="which events later requests see; default: clicks only",
    )
    part_bytes: int = Field(8 << 20, ge=1, description="bytes of behaviors.tsv that one task reads")


class Mind:
    """See :class:`rayrank.sources.source.Source`."""

    def __init__(self, config: MindConfig) -> None:
        self.config = config

    @property
    def schema(self) -> DatasetSchema:
        """Click and the next clicked news; news by text, category and entities."""
        names = ("category", "subcategory")
        features = [CategoricalFeature(name=n, column=n, min_count=2) for n in names]
        if self.config.entities:
            kept = self.config.entities
            entities = CategoricalFeature(
                name="entities", column="entities", separator=" ", max_values=kept, min_count=2
            )
            features.append(entities)
        return DatasetSchema(
            name="mind",
            timestamp="time",
            request_id="request",
            tasks=(BinaryTask(name="click", column="click"), RetrievalTask(name="next_click", positive="click")),
            item_features=tuple(features),
            text=TEXT,
            title="title",
            split=self.config.split,
            history=self.config.history,
        )

    def inputs(self) -> str:
        """Names, sizes and times of the files."""
        return storage.signature([*self._files(self.config.behaviors), *self._files(self.config.news)])

    def items(self) -> pa.Table:
        """News with category, text and entities; a news told in several files counts once."""
        tables = []
        for file in self._files(self.config.news):
            tables.append(_read_tsv(storage.read_bytes(file), _NEWS, file))
        table = pa.concat_tables(tables)
        _, first = np.unique(table["item_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
        table = table.take(pa.array(np.sort(first)))
        both = (table["title_entities"].to_pylist(), table["abstract_entities"].to_pylist())
        cells = [_entities(cell) for cell in zip(*both, strict=True)]
        kept = ["item_id", "category", "subcategory", "title", "abstract"]
        return table.select(kept).append_column("entities", pa.array([" ".join(c) for c in cells], pa.string()))

    def users(self) -> None:
        """MIND tells nothing of its users."""

    def parts(self) -> list[Part]:
        """Byte ranges of the behaviour files; rows are impressions and the earlier clicks told with them."""
        parts: list[Part] = []
        first = 0
        for file in self._files(self.config.behaviors):
            for start, end, _ in split_lines(file, self.config.part_bytes):
                part = Part(file=file, start=start, end=end, first_row=first)
                rows = sum(int(earlier.sum() + shown.sum()) for earlier, shown in map(_sizes, self._blocks(part)))
                parts.append(part.model_copy(update={"rows": rows}))
                first += rows
        return parts

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Per line: the user's earlier clicks (where no line of the part so far was earlier), then the impressions."""
        first = part.first_row
        for lines in self._blocks(part):
            earlier, shown = (lines[name].combine_chunks() for name in ("history", "impressions"))
            counts = np.stack(_sizes(lines), axis=1).ravel()  # of each line: earlier clicks, then impressions
            line = np.repeat(np.arange(2 * lines.num_rows), counts)
            is_earlier = line % 2 == 0
            offsets = first + np.concatenate([[0], np.cumsum(counts)])
            tokens = np.empty(len(line), dtype=object)
            tokens[is_earlier] = pc.list_flatten(earlier).to_numpy(zero_copy_only=False)
            tokens[~is_earlier] = pc.list_flatten(shown).to_numpy(zero_copy_only=False)
            news = pa.array(tokens, pa.string())
            label = np.where(is_earlier, 1.0, _clicks(news))
            raw = pa.table(
                {
                    "user_id": lines["user_id"].take(pa.array(line // 2)),
                    "item_id": pc.replace_substring_regex(news, r"-[01]$", ""),
                    "time": lines["time"].take(pa.array(line // 2)),
                    "request": pa.array(offsets[line].astype(str), pa.string()),
                    "click": pa.array(label, from_pandas=True),
                }
            )
            table = canonical(self.schema, raw, first, part.file)
            before = pa.array(offsets[line], mask=~is_earlier)
            yield table.append_column(BEFORE, before)
            first += raw.num_rows

    def _blocks(self, part: Part) -> Iterator[pa.Table]:
        """Parsed lines of a part; histories are emptied where a line before has the user at the same time or earlier.

        So a user's earliest line keeps its history in any order of lines; the build takes it from those that are left.
        """
        earliest: dict[str, int] = {}
        for block in read_range(part.file, part.start, part.end):
            table = _read_tsv(block, _BEHAVIORS, part.file)
            times = _times(table["time"], part.file)
            fresh = []
            for user, time in zip(table["user_id"].to_pylist(), times.cast(pa.int64()).to_pylist(), strict=True):
                new = time is not None and time < earliest.get(user, time + 1)
                fresh.append(self.config.clicked_before and new)
                if new:
                    earliest[user] = time
            history = pc.if_else(pa.array(fresh), table["history"].combine_chunks(), pa.scalar(None, pa.string()))
            yield pa.table(
                {
                    "user_id": table["user_id"],
                    "time": times,
                    "history": _tokens(history),
                    "impressions": _tokens(table["impressions"].combine_chunks()),
                }
            )

    def _files(self, name: str) -> list[str]:
        path = storage.join(self.config.path, name)
        try:
            return storage.list_files(path, (".tsv",))
        except ConfigError:
            rule, fix = "MIND needs behaviors.tsv and news.tsv", "set source.path to the folder of the unpacked archive"
            raise ConfigError(path, self.config.path, rule, fix) from None


def _read_tsv(block: bytes, names: tuple[str, ...], file: str) -> pa.Table:
    try:
        return pa_csv.read_csv(
            pa.BufferReader(block),
            read_options=pa_csv.ReadOptions(column_names=list(names), use_threads=False, block_size=len(block) + 1),
            parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pa_csv.ConvertOptions(
                column_types={n: pa.string() for n in names}, strings_can_be_null=True, null_values=[""]
            ),
        )
    except pa.ArrowInvalid as error:
        rule = f"lines must have {len(names)} tab-separated fields in UTF-8 ({error})"
        raise ConfigError(file, None, rule, "mend or re-encode the file") from None


def _tokens(column: pa.Array) -> pa.Array:
    """Space-separated ids as lists; null where there is none."""
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.split_pattern_regex(pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed), r"\s+")


def _sizes(lines: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """How many earlier clicks and impressions each line tells."""
    earlier, shown = (
        pc.fill_null(pc.list_value_length(lines[name].combine_chunks()), 0).to_numpy().astype(np.int64)
        for name in ("history", "impressions")
    )
    return earlier, shown


def _times(column: pa.ChunkedArray, file: str) -> pa.ChunkedArray:
    try:
        return pc.strptime(column, format=_TIME, unit="s")
    except pa.ArrowInvalid as error:
        rule = f"times must read like 11/12/2019 2:14:46 PM ({error})"
        raise ConfigError(f"{file}: time", None, rule, "mend the column") from None


def _clicks(tokens: pa.Array) -> np.ndarray:
    """1 and 0 of ``N1-1`` and ``N1-0``; NaN where there is no label (the published test set)."""
    end = pc.utf8_slice_codeunits(tokens, -2).to_numpy(zero_copy_only=False)
    return np.where(end == "-1", 1.0, np.where(end == "-0", 0.0, np.nan))


def _entities(cells: tuple[str | None, str | None]) -> list[str]:
    """Wikidata ids of title and abstract, each once, in order."""
    found: list[str] = []
    for cell in cells:
        try:
            found += [str(e["WikidataId"]) for e in json.loads(cell or "[]")]
        except (ValueError, TypeError, KeyError):
            continue
    return list(dict.fromkeys(found))
