"""The benchmark of large id tables: equal batches but for their ids, ratios within a round."""

from __future__ import annotations

import threading
from itertools import islice

import torch

from benchmarks.tables import SMALL, TURN, Arm, Run, Turns, claims_of, redrawn, rows_of
from tests.tiny_models import batch

LARGE = Arm(5_000, 300)


def test_batches_are_equal_but_for_their_ids() -> None:
    given = batch()
    for arm in (SMALL, LARGE):
        first, second = islice(redrawn(iter([[given], [given]]), arm), 2)
        events = first[0].events
        assert torch.equal(events.item_BT > 0, given.events.item_BT > 0)
        assert int(events.item_BT.max()) > 20
        assert int(events.user_B.max()) <= arm.users
        assert not torch.equal(events.user_B, second[0].events.user_B)
        assert torch.equal(events.labels_BT["stars"].nan_to_num(), given.events.labels_BT["stars"].nan_to_num())


def test_the_claim_is_the_worse_stage_and_ratios_are_taken_within_a_run() -> None:
    def one(small: float, large: float) -> Run:
        return Run({"rows": small, "sequences": 2.0}, {"rows": large, "sequences": 2.0}, 9.0, 100.0 * large)

    found = {LARGE: [one(1.0, 1.5), one(2.0, 2.4), one(10.0, 11.0)]}
    claims = claims_of(found)
    assert claims["step_time_large_tables"] == 1.2
    assert claims["by_stage"] == {"5,000 / 300": {"rows": 1.2, "sequences": 1.0}}
    assert claims["memory_mb"]["5,000 / 300"] == 240
    assert [row.values["ratio"] for row in rows_of(found)] == [1.2, 1.0]


def test_arms_take_turns_of_some_steps() -> None:
    turns, order = Turns(), list[int]()

    def trained(who: int) -> None:
        turns.wait(who)
        for step in range(2 * TURN + 1):
            order.append(who)
            turns.step(who, "rows" if step < TURN else "sequences")
        turns.leave(who)

    threads = [threading.Thread(target=trained, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert order == 2 * ([0] * TURN + [1] * TURN) + [0, 1]
    assert [len(times) for found in turns.seconds for times in found.values()] == [TURN - 1] * 4
