"""How the parts of one process keep up with items that are put and removed while serving.

:class:`Growth` turns changes into rows for whatever receives them: names, a scorer, the retriever, the policy. Rows
are given in the order of the changes, so they are the same in every process. :class:`Follower` reads the log in a
thread beside the requests. Knows catalogues and features; knows nothing about models.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from rayrank.features.text import item_text, item_title
from rayrank.ranking.context import ColdItems
from rayrank.ranking.encode import TableEncoder
from rayrank.ranking.item_log import ItemChange, ItemLog, ItemLogError, ItemPart
from rayrank.schema import DatasetSchema

_AT_ONCE = 5000
"""Changes that are applied together: tables are copied once for all of them."""
_TEXTS = 64
"""Texts that are encoded in one go."""
_AHEAD = 16
"""Files among which a process chooses the next to encode, once it has seen that others encode too."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fresh:
    """Changes with what a process needs to follow them; M puts."""

    changes: tuple[ItemChange, ...]
    titles: tuple[str, ...]  # of the puts
    released: np.ndarray  # int64 (M,): rows of the release whose trained ids they keep, 0: none
    cold: ColdItems  # features, texts and, where there are any, text vectors of the puts
    groups: tuple[int, ...]  # how many puts were told together: computed together, they are the same to the last bit


Told = tuple[Sequence[ItemChange], np.ndarray | None]
"""Changes that were told together, and the text vectors (puts, D) of their puts, if there are any."""
Receiver = Callable[[Fresh], None]
RowsOf = Callable[[Sequence[str]], np.ndarray]
"""Ids to the rows that they had in the release, 0 where it does not know them."""
Encode = Callable[[ColdItems], np.ndarray | None]


class Growth:
    """Applies changes to the parts of one process, always in the same order.

    ``since`` (unix seconds): what was put before, of an item that the release knows, is dropped but for its
    availability: the release, which is younger, knows all else better.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        encoder: TableEncoder,
        rows_of: RowsOf,
        receivers: Sequence[Receiver],
        since: int = 0,
    ) -> None:
        self._schema, self._encoder, self._rows_of = schema, encoder, rows_of
        self._receivers, self._since = tuple(receivers), since
        self.items = self.removals = self.dropped = 0

    def described(self, puts: Sequence[ItemChange]) -> ColdItems:
        """Puts as models see them, without vectors."""
        if not puts:
            return ColdItems()
        texts = tuple(p.text or item_text(self._schema, p.attributes) for p in puts)
        return ColdItems(tuple(p.item_id for p in puts), texts, self._encoder([p.attributes for p in puts]))

    def apply(self, told: Sequence[Told], early: Sequence[ItemChange] = ()) -> None:
        """Hand changes to every receiver.

        ``early``: removals and the like that lie behind puts which wait; they come once more, and are not counted now.
        """
        told = [*told, (early, None)] if early else told
        changes = [c for some, _ in told for c in some]
        made = [v for _, v in told if v is not None and len(v)]
        vectors = np.concatenate(made) if made else None
        released = self._rows_of([c.item_id for c in changes])
        stays = [c.kind != "put" or c.time >= self._since or not row for c, row in zip(changes, released, strict=True)]
        put = np.asarray([c.kind == "put" for c in changes], bool)
        kept = np.asarray(stays, bool)
        told_of = tuple(c if keep else _shelved(c) for c, keep in zip(changes, stays, strict=True))
        puts = [c for c in told_of if c.kind == "put"]
        cold = self.described(puts)
        if vectors is not None and len(puts):
            cold = ColdItems(cold.keys, cold.texts, cold.features, vectors[kept[put]])
        titles = tuple(p.title or item_title(self._schema, p.attributes, p.item_id) for p in puts)
        ends = np.cumsum([len(some) for some, _ in told])[:-1]
        groups = tuple(int(some.sum()) for some in np.split(put & kept, ends))
        fresh = Fresh(told_of, titles, released[put & kept], cold, tuple(n for n in groups if n))
        for receive in self._receivers:
            receive(fresh)
        self.items, self.dropped = self.items + len(puts), self.dropped + stays.count(False)
        self.removals += sum(c.kind == "remove" for c in changes) - sum(c.kind == "remove" for c in early)


class Follower:
    """Follows a log in a thread.

    ``teacher_id``: whose vectors of the texts are waited for; None: texts are not read. ``encode`` makes them here, for
    the replicas that have the teacher: the thread has the lowest priority, so requests come first.

    ``folded``: of the puts of one item in files up to this number only the last gets a row. It must be the same in all
    processes that name items to each other by rows, whenever they start.
    """

    def __init__(
        self,
        log: ItemLog,
        growth: Growth,
        teacher_id: str | None,
        poll_s: float,
        encode: Encode | None = None,
        folded: int = 0,
    ) -> None:
        self.log, self.growth = log, growth
        self._teacher_id, self._encode, self._folded = teacher_id, encode, folded
        self._last: dict[str, int] = {}  # id -> file of its last put among those that are folded
        self._known = self._hurried = 0
        self._others = False  # whether another process was quicker with a file that this one encoded
        self._waiting: list[ItemPart] = []
        self._reading, self._applying = threading.Lock(), threading.Lock()
        self.trouble: str | None = None
        self.refresh(encode=False)  # what can be had at once; the thread goes on with what needs the encoder
        threading.Thread(target=_follow, args=(weakref.ref(self), poll_s), name="items", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Items whose texts have no vectors yet, as far as this process has looked."""
        return sum(len(part.puts) for part in self._waiting)

    def awaited(self, item_id: str, kind: str | None = None) -> str | None:
        """``waiting`` where a change (of this kind) of the item has not been applied yet."""
        with self._reading:
            changes = (c for part in self._waiting for c in part.changes if c.item_id == item_id)
            return "waiting" if any(kind in (None, c.kind) for c in changes) else None

    def look(self) -> int:
        """Read what is new without applying it; returns :attr:`waiting`.

        Raises:
            ItemLogError: the log cannot be read.
        """
        with self._reading:
            for part in self.log.parts(self._known):
                self._waiting.append(part)
                self._known = part.number
                if part.number <= self._folded:
                    self._last |= dict.fromkeys((put.item_id for put in part.puts), part.number)
            return self.waiting

    def refresh(self, encode: bool = True) -> None:
        """Read the log, apply what is ready in its order, and what removes or shelves at once; encode what waits."""
        trouble = self._catch_up()
        try:
            while encode and (part := self._unread()) is not None:
                self._read(part)
                trouble = self._catch_up()
        except ItemLogError as error:
            trouble = str(error)
        if trouble is not None and trouble != self.trouble:
            _log.error("items log %s: %s", self.log.path, trouble)
        self.trouble = trouble

    def _catch_up(self) -> str | None:
        """Read and apply; what is wrong, if something is.

        A damaged file stops what lies behind it; one among those that are folded also the puts before it, since it may
        hold later ones of the same items. Removals and availability before it are applied all the same.
        """
        trouble = None
        with self._applying:
            try:
                self.look()
            except ItemLogError as error:
                trouble = str(error)
            if self._known < self._folded:
                trouble = trouble or f"{self._known} of {self._folded} files are there that are to be folded"
                trouble = f"{trouble}; no put is applied until it is mended"
            try:
                while self._step():
                    pass
            except ItemLogError as error:
                trouble = str(error)
        return trouble

    def _step(self) -> bool:
        """Apply some ready parts, and the removals among those that wait; whether there may be more.

        The removals are applied with every step, in the same breath: a put before them would undo them until their
        turn comes.
        """
        waiting, ready, count, damage = tuple(self._waiting), list[Told](), 0, None
        for part in waiting if self._known >= self._folded else ():  # until then nobody knows which put is the last
            try:
                found = self._vectors_of(part)
            except ItemLogError as error:
                damage = error
                break
            if found is None or count > _AT_ONCE:
                break
            ready.append(self._without_replaced(part, found))
            count += len(part.changes)
        behind = waiting[len(ready) :]
        if ready or (behind and behind[-1].number > self._hurried):
            self.growth.apply(ready, [c for part in behind for c in part.changes if c.kind != "put"])
            self._hurried = waiting[-1].number
            with self._reading:
                del self._waiting[: len(ready)]
                if not self._waiting or self._waiting[0].number > self._folded:
                    self._last = {}
        if damage is not None:
            raise damage
        return bool(ready)

    def _without_replaced(self, part: ItemPart, vectors: np.ndarray) -> Told:
        """Changes and vectors of a file; a put that a folded one replaces says no more than its availability."""
        stays = [c.kind != "put" or self._last.get(c.item_id, part.number) == part.number for c in part.changes]
        if part.number > self._folded or all(stays):
            return part.changes, vectors
        changes = [c if stay else _shelved(c) for c, stay in zip(part.changes, stays, strict=True)]
        kept = np.asarray([stay for c, stay in zip(part.changes, stays, strict=True) if c.kind == "put"], bool)
        return changes, vectors[kept] if len(vectors) else vectors

    def _vectors_of(self, part: ItemPart) -> np.ndarray | None:
        """float32 (puts, D), or (0, 0) where none are needed; None: they are still to come."""
        if self._teacher_id is None or not part.puts:
            return np.zeros((0, 0), np.float32)
        return self.log.vectors(self._teacher_id, part.number)

    def _unread(self) -> ItemPart | None:
        """A part that waits to be encoded: the first; where others encode too, any of the next, or all do the same."""
        with self._reading:
            waiting = self._waiting[: _AHEAD if self._others else 1] if self._encode is not None else []
        missing = list[ItemPart]()
        for part in waiting:
            try:
                missing += [part] if self._vectors_of(part) is None else []
            except ItemLogError:
                if not missing:
                    raise
                break  # what lies behind it cannot be applied
        return random.choice(missing) if missing else None

    def _read(self, part: ItemPart) -> None:
        """Encode a part's texts, some at a time: what is told meanwhile must not wait for all of them."""
        assert self._encode is not None
        assert self._teacher_id is not None
        made = list[np.ndarray]()
        for start in range(0, len(part.puts), _TEXTS):
            found = self._encode(self.growth.described(part.puts[start : start + _TEXTS]))
            if found is None:
                raise ItemLogError(f"no encoder reads the texts of part {part.number}")
            if self._vectors_of(part) is not None:
                self._others = True
                return
            made.append(found)
            self._catch_up()
        self.log.keep_vectors(self._teacher_id, part.number, np.concatenate(made))


def _shelved(put: ItemChange) -> ItemChange:
    """What a put says of whether its item may be shown, and nothing else."""
    return put.model_copy(update={"kind": "shelve"})


def _follow(reference: weakref.ref[Follower], poll_s: float) -> None:
    with suppress(OSError, AttributeError):  # of this thread alone, where the system can
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
    time.sleep(poll_s)  # what could be had at once is applied already
    while (followed := reference()) is not None:
        try:
            followed.refresh()
        except Exception as error:  # the message could repeat a text; the thread must live
            followed.trouble = f"unexpected {type(error).__name__}"
            _log.error("items log: %s", followed.trouble)
        del followed
        time.sleep(poll_s)


def moment(created: str) -> int:
    """Unix seconds of a release's ISO time; 0 where it tells none."""
    try:
        found = datetime.fromisoformat(created)
    except ValueError:
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
