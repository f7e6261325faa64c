"""Sampled negatives for clicks-only data: items that the user did not choose, as targets that no history shows.

Which items a user's negatives avoid must tell nothing of the future, nor more of the past than the log does. If the
training negatives avoided the user's later clicks, a model would learn those as the items that were never negative.
If test negatives avoided what the user had before, in a log in which users come back to items, having had an item
before would be enough to know a click. Hence the two rules of ``negatives_avoid``. Knows one bucket's events; knows
nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never, cast

import numpy as np
import pyarrow as pa

from rayrank.schema import BinaryTask, DatasetSchema, PopularityNegatives, RegressionTask, UniformNegatives
from rayrank.sources.hashing import unit
from rayrank.sources.source import label_column

_TRIES = 16
_SELDOM = 0.01
"""Share of events with an item that their user had before, up to which users are taken not to come back to items."""

Avoid = Literal["known", "request"]


@dataclass(frozen=True)
class Drawing:
    """How negatives are drawn: the probability of every item (index - 1), float64, and what is avoided."""

    weights: np.ndarray
    avoid: Avoid

    def table(self) -> pa.Table:
        """For a file."""
        return pa.table({"p": self.weights}).replace_schema_metadata({"avoid": self.avoid})

    @staticmethod
    def of(table: pa.Table) -> Drawing:
        """What :meth:`table` gave."""
        return Drawing(table["p"].to_numpy(), cast(Avoid, table.schema.metadata[b"avoid"].decode()))


def add_negatives(
    events: pa.Table, starts: np.ndarray, schema: DatasetSchema, drawing: Drawing, first_row: int
) -> tuple[pa.Table, np.ndarray]:
    """Each target followed by up to ``schema.sampled_negatives`` items that ``drawing`` does not avoid.

    ``sampling_p`` keeps the probability of each drawn one, NaN elsewhere, so that a loss can correct for it (that some
    items are rejected is left uncorrected).

    A negative has the time, request, part and context of its event, label 0 of every binary task, no regression
    label, ``history`` false, and a row number of its own past the source's last row. The draw depends on the event's
    row number and item alone. Users who know (nearly) everything get fewer.

    Returns:
        The widened events and the users' starts among them.
    """
    weights = drawing.weights
    n, num_items = schema.sampled_negatives, len(weights)
    edges = np.cumsum(weights)
    edges[-1] = max(edges[-1], 1.0)
    rows = events["row"].to_numpy()
    avoided = _Avoided(events, starts, drawing)
    slot = np.arange(n)
    draws = np.zeros((len(rows), n), dtype=np.int64)
    target = events["part"].to_numpy() > 0
    open_ = np.ones((len(rows), n), dtype=bool)
    for attempt in range(_TRIES):
        number = unit(rows[:, None].astype(np.uint64) * np.uint64(n) + slot.astype(np.uint64), salt=attempt + 1)
        fresh = np.searchsorted(edges, number, side="right").clip(max=num_items - 1) + 1
        draws = np.where(open_, fresh, draws)
        open_ = avoided.holds(draws) | _repeated(draws)
        if not open_.any():
            break
    open_ |= ~target[:, None]
    take = np.concatenate([np.ones((len(rows), 1), dtype=bool), ~open_], axis=1)
    source = np.repeat(np.arange(len(rows)), n + 1).reshape(-1, n + 1)[take]
    negative = np.concatenate([np.zeros((len(rows), 1), dtype=bool), ~open_], axis=1)[take]
    widened = events.take(pa.array(source))
    item = np.concatenate([events["item"].to_numpy()[:, None], draws], axis=1)[take].astype(np.int32)
    replaced = {
        "item": item,
        "row": np.concatenate([rows[:, None], first_row + rows[:, None] * n + slot], axis=1)[take],
        "history": widened["history"].to_numpy() & ~negative,
        "sampled": negative,
        "sampling_p": np.where(negative, weights[item - 1], np.nan).astype(np.float32),
    }
    for task in schema.event_tasks:
        label = widened[label_column(task.name)].to_numpy().copy()
        label[negative] = 0.0 if isinstance(task, BinaryTask) else np.nan
        assert isinstance(task, BinaryTask | RegressionTask)
        replaced[label_column(task.name)] = label
    for name, values in replaced.items():
        if name in widened.column_names:
            widened = widened.drop_columns([name])
        widened = widened.append_column(name, pa.array(values))
    counts = take.sum(axis=1)
    return widened, np.concatenate([[0], np.cumsum(counts)])[starts]


def draw_weights(schema: DatasetSchema, counts: np.ndarray) -> np.ndarray:
    """Probability of each item to be drawn, float64; ``counts`` (items,) are training events.

    Popularity without a single training event falls back to uniform.
    """
    rule = schema.negative_sampling
    match rule:
        case UniformNegatives():
            weights = np.ones(len(counts))
        case PopularityNegatives():
            weights = np.where(counts > 0, np.maximum(counts, 1.0) ** rule.beta, 0.0)
        case _:
            assert_never(rule)
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(counts), 1.0 / max(len(counts), 1))


class _Avoided:
    """The items that the negatives of each event may not be, as sorted (owner, item) pairs by part."""

    def __init__(self, events: pa.Table, starts: np.ndarray, drawing: Drawing) -> None:
        item, self.part = events["item"].to_numpy(), events["part"].to_numpy()
        self.base = len(drawing.weights) + 1
        user = np.repeat(np.arange(len(starts) - 1, dtype=np.int64), np.diff(starts))
        self.owner = user if drawing.avoid == "known" else _requests(user, events["request"].to_numpy())
        pairs = self.owner * self.base + item
        known = drawing.avoid == "known"
        self.by_part = {p: np.unique(pairs[self.part <= p] if known else pairs) for p in np.unique(self.part)}

    def holds(self, draws: np.ndarray) -> np.ndarray:
        """bool (events, n): which of the drawn items are avoided."""
        found = np.zeros(draws.shape, dtype=bool)
        for part, pairs in self.by_part.items():
            mine = self.part == part
            asked = self.owner[mine][:, None] * self.base + draws[mine]
            found[mine] = pairs[np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)] == asked
        return found


def _requests(user: np.ndarray, request: np.ndarray) -> np.ndarray:
    """A number for every request of every user; the requests of a user stand together."""
    changed = np.ones(len(user), dtype=bool)
    changed[1:] = (user[1:] != user[:-1]) | (request[1:] != request[:-1])
    return np.cumsum(changed, dtype=np.int64)


def repeats(events: pa.Table, starts: np.ndarray) -> int:
    """Events with an item that their user had in an earlier request."""
    user = np.repeat(np.arange(len(starts) - 1, dtype=np.int64), np.diff(starts))
    item, request = events["item"].to_numpy().astype(np.int64), _requests(user, events["request"].to_numpy())
    width = int(item.max(initial=0)) + 1
    once = np.unique(request * width + item)
    first = np.zeros(int(request.max(initial=0)) + 1, dtype=np.int64)
    first[request] = user
    return len(once) - len(np.unique(first[once // width] * width + once % width))


def avoided_items(schema: DatasetSchema, repeated: int, events: int) -> Avoid:
    """The rule for a log with so many events, so many of them repeats."""
    if schema.negatives_avoid != "auto":
        return schema.negatives_avoid
    return "request" if repeated > _SELDOM * events else "known"


def _repeated(draws: np.ndarray) -> np.ndarray:
    """True where a draw equals an earlier one of the same row."""
    same = draws[:, :, None] == draws[:, None, :]
    return np.asarray(np.tril(same, k=-1).any(axis=2))
