"""Items that clients put and remove, inside an ingress replica: a thread that waits for the disk, behind the gate."""

from __future__ import annotations

import time

from rayrank.messages import ErrorField, ItemsRequest, ItemsResponse, ItemStatus
from rayrank.on_ray.aside import Aside
from rayrank.on_ray.pool import Gate
from rayrank.ranking.desk import ItemDesk
from rayrank.ranking.encode import RequestEncoder
from rayrank.ranking.flow import StageError
from rayrank.ranking.graph import RequestError
from rayrank.ranking.growth import Follower
from rayrank.ranking.item_log import ItemLogError, ItemsSpec

_ONGOING = 8
"""Calls that wait for the disk at once; more get 429."""


class Changes:
    """What the routes of items need; without a desk the service takes none."""

    def __init__(self, desk: ItemDesk | None, gate: Gate, wait_s: float = 10.0) -> None:
        self._desk, self._gate = desk, gate
        self._aside = Aside("items", _ONGOING, wait_s)

    @classmethod
    def of(cls, spec: ItemsSpec | None, encoder: RequestEncoder, follower: Follower | None, gate: Gate) -> Changes:
        """For the log that ``follower`` follows; its names are those of the encoder."""
        if spec is None or follower is None:
            return cls(None, gate)
        return cls(ItemDesk(encoder, encoder.items, follower, spec), gate, spec.timeout_s)

    async def tell(self, request: ItemsRequest, request_id: str) -> ItemsResponse:
        """Keep changes; they are on disk when this returns.

        Raises:
            BusyError: this replica works on as many requests as it may.
            BacklogError: too much waits already.
            FullError: this replica holds as many puts as it may.
            RequestError: the service takes no items.
            StageError: the disk refuses, and nothing was kept; or it hangs, and the same may be sent again.
        """
        if self._desk is None:
            raise RequestError([ErrorField(field="items", problem="the service takes no items (items: null)")])
        with self._gate:
            try:
                found = await self._aside.run(self._desk.accept, request, request_id, int(time.time()))
            except ItemLogError as error:
                raise StageError(f"items were not kept: {error}") from None
        assert isinstance(found, ItemsResponse)
        return found

    async def status(self, item_id: str) -> ItemStatus | None:
        """What this replica knows of an item; None: nothing.

        Raises:
            BusyError: too many ask.
            StageError: the disk gives no answer.
        """
        if self._desk is None:
            return None
        try:
            found = await self._aside.run(self._desk.status, item_id)
        except ItemLogError as error:
            raise StageError(f"items: {error}") from None
        assert found is None or isinstance(found, ItemStatus)
        return found

    def counts(self) -> dict[str, int] | None:
        """For ``/v1/release``; None: the service takes no items."""
        return None if self._desk is None else self._desk.counts()

    def trouble(self) -> str | None:
        """What keeps this replica from following the log of items; None: nothing."""
        return None if self._desk is None else self._desk.trouble
