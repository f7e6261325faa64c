"""Bring-your-own tables: three formats give the same dataset; every kind of bad input names itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError
from rayrank.sources.build import build, run_here
from rayrank.sources.config import open_source
from rayrank.sources.dataset import Dataset
from rayrank.sources.files import file_parts
from rayrank.sources.source import canonical, key_text, to_seconds
from rayrank.sources.spec import BuildSpec
from rayrank.sources.tables import Tables, TablesConfig

SCHEMA = """
name: shop
user_id: customer
item_id: sku
timestamp: at
time_unit: ms
request_id: page
tasks:
  - {kind: binary, name: buy, column: bought}
  - {kind: regression, name: stars, column: stars, low: 1, high: 5}
  - {kind: multiclass, name: age, column: age, classes: ["young", "old"]}
user_features: [{kind: categorical, name: zip, column: zip}]
item_features:
  - {kind: categorical, name: tags, column: tags, separator: "|", max_values: 2}
  - {kind: numeric, name: price, column: price}
context_features: [{kind: categorical, name: tab, column: tab}]
text: "{title}. {note}"
title: title
"""
START = 1_700_000_000
EVENTS = [
    {
        "customer": u,
        "sku": s,
        "at": (START + t) * 1000 + 7,
        "page": f"p{t}",
        "bought": b,
        "stars": r,
        "tab": tab,
        "junk": 1,
    }
    for u, s, t, b, r, tab in [
        (1, "a", 10, 1, 4.5, 0),
        (1, "b", 20, 0, None, 1),
        (1, "c", 30, 1, 1.0, 1),
        (2, "b", 15, 0, 3.0, None),
        (2, "zz", 25, 1, None, 0),
    ]
]
ITEMS = [
    {"id": "a", "title": "Alpha", "note": "One, two", "tags": "x|y", "price": 1.5},
    {"id": "b", "title": "Beta", "note": None, "tags": None, "price": 2.5},
    {"id": "c", "title": "Gamma", "note": "Three", "tags": "y", "price": None},
]
USERS = [{"customer": 1, "zip": "007", "age": "young"}, {"customer": 2, "zip": "010", "age": "old"}]


def _write(folder: Path, name: str, rows: list[dict], suffix: str) -> str:
    path = folder / f"{name}.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def _config(folder: Path, suffix: str = "csv", **changes: object) -> TablesConfig:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "dataset.yaml").write_text(SCHEMA)
    config = {
        "dataset": str(folder / "dataset.yaml"),
        "interactions": _write(folder, "events", EVENTS, suffix),
        "items": _write(folder, "items", ITEMS, suffix),
        "users": _write(folder, "users", USERS, suffix),
        "items_key": "id",
    }
    return TablesConfig(**config | changes)  # type: ignore[arg-type]


def _dataset(folder: Path, config: TablesConfig) -> Dataset:
    build(BuildSpec(source=config, path=str(folder / "out")), run_here, lambda _: None)
    return Dataset.open(str(folder / "out"), verify=True)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "tsv"])
def test_every_format_gives_the_same_bytes_as_csv(tmp_path: Path, suffix: str) -> None:
    one = _dataset(tmp_path / "csv", _config(tmp_path / "csv"))
    two = _dataset(tmp_path / suffix, _config(tmp_path / suffix, suffix))
    assert one.manifest.data_fingerprint == two.manifest.data_fingerprint


def test_columns_become_what_the_schema_says(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, _config(tmp_path))
    items = dataset.catalogue_table().to_pydict()
    assert items["item_id"] == ["a", "b", "c", "zz"], "an orphan follows the table"
    assert items["text"] == ["Alpha. One, two", "Beta.", "Gamma. Three", ""]
    assert items["title"] == ["Alpha", "Beta", "Gamma", "zz"]
    assert (dataset.manifest.counts.orphan_items, dataset.manifest.counts.orphan_users) == (1, 0)
    rows = {r["user"]: r for group in dataset.groups() for r in dataset.read_group(*group).to_pylist()}
    assert rows[1]["item"] == [1, 2, 3]
    assert rows[1]["time"] == [START + 10, START + 20, START + 30], "milliseconds become seconds"
    assert rows[1]["label_buy"] == [1, 0, 1]
    assert rows[1]["label_stars"][0] == 4.5
    assert rows[1]["label_stars"][1] != rows[1]["label_stars"][1], "missing is NaN"
    assert dataset.manifest.features.context.categories["tab"] == ("0",)
    assert rows[1]["context_tab"] == [1, 0, 0], "only training values are known"
    assert dataset.manifest.features.users.categories["zip"] == ("007",), "categories stay as written"


def test_folders_and_globs_read_every_file_in_name_order(tmp_path: Path) -> None:
    config = _config(tmp_path)
    (tmp_path / "days").mkdir()
    _write(tmp_path / "days", "2", EVENTS[3:], "jsonl")
    _write(tmp_path / "days", "1", EVENTS[:3], "parquet")
    (tmp_path / "days" / "_temporary.csv").write_text("x")
    (tmp_path / "days" / "notes.txt").write_text("x")
    for path in (str(tmp_path / "days"), str(tmp_path / "days" / "*.*")):
        source = Tables(config.model_copy(update={"interactions": path}))
        parts = source.parts()
        assert [(p.rows, p.first_row) for p in parts] == [(2, 0), (1, 2), (2, 3)]
        table = pa.concat_tables([t for p in parts for t in source.read(p)], promote_options="permissive")
        assert table["item_id"].to_pylist() == ["a", "b", "c", "b", "zz"]
        assert table["row"].to_pylist() == [0, 1, 2, 3, 4]


def test_byte_ranges_of_a_csv_keep_rows_and_header_apart(tmp_path: Path) -> None:
    config = _config(tmp_path, part_bytes=1)
    source = Tables(config)
    parts = source.parts()
    assert len(parts) > 3
    assert sum(p.rows for p in parts) == 5
    table = pa.concat_tables([t for p in parts for t in source.read(p)], promote_options="permissive")
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["item_id"].to_pylist() == ["a", "b", "c", "b", "zz"]


def test_blank_lines_and_windows_line_ends_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(b"a,b\r\n1,2\r\n\r\n\n3,4")
    assert sum(p.rows for p in file_parts(str(path))) == 2
    assert sum(p.rows for p in file_parts(str(path), part_bytes=3)) == 2


@pytest.mark.parametrize(
    ("column", "unit", "seconds"),
    [
        (pa.array([1_700_000_000_999, -1]), "ms", [1_700_000_000, -1]),
        (pa.array([1.7e9, 1.5]), "s", [1_700_000_000, 1]),
        (pa.array(["1700000000", "5"]), "s", [1_700_000_000, 5]),
        (pa.array(["1.5e3"]), "s", [1500]),
        (pa.array(["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"]), "ms", [1_700_000_000] * 2),
        (pa.array(["2023-11-14 22:13:20"]), "s", [1_700_000_000]),
        (pa.array([1_700_000_000_123_456_789]), "ns", [1_700_000_000]),
        (pa.array([0, 1], pa.timestamp("ms")), "s", [0, 0]),
        (pa.array([1], pa.date32()), "s", [86_400]),
    ],
)
def test_times_of_any_kind_become_seconds(column: pa.Array, unit: str, seconds: list[int]) -> None:
    assert to_seconds(pa.chunked_array([column]), unit, "file", "t").to_pylist() == seconds


def test_keys_of_any_kind_become_text() -> None:
    for values, texts in (([1, 2], ["1", "2"]), ([1.0, None], ["1", None]), (["", "x"], [None, "x"])):
        assert key_text(pa.chunked_array([pa.array(values)]), "file", "k").to_pylist() == texts


@pytest.mark.parametrize(
    ("file", "old", "new", "rule"),
    [
        ("events.csv", "customer", "klient", "column is missing; the file has: klient, sku"),
        ("events.csv", "1700000010007", "soon", "times must be numbers or ISO-8601"),
        ("events.csv", "1,a,", ",a,", r"must not be missing \(row 0\)"),
        ("events.csv", "p10,1", "p10,yes", "labels must be numbers"),
        ("items.csv", "price", "cost", "column is missing; the file has: id, title"),
        (
            "items.csv",
            "price",
            "prise",
            r"column is missing.*correct .*yaml or the file \(did you mean 'prise'\?\)",
        ),
        ("items.csv", "id,", "idd,", r"fix: name the key .* in source.items_key \(did you mean 'idd'\?\)"),
        ("items.csv", "b,Beta", "a,Beta", r"ids must be unique; .*key in source\.items_key"),
        ("users.csv", "age", "alter", "column is missing"),
        ("dataset.yaml", "{title}. {note}", "{}", "must be a column name"),
        ("dataset.yaml", "{note}", "{notes}", "column is missing"),
        ("dataset.yaml", "column: bought", "column: '*'", "no negative to learn from"),
        ("dataset.yaml", "time_unit: ms", "time_unit: min", "Input should be"),
        ("dataset.yaml", "name: tab, column: tab", "name: tab, column: tab, separator: '|'", "one value per inter"),
    ],
)
def test_bad_input_names_file_rule_and_fix(tmp_path: Path, file: str, old: str, new: str, rule: str) -> None:
    config = _config(tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=rule) as caught:
        _dataset(tmp_path, config)
    assert caught.value.fix


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(ConfigError, match="no file, folder or glob match"):
        _dataset(tmp_path, config.model_copy(update={"items": str(tmp_path / "none*.csv")}))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="must be Parquet"):
        _dataset(tmp_path, config.model_copy(update={"interactions": str(tmp_path / "bad.parquet")}))
    (tmp_path / "latin.csv").write_bytes("id,title,note,tags,price\na,Amélie,,,1\n".encode("iso-8859-1"))
    with pytest.raises(ConfigError, match="in UTF-8"):
        _dataset(tmp_path, config.model_copy(update={"items": str(tmp_path / "latin.csv")}))
    (tmp_path / "empty.csv").write_text("customer,sku,at,page,bought,stars,tab\n")
    with pytest.raises(ConfigError, match="interactions must not be empty"):
        _dataset(tmp_path, config.model_copy(update={"interactions": str(tmp_path / "empty.csv")}))


def test_python_sources_run_only_when_allowed(tmp_path: Path) -> None:
    target = "rayrank.sources.synthetic:Synthetic"
    spec = {"kind": "python", "target": target, "options": {"config": None}}
    refused = BuildSpec(source=spec, path=str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="also allows it"):
        open_source(refused.source)
    allowed = BuildSpec(source=spec | {"allow": [target]}, path=str(tmp_path))  # type: ignore[arg-type]
    assert type(open_source(allowed.source)).__name__ == "Synthetic"
    lost = BuildSpec(source={"kind": "python", "target": "no.such:C", "allow": ["no.such:C"]}, path="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="importable"):
        open_source(lost.source)


def test_boolean_and_thresholded_labels(tmp_path: Path) -> None:
    schema = Tables(_config(tmp_path)).schema
    raw = pa.table(
        {"customer": ["1"], "sku": ["a"], "at": [1], "page": [None], "bought": [True], "stars": ["4"], "tab": [None]}
    )
    table = canonical(schema, raw, 5, "file")
    assert table["label_buy"].to_pylist() == [1.0]
    assert table["label_stars"].to_pylist() == [4.0]
    assert table["row"].to_pylist() == [5]
