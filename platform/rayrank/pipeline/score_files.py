"""What every model said of every target, as Parquet files, written while it is said.

For whoever wants to recompute a metric. Knows scores; knows nothing about what they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrank.metrics.scores import Array, ProfileScores, Scores
from rayrank.sources import storage

_ROWS = 65_536
"""Targets of a row group, at least."""


class ScoreFiles:
    """``<folder>/<name>.parquet``, beside it ``<name>-retrieval-<task>`` and ``<name>-profile-<task>``."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def through(self, name: str, pieces: Iterable[Scores]) -> Iterator[Scores]:
        """The pieces as they are, each written on its way; files are whole when the last one has passed."""
        with ExitStack() as files:
            tables: dict[str, _Growing] = {}
            for piece in pieces:
                for suffix, columns in _tables(piece).items():
                    if suffix not in tables:
                        tables[suffix] = files.enter_context(_Growing(self._path(name + suffix)))
                    tables[suffix].add(columns)
                yield piece

    def write_profiles(self, name: str, profiles: Mapping[str, ProfileScores]) -> None:
        """Profiles are of users, not of targets, so they come at once."""
        for task, profile in profiles.items():
            classes = range(profile.probabilities.shape[1])
            columns = {"user": profile.user, "label": profile.label, "hidden": profile.hidden}
            columns |= {f"probability_{c}": profile.probabilities[:, c] for c in classes}
            with _Growing(self._path(f"{name}-profile-{task}")) as file:
                file.add(columns)

    def _path(self, name: str) -> str:
        return storage.join(self._folder, f"{name}.parquet")


def _tables(scores: Scores) -> dict[str, dict[str, Array]]:
    names = ("row", "user", "item", "part", "rank")
    found = {"": scores.columns()}
    for task, ranks in scores.retrieval.items():
        found[f"-retrieval-{task}"] = {name: getattr(ranks, name) for name in names}
    return found


class _Growing:
    """A Parquet file that takes columns a few rows at a time; it is not there before it is whole."""

    def __init__(self, path: str) -> None:
        self._path, self._held, self._rows = path, list[pa.Table](), 0
        self._files = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Growing:
        return self

    def add(self, columns: Mapping[str, Array]) -> None:
        """Some more rows, the same columns each time."""
        self._held.append(pa.table({name: np.ascontiguousarray(values) for name, values in columns.items()}))
        self._rows += len(self._held[-1])
        if self._rows >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self._held)
        if self._writer is None:
            stream = self._files.enter_context(storage.growing(self._path))
            self._writer = self._files.enter_context(pq.ParquetWriter(stream, table.schema, write_page_checksum=True))
        self._writer.write_table(table, row_group_size=max(len(table), 1))
        self._held, self._rows = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._files.__exit__(kind, error, trace)
            return
        with self._files:  # closed and removed also when the last rows do not fit
            if self._held:
                self._flush()
