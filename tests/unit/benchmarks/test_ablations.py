"""The columns of the ablations' table, on scores made by hand; what of a log an arm may see."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.ablations import TABLE, Seen, row_values
from rayrank.metrics.order import auc
from rayrank.metrics.scores import Scores
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask

SIZE = 4000
SCHEMA = DatasetSchema(
    name="made",
    user_id="user",
    item_id="item",
    tasks=(BinaryTask(name="like", column="like"), RegressionTask(name="rating", column="rating", low=1, high=5)),
)


def scores() -> Scores:
    rng = np.random.default_rng(0)
    like, item = rng.integers(0, 2, SIZE).astype(np.float32), rng.integers(1, 200, SIZE)
    said = rng.random(SIZE).astype(np.float32)
    cold = Seen.is_cold(torch.as_tensor(item)).numpy()
    said[cold] = (0.2 + 0.6 * like)[cold]  # right about every cold item, a coin about the rest
    rating = rng.integers(1, 6, SIZE).astype(np.float32)
    return Scores(
        np.arange(SIZE), rng.integers(1, 9, SIZE), np.zeros(SIZE, np.int32), item, np.full(SIZE, 3, np.int8),
        {"like": like, "rating": rating}, {"like": said, "rating": rating + 1},
    )  # fmt: skip


def test_a_row_holds_every_column_and_cold_items_by_themselves() -> None:
    prepared: Any = SimpleNamespace(dataset=SimpleNamespace(schema=SCHEMA))
    made = scores()
    warm, cold = row_values(made, prepared, cold=False), row_values(made, prepared, cold=True)
    assert {*warm, "seconds"} == set(TABLE.columns)
    assert warm["cold AUC"] is None
    assert warm["AUC"] == pytest.approx(auc(made.labels["like"], made.predictions["like"]))
    assert warm["RMSE"] == pytest.approx(1.0)
    assert cold["cold AUC"] == cold["cold GAUC"] == 1.0
    assert cold["AUC"] < 0.6
