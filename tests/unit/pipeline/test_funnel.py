"""The funnel on a small dataset: cuts by hand, and every list beside what the ranking graph itself answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rayrank.config import ConfigError, load, parse
from rayrank.metrics.bootstrap import Interval
from rayrank.pipeline import funnel_cuts, funnel_report
from rayrank.pipeline.funnel import FunnelConfig, funnel
from rayrank.pipeline.funnel_cuts import _cut
from rayrank.pipeline.funnel_found import PairFound, choose
from rayrank.pipeline.funnel_requests import Sampling, sample_requests
from rayrank.pipeline.targets import part_columns
from rayrank.ranking.release import Release, save_release, set_alias
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset

OFF = {"tracking": {"kind": "none"}}


def quiet(_line):
    pass


@pytest.fixture(scope="module")
def releases(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    fusion = {"like": 1.0, "stars": 0.5}
    save_release(folder, Release(release_id="both", student=world.student, teacher=world.teacher, fusion=fusion))
    save_release(folder, Release(release_id="alone", student=world.student, teacher=None, fusion=fusion))
    set_alias(folder, "both")
    return str(folder)


@pytest.fixture(scope="module")
def result(world, releases, tmp_path_factory):
    raw = OFF | {"dataset": world.dataset, "releases": releases, "output": str(tmp_path_factory.mktemp("funnel"))}
    raw |= {
        "requests": 25,
        "k": 5,
        "pools": [10, 30, 60],
        "reranks": [0, 5, 20, 60],
        "timed": 8,
        "repeats": 2,
        "budget_ms": 1e5,
    }
    return funnel(parse(FunnelConfig, raw), quiet)


def test_what_is_judged_is_what_the_graph_answers(result):
    assert result.same == 1.0  # every pair of every timed request, item by item


def test_pieces_of_the_catalogue_give_the_scores_of_all_of_it(result, world, releases, monkeypatch, tmp_path):
    monkeypatch.setattr(funnel_cuts, "_PIECE", 7)
    raw = OFF | {"dataset": world.dataset, "releases": releases, "output": str(tmp_path)}
    raw |= {
        "requests": 25,
        "k": 5,
        "pools": [10, 30, 60],
        "reranks": [0, 5, 20, 60],
        "timed": 5,
        "repeats": 1,
        "budget_ms": 1e-6,
    }
    again = funnel(parse(FunnelConfig, raw), quiet)
    assert again.orders == pytest.approx(result.orders)
    for one, other in zip(result.pairs, again.pairs, strict=True):
        assert one.lost == other.lost
        assert one.ndcg == other.ndcg
    assert again.choice.pair is None
    assert again.summary()[-1].startswith("Nothing to serve with: no pair keeps to 1e-06 ms; the fastest")


def test_cuts_add_up_and_nothing_is_lost_where_nothing_is_cut(result):
    by_pair = {one.pair: one for one in result.pairs}
    assert set(by_pair) == {(n, m) for n in (10, 30, 60) for m in (0, 5, 20, 60) if m <= n}
    for one in result.pairs:
        assert one.lost.value == pytest.approx(one.lost_retrieve + one.lost_prerank + one.lost_final)
        assert min(one.lost_retrieve, one.lost_prerank) >= 0
        assert one.lost_prerank == 0 or one.rerank
        assert one.lost_final == 0 or not one.rerank  # the teacher keeps its best of what it is given
        assert one.median_ms <= one.latency_ms
        assert one.stages_ms["retrieve"] > 0
        assert (one.stages_ms["teacher"] > 0) == (one.rerank > 0)
    whole = by_pair[60, 60]  # the catalogue has 60 items: nothing is cut
    assert whole.lost.value == 0
    assert whole.ndcg == pytest.approx(result.orders["teacher"])
    assert (whole.ndcg_gain.value, whole.ndcg_gain.high) == (0.0, 0.0)
    assert by_pair[60, 0].ndcg == pytest.approx(result.orders["student"])
    assert by_pair[10, 5].lost.value > by_pair[30, 20].lost.value


def test_segments_part_the_requests(result):
    by_name = {one.name: one for one in result.segments}
    assert by_name["all"].requests == result.requests
    for dimension in ("user", "device"):
        mine = [one for name, one in by_name.items() if name.startswith(f"{dimension}: ")]
        assert sum(one.requests for one in mine) == result.requests
        mean = sum(one.requests * one.overlap for one in mine) / result.requests
        assert mean == pytest.approx(by_name["all"].overlap)
    assert any(name.startswith("item: ") for name in by_name)
    assert all(-1 <= one.tau <= 1 and -1 <= one.rho <= 1 for one in result.segments if not np.isnan(one.tau))


def test_files(result):
    folder = Path(result.output)
    found = json.loads((folder / "funnel.json").read_text(), parse_constant=pytest.fail)
    assert found["choice"]["pair"] == list(result.choice.pair)
    assert len(found["pairs"]) == len(result.pairs)
    page = (folder / "funnel.md").read_text()
    assert "chosen" in page
    for name in ("latency", "cuts", "segments"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"({name}.png)" in page
    pool, rerank = result.choice.pair
    assert result.summary()[-1].startswith(f"Serve with flow.pool={pool} and flow.rerank={rerank}: ")


def test_requests_show_only_what_came_before_and_hide_what_was_liked_later(world, tmp_path):
    dataset = Dataset.open(world.dataset)
    store = UserStore.open(tmp_path / "h.sqlite", dataset, quiet)
    asked = sample_requests(dataset, store, Sampling("test", "like", 20, 8, 1))
    ids = dataset.users_table()["user_id"]
    table = pd.concat(pd.DataFrame(block) for block in part_columns(dataset, 3, ["user", "item", "label_like"]))
    assert 10 < len(asked) <= 20
    assert len({one.context.user for one in asked}) == len(asked)
    for one in asked:
        whole = store.history(str(ids[one.context.user - 1]))
        seen = np.concatenate([one.context.older, one.context.history.item])
        np.testing.assert_array_equal(seen, whole.item[: len(seen)])
        assert len(one.context.history) <= 8
        assert whole.time[len(seen)] == one.context.time
        liked = table.item[(table.user == one.context.user) & (table.label_like == 1)]
        assert set(one.liked) == set(liked) - set(seen)
        assert set(one.liked) <= set(whole.item[len(seen) :])  # which is more: the request may hold valid targets too
    again = sample_requests(dataset, store, Sampling("test", "like", 20, 8, 1))
    assert [one.context.user for one in again] == [one.context.user for one in asked]


def test_a_cut_by_hand():
    student = np.array([-np.inf, 9, 8, 7, 6, 5, 4], np.float32)
    teacher = np.array([-np.inf, 1, 2, 3, 4, 5, 6], np.float32)
    reference, liked = np.array([6, 5, 4]), np.array([5, 1])
    # Retrieved 1 2 4 5 (6 is lost), the student hands on 1 2 4 (5 is lost), the teacher shows 4 2 1.
    pool = np.array([5, 4, 2, 1])
    found = _cut((4, 3), pool, (student, teacher), (reference, liked))
    np.testing.assert_array_equal(found.shown, [4, 2, 1])
    assert (found.retrieve, found.prerank, found.final) == pytest.approx((1 / 3, 1 / 3, 0))
    assert found.ndcg == pytest.approx(0.5 / (1 + 1 / np.log2(3)))
    # Without the teacher the student shows 1 2 4: 5 is handed on and not shown.
    alone = _cut((4, 0), pool, (student, teacher), (reference, liked))
    np.testing.assert_array_equal(alone.shown, [1, 2, 4])
    assert (alone.retrieve, alone.prerank, alone.final) == pytest.approx((1 / 3, 0, 1 / 3))
    assert alone.lost == pytest.approx(2 / 3)


def pair(pool, rerank, lost, latency_ms):
    spread = Interval(lost, 0.0, lost, lost, 0.95)
    return PairFound(pool, rerank, lost, 0.0, 0.0, spread, 0.1, spread, latency_ms, latency_ms, {})


def test_the_cheapest_pair_within_the_budget_by_hand():
    found = [pair(100, 0, 0.4, 2.0), pair(100, 50, 0.3, 6.0), pair(500, 50, 0.105, 9.0), pair(500, 200, 0.1, 20.0)]
    assert choose(found, 30, 0.01).pair == (500, 50)
    assert choose(found, 30, 0.0).pair == (500, 200)
    assert choose(found, 8, 0.01).pair == (100, 50)
    assert choose(found, 8, 0.2).pair == (100, 0)
    by_chance = [*found, pair(500, 60, 0.105, 8.9)]  # quicker than the smaller (500, 50) by the clock's noise alone
    assert choose(by_chance, 30, 0.01).pair == (500, 50)
    nothing = choose(found, 1, 0.01)
    assert nothing.pair is None
    assert "(100, 0), needs 2.0 ms" in nothing.reason


def test_a_choice_that_loses_much_is_no_advice(result):
    def told(*found, budget_ms):
        return funnel_report.verdict(replace(result, pairs=found, choice=choose(found, budget_ms, 0.01)))

    low, middle, high = pair(100, 50, 0.55, 6.0), pair(500, 50, 0.19, 9.0), pair(500, 200, 0.1, 20.0)
    assert told(low, middle, high, budget_ms=10).startswith("Serve with flow.pool=500 and flow.rerank=50: ")
    warned = told(low, middle, high, budget_ms=8)
    assert warned.startswith("Best of the pairs tried is flow.pool=100 and flow.rerank=50: ")
    assert "Warning: it loses more than 0.2 of what the teacher would show, most of it in retrieval; " in warned
    assert warned.endswith("flow.pool=500 and flow.rerank=200 loses 0.100 in 20.0 ms (raise budget_ms).")
    assert told(low, budget_ms=8).endswith("try larger pools, or a student that agrees better with its teacher.")


def test_mistakes_name_path_and_fix(world, releases, tmp_path):
    raw = OFF | {"dataset": world.dataset, "releases": releases, "output": str(tmp_path)}
    with pytest.raises(ConfigError, match="cannot show 10 items"):
        parse(FunnelConfig, raw | {"pools": [5]})
    with pytest.raises(ConfigError, match="0, or at least k"):
        parse(FunnelConfig, raw | {"reranks": [0, 3]})
    with pytest.raises(ConfigError, match="none fits into a pool"):
        parse(FunnelConfig, raw | {"reranks": [200], "pools": [100]})
    with pytest.raises(ConfigError, match="no teacher"):
        funnel(parse(FunnelConfig, raw | {"releases": f"{releases}/alone"}), quiet)


def test_cuts_are_not_chosen_on_test(root):
    for path in sorted((root / "jobs" / "configs").glob("*/funnel.yaml")):
        assert load(FunnelConfig, str(path)).part == "valid"
    assert FunnelConfig(dataset="d", releases="r", output="o").part == "valid"
