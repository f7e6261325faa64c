from __future__ import annotations

import math

import numpy as np
import pytest

from rayrank.features.encode import encode_categorical, encode_numeric, index_of, pad_lists
from rayrank.features.state import (
    FeatureState,
    Moments,
    Scale,
    TableState,
    category_text,
    check_state,
    count_categories,
    count_moments,
    fit_categories,
    fit_scale,
)
from rayrank.schema import BinaryTask, CategoricalFeature, DatasetSchema, NumericFeature

COLOUR = CategoricalFeature(name="colour", column="colour", min_count=2)
TAGS = CategoricalFeature(name="tags", column="tags", separator="|", max_values=2)
PRICE = NumericFeature(name="price", column="price")


def test_one_category_has_one_text_whatever_its_type() -> None:
    assert {category_text(v) for v in (35, 35.0, "35", "35.0", np.int64(35))} == {"35"}
    assert [category_text(v) for v in (None, "", float("nan"))] == [None, None, None]
    assert category_text(True) == "true"
    assert category_text(1.5) == "1.5"
    assert category_text("007") == "007"


def test_a_vocabulary_is_ordered_by_count_then_text_and_drops_rare_values() -> None:
    counts = count_categories(COLOUR, ["red", "blue", None, "green"], [2, 3, 9, 1])
    assert counts == {"red": 2, "blue": 3, "green": 1}
    assert fit_categories(COLOUR, counts) == ("blue", "red")
    assert fit_categories(COLOUR, {"b": 2, "a": 2}) == ("a", "b")


def test_unknown_missing_and_rare_categories_are_index_zero() -> None:
    index = index_of(("blue", "red"))
    assert encode_categorical(COLOUR, index, ["red", "green", None, "", "blue"]) == [2, 0, 0, 0, 1]


def test_a_multi_valued_cell_keeps_its_first_known_values_once() -> None:
    index = index_of(("a", "b", "c"))
    cells = ["b|a|c", "x|c", "c|c|b", None, ["a", "b"]]
    assert encode_categorical(TAGS, index, cells) == [[2, 1], [3], [3, 2], [], [1, 2]]
    assert pad_lists([[2, 1], [], [3]], 3).tolist() == [[2, 1, 0], [0, 0, 0], [3, 0, 0]]


def test_numbers_are_standardised_and_missing_is_the_mean() -> None:
    moments = count_moments(PRICE, [1, None, "3", "free", float("inf")])
    assert moments == Moments(count=2, total=4.0, squares=10.0)
    scale = fit_scale(moments)
    assert (scale.mean, scale.std) == (2.0, 1.0)
    assert encode_numeric(PRICE, scale, [3, None, "x", 1e9]).tolist() == [1.0, 0.0, 0.0, 10.0]


def test_log_scaling_and_constant_columns() -> None:
    log = NumericFeature(name="n", column="n", log=True)
    assert count_moments(log, [math.e - 1, -5]).total == pytest.approx(1.0)
    assert fit_scale(Moments(count=3, total=6.0, squares=12.0)) == Scale(mean=2.0, std=1.0)
    assert fit_scale(Moments()) == Scale(mean=0.0, std=1.0)


def test_moments_add_up_over_shards() -> None:
    values = [0.5, 2.0, 7.0, 1.0]
    assert count_moments(PRICE, values[:1]) + count_moments(PRICE, values[1:]) == count_moments(PRICE, values)


def test_a_state_of_another_schema_is_noticed() -> None:
    schema = DatasetSchema(name="x", tasks=(BinaryTask(name="y", column="y"),), item_features=(COLOUR, PRICE))
    assert check_state(FeatureState(), schema) == ["colour", "price"]


def test_a_vocabulary_has_one_more_index_than_categories() -> None:
    assert TableState(categories={"tags": ("a", "b")}).size("tags") == 3, "0 is unknown"
