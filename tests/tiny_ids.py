"""Item ids of a dataset, for tests of the serving encoder."""

from __future__ import annotations

from rayrank.sources.dataset import Dataset


class DatasetIds:
    """The part of a catalogue that the encoder asks."""

    def __init__(self, dataset: Dataset) -> None:
        self._rows = {i: n + 1 for n, i in enumerate(dataset.catalogue_table()["item_id"].to_pylist())}

    def row(self, item: str | None) -> int:
        return self._rows.get(item or "", 0)

    def __len__(self) -> int:
        return len(self._rows) + 1
