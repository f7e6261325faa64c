"""Ties the parts of one process to the log of items: which release, whose vectors, who is told.

Knows bundles and releases; what is done with a change is for the receivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrank.bundle import Bundle, read_id, read_info
from rayrank.bundle.info import ITEMS
from rayrank.ranking.encode import TableEncoder
from rayrank.ranking.growth import Encode, Follower, Fresh, Growth, Receiver, RowsOf, moment
from rayrank.ranking.item_log import ItemLog, ItemsSpec
from rayrank.ranking.items import Items
from rayrank.ranking.release import Release


@dataclass(frozen=True)
class ItemSource:
    """The log of items that is followed, and how."""

    log: ItemLog
    spec: ItemsSpec


def follow(
    source: ItemSource | None,
    of: tuple[Bundle, Release],
    receivers: Sequence[Receiver],
    items: Items | None = None,
    encode: Encode | None = None,
) -> Follower | None:
    """Follow a log from now on; hold the result, the thread ends with it. None without a log.

    ``items``: the names of this process, where it has them; ``encode``: what makes text vectors, where it can.
    """
    if source is None:
        return None
    growth = growth_of(of, receivers, items)
    return Follower(source.log, growth, encoder_id(of[1]), source.spec.poll_s, encode, source.spec.folded or 0)


def growth_of(of: tuple[Bundle, Release], receivers: Sequence[Receiver], items: Items | None = None) -> Growth:
    """What keeps the parts of one process up with items that are put while a release is served."""
    bundle, release = of
    schema = bundle.info.data_schema
    encoder = TableEncoder(schema.item_features, bundle.features.items)
    rows_of = _looked_up(bundle) if items is None else items.released_rows
    return Growth(schema, encoder, rows_of, receivers, moment(release.created))


def names(items: Items) -> Receiver:
    """Enters new names."""

    def receive(fresh: Fresh) -> None:
        items.apply(fresh.changes, fresh.titles)

    return receive


def encoder_id(release: Release) -> str | None:
    """Bundle id of the teacher whose text vectors all stages read; None: no model of the release reads texts anew."""
    if release.teacher is None or read_info(release.teacher).encoder is None:
        return None
    return read_id(release.teacher)


def _looked_up(bundle: Bundle) -> RowsOf:
    """Rows by ids from the bundle's file, for a process that holds no names."""

    def rows_of(item_ids: Sequence[str]) -> np.ndarray:
        column = pq.read_table(bundle.path / ITEMS, columns=["item_id"]).column("item_id")
        found = pc.index_in(pa.array(item_ids, column.type), value_set=column.combine_chunks())
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64) + 1

    return rows_of
