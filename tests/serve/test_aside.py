"""What an ingress replica does beside ranking holds up neither its loop nor, without end, its callers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rayrank.messages import DryRunRequest, RankRequest
from rayrank.on_ray.aside import Aside
from rayrank.on_ray.pool import BusyError
from rayrank.ranking.flow import StageError
from tests.tiny_release import make_world


def ingress(folder: Path, **changes: Any) -> Any:
    """All of a tiny graph in this process."""
    from rayrank.on_ray.graph_spec import GraphSpec
    from rayrank.on_ray.serve import Ingress
    from rayrank.ranking.release import load_release

    world = make_world(folder)
    places = {"releases": str(world.releases), "histories": str(folder / "h"), "fused": True}
    spec = GraphSpec.model_validate({**places, **changes})
    raw = {"spec": spec.model_dump(mode="json"), "release": load_release(spec.releases).model_dump(mode="json")}
    return Ingress(raw, None)


def test_a_call_aside_is_waited_for_so_long_and_only_so_many_are_at_it() -> None:
    release = threading.Event()

    async def main() -> None:
        aside = Aside("titles", 2, 0.05)
        calls = [asyncio.create_task(aside.run(release.wait, 20)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="2 requests"):
            await aside.run(int)
        for call in calls:
            with pytest.raises(StageError, match=r"titles: no answer within 0\.05 s"):
                await call
        release.set()
        for _ in range(100):  # until the thread has let go of them
            with suppress(BusyError):
                assert await aside.run(int, "7") == 7
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the places were not given back")

    asyncio.run(main())


@pytest.mark.slow
def test_titles_are_sought_beside_the_loop_and_behind_the_gate(tmp_path: Path) -> None:
    async def main() -> None:
        service = ingress(tmp_path, replicas={"ongoing": 1}, state=None, items=None)
        search = asyncio.create_task(service.search("title 2", 3))
        await asyncio.sleep(0)
        assert not search.done(), "the loop goes on meanwhile"
        with pytest.raises(BusyError):
            await service.answer(RankRequest.model_validate({"candidates": ["i1"]}), "r")
        assert [hit.item_id for hit in await search] == ["i2", "i12", "i20"]

    asyncio.run(main())


@pytest.mark.slow
def test_a_store_that_hangs_holds_up_neither_health_nor_the_loop(tmp_path: Path) -> None:
    with socket.socket() as mute:  # takes connections and never says a word
        mute.bind(("127.0.0.1", 0))
        mute.listen(50)
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}"

        async def main() -> None:
            service = ingress(
                tmp_path, state={"url": url, "loaded": True, "timeout_s": 0.3}, example_users=5, items=None
            )
            listing = asyncio.create_task(service.examples())
            await asyncio.sleep(0)
            assert not listing.done()
            began = time.monotonic()
            assert (await service.describe()).items == 30
            assert time.monotonic() - began < 0.2
            assert await listing == []

        asyncio.run(main())


@pytest.mark.slow
def test_dry_runs_come_one_at_a_time_and_know_the_haste_of_their_requests(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("pins: []")
    asked = {"policy": {"pins": [{"item": "i3", "position": 0}]}, "requests": [{"k": 3}]}

    async def main() -> None:
        service = ingress(tmp_path, policy=str(policy), state=None, items=None)
        run = partial(service.dry_run, request_id="r")
        calls = [run(DryRunRequest.model_validate(asked)) for _ in range(3)]
        first, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(other) for other in others] == [BusyError] * 2
        assert first.answers[0].items[0].item_id == "i3"
        hasty = asked | {"requests": [{"k": 3, "timeout_ms": 1}]}
        with suppress(StageError):  # the user stage itself may be too late
            found = await run(DryRunRequest.model_validate(hasty))
            assert "timeout_ms" in found.answers[0].degraded

    asyncio.run(main())
