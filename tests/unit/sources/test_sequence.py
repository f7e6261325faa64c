"""Requests, sorting and counting of one bucket, by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrank.batch import FAR
from rayrank.schema import BinaryTask, CategoricalFeature, DatasetSchema, NumericFeature, RegressionTask
from rayrank.sources.late import Known
from rayrank.sources.sequence import add_context, build_sequences, count_context, count_items, request_numbers

SCHEMA = DatasetSchema(
    name="x",
    tasks=(BinaryTask(name="like", column="l"), RegressionTask(name="stars", column="s")),
    context_features=(CategoricalFeature(name="tab", column="tab"), NumericFeature(name="n", column="n")),
)


def _rows(**columns: list) -> pa.Table:
    n = len(columns["user_id"])
    table = {"row": list(range(n)), "label_like": [1.0] * n, "label_stars": [None] * n, "context_tab": ["a"] * n}
    table |= {"context_n": [1.0] * n} | columns
    types = {"label_like": pa.float32(), "label_stars": pa.float32()}
    return pa.table({k: pa.array(v, types.get(k)) for k, v in table.items()})


def test_equal_timestamps_share_a_request() -> None:
    time = np.array([5, 5, 7, 9, 9, 9, 1, 1])
    assert request_numbers(np.array([0, 6, 8]), time, None).tolist() == [0, 0, 1, 2, 2, 2, 0, 0]


def test_a_request_id_joins_different_times_and_what_lies_between() -> None:
    time = np.array([1, 2, 3, 4, 5, 6])
    request = np.array([0, 1, 1, 2, 1, 3])  # request 1 spans times 2..5 and swallows request 2
    assert request_numbers(np.array([0, 6]), time, request).tolist() == [0, 1, 1, 1, 1, 2]


def test_unknown_request_ids_stand_alone_and_users_do_not_mix() -> None:
    time = np.array([1, 2, 3, 1, 2])
    request = np.array([-1, -1, 7, 7, -1])  # the id 7 of one user is not the id 7 of another
    assert request_numbers(np.array([0, 3, 5]), time, request).tolist() == [0, 1, 2, 0, 1]


def test_rows_in_any_order_become_sorted_sequences() -> None:
    rows = _rows(
        user_id=["b", "a", "b", "a", "b"], item_id=["i2", "i1", "i1", "i3", "i3"], timestamp=[30, 20, 10, 10, 30]
    )
    made = build_sequences(rows, SCHEMA, pa.array(["i1", "i2", "i3"]), Known(None, 9, 5))
    assert made.users["user_id"].to_pylist() == ["a", "b"]
    assert made.events["item"].to_pylist() == [3, 1, 1, 2, 3]  # equal times keep the file order
    assert made.events["row"].to_pylist() == [3, 1, 2, 0, 4]
    assert made.events["request"].to_pylist() == [0, 1, 0, 1, 1]
    assert made.events["part"].to_pylist() == [2, 3, 1, 2, 3]
    assert made.users["train_count"].to_pylist() == [0, 1]
    assert made.users["valid_from"].to_pylist() == [0, 1]
    assert made.users["test_from"].to_pylist() == [1, 1]


def test_a_user_without_a_part_starts_it_never() -> None:
    rows = _rows(user_id=["a"], item_id=["i1"], timestamp=[1])
    made = build_sequences(rows, SCHEMA, pa.array(["i1"]), Known(None, 9, 1))
    assert made.users["valid_from"].to_pylist() == [FAR]
    assert made.users["test_from"].to_pylist() == [0]


def test_only_training_labels_are_counted() -> None:
    events = pa.table(
        {
            "item": [1, 2, 1, 1],
            "part": pa.array([1, 1, 1, 3], pa.int8()),
            "history": [True, True, False, True],
            "sampled": [False, False, True, False],
            "label_like": pa.array([1, 0, 0, 1], pa.float32()),
            "label_stars": pa.array([4, None, None, 5], pa.float32()),
            "context_tab": ["a", "b", "z", "z"],
            "context_n": [1.0, None, 9.0, 9.0],
        }
    )
    counts = count_items(events, SCHEMA).to_pydict()
    assert counts["item"] == [1, 2]
    assert counts["train_count"] == [1, 1]  # the sampled negative is a label, not an event
    assert counts["train_count_like"] == [2, 1]
    assert counts["train_sum_like"] == [1, 0]
    assert counts["train_count_stars"] == [1, 0]
    assert counts["train_sum_stars"] == [4, 0]
    context = count_context(events, SCHEMA)
    assert context["tab"] == {"a": 1, "b": 1}
    assert context["n"] == {"count": 1, "total": 1.0, "squares": 1.0}
    assert add_context(context, context)["tab"] == {"a": 2, "b": 2}
    assert add_context(context, context)["n"] == {"count": 2, "total": 2.0, "squares": 2.0}
