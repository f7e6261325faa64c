"""Profile accuracy, recall and the flat summary, by hand."""

import math

import numpy as np
import pytest

from rayrank.metrics.evaluated import Judged
from rayrank.metrics.scores import ProfileScores
from rayrank.metrics.summary import (
    binary_metrics,
    metric_names,
    profile_metrics,
    regression_metrics,
    retrieval_metrics,
)
from rayrank.schema import BinaryTask, MulticlassTask, RegressionTask, RetrievalTask

NOBODY = Judged.of(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))


def profile(label, predicted, hidden):
    probabilities = np.eye(3, dtype=np.float32)[predicted] * 0.8 + 0.1
    return ProfileScores(np.arange(len(label)), np.array(label, np.int16), probabilities, np.array(hidden, bool))


def test_names_are_those_that_are_said():
    said = {
        BinaryTask(name="t", column="c", at_least=1): binary_metrics(NOBODY),
        RegressionTask(name="t", column="c", low=1, high=5): regression_metrics(NOBODY),
        MulticlassTask(name="t", column="c", classes=("a", "b")): profile_metrics(profile([], [], [])),
        RetrievalTask(name="t", positive="like"): retrieval_metrics(np.zeros(0, np.int32)),
    }
    for task, metrics in said.items():
        assert metric_names(task) == tuple(metrics), task.kind


def test_profile_accuracy_is_over_hidden_users_against_the_majority_of_the_others():
    scores = profile([2, 2, 1, 0, 0, 2], [0, 0, 0, 0, 2, 2], [False, False, False, True, True, True])
    metrics = profile_metrics(scores)
    # Seen classes 2, 2, 1: the majority is 2, right for one of the three hidden users; the model for two.
    assert metrics == {"accuracy": pytest.approx(2 / 3), "majority": pytest.approx(1 / 3), "users": 3.0}


def test_profile_without_hidden_users_is_nan():
    assert math.isnan(profile_metrics(profile([1, 0], [1, 0], [False, False]))["accuracy"])
    assert math.isnan(profile_metrics(profile([], [], []))["accuracy"])


def test_recall_counts_ranks_up_to_k():
    ranks = np.array([1, 100, 101, 10], np.int32)
    metrics = retrieval_metrics(ranks)
    assert metrics == {"recall_100": 0.75, "recall_10": 0.5, "median_rank": 55.0, "queries": 4.0}


def test_binary_summary_names_what_was_left_out():
    user = np.array([1, 1, 2, 2, 3])
    label = np.array([1, 0, 1, 1, np.nan], np.float32)
    metrics = binary_metrics(Judged.of(user, label, np.array([0.8, 0.3, 0.6, 0.7, 0.5], np.float32)))
    assert metrics["auc"] == 1.0
    assert (metrics["gauc"], metrics["gauc_users"], metrics["gauc_users_left_out"]) == (1.0, 1.0, 1.0)
    assert (metrics["gauc_rows_left_out"], metrics["count"]) == (2.0, 4.0)
    assert metrics["mean_label"] == 0.75
    assert metrics["mean_prediction"] == pytest.approx(0.6)
    assert metrics["calibration"] == pytest.approx(2.4 / 3)


def test_summaries_of_nothing_are_nan_not_errors():
    assert math.isnan(binary_metrics(NOBODY)["log_loss"])
    assert math.isnan(regression_metrics(NOBODY)["rmse"])
