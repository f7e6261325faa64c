"""How a long sequence becomes overlapping chunks: every target in one chunk, with enough history before it.

Knows positions and parts; knows nothing about columns or files.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rayrank.schema import TEST, TRAIN, VALID


@dataclass(frozen=True)
class Chunk:
    """Positions of a user's events that a chunk holds, and from/to which position they are its targets."""

    positions: np.ndarray  # (length,) ascending, within the user
    first_target: int
    end_target: int
    number: int


def cut(part: np.ndarray, history: np.ndarray, window: int, targets: int) -> list[Chunk]:
    """The chunks of one user.

    The first chunk holds ``window + targets`` events, each later one ``targets`` new events behind the last ``window``
    visible ones. Where a later chunk holds valid or test targets it also holds the last ``window`` visible events
    before that part began: a snapshot of the user at that instant is then complete in every chunk.

    Args:
        part: (events,) part of each event.
        history: (events,) whether later events may see it.
        window: visible events of history.
        targets: new events of a chunk.
    """
    n = len(part)
    if n <= window + targets:
        return [Chunk(np.arange(n), 0, n, 0)]
    edges = [0, *range(window + targets, n, targets), n]
    shown = np.flatnonzero(history)
    chunks = []
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        anchors = {start}
        if start:
            anchors |= {int(np.argmax(part == p)) for p in (VALID, TEST) if (part[start:end] == p).any()}
        past = [_window_before(shown, anchor, window) for anchor in sorted(anchors)]
        older = np.unique(np.concatenate(past)) if past else np.zeros(0, dtype=np.int64)
        positions = np.concatenate([older[older < start], np.arange(start, end)])
        chunks.append(Chunk(positions, start, end, number))
    return chunks


def last_train(part: np.ndarray, history: np.ndarray) -> int:
    """Position of the user's last training event; −1 if there is none."""
    found = np.flatnonzero((part == TRAIN) & history)
    return int(found[-1]) if len(found) else -1


def row_groups(lengths: np.ndarray, max_events: int, max_sequences: int) -> list[tuple[int, int]]:
    """Ranges of sequences, sorted by length, of bounded padded size (a single long one may exceed it)."""
    groups: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(lengths) + 1):
        full = end == len(lengths) or end - start == max_sequences
        if full or int(lengths[end]) * (end + 1 - start) > max_events:
            groups.append((start, end))
            start = end
    return groups


def _window_before(shown: np.ndarray, position: int, window: int) -> np.ndarray:
    stop = int(np.searchsorted(shown, position))
    return shown[max(stop - window, 0) : stop]
