from __future__ import annotations

import pytest

from rayrank.features.text import item_text, item_title, render_text, template_fields
from rayrank.schema import BinaryTask, CategoricalFeature, DatasetSchema

TEMPLATE = "{title}. {genres}. Directed by {director}. {actors}. {plot}"


def test_a_full_row_fills_the_template() -> None:
    row = {"title": "Heat (1995)", "genres": "Crime", "director": "Mann", "actors": "A, B", "plot": "A heist."}
    assert render_text(TEMPLATE, row) == "Heat (1995). Crime. Directed by Mann. A, B. A heist."


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"title": "Heat"}, "Heat."),
        ({"title": "Heat", "plot": "x"}, "Heat. x"),
        ({"title": "Heat", "director": ""}, "Heat."),
        ({"title": "Heat", "director": None, "actors": float("nan")}, "Heat."),
        ({"title": "Who's There?", "genres": "Comedy"}, "Who's There? Comedy."),
        ({"title": "Heat", "plot": "And then... nothing"}, "Heat. And then... nothing"),
        ({"title": " A \n B ", "actors": ["X", "Y"]}, "A B. X, Y."),
        ({}, ""),
        ({"other": 1}, ""),
    ],
)
def test_missing_columns_leave_no_scars(row: dict[str, object], text: str) -> None:
    assert render_text(TEMPLATE, row) == text


def test_fixed_clauses_stay_and_braces_in_values_are_text() -> None:
    assert render_text("A film. {title}", {"title": "{plot}"}) == "A film. {plot}"
    assert render_text("A film. {title}", {}) == ""


def test_template_fields_are_column_names() -> None:
    assert template_fields(TEMPLATE) == ["title", "genres", "director", "actors", "plot"]
    with pytest.raises(ValueError, match="column name"):
        template_fields("{}")


def test_multi_valued_cells_read_as_a_list_and_titles_fall_back_to_the_id() -> None:
    schema = DatasetSchema(
        name="x",
        tasks=(BinaryTask(name="y", column="y"),),
        item_features=(CategoricalFeature(name="genres", column="genres", separator="|", max_values=3),),
        text="{title}. {genres}",
        title="title",
    )
    assert item_text(schema, {"title": "Heat", "genres": "Crime|Drama"}) == "Heat. Crime, Drama"
    assert item_title(schema, {"title": None}, "i7") == "i7"
    assert item_title(schema, {"title": "Heat"}, "i7") == "Heat"
