"""The pure parts of the quirk benchmark: the log, what is compared with what, and the claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.quirk import COHORTS, EVENTS, ITEMS, STRENGTH, Log, asked, centred, claims_of, likeness
from rayrank.sources.synthetic_text import TOPICS


def test_only_the_odd_likes_hold_the_quirk_and_both_share_their_luck() -> None:
    log = Log.of(400, seed=3)
    assert log.quirk_CG.shape == (COHORTS, len(TOPICS))
    assert set(np.abs(log.quirk_CG).ravel()) == {STRENGTH}
    assert np.allclose(log.quirk_CG.sum(1), 0)
    added = np.take_along_axis(log.added(), log.item_UE, axis=1)
    odd, plain = log.likes(True, 3), log.likes(False, 3)
    assert np.corrcoef(odd.ravel(), added.ravel())[0, 1] > 0.3
    assert abs(np.corrcoef(plain.ravel(), added.ravel())[0, 1]) < 0.02
    assert (odd >= plain)[added > 0].all()
    assert (odd <= plain)[added < 0].all()


def test_likeness_is_of_what_users_and_items_have_in_common_left_out() -> None:
    quirk = np.array([[1.0, -1.0], [-1.0, 1.0]])
    moved = 0.5 * quirk + np.array([[3.0], [7.0]]) + np.array([[2.0, -4.0]])
    assert likeness(moved, quirk) == pytest.approx((1.0, 0.5))
    assert likeness(-moved, quirk) == pytest.approx((-1.0, -0.5))
    assert likeness(np.ones((2, 2)), quirk) == (0.0, 0.0)
    assert centred(moved).sum(0) == pytest.approx([0.0, 0.0])


def test_every_item_is_asked_of_every_unknown_user_after_their_history() -> None:
    log = Log.of(3, seed=1)
    row_N = np.arange(1, ITEMS + 1)
    events, queries = asked(row_N, log.item_UE, log.likes(False, 1), torch.tensor([1, 2, 0]))
    assert events.shape == (3, EVENTS)
    assert events.user_B.tolist() == [0, 0, 0]
    assert queries.item_BQ.shape == (3, ITEMS)
    assert torch.equal(events.item_BT, torch.from_numpy(log.item_UE) + 1)
    assert bool((queries.visible_before_BQ > events.request_BT.max()).all())
    assert int(queries.time_BQ.min()) > int(events.time_BT.max())


def test_claims_are_means_over_seeds() -> None:
    names = ("distilled student", "undistilled student")
    found = [{name: {"correlation": value} for name, value in zip(names, pair, strict=True)} for pair in
             ((0.9, 0.1), (0.8, -0.2))]  # fmt: skip
    claims = claims_of(found)
    assert claims["quirk_distilled"] == pytest.approx(0.85)
    assert claims["quirk_undistilled"] == pytest.approx(-0.05)
    assert claims["by_seed"] == {names[0]: [0.9, 0.8], names[1]: [0.1, -0.2]}
