"""Every metric on every resample is the metric of the rows repeated as often as their user was drawn."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank.metrics.bootstrap import Resamples
from rayrank.metrics.evaluated import Evaluated, Judged, Ranked
from rayrank.metrics.resampled import resampled
from rayrank.metrics.scores import Array, ProfileScores
from rayrank.metrics.summary import metrics_of
from rayrank.metrics.values import quantile_bins
from rayrank.schema import BinaryTask, DatasetSchema, MulticlassTask, RegressionTask, RetrievalTask

SCHEMA = DatasetSchema(
    name="made",
    tasks=(
        BinaryTask(name="like", column="like"),
        RegressionTask(name="stars", column="stars", low=1, high=5),
        MulticlassTask(name="age", column="age", classes=("young", "old")),
        RetrievalTask(name="next", positive="like"),
    ),
)
ROWS, USERS = 600, 40


def made() -> Evaluated:
    generator = np.random.default_rng(0)
    user = generator.integers(1, USERS, ROWS)
    truth = generator.random(ROWS)
    label = (generator.random(ROWS) < truth).astype(np.float32)
    said = np.clip(np.round(truth + 0.2 * generator.normal(size=ROWS), 2), 0.01, 0.99).astype(np.float32)
    stars = (1 + 4 * generator.random(ROWS)).astype(np.float32)
    rank = generator.integers(1, 300, ROWS).astype(np.int32)
    share = generator.random(USERS).astype(np.float32)
    profile = ProfileScores(
        np.arange(1, USERS + 1),
        generator.integers(0, 2, USERS).astype(np.int16),
        np.stack([share, 1 - share], axis=1),
        np.arange(USERS) % 3 == 0,
    )
    events = {"like": Judged.of(user, label, said), "stars": Judged.of(user, stars, stars + said - 0.5)}
    return Evaluated(events, {"age": profile}, {"next": Ranked(user.astype(np.int32), rank)})


def repeated(draws: Resamples, r: int, user: Array) -> tuple[Array, Array]:
    """(rows, their users): each copy of a user counts as a user of its own."""
    times = draws.weights[r][np.searchsorted(draws.user, user)]
    copy = np.concatenate([np.arange(t) for t in times])
    rows = np.repeat(np.arange(len(user)), times)
    return rows, user[rows] * 100 + copy


def again(found: Evaluated, draws: Resamples, r: int) -> dict[str, float]:
    events = {}
    for task, judged in found.events.items():
        rows, user = repeated(draws, r, judged.user)
        events[task] = Judged(user, judged.label[rows], judged.prediction[rows])
    rows, user = repeated(draws, r, found.ranks["next"].user)
    ranks = {"next": Ranked(user, found.ranks["next"].rank[rows])}
    profile = found.profiles["age"]
    hidden = Resamples.draw(profile.user[profile.hidden], len(draws.weights), draws.seed)
    rows, _ = repeated(hidden, r, profile.user[profile.hidden])
    kept = np.flatnonzero(profile.hidden)[rows]
    columns = (profile.user, profile.label, profile.probabilities, profile.hidden)
    return metrics_of(Evaluated(events, {"age": ProfileScores(*(c[kept] for c in columns))}, ranks), SCHEMA)


def test_every_metric_is_that_of_repeated_rows() -> None:
    found, draws = made(), Resamples.draw(np.arange(1, USERS + 1), 6, seed=3)
    samples = resampled(found, SCHEMA, draws)
    counted = {"gauc_users", "gauc_users_left_out", "gauc_rows_left_out", "ndcg_10_users", "count", "users", "queries"}
    told = {"mean_label", "mean_prediction", "majority"}  # of the labels, or calibration's two sides
    names = {name for name in metrics_of(found, SCHEMA) if name.split("/")[1] not in counted | told}
    assert set(samples) == names
    for r in range(6):
        wanted = again(found, draws, r)
        for name in names - {"like/calibration_error"}:
            assert samples[name][r] == pytest.approx(wanted[name], abs=1e-9), name


def test_calibration_error_keeps_the_bins_of_the_whole_sample() -> None:
    found, draws = made(), Resamples.draw(np.arange(1, USERS + 1), 4, seed=3)
    judged = found.events["like"]
    bins = np.searchsorted(quantile_bins(judged.prediction), judged.prediction)
    for r in range(4):
        rows, _ = repeated(draws, r, judged.user)
        gap = (judged.prediction[rows] - judged.label[rows]).astype(np.float64)
        gaps = [gap[bins[rows] == b].sum() for b in range(15)]
        wanted = np.abs(gaps).sum() / len(rows)
        assert resampled(found, SCHEMA, draws)["like/calibration_error"][r] == pytest.approx(wanted, abs=1e-6)


def test_joined_parts_keep_slices_and_the_users_of_ranks() -> None:
    user, label = np.array([1, 2, 3]), np.array([1.0, np.nan, 0.0], np.float32)
    slices = np.array([[0, 5], [1, 6], [2, 7]], np.int16)
    parts = [
        Evaluated({"like": Judged.of(user, label, np.full(3, 0.5), slices)}, {}, {"next": Ranked(user, user * 10)})
    ] * 2
    whole = Evaluated.join(parts)
    np.testing.assert_array_equal(whole.events["like"].slices, [[0, 5], [2, 7]] * 2)
    np.testing.assert_array_equal(whole.ranks["next"].user, [1, 2, 3] * 2)
    np.testing.assert_array_equal(whole.ranks["next"].rank, [10, 20, 30] * 2)
    plain = Evaluated.join([Evaluated({"like": Judged.of(user, label, label)}, {}, {})])
    assert plain.events["like"].slices is None
