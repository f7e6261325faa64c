"""Where items are put and removed: what is told becomes changes of the log, with an answer that says what each is.

Knows names, features and the log; encoding texts is for the replicas that follow the log.
"""

from __future__ import annotations

from rayrank.messages import ItemsRequest, ItemsResponse, ItemStatus, NewItem
from rayrank.ranking.encode import RequestEncoder
from rayrank.ranking.growth import Follower
from rayrank.ranking.item_log import ItemChange, ItemsSpec
from rayrank.ranking.items import Items
from rayrank.schema import DatasetSchema
from rayrank.wording import counted


class BacklogError(RuntimeError):
    """Too many items wait for their texts to be encoded; the caller may try again after ``retry_s`` seconds."""

    retry_s = 30


class FullError(RuntimeError):
    """A running service holds as many puts as it may; trying again does not help."""


class ItemDesk:
    """Takes what is told of items; ``spec`` says how much."""

    def __init__(self, encoder: RequestEncoder, items: Items, follower: Follower, spec: ItemsSpec) -> None:
        self._encoder, self._items, self._follower, self._spec = encoder, items, follower, spec

    def accept(self, request: ItemsRequest, request_id: str, now: int) -> ItemsResponse:
        """Keep all of it or nothing; on disk when this returns.

        Raises:
            BacklogError: too many items wait already.
            FullError: too many puts are held already.
            ItemLogError: the disk refuses.
        """
        changes = changes_of(request, self._encoder.schema, now)
        puts = [c for c in changes if c.kind == "put"]
        waiting = self._follower.look()
        if len(puts) > self._room(waiting):
            rule = f"full: a running service holds at most {counted(self._spec.rows, 'put')} (items.rows)"
            raise FullError(f"{rule}; promote a release that knows them, or serve again: changed items then count once")
        if puts and waiting + len(puts) > self._spec.waiting:
            raise BacklogError(f"busy: {counted(waiting, 'item')} wait for their texts to be encoded already")
        warnings = self._encoder.strange(request.items)
        known = [c.kind == "put" or self._knows(c.item_id) for c in changes]
        if lost := known.count(False):
            warnings.append(f"{counted(lost, 'id')} without a description not in the catalogue that this replica knows")
        updated = sum(self._items.row(c.item_id) > 0 for c in puts)
        self._follower.log.append(changes)
        self._follower.refresh(encode=False)  # what is removed is gone here when this returns
        if self.trouble is not None:
            warnings.append(f"kept, but the log of items is in trouble: {self.trouble}")
        return ItemsResponse(
            new=len(puts) - updated,
            updated=updated,
            removed=sum(c.kind == "remove" and there for c, there in zip(changes, known, strict=True)),
            availability=sum(c.kind == "shelve" for c in changes),
            waiting=waiting + len(puts),
            warnings=warnings,
            request_id=request_id,
        )

    @property
    def trouble(self) -> str | None:
        """What keeps this replica from following the log; names no item. None: nothing."""
        return self._follower.trouble

    def status(self, item_id: str) -> ItemStatus | None:
        """What this replica knows of an item; None: nothing."""
        self._follower.look()
        if not self._knows(item_id):  # a removal of what nobody knows is kept, for a release that may know it
            return None
        kind = self._follower.awaited(item_id) or self._items.state(item_id)
        title = self._items.title(self._items.row(item_id))
        return ItemStatus.model_validate({"item_id": item_id, "title": title, "status": kind})

    def counts(self) -> dict[str, int]:
        """Since the start of the log, for ``/v1/release``."""
        growth = self._follower.growth
        return {
            "put": growth.items,
            "removed": growth.removals,
            "waiting": self._follower.waiting,
            "dropped": growth.dropped,
            "room": self._room(self._follower.waiting),
        }

    def _knows(self, item_id: str) -> bool:
        """Whether the catalogue or, as far as this process has looked, the log has the item."""
        return self._items.row(item_id) > 0 or self._follower.awaited(item_id, "put") is not None

    def _room(self, waiting: int) -> int:
        """Puts that may still come."""
        return max(0, self._spec.rows - self._follower.growth.items - waiting)


def changes_of(request: ItemsRequest, schema: DatasetSchema, now: int) -> list[ItemChange]:
    """Changes for the log. An item that is told by its id alone changes its availability."""
    changes = [_change(item, schema, now) for item in request.items]
    return changes + [ItemChange(kind="remove", item_id=item_id, time=now) for item_id in request.remove]


def _change(item: NewItem, schema: DatasetSchema, now: int) -> ItemChange:
    if not item.described and item.title is None:
        return ItemChange(kind="shelve", item_id=item.item_id, time=now, available=item.available)
    attributes = dict(item.attributes)
    if schema.title is not None and item.title is not None:
        attributes.setdefault(schema.title, item.title)  # the template of texts may name it
    return ItemChange(
        kind="put",
        item_id=item.item_id,
        time=now,
        title=item.title,
        text=item.text,
        attributes=attributes,
        available=item.available,
    )
