from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rayrank.config import ConfigError
from rayrank.features.state import TableState
from rayrank.schema import CategoricalFeature, MulticlassTask, NumericFeature
from rayrank.sources.dataset import feature_tensor, pad_list_array
from rayrank.sources.entities import encode_column, encode_entities, fit_entities, index_ids, profile_columns
from rayrank.sources.hashing import mix, text_hash, unit

TAGS = CategoricalFeature(name="tags", column="tags", separator="|", max_values=2)
COLOUR = CategoricalFeature(name="colour", column="colour")
PRICE = NumericFeature(name="price", column="price")


def test_ids_keep_the_tables_order_and_orphans_follow_sorted() -> None:
    table = pa.table({"item_id": ["z", "a"]})
    ids, orphans = index_ids(table, "item_id", pa.array(["q", "a", "b"]), "items")
    assert (ids.to_pylist(), orphans) == (["z", "a", "b", "q"], 2)
    ids, orphans = index_ids(None, "item_id", pa.array(["q", "a"]), "items")
    assert (ids.to_pylist(), orphans) == (["a", "q"], 0)
    for broken, rule in ((["a", "a"], "unique"), (["a", None], r"missing \(row 1\)")):
        with pytest.raises(ConfigError, match=rule):
            index_ids(pa.table({"item_id": broken}), "item_id", pa.array(["a"]), "items")


def test_columns_of_every_type_encode_like_their_cells() -> None:
    state = TableState(categories={"colour": ("1", "red"), "tags": ("x", "y")})
    for column in (pa.array(["red", None, "1"]), pa.array(["red", None, "1"]).dictionary_encode()):
        assert encode_column(COLOUR, state, column).to_pylist() == [2, 0, 1]
    assert encode_column(COLOUR, state, pa.array([1.0, None, 7.0])).to_pylist() == [1, 0, 0]
    assert encode_column(COLOUR, state, pa.nulls(2)).to_pylist() == [0, 0]
    assert encode_column(TAGS, state, pa.array(["y|x|y", None])).to_pylist() == [[2, 1], []]
    assert encode_column(TAGS, state, pa.array([["y"], None, ["q", "x"]])).to_pylist() == [[2], [], [1]]


def test_entities_past_the_table_have_no_attributes() -> None:
    table = pa.table({"colour": ["red", "blue"], "price": [1.0, 3.0]})
    state = fit_entities(table, (COLOUR, PRICE), np.array([True, True, False]))
    encoded = encode_entities(table, (COLOUR, PRICE), state, 3)
    assert encoded["colour"].to_pylist() == [2, 1, 0]
    assert encoded["price"].to_pylist() == [-1.0, 1.0, 0.0]


def test_untrained_entities_teach_nothing() -> None:
    table = pa.table({"colour": ["red", "blue"], "price": [1.0, 3.0]})
    state = fit_entities(table, (COLOUR, PRICE), np.array([False, True]))
    assert state.categories["colour"] == ("blue",)
    assert (state.scales["price"].mean, state.scales["price"].std) == (3.0, 1.0)


def test_hidden_users_are_a_stable_share_and_the_same_for_every_task() -> None:
    ids = pa.array([f"u{i}" for i in range(20_000)])
    age = MulticlassTask(name="age", column="age", classes=("a", "b"))
    sex = MulticlassTask(name="sex", column="sex", classes=("f", "m"), hidden_share=0.5)
    table = pa.table({"age": ["b", None, "zzz"], "sex": ["f", "m", "m"]})
    columns = profile_columns(table, ids, (age, sex))
    assert columns["profile_age"][:4].tolist() == [1, -1, -1, -1]
    assert columns["profile_sex"][:4].tolist() == [0, 1, 1, -1]
    assert abs(columns["hidden_age"].mean() - 0.2) < 0.01  # type: ignore[union-attr]
    assert abs(columns["hidden_sex"].mean() - 0.5) < 0.01  # type: ignore[union-attr]
    assert (columns["hidden_sex"] | ~columns["hidden_age"]).all()  # type: ignore[operator]
    again = profile_columns(table, ids.slice(100), (age,))
    assert (again["hidden_age"] == columns["hidden_age"][100:]).all()


def test_hashes_are_the_same_everywhere() -> None:
    assert text_hash(["a", ""]).tolist() == [3_405_396_810_240_292_928, 13_020_603_013_274_838_756]
    assert text_hash(["a"])[0] == text_hash(["b", "a"])[1]
    assert mix(np.array([1]), salt=1).tolist() == [10_451_216_379_200_822_465]
    values = mix(np.arange(1000), salt=3)
    assert len(np.unique(values)) == 1000
    assert (values != mix(np.arange(1000), salt=4)).all()
    assert abs(unit(np.arange(100_000), 1).mean() - 0.5) < 0.005


def test_padding_cuts_fills_and_respects_slices() -> None:
    lists = pa.array([[1], [2, 3], [], [4, 5, 6]])
    assert pad_list_array(lists, 2, np.int64, 0).tolist() == [[1, 0], [2, 3], [0, 0], [4, 5]]
    assert pad_list_array(lists.slice(1, 2), 3, np.int64, -1).tolist() == [[2, 3, -1], [-1, -1, -1]]
    assert feature_tensor(TAGS, lists, unknown_row=True).tolist() == [[0, 0], [1, 0], [2, 3], [0, 0], [4, 5]]
    assert feature_tensor(PRICE, pa.array([0.5]), unknown_row=True).tolist() == [0.0, 0.5]
