"""Folds: every user in one of them, the same in every batch; trained without the fold, evaluated on it alone."""

from __future__ import annotations

import pytest
import torch

from rayrank.config import ConfigError, parse
from rayrank.learning.feed import Feed
from rayrank.learning.folds import evaluated, held_out, trained
from rayrank.learning.inputs import Hooks, TrainData, TrainSpec
from rayrank.learning.plan import GroupRef, micro_batches
from rayrank.learning.spec import FoldSpec, LearningSpec
from rayrank.learning.train import train
from rayrank.models.build import build_ranker
from rayrank.schema import TRAIN, VALID
from rayrank.sources.build import build, run_here
from rayrank.sources.groups import LocalGroups, Shards
from rayrank.sources.spec import BuildSpec
from tests.tiny_models import SCHEMA, SIZES, batch, catalogue, spec_of
from tests.tiny_runs import LEARNING

FOLDS = [FoldSpec(number=number, count=3) for number in range(3)]


def test_every_user_is_in_one_fold_and_folds_are_about_equal() -> None:
    users = torch.arange(1, 3001)
    inside = torch.stack([held_out(users, fold) for fold in FOLDS])
    assert (inside.sum(0) == 1).all()
    assert (inside.sum(1) - 1000).abs().max() < 120  # four standard deviations
    assert held_out(users[500:], FOLDS[0]).equal(inside[0][500:])
    other = held_out(users, FoldSpec(number=0, count=3, seed=1))
    assert 200 < int((other & inside[0]).sum()) < 500  # another division


def test_a_fold_beyond_the_last_is_refused() -> None:
    with pytest.raises(ConfigError, match="below count"):
        parse(LearningSpec, {"fold": {"number": 3, "count": 3}})


def test_a_batch_falls_into_what_is_trained_and_what_is_evaluated() -> None:
    given = batch(sequences=12, seed=3)
    for fold in FOLDS:
        left, held = trained(given, fold), evaluated(given, fold)
        assert len(left.part_BT) + len(held.part_BT) == 12
        assert not held_out(left.events.user_B, fold).any()
        assert held_out(held.events.user_B, fold).all()
    assert trained(given, None) is given
    assert evaluated(given, None) is given


def test_pieces_that_lost_all_sequences_keep_their_place() -> None:
    given = batch(sequences=2, seed=3)
    pieces = list(micro_batches(given, GroupRef(0, 0, 4, seed=5)))
    assert [piece is None for piece in pieces] == [False, False, True, True]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("folds") / "dataset")
    source = {"kind": "synthetic", "num_rows": 1500, "num_users": 60, "num_items": 60}
    build(parse(BuildSpec, {"source": source, "path": path, "max_sequences": 8}), run_here, lambda _: None)
    return path


def test_the_folds_of_a_feed_share_out_all_targets(dataset: str) -> None:
    groups = LocalGroups(Shards(dataset))
    whole = Feed(groups, LearningSpec())

    def rows(feed: Feed, part: int) -> list[int]:
        given = [b for step in feed.steps(0) for b in step] if part == TRAIN else list(feed.evaluated("valid"))
        return sorted(row for b in given for row in b.row_BT[b.part_BT == part].tolist())

    feeds = [Feed(groups, LearningSpec(fold=fold)) for fold in FOLDS]
    assert sorted(row for feed in feeds for row in rows(feed, VALID)) == rows(whole, VALID)
    everything = rows(whole, TRAIN)
    assert sorted(row for feed in feeds for row in rows(feed, TRAIN)) == sorted(2 * everything)
    for feed in feeds:
        users = {int(u) for step in feed.steps(0) for b in step for u in b.events.user_B}
        tested = {int(u) for b in feed.evaluated("valid") for u in b.events.user_B}
        assert users
        assert tested
        assert not users & tested


def test_steps_without_a_batch_are_trained_through() -> None:
    torch.manual_seed(0)
    model = build_ranker(spec_of("student"), SCHEMA, SIZES)
    given = [batch(sequences=4, seed=10 + n, first_key=10 * n) for n in range(2)]
    steps = [[given[0]], [], [given[1]]]
    data = TrainData(catalogue(), lambda _, start: iter(steps[start:]), 3, lambda: iter(given))
    result = train(model, data, TrainSpec(LEARNING), Hooks())
    assert len(result.curve) == 3 * LEARNING.epochs
    assert all(torch.isfinite(p).all() for p in model.parameters())
