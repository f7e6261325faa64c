"""KuaiRand in its published layout: ``log_*.csv``, ``user_features_*.csv``, ``video_features_basic_*.csv``.

Works for Pure, 1K and 27K alike. The whole-period video statistics that are published beside them are not read: they
know the future. Knows the CSV columns and what they mean; knows nothing about shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.schema import (
    BinaryTask,
    BoundarySplit,
    CategoricalFeature,
    DatasetSchema,
    HistoryRule,
    NumericFeature,
    RegressionTask,
    RetrievalTask,
    Split,
)
from rayrank.sources import storage
from rayrank.sources.files import Wanted, file_parts, read_all, read_part, require_columns
from rayrank.sources.source import Part, canonical, key_text

_LABELS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
}
_USER_COLUMNS: tuple[str, ...] = ("user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range")
_USER_COLUMNS += ("fans_user_num_range", "friend_user_num_range", "register_days_range")
_USER_COLUMNS += tuple(f"onehot_feat{k}" for k in range(18))
_VIDEO_CATEGORIES = ("author_id", "video_type", "upload_type", "music_type")
Label = Literal["click", "long_view", "like", "follow", "comment", "forward", "hate", "play_time"]

VALID_FROM, TEST_FROM = 1_651_680_000, 1_651_852_800
"""5 and 7 May 2022, 00:00 in China: the days of the log's ``date`` column begin there."""


class KuaiRandConfig(Config):
    """KuaiRand (or any file set of that layout)."""

    kind: Literal["kuairand"] = "kuairand"
    path: DataPath = Field(description="folder that holds the CSV files")
    logs: str = Field("log_standard_*.csv", description="which logs; log_*.csv adds the random exposures")
    tasks: tuple[Label, ...] = Field(
        ("click", "long_view", "like", "play_time"), min_length=1, description="event labels to predict"
    )
    play_limit_s: float = Field(120.0, gt=0, description="longer play times count as this, in seconds")
    split: Split = Field(
        default_factory=lambda: BoundarySplit(valid_from=VALID_FROM, test_from=TEST_FROM),
        description="default: valid 5-6 May 2022, test from 7 May (Pure, second half of the log)",
    )
    history: HistoryRule = Field(default_factory=HistoryRule, description="which events later requests see")
    part_bytes: int = Field(32 << 20, ge=1, description="bytes of a log that one task reads")


class KuaiRand:
    """See :class:`rayrank.sources.source.Source`."""

    def __init__(self, config: KuaiRandConfig) -> None:
        self.config = config

    @property
    def schema(self) -> DatasetSchema:
        """The chosen labels, the next clicked video, and what is known of user, video and situation."""
        chosen = self.config.tasks
        binary = tuple(BinaryTask(name=n, column=_LABELS[n]) for n in chosen if n in _LABELS)
        play = RegressionTask(name="play_time", column="play_time_s", low=0.0, high=self.config.play_limit_s)
        retrieval = [RetrievalTask(name=f"next_{t.name}", positive=t.name) for t in binary[:1]]
        return DatasetSchema(
            name="kuairand",
            item_id="video_id",
            timestamp="time_ms",
            time_unit="ms",
            tasks=(*binary, *([play] if "play_time" in chosen else []), *retrieval),
            user_features=tuple(CategoricalFeature(name=n, column=n) for n in _USER_COLUMNS),
            item_features=(
                *(CategoricalFeature(name=n, column=n, min_count=2) for n in _VIDEO_CATEGORIES),
                CategoricalFeature(name="tag", column="tag", separator=",", max_values=4),
                NumericFeature(name="video_duration", column="video_duration", log=True),
            ),
            context_features=tuple(CategoricalFeature(name=n, column=n) for n in ("tab", "hour", "is_rand")),
            split=self.config.split,
            history=self.config.history,
        )

    def inputs(self) -> str:
        """Names, sizes and times of the files."""
        globs = (self.config.logs, "user_features_*.csv", "video_features_basic_*.csv")
        return storage.signature([f for glob in globs for f in self._files(glob)])

    def items(self) -> pa.Table:
        """Videos with their author, kind, music, tags and length."""
        return self._table("video_features_basic_*.csv", "video_id", "item_id")

    def users(self) -> pa.Table:
        """Users with their activity, ranges of counts and the encrypted one-hot attributes."""
        return self._table("user_features_*.csv", "user_id", "user_id")

    def parts(self) -> list[Part]:
        """Byte ranges of the logs, in name order."""
        self._files(self.config.logs)
        path = self._path(self.config.logs)
        require_columns(path, list(self._wanted().columns or ()), "these are not KuaiRand logs; correct source.path")
        return file_parts(path, self.config.part_bytes)

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Exposures; the hour is that of the log (China), the play time in seconds up to the limit."""
        first = part.first_row
        for raw in read_part(part, self._wanted()):
            hour = pc.divide(raw["hourmin"].cast(pa.int64()), 100)
            seconds = pc.divide(raw["play_time_ms"].cast(pa.float64()), 1000.0)
            seconds = pc.min_element_wise(seconds, self.config.play_limit_s)
            raw = raw.append_column("hour", hour).append_column("play_time_s", seconds)
            yield canonical(self.schema, raw, first, part.file)
            first += raw.num_rows

    def _wanted(self) -> Wanted:
        names = ["user_id", "video_id", "time_ms", "hourmin", "play_time_ms", "tab", "is_rand"]
        names += [_LABELS[n] for n in self.config.tasks if n in _LABELS]
        return Wanted(names, {"user_id": pa.string(), "video_id": pa.string(), "tab": pa.string()})

    def _table(self, glob: str, source_key: str, key: str) -> pa.Table:
        features = self.schema.item_features if key == "item_id" else self.schema.user_features
        names = [f.column for f in features]
        types = {f.column: pa.string() for f in features if isinstance(f, CategoricalFeature)}
        self._files(glob)
        path = self._path(glob)
        require_columns(path, [source_key, *names], "these are not KuaiRand's files; correct source.path")
        table = read_all(path, Wanted([source_key, *names], types | {source_key: pa.string()}))
        return pa.table({key: key_text(table[source_key], path, source_key)} | {n: table[n] for n in names})

    def _files(self, glob: str) -> list[str]:
        try:
            return storage.list_files(self._path(glob), (".csv",))
        except ConfigError:
            rule = f"KuaiRand needs {self.config.logs}, user_features_*.csv and video_features_basic_*.csv"
            fix = "set source.path to the folder of the unpacked data files"
            raise ConfigError(self._path(glob), self.config.path, rule, fix) from None

    def _path(self, name: str) -> str:
        return storage.join(self.config.path, name)
