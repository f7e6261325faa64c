"""Results: the page is what the file says, rows are replaced by key, nothing tells on the machine."""

import json
import re
import socket

import pytest

from benchmarks import results
from benchmarks.results import Machine, Results, Row, Table

TABLE = Table(
    title="Made", command="python -m benchmarks.made", note="A note.", labels=("model",), columns=("AUC", "parameters")
)


def row(key, arm, seed, auc, parameters=1000.0):
    machine = Machine(cpu="Some CPU", cores=2)
    values = {"AUC": auc, "parameters": parameters}
    return Row(
        key=key, table="made", arm=(arm,), seed=seed, values=values, machine=machine, date="2026-01-02", revision="abc"
    )


def test_the_page_in_the_repository_is_generated_from_the_file():
    assert results.MARKDOWN.read_text(encoding="utf-8") == results.render(results.load())


def test_mean_and_deviation_over_seeds_by_hand():
    rows = (row("a", "student", 0, 0.70), row("b", "student", 1, 0.80), row("c", "popularity", None, 0.6, None))
    page = results.render(Results(tables={"made": TABLE}, rows=rows))
    assert "| model | seeds | AUC | parameters |" in page
    assert "| student | 2 | 0.7500 ± 0.0707 | 1k |" in page
    assert "| popularity | – | 0.6000 | – |" in page
    assert "Measured 2026-01-02 on Some CPU, 2 cores; revision abc." in page


def test_rows_of_another_machine_are_named():
    other = Machine(cpu="Other CPU (family 2)", cores=4)
    rows = (row("a", "student", 0, 0.7), row("b", "student", 1, 0.8))
    moved = row("c", "teacher", 0, 0.6).model_copy(update={"machine": other})
    page = results.render(Results(tables={"made": TABLE}, rows=(moved, *rows)))
    assert "on Some CPU, 2 cores; Other CPU (family 2), 4 cores (teacher); revision" in page


def test_recording_adds_and_replaces_by_key(tmp_path):
    path = tmp_path / "results.json"
    results.record("made", TABLE, [row("a", "student", 0, 0.7)], path)
    results.record("made", TABLE, [row("a", "student", 0, 0.9), row("b", "teacher", 0, 0.8)], path)
    found = results.load(path)
    assert [(r.key, r.values["AUC"]) for r in found.rows] == [("a", 0.9), ("b", 0.8)]
    assert found.find("b").arm == ("teacher",)
    assert found.find("c") is None
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert results.load(tmp_path / "absent.json") == Results()


def test_a_new_recipe_replaces_the_old_one_of_the_same_arm_and_seed(tmp_path):
    path = tmp_path / "results.json"
    old = [row("a0", "student", 0, 0.1), row("a1", "student", 1, 0.2), row("t0", "teacher", 0, 0.3)]
    results.record(
        "made", TABLE, [*old, row("a0", "student", 0, 0.1).model_copy(update={"table": "x", "key": "x"})], path
    )
    results.record("made", TABLE, [row("b0", "student", 0, 0.7), row("c", "other", 0, 0.4)], path)
    assert [r.key for r in results.load(path).rows] == ["a1", "t0", "x", "b0", "c"]


def test_keys_depend_on_content_not_on_order():
    assert results.key_of({"a": 1, "b": 2}, 3) == results.key_of({"b": 2, "a": 1}, 3)
    assert results.key_of({"a": 1}, 3) != results.key_of({"a": 1}, 4)


def test_a_stamp_names_the_processor_and_no_host_or_path():
    text = json.dumps({k: getattr(v, "model_dump", lambda v=v: v)() for k, v in results.stamp().items()})
    assert socket.gethostname() not in text
    assert "/" not in json.loads(text)["machine"]["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", json.loads(text)["date"])


def test_what_is_kept_holds_no_paths():
    text = results.JSON.read_text(encoding="utf-8") if results.JSON.is_file() else ""
    assert not re.search(r'"/\w', text)


@pytest.mark.parametrize(
    ("column", "values", "shown"),
    [("AUC", [], "–"), ("AUC", [None], "–"), ("AUC", [0.5], "0.5000"), ("AUC", [0.5, 0.5], "0.5000"),
     ("candidates/s", [1e5, 3e5], "200k"), ("seconds", [1234.0], "1.23k")],
)  # fmt: skip
def test_summaries(column, values, shown):
    assert results.summary(column, values) == shown
